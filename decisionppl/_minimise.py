"""Smooth unconstrained minimisation: BFGS from many starts at once, inside compiled programs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

MAX_STEPS = 100

_DECREASE = 1e-4  # share of the predicted decrease that a step must achieve
_LONGEST = 4.0  # a step may be this many times as long as the longest accepted before it


class Minimum(NamedTuple):
    """Where each start of `minimise` ended.

    Attributes:
        x: the best point found, [restarts, n].
        value: the objective there, [restarts]; inf where it is not finite at the start.
        converged: True where no decrease beyond the tolerance is expected, [restarts].
        steps: evaluations used, [restarts].
    """

    x: jax.Array
    value: jax.Array
    converged: jax.Array
    steps: jax.Array


class _Search(NamedTuple):
    x: jax.Array
    value: jax.Array
    gradient: jax.Array
    inverse: jax.Array  # estimate of the inverse Hessian [n, n]
    fresh: jax.Array  # True while `inverse` has seen no curvature
    direction: jax.Array
    length: jax.Array  # the next trial is x + length * direction
    longest: jax.Array
    steps: jax.Array
    done: jax.Array
    converged: jax.Array


def minimise(
    fn: Callable[[jax.Array], jax.Array],
    starts: jax.Array,
    *,
    max_steps: int = MAX_STEPS,
    tolerance: float | None = None,
) -> Minimum:
    r"""Minimise a smooth function of n real variables from each of several starts.

    BFGS with a dense inverse Hessian, for up to a few hundred variables. Every step is one
    evaluation of the objective and its gradient, for all starts together: each start takes its
    trial point or, on its own, tries a shorter step next. The objective is traced once. Steps
    grow from length 1, so variables should be of order one (logarithms, logits).

    Pure; works under `jit`, `vmap` and `scan`, in float32 and float64.

    Args:
        fn: `[n] -> scalar`, differentiable. Where its value or gradient is not finite the value
            counts as inf, and the search steps back.
        starts: [restarts, n].
        max_steps: evaluations allowed per start.
        tolerance: a start has converged when the predicted decrease :math:`g^T H g / 2` is at
            most `tolerance` times the value (or the last decrease, if larger). By default the
            machine precision to the power 0.75: 2e-12 in float64.

    Returns:
        Minimum: all starts, in their order. `value` is never above the value at the start.

    Raises:
        ValueError: if `starts` is not [restarts, n], or max_steps or tolerance is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> found = minimise(lambda x: jnp.sum((x - 3.0) ** 2), jnp.zeros((2, 1)))
        >>> found.x.round().astype(int).tolist(), found.converged.tolist()
        ([[3], [3]], [True, True])

    References:
        Nocedal and Wright, Numerical Optimization, 2006, algorithm 6.1 and equation 6.20.
    """
    starts = jnp.asarray(starts)
    if starts.ndim != 2:
        raise ValueError(
            f"starts: expected shape [restarts, n], got {starts.shape}. A single start is x[None]."
        )
    if max_steps < 1:
        raise ValueError(f"max_steps: expected at least 1, got {max_steps}.")
    starts = starts.astype(jnp.result_type(starts, float(0)))
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance: expected a number of at least 0, got {tolerance}.")
    default = float(jnp.finfo(starts.dtype).eps) ** 0.75
    enough = default if tolerance is None else tolerance

    def from_start(start: jax.Array) -> Minimum:
        advance = _step(fn, enough)
        go_on = lambda s: ~s.done & (s.steps < max_steps)  # noqa: E731
        end = jax.lax.while_loop(go_on, advance, _begin(start))
        return Minimum(end.x, end.value, end.converged, end.steps)

    return jax.vmap(from_start)(starts)


def _begin(start: jax.Array) -> _Search:
    # a step of length 0 from a value of inf: the first trial is the start itself
    inf, zero = jnp.asarray(jnp.inf, start.dtype), jnp.zeros((), start.dtype)
    no, nowhere = jnp.asarray(False), jnp.zeros_like(start)
    eye = jnp.eye(start.size, dtype=start.dtype)
    one = jnp.ones((), start.dtype)
    steps = jnp.zeros((), jnp.int32)
    return _Search(start, inf, nowhere, eye, ~no, nowhere, zero, one, steps, no, no)


def _step(fn: Callable, tolerance: float) -> Callable[[_Search], _Search]:
    def advance(now: _Search) -> _Search:
        trial = now.x + now.length * now.direction
        value, gradient = jax.value_and_grad(fn)(trial)
        value = value.astype(trial.dtype)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        value, gradient = jnp.where(finite, value, jnp.inf), jnp.where(finite, gradient, 0.0)
        needed = _DECREASE * now.length * (now.gradient @ now.direction)
        good = finite & (value <= now.value + needed)
        taken = _accept(now, trial, value, gradient, tolerance)
        refused = _shorten(now, value)
        after = jax.tree.map(lambda a, b: jnp.where(good, a, b), taken, refused)
        lost = jnp.isinf(after.value)
        return after._replace(steps=now.steps + 1, converged=after.converged & ~lost)

    return advance


def _accept(now: _Search, x, value, gradient, tolerance: float) -> _Search:
    move, change = x - now.x, gradient - now.gradient
    inverse, learnt = _bfgs(now.inverse, now.fresh, move, change)
    fresh = now.fresh & ~learnt
    longest = jnp.maximum(now.longest, _LONGEST * jnp.linalg.norm(move))
    direction = jnp.where(fresh, -_unit(gradient), -(inverse @ gradient))
    slope = gradient @ direction
    # where the function curves down nothing is learnt about step lengths: try longer ones
    length = jnp.where(learnt | (now.length == 0), 1.0, 2.0 * now.length)
    decrease = jnp.where(jnp.isinf(now.value), 0.0, now.value - value)
    small = -0.5 * slope <= tolerance * jnp.maximum(jnp.abs(value), decrease)
    converged = (small & ~fresh) | jnp.all(gradient == 0)
    return now._replace(
        x=x,
        value=value,
        gradient=gradient,
        inverse=inverse,
        fresh=fresh,
        direction=direction,
        length=_at_most(length, direction, longest),
        longest=longest,
        done=converged,
        converged=converged,
    )


def _shorten(now: _Search, value) -> _Search:
    """Minimum of the parabola through the value, the slope and the refused value."""
    slope = now.gradient @ now.direction
    bend = value - now.value - now.length * slope
    fitted = -slope * now.length**2 / (2.0 * jnp.where(bend > 0, bend, 1.0))
    length = jnp.clip(fitted, 0.1 * now.length, 0.5 * now.length)
    # shorter steps show neither in the value nor in x
    eps = jnp.finfo(now.x.dtype).eps
    spent = -slope * length <= 0.5 * eps * jnp.abs(now.value)
    reach = jnp.max(jnp.abs(now.x), initial=1.0)
    spent |= length * jnp.max(jnp.abs(now.direction), initial=0.0) <= eps * reach
    return now._replace(length=length, done=spent, converged=spent)


def _bfgs(inverse, fresh, move, change):
    """The inverse Hessian after a step, and whether the step showed positive curvature."""
    curvature = move @ change
    eps = jnp.finfo(move.dtype).eps
    learnt = curvature > eps * jnp.linalg.norm(move) * jnp.linalg.norm(change)
    rho = 1.0 / jnp.where(learnt, curvature, 1.0)
    # the first step sets the scale, before it counts
    size = jnp.where(learnt, change @ change, 1.0)
    inverse = jnp.where(fresh & learnt, inverse * curvature / size, inverse)
    turned = inverse @ change
    rank_two = rho * (1.0 + rho * (change @ turned)) * jnp.outer(move, move)
    cross = rho * jnp.outer(turned, move)
    return jnp.where(learnt, inverse + rank_two - cross - cross.T, inverse), learnt


def _unit(vector):
    norm = jnp.linalg.norm(vector)
    return vector / jnp.where(norm > 0, norm, 1.0)


def _at_most(length, direction, longest):
    norm = jnp.linalg.norm(direction)
    return jnp.where(
        norm > 0, jnp.minimum(length, longest / jnp.where(norm > 0, norm, 1.0)), length
    )
