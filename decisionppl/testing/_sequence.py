"""Sequence models, as the checks of sequences take them apart.

A sequence model is a NumPyro model whose data sites have a leading axis [steps, ...], such as
one built with `scan`. What is guaranteed exactly is measured against rounding; what is
estimated by Monte Carlo, against its standard error.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from decisionppl._play import Trace, as_key, play
from decisionppl._roles import ROLES, role_of


class Sequence(NamedTuple):
    """A sequence model with its data sites.

    Attributes:
        model, args: as given.
        names: the data sites.
        length: number of steps.
        key: for whatever stays random.
    """

    model: Callable
    args: tuple
    names: tuple[str, ...]
    length: int
    key: jax.Array

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """Values of all random sites, latents included."""
        trace = play(self.model, key)(*self.args)
        random = {n: s for n, s in trace.items() if s["type"] == "sample" and _is_random(s)}
        return {n: jnp.asarray(s["value"]) for n, s in random.items()}

    def trace(self, values: Mapping[str, Any], args: tuple | None = None) -> Trace:
        """The trace given the values of all random sites."""
        fn = handlers.condition(handlers.seed(self.model, self.key), data=dict(values))
        return handlers.trace(fn).get_trace(*(self.args if args is None else args))

    def steps(self, trace: Trace, values: Mapping[str, Any]) -> jax.Array:
        """log p(data of step t | what the laws in `trace` were given), [steps]."""
        total = jnp.zeros(len(next(iter(values.values()))))
        for name in self.names:
            each = trace[name]["fn"].log_prob(values[name])
            total += jnp.sum(each.reshape(each.shape[0], -1), axis=1)
        return total


def _is_random(site: Mapping[str, Any]) -> bool:
    return not site["is_observed"] and not callable(site["value"])


def sequence_of(model: Callable, args: tuple, sites: Any, key: Any) -> Sequence:
    key = as_key(key)
    trace = play(model, key)(*args)
    random = [n for n, s in trace.items() if s["type"] == "sample"]
    if sites is None:
        names = [n for n in random if role_of(trace[n]) in ROLES]
        if not names:
            raise ValueError(
                f"none of the random sites {random} carries a role: declare the data with "
                "dp.outcome, or name them through sites=."
            )
    else:
        names = [sites] if isinstance(sites, str) else list(sites)
        unknown = sorted(set(names) - set(random))
        if unknown:
            raise ValueError(f"sites names {unknown}; the random sites are {random}.")
    lengths = {n: np.shape(trace[n]["value"])[:1] for n in names}
    if len(set(lengths.values())) > 1 or () in lengths.values():
        raise ValueError(
            f"expected data sites with one leading axis [steps, ...], got lengths {lengths}. Name "
            "those that form the sequence through sites=."
        )
    return Sequence(model, args, tuple(names), lengths[names[0]][0], key)


def rounding(scale: float) -> float:
    return 20 * float(jnp.finfo(jnp.zeros(()).dtype).eps) * scale
