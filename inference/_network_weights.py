r"""Sums over the coins that reach a unit, and what estimators make of them.

With z what a coin said and p its probability, the score of a coin is
:math:`\eta = z/p - (1-z)/(1-p)`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from decisionppl.inference._interference import Interference


class View(NamedTuple):
    """One experiment, as estimators see it.

    Attributes:
        y: outcomes [units].
        z, p: what the coins said and the probability of 1, [coins].
        score: of the coins [coins].
        own: the coin of each unit [units], where it has one.
        arms: one where a unit is control, and where it is treated, [units, 2].
        x: features of the units [units, k], of which the first is one.
        reach: see `Interference`.
        pairs: see `sorted_pairs`; None where the estimator needs none.
    """

    y: jax.Array
    z: jax.Array
    p: jax.Array
    score: jax.Array
    own: jax.Array
    arms: jax.Array
    x: jax.Array
    reach: Interference
    pairs: Any


def view(
    y: Any, z: Any, p: Any, reach: Interference, pairs: Any = None, features: Any = None
) -> View:
    """An experiment, with scores; features [units, k - 1] are brought to scale one."""
    y = jnp.asarray(y, float)
    z, p = jnp.asarray(z, y.dtype), jnp.asarray(p, y.dtype)
    own, x = jnp.asarray(reach.own), jnp.ones((len(y), 1), y.dtype)
    treated = z[own].prod(-1)
    if features is not None:
        off = features - features.mean(0)
        size = jnp.sqrt((off**2).mean(0))
        x = jnp.concatenate([x, off / jnp.where(size > 0, size, 1.0)], axis=-1)
    arms = jnp.stack([1 - treated, treated], axis=-1)
    return View(y, z, p, z / p - (1 - z) / (1 - p), own[:, 0], arms, x, reach, pairs)


def by_unit(v: View, values: jax.Array) -> jax.Array:
    """Sum of `values` [coins, ...] over the coins beside its own that reach a unit."""
    sent = values[v.reach.coin]
    return jax.ops.segment_sum(sent, v.reach.unit, len(v.y), indices_are_sorted=True)


def all_by_unit(v: View, values: jax.Array) -> jax.Array:
    """Sum of `values` [coins, ...] over all coins that reach a unit, [units, ...]."""
    return by_unit(v, values) + values[v.reach.own].sum(1)


def by_coin(v: View, values: jax.Array) -> jax.Array:
    """Sum of `values` [units, ...] over the units that a coin reaches, beside its own."""
    return jax.ops.segment_sum(values[v.reach.unit], v.reach.coin, len(v.z))


def of_own(v: View, values: jax.Array) -> jax.Array:
    """Sum of `values` [units, ...] over the units that hang on a coin, [coins, ...]."""
    sides = v.reach.own.shape[1]
    own = jnp.asarray(v.reach.own).ravel()
    return jax.ops.segment_sum(jnp.repeat(values, sides, axis=0), own, len(v.z))


def sorted_pairs(reach: Interference) -> tuple[Any, Any]:
    """(unit, coin) of all coins that reach a unit, its own too, by unit and then by coin."""
    traced = any(isinstance(x, Tracer) for x in reach[:3])
    xp = jnp if traced else np  # NumPy sorts ten times as fast
    own = xp.asarray(reach.own)
    unit = xp.repeat(xp.arange(len(own)), own.shape[1])
    unit = xp.concatenate([unit, xp.asarray(reach.unit)])
    coin = xp.concatenate([own.ravel(), xp.asarray(reach.coin)])
    order = xp.lexsort((coin, unit))
    return unit[order], coin[order]


def products(unit: jax.Array, values: jax.Array, order: int | None) -> jax.Array:
    r"""Products of :math:`1 + x` over the pairs of a unit so far, up to an order in x.

    Args:
        unit: [pairs], sorted.
        values: x [pairs, ...].
        order: terms of higher order in x are left out; None keeps all.

    Returns:
        [pairs, ...], of this pair and those of the unit before it.
    """
    first = jnp.concatenate([jnp.ones(1, bool), unit[1:] != unit[:-1]])
    size = 1 if order is None else order + 1  # coefficients of powers of x
    begin = jnp.zeros((size, *values.shape[1:]), values.dtype).at[0].set(1.0)

    def times(so_far: jax.Array, row: tuple) -> tuple[jax.Array, jax.Array]:
        fresh, x = row
        so_far = jnp.where(fresh, begin, so_far)
        after = so_far * (1 + x) if order is None else so_far.at[1:].add(so_far[:-1] * x)
        return after, after.sum(0)

    # one pair after the other: a parallel scan takes ten times as long to compile
    return jax.lax.scan(times, begin, (first, values), unroll=8)[1]


def added_weight(v: View, order: int | None) -> jax.Array:
    r"""What each coin adds to the weight of a unit, coins taken in their order.

    The weight of a unit is :math:`\prod_j (1 + u_j) - \prod_j (1 + v_j)` with :math:`u = z/p - 1`
    and :math:`v = (1-z)/(1-p) - 1`, up to an order. Given the coins before it, what a coin adds
    has mean zero: sums by coin are martingale differences.

    Returns:
        [pairs, 2], for all ones and all zeros, in the order of `sorted_pairs`.
    """
    unit, coin = v.pairs
    values = jnp.stack([v.z / v.p - 1, (1 - v.z) / (1 - v.p) - 1], axis=-1)[coin]
    upto = products(unit, values, order)
    before = jnp.concatenate([jnp.ones((1, 2), upto.dtype), upto[:-1]])
    first = jnp.concatenate([jnp.ones(1, bool), unit[1:] != unit[:-1]])
    return upto - jnp.where(first[:, None], 1.0, before)


class Scored(NamedTuple):
    """An estimate as a mean over units, and as a sum over coins.

    Attributes:
        parts: [units], their mean is the estimate.
        by_coin: [coins], their sum is the estimate times the number of units; None where it is
            no such sum.
        influence: [units], of which the variance is made: `parts` less what they estimate.
    """

    parts: jax.Array
    by_coin: jax.Array | None
    influence: jax.Array


def standard_error(v: View, scored: Scored) -> tuple[jax.Array, dict]:
    """The larger of two standard errors, each blind to what the other sees.

    From the scores of coins, orthogonal if outcomes did not depend on coins: also where every unit
    overlaps with most others. From pairs of units that one coin reaches: also how outcomes depend
    on coins.
    """
    said = {}
    if scored.by_coin is not None:
        ones = jnp.full_like(v.y, 1 / v.reach.own.shape[1])
        # a coin's score has the mean of its units' effects
        off = scored.by_coin - scored.parts.mean() * of_own(v, ones)
        said["stderr_scores"] = jnp.sqrt(jnp.sum(off**2)) / len(v.y)
    if v.reach.first is not None or not said:
        said["stderr_overlap"] = jnp.sqrt(overlap_variance(v, scored.influence))
    return jnp.max(jnp.stack(list(said.values()))), said


def overlap_variance(v: View, influence: jax.Array) -> jax.Array:
    """Variance of a mean of parts of which those that no coin reaches together are independent.

    Sums over blocks of units with the same coins, and over pairs of blocks that one coin reaches
    where these are listed; at least the sum over blocks alone.
    """
    blocks = jax.ops.segment_sum(influence, v.reach.block, len(v.y))
    alone = jnp.sum(blocks**2)
    if v.reach.first is None:
        return alone / float(len(v.y)) ** 2
    together = alone + 2 * jnp.sum(blocks[v.reach.first] * blocks[v.reach.second])
    return jnp.maximum(together, alone) / float(len(v.y)) ** 2
