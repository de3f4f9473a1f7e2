"""Derivatives of a simulated value beside finite differences of the same runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from decisionppl._play import as_key
from decisionppl.inference._gradient_modes import Mode


class GradientCheck(NamedTuple):
    """A derivative beside finite differences.

    Attributes:
        gradient: mean over runs, flat [parameters].
        finite: finite differences with common random numbers, [parameters].
        stderr: of the difference of the two, paired by run, [parameters].
        cosine: of the angle between the two.
        ratio: length of the gradient along the finite differences, over theirs: 1 if right.
        passed: whether all differences are within `z` standard errors and the tolerance.
        message: what was found.
    """

    gradient: np.ndarray
    finite: np.ndarray
    stderr: np.ndarray
    cosine: float
    ratio: float
    passed: bool
    message: str


def gradient_check(
    objective: Callable,
    params: Any,
    mode: Mode,
    *,
    key: Any,
    num_runs: int = 100,
    epsilon: float = 0.02,
    tolerance: float = 0.05,
    z: float = 4.0,
    batch: int = 50,
) -> GradientCheck:
    """Compare a derivative with central finite differences of the same runs.

    Both sides of a difference see the same random numbers, and both estimates the same runs. Finite
    differences have a bias of order epsilon squared, and a variance that grows as epsilon falls
    where events change their order.

    Args:
        objective: `(params, key, mode) -> number`, usually the mean of `value(..., key=key,
            mode=mode)`; evaluated with `num_runs` keys.
        params: pytree of floats.
        mode: whose derivative is checked. Differences are of the same runs: relaxed, if it is.
        key: PRNG key or int seed.
        num_runs: keys.
        epsilon: step of the differences, relative to one plus the parameter's size.
        tolerance: difference that does not matter, relative to the length of the gradient.
        z: standard errors that are allowed.
        batch: keys at a time.

    Returns:
        `GradientCheck`.

    Raises:
        ValueError: sizes out of range.

    Example:
        >>> from decisionppl.inference import pathwise
        >>> found = pathwise.gradient_check(
        ...     lambda x, key, mode: x["a"] ** 2, {"a": 3.0}, pathwise.ipa(), key=0, num_runs=2)
        >>> found.passed, round(found.ratio, 3)
        (True, 1.0)
    """
    if num_runs < 2 or batch < 1 or not epsilon > 0:
        raise ValueError(
            f"expected num_runs of at least 2, batch of at least 1 and epsilon above zero, got "
            f"{num_runs}, {batch} and {epsilon}."
        )
    flat, restore = ravel_pytree(
        jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), params)
    )
    steps = epsilon * (1 + jnp.abs(flat))

    @jax.jit
    def both(keys: jax.Array) -> tuple:
        def one(key: jax.Array) -> tuple:
            slope = jax.grad(lambda x: objective(restore(x), key, mode))(flat)

            def moved(i: jax.Array) -> jax.Array:
                by = jnp.zeros_like(flat).at[i].set(steps[i])
                up, down = (objective(restore(flat + s * by), key, mode) for s in (1, -1))
                return (up - down) / (2 * steps[i])

            return slope, jax.lax.map(moved, jnp.arange(len(flat)))

        return jax.lax.map(one, keys, batch_size=min(batch, num_runs))

    slope, finite = (np.asarray(x, float) for x in both(jax.random.split(as_key(key), num_runs)))
    gap = (slope - finite).mean(0)
    stderr = (slope - finite).std(0, ddof=1) / num_runs**0.5
    slope, finite = slope.mean(0), finite.mean(0)
    length = np.linalg.norm(finite)
    along, least = slope @ finite, np.finfo(float).tiny  # gradients may be zero
    cosine = float(along / max(np.linalg.norm(slope) * length, least))
    ratio = float(along / max(length**2, least))
    far = np.abs(gap) > z * stderr + tolerance * length
    message = (
        f"{mode.name}: {far.sum()} of {len(far)} components differ from finite differences; "
        f"length {ratio:.3g} of theirs, cosine of the angle {cosine:.3g}."
    )
    return GradientCheck(slope, finite, stderr, cosine, ratio, not far.any(), message)
