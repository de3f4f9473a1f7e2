"""What a factor model says about itself: sizes, scales, noise, the factors' prior."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from decisionppl._play import example_run, play
from decisionppl._roles import role_of
from decisionppl.inference._factors import FactorPrior, factor_prior


class FactorModel(NamedTuple):
    """What the model says about its factors.

    Attributes:
        rank, periods, num_controls: sizes.
        scale: standard deviation of a loading under its prior.
        noise: variance of a control outcome about its mean.
        prior: of the factors; None without them.
    """

    rank: int
    periods: int
    num_controls: int
    scale: float = 1.0
    noise: float = 1.0
    prior: FactorPrior | None = None


def check_period(args: tuple) -> None:
    """Refuse example arguments whose first is no period."""
    if (
        not args
        or jnp.shape(args[0]) != ()
        or not jnp.issubdtype(jnp.result_type(args[0]), jnp.integer)
    ):
        got = repr(args[0]) if args else "no argument"
        raise ValueError(
            f"args: the model's first argument is the period, an int from 0; got {got}. "
            "Pass an example: synthetic_control(model, 0)."
        )


def factor_model(
    model: Callable, trace: Mapping[str, Any], names: tuple[str, str, str], args: tuple,
    periods: int | None,
) -> FactorModel:  # fmt: skip
    """Sizes and scales of a model with sites of the names of factors, loadings, controls."""
    factors, loadings, controls = names
    if factors not in trace and loadings not in trace:
        if periods is None:
            raise ValueError(
                f"the model has no site {factors!r} that says how many periods there are. Give "
                f"periods=, or factors= the name of that site; the model has {list(trace)}."
            )
        width = trace[controls]["value"].shape[0] if controls in trace else 0
        return FactorModel(0, periods, width)
    for name, role in zip(names, (None, None, "outcome"), strict=True):
        if name not in trace or role_of(trace[name]) != role:
            what = role or "latent"
            raise ValueError(
                f"the model has no {what} site {name!r}; its sites are {list(trace)}. Name it in "
                "factors=, loadings= or controls=."
            )
    shapes = [trace[n]["fn"].shape() for n in names]
    fits = [len(s) for s in shapes] == [2, 2, 1]
    if not fits or shapes[1] != (shapes[2][0], shapes[0][0]) or shapes[0][0] > shapes[2][0]:
        raise ValueError(
            f"sites {list(names)}: expected shapes [rank, periods], [controls, rank] and "
            f"[controls], with a rank of at most the number of controls; got {shapes}."
        )
    if periods not in (None, shapes[0][1]):
        raise ValueError(f"periods: {periods} given, but {factors!r} has {shapes[0][1]}.")
    scale = float(np.sqrt(np.mean(np.asarray(trace[loadings]["fn"].variance))))
    prior = factor_prior(factors, trace[factors]["fn"])
    noise = _constant_variance(model, args, [controls])
    if noise is None:
        raise TypeError(
            f"outcome site {controls!r}: expected a Normal law of known scale, since the factors' "
            f"posterior needs it; got {type(trace[controls]['fn']).__name__} whose variance has no "
            "closed form or depends on latents."
        )
    return FactorModel(shapes[0][0], shapes[0][1], shapes[2][0], scale, noise, prior)


def _constant_variance(model: Callable, args: tuple, names: list[str]) -> float | None:
    """Mean variance of outcomes of these sites, if it does not depend on latents."""

    @jax.jit
    def variances(key: Any) -> jax.Array:
        trace = play(model, key)(*args)
        return jnp.stack([jnp.mean(jnp.asarray(trace[n]["fn"].variance)) for n in names])

    try:
        first, second = (np.asarray(variances(jax.random.key(i)), float) for i in (0, 1))
    except NotImplementedError:
        return None
    same = np.array_equal(first, second) and np.isfinite(first).all()
    return float(np.sum(first)) if same else None


def reward_noise(model: Callable, args: tuple) -> float | None:
    """Variance of the rewards of a round about their mean, if it does not depend on latents."""
    trace = example_run(model, args)
    names = [n for n, s in trace.items() if role_of(s) == "reward" and s["type"] == "sample"]
    return _constant_variance(model, args, names) if names else None


class weigh(Messenger):
    """Count the evidence of a round's outcomes by a weight."""

    def __init__(self, fn: Callable, weight: Any) -> None:
        self.weight = weight
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Scale the log density of data; those of latents stay."""
        if msg["type"] == "sample" and role_of(msg) in ("outcome", "reward", "cost"):
            msg["scale"] = self.weight if msg["scale"] is None else self.weight * msg["scale"]
