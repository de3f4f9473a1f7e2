"""A sequence model taken apart: where it starts, and what one step does.

A sequence model is a NumPyro model with one `scan`, whose body draws the next observation from
its law given what the carry knows of the past. Everything that is done with such a model
(teacher forcing, generation, imputation) is done with its body, which is found by running the
model up to the scan.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from decisionppl._play import _cast
from decisionppl._roles import ROLES, role_of


class Steps(NamedTuple):
    """What a sequence model does at each step.

    Its methods may be called inside a model: no site of the sequence reaches the handlers outside.

    Attributes:
        body: `(carry, x) -> (carry, output)`, a NumPyro program.
        init: the carry before any observation.
        xs: covariates, each leaf [length, ...]; None without.
        length: number of steps.
        sites: dict from data site to the shape and dtype of one observation.
    """

    body: Callable
    init: Any
    xs: Any
    length: int
    sites: dict[str, jax.ShapeDtypeStruct]

    @property
    def site(self) -> str:
        """The only data site."""
        if len(self.sites) != 1:
            raise ValueError(
                f"the sequence model has data sites {list(self.sites)}; this needs one that "
                "observes a single site per step."
            )
        return next(iter(self.sites))

    def law(self, carry: Any, x: Any) -> dist.Distribution:
        """Predictive law of the next observation at `x`."""
        with handlers.block(), handlers.trace() as trace:
            handlers.seed(self.body, jax.random.key(0))(carry, x)
        return trace[self.site]["fn"]

    def absorb(self, carry: Any, x: Any, values: Mapping[str, Any]) -> tuple[Any, jax.Array]:
        """The carry after an observation, and its log-probability before."""
        unknown = sorted(set(values) - set(self.sites))
        if unknown:
            raise ValueError(f"values name {unknown}; the data sites are {list(self.sites)}.")

        def observed(site: Any) -> Any:
            return _cast(values[site["name"]], site["fn"]) if site["name"] in values else None

        seeded = handlers.seed(self.body, jax.random.key(0))
        given = handlers.condition(seeded, condition_fn=observed)
        with handlers.block(), handlers.trace() as trace:
            after, _ = given(carry, x)  # pyright: ignore
        log_prob = sum(
            (jnp.sum(trace[n]["fn"].log_prob(trace[n]["value"])) for n in self.sites),
            jnp.zeros(()),
        )
        return _like(after, carry), log_prob

    def draw(self, key: jax.Array, carry: Any, x: Any) -> tuple[Any, dict[str, jax.Array]]:
        """The carry after an imagined observation, and the observation."""
        with handlers.block(), handlers.trace() as trace:
            after, _ = handlers.seed(self.body, key)(carry, x)  # pyright: ignore
        return _like(after, carry), {n: trace[n]["value"] for n in self.sites}


def steps_of(model: Callable, *args: Any) -> Steps:
    """Find the scan of a sequence model.

    Args:
        model: a NumPyro model; its data are the sites with a role inside one `scan`. Parameters
            of networks come in through `handlers.substitute`, before.
        *args: its arguments.

    Returns:
        Steps.

    Raises:
        ValueError: no scan, a scan in reverse, random sites outside the scan, latent sites inside
            it, or no data site.
    """
    capture = _Capture()
    before = handlers.trace(handlers.seed(model, jax.random.key(0)))
    try:
        with handlers.block(), capture:
            before(*args)
    except _Found:
        pass
    else:
        raise ValueError(
            f"model {_name(model)!r} has no numpyro.contrib.control_flow.scan. A sequence model "
            "draws each observation inside a scan, from its law given those before: "
            "scan(step, init, xs) with step(carry, x) -> (carry, y)."
        )
    outside = [n for n, s in before.trace.items() if s["type"] == "sample"]
    if outside:
        raise ValueError(
            f"model {_name(model)!r}: random sites {outside} before the scan. An autoregressive "
            "model has integrated its latents out; for a model with latents use an engine such "
            "as inference.nuts."
        )
    body, init, xs, length, reverse = capture.args
    if reverse:
        raise ValueError(f"model {_name(model)!r} scans in reverse; write the steps forward.")
    if length is None:
        length = jax.tree.leaves(xs)[0].shape[0]
    init = jax.tree.map(jnp.asarray, init)
    xs = jax.tree.map(jnp.asarray, xs)
    return Steps(body, init, xs, length, _data_sites(model, body, init, xs))


class _Found(Exception):
    """The scan was reached; what comes after it is of no interest."""


class _Capture(Messenger):
    """Stops a model at its scan, and keeps what the scan was called with."""

    args: tuple

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow" and msg["fn"].__name__ == "scan_wrapper":
            self.args = tuple(msg["args"][:5])
            raise _Found


def _name(model: Callable) -> str:
    return getattr(model, "__name__", type(model).__name__)


def _data_sites(model: Callable, body: Callable, init: Any, xs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def run(carry: Any, x: Any) -> None:
        with handlers.block(), handlers.trace() as trace:
            handlers.seed(body, jax.random.key(0))(carry, x)
        for name, site in trace.items():
            if site["type"] == "sample" and not site["is_observed"]:
                shape = jax.ShapeDtypeStruct(jnp.shape(site["value"]), site["value"].dtype)
                found[name] = (role_of(site), shape)

    jax.eval_shape(run, init, jax.tree.map(lambda x: x[0], xs))
    latent = [n for n, (role, _) in found.items() if role not in ROLES]
    if latent:
        raise ValueError(
            f"model {_name(model)!r}: sites {latent} inside the scan carry no role. Declare the "
            "data with dp.outcome(name, law); latents are not allowed, since each step must draw "
            "from its law given the past."
        )
    if not found:
        raise ValueError(
            f"model {_name(model)!r} observes nothing inside its scan: declare the data with "
            "dp.outcome(name, law)."
        )
    return {n: shape for n, (_, shape) in found.items()}


def _like(after: Any, before: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), after, before)


def fork(carry: Any, horizon: int) -> Any:
    """A carry to generate from: what it knows stays fixed, and may be shared by many paths.

    Nodes of the carry with a method `fork(horizon)` are replaced by what it returns: a node
    that can take in `horizon` more observations without touching what it holds.
    """
    forks = lambda node: hasattr(node, "fork")  # noqa: E731
    return jax.tree.map(lambda n: n.fork(horizon) if forks(n) else n, carry, is_leaf=forks)


def where(condition: Any, new: Any, old: Any) -> Any:
    """`new` where the condition (a scalar) holds, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def at(xs: Any, t: Any) -> Any:
    """Covariates of step `t`."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, 0, keepdims=False), xs)
