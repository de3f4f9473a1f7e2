"""What every estimator of a value or an effect returns."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.typing import ArrayLike


class Effect(NamedTuple):
    """An estimated value or effect, with its uncertainty.

    A pytree of arrays: estimators that return it work under `jax.jit` and `jax.vmap`, and
    `decisionppl.testing.coverage` reads it.

    Attributes:
        estimate: the estimate.
        stderr: its standard error (of a posterior: the standard deviation).
        interval: (lower, upper), each in the shape of the estimate.
        diagnostics: dict from name to array, what the estimator says about itself.
    """

    estimate: Any
    stderr: Any
    interval: tuple[Any, Any]
    diagnostics: dict[str, Any]


def check_level(level: float) -> None:
    """Refuse a level that is no probability."""
    known = isinstance(level, int | float) and not isinstance(level, bool)
    if not known or not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}.")


def normal_interval(
    estimate: ArrayLike, stderr: ArrayLike, level: float = 0.95
) -> tuple[jax.Array, jax.Array]:
    """The interval of a normally distributed estimate, equal tails.

    Args:
        estimate, stderr: arrays of one shape.
        level: share of intervals that shall contain the truth.

    Returns:
        (lower, upper), each in the shape of the estimate.

    Raises:
        ValueError: a level outside (0, 1).

    Example:
        >>> from decisionppl.inference._effect import normal_interval
        >>> [round(float(x), 2) for x in normal_interval(1.0, 0.5)]
        [0.02, 1.98]
    """
    check_level(level)
    centre, half = jnp.asarray(estimate), ndtri((1 + level) / 2) * jnp.asarray(stderr)
    return centre - half, centre + half


def mean_effect(scores: jax.Array, mask: jax.Array, level: float, diagnostics: dict) -> Effect:
    """The mean of independent scores [rows], with the standard error of a mean."""
    count = jnp.sum(mask)
    scores = jnp.where(mask, scores, 0.0)
    estimate = jnp.sum(scores) / count
    squares = jnp.sum(jnp.where(mask, scores - estimate, 0.0) ** 2)
    # one row says nothing about its own variation
    stderr = jnp.where(count > 1, jnp.sqrt(squares / jnp.maximum(count - 1, 1) / count), math.nan)
    return Effect(estimate, stderr, normal_interval(estimate, stderr, level), diagnostics)
