r"""Advantages: how much better what followed a decision was than what its state led to expect.

The differential value V of a policy solves :math:`V(s) = \mathrm{E}[r - J d + V(s')]`, for rewards
r, durations d and their ratio J. It is fitted to features by least-squares temporal differences
with traces, and errors of it are summed with weights that fall geometrically.

References:
    Bradtke and Barto (1996) and Boyan (2002), for the fit; Schulman, Moritz, Levine, Jordan and
    Abbeel, arXiv 1506.02438, for the sums; Dai and Gluzman, arXiv 2008.01644, for both on queues.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_FORGET = 0.99  # weight of earlier updates in the fit: a window of some hundred
_THIN = 4  # the fit of an update is to every fourth step: those next to each other say the same
_RIDGE = 1e-5  # in units of squared features of scale one


class Moments(NamedTuple):
    """What a value is fitted from: averages over steps, of earlier updates too.

    Attributes:
        matrix: of traces and changes of features, [features, features].
        vector: of traces and rewards less their average, [features].
        square: of features, [features].
        reward, spent: sums, whose ratio is J.
        count: updates so far.
    """

    matrix: Any
    vector: Any
    square: Any
    reward: Any
    spent: Any
    count: Any


def no_moments(features: int) -> Moments:
    """Before the first update."""
    return Moments(
        jnp.zeros((features, features)), jnp.zeros(features), jnp.zeros(features), jnp.zeros(()),
        jnp.zeros(()), jnp.zeros((), jnp.int32),
    )  # fmt: skip


def moments(
    before: jax.Array,
    after: jax.Array,
    gain: jax.Array,
    trace: float,
    weight: Any = None,
    every: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`matrix`, `vector` and `square` of some runs.

    Args:
        before, after: features of the states before and after each step, or what is expected of
            the latter, [runs, steps, features].
        gain: rewards less their average, [runs, steps].
        trace: weight of a feature a step later.
        weight: of each run, [runs]; default equal.
        every: use the last step, and each that is so many before another one that is used.
    """
    runs = len(gain)
    weight = jnp.full(runs, 1.0 / runs) if weight is None else weight / jnp.sum(weight)

    def decay(z: jax.Array, row: jax.Array) -> tuple:
        z = trace * z + row
        return z, z

    zero = jnp.zeros_like(before[:, 0])
    traces = jax.lax.scan(decay, zero, before.swapaxes(0, 1))[1].swapaxes(0, 1)
    first = (gain.shape[1] - 1) % every
    traces, before, after, gain = (x[:, first::every] for x in (traces, before, after, gain))
    steps = gain.shape[1]
    # a constant added to features changes no value: traces without their mean see no such change,
    # nor the error of J
    traces = traces - jnp.einsum("r,rti->i", weight, traces) / steps
    weighted = traces * weight[:, None, None] / steps
    return (
        jnp.einsum("rti,rtj->ij", weighted, before - after),
        jnp.einsum("rti,rt->i", weighted, gain),
        jnp.einsum("r,rti->i", weight, before**2) / steps,
    )


def coefficients(matrix: jax.Array, vector: jax.Array, square: jax.Array) -> jax.Array:
    """Of the value in the features, [features]; zero for those that were never other than zero."""
    scale = jnp.where(square > 0, jnp.sqrt(square), 1.0)
    scaled = matrix / scale[:, None] / scale
    return jnp.linalg.solve(scaled + _RIDGE * jnp.eye(len(scale)), vector / scale) / scale


def traced(errors: jax.Array, trace: float) -> jax.Array:
    r"""Sums :math:`\sum_{k \ge t} \lambda^{k - t} \delta_k` [runs, steps] of errors."""

    def back(total: jax.Array, now: jax.Array) -> tuple:
        total = now + trace * total
        return total, total

    zero = jnp.zeros_like(errors[:, 0])
    return jax.lax.scan(back, zero, errors.swapaxes(0, 1), reverse=True)[1].swapaxes(0, 1)


def crossed(before: jax.Array, after: jax.Array, gain: jax.Array, trace: float) -> jax.Array:
    """Advantages [runs, steps] whose values are fitted on each half of the runs to the other."""
    runs = len(gain)
    if runs == 1:  # nothing to fit it on
        return traced(gain, trace)
    half = jnp.arange(runs) % 2

    def change(own: int) -> jax.Array:
        weight = (half != own) * 1.0
        return (after - before) @ coefficients(*moments(before, after, gain, trace, weight))

    return traced(gain + jnp.where(half[:, None] == 0, change(0), change(1)), trace)


def renewed(
    kept: Moments,
    before: jax.Array,
    after: jax.Array,
    reward: jax.Array,
    spent: jax.Array,
    trace: float,
) -> tuple[jax.Array, Moments]:
    """Advantages of an update by the value fitted before it, and what the next one is fitted on.

    The fit is of earlier updates alone: given the states in which the chains go on, it is a
    constant, and as a baseline adds no bias.
    """
    earlier = jnp.where(kept.count > 0, _FORGET, 0.0)
    total, time = earlier * kept.reward + reward.sum(), earlier * kept.spent + spent.sum()
    gain = reward - total / time * spent
    fitted = coefficients(kept.matrix, kept.vector, kept.square)
    change = (after - before) @ jnp.where(kept.count > 0, fitted, 0.0)
    found = traced(gain + change, trace)
    now = moments(before, after, gain, trace, every=_THIN)
    # averages of all that came, each update less by a factor than the next one
    share = (1 - _FORGET) / (1 - _FORGET ** (kept.count + 1.0))
    old = (kept.matrix, kept.vector, kept.square)
    matrix, vector, square = (m + share * (x - m) for m, x in zip(old, now, strict=True))
    return found, Moments(matrix, vector, square, total, time, kept.count + 1)
