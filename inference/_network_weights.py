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
        treated: whether a unit is treated, 0 or 1 [units].
        reach: see `Interference`.
        pairs: see `sorted_pairs`; None where the estimator needs none.
    """

    y: jax.Array
    z: jax.Array
    p: jax.Array
    score: jax.Array
    own: jax.Array
    treated: jax.Array
    reach: Interference
    pairs: Any


def view(y: Any, z: Any, p: Any, reach: Interference, pairs: Any = None) -> View:
    """An experiment, with scores."""
    y = jnp.asarray(y, float)
    z, p = jnp.asarray(z, y.dtype), jnp.asarray(p, y.dtype)
    own = jnp.asarray(reach.own)
    return View(y, z, p, z / p - (1 - z) / (1 - p), own[:, 0], z[own].prod(-1), reach, pairs)


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
    found = 0.0
    for side in range(v.reach.own.shape[1]):
        found = found + jax.ops.segment_sum(values, v.reach.own[:, side], len(v.z))
    return found


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
    if order is None:
        terms = (1 + values)[None]
    else:  # coefficients of 1 + x t
        zeros = jnp.zeros((order - 1, *values.shape), values.dtype)
        terms = jnp.concatenate([jnp.ones_like(values)[None], values[None], zeros])

    def times(left: jax.Array, right: jax.Array) -> jax.Array:
        count = len(left)
        return jnp.stack([sum(left[i] * right[m - i] for i in range(m + 1)) for m in range(count)])

    def join(left: tuple, right: tuple) -> tuple:
        # a unit's product begins anew at its first pair
        begin = right[0].reshape(-1, *(1 for _ in values.shape[1:]))
        return left[0] | right[0], jnp.where(begin, right[1], times(left[1], right[1]))

    def leading(x: tuple) -> tuple:
        return x[0], jnp.moveaxis(x[1], 1, 0)

    def trailing(x: tuple) -> tuple:
        return x[0], jnp.moveaxis(x[1], 0, 1)

    joined = jax.lax.associative_scan(
        lambda a, b: leading(join(trailing(a), trailing(b))), leading((first, terms))
    )
    return joined[1].sum(1)


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


def by_arm(v: View) -> jax.Array:
    """Sums of outcomes by arm, and counts by arm, of each unit [units, 4]."""
    arms = jnp.stack([1 - v.treated, v.treated], axis=-1)
    return jnp.concatenate([arms * v.y[:, None], arms], axis=-1)


def left_out(v: View, each: jax.Array, reached: jax.Array) -> jax.Array:
    """Mean outcome of the control and the treated units that a coin does not reach, [coins, 2].

    Where no unit of an arm is left, that of both arms; where none is left at all, zero.

    Args:
        v: the experiment.
        each: of `by_arm`.
        reached: its sums over the units that a coin reaches beside its own [coins, 4].
    """
    rest = each.sum(0) - reached - of_own(v, each)
    total, count = rest[:, :2], rest[:, 2:]
    # counts are whole numbers, sums of the others' outcomes are not
    pooled = total.sum(-1, keepdims=True) / jnp.maximum(count.sum(-1, keepdims=True), 1.0)
    pooled = jnp.where(count.sum(-1, keepdims=True) > 0.5, pooled, 0.0)
    return jnp.where(count > 0.5, total / jnp.maximum(count, 1.0), pooled)


def centre(v: View, means: jax.Array) -> jax.Array:
    """The mean of both arms that leaves the least variance to a unit's own score, [coins]."""
    return v.p * means[:, 0] + (1 - v.p) * means[:, 1]


def pair_means(v: View, baseline: bool) -> jax.Array:
    """What the outcome of a unit is expected to be, by the units that a coin does not reach.

    Returns:
        [pairs], in the order of `sorted_pairs`: of the unit's own arm, or of both arms for its
        own coins, on which its arm depends.
    """
    unit, coin = v.pairs
    if not baseline:
        return jnp.zeros(len(unit), v.y.dtype)
    each = by_arm(v)
    means = left_out(v, each, by_coin(v, each))
    mine = (v.reach.own[unit] == coin[:, None]).any(-1)
    arm = jnp.where(v.treated[unit] > 0.5, means[coin, 1], means[coin, 0])
    return jnp.where(mine, centre(v, means)[coin], arm)


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


def differences(v: View, baseline: bool, *, across: bool, even: bool) -> Scored:
    r"""Own scores, and those of the other coins weighted by :math:`\xi`.

    Args:
        v: the experiment.
        baseline: whether to take off the means of `left_out`.
        across: with :math:`\xi_{ij} = (1-p_j) z/p + p_j (1-z)/(1-p)` of the unit's own coin
            (Differences-in-Neighbors), else 1 (first-order expansion).
        even: whether all coins have one probability.
    """
    chance = jnp.stack([1 - v.p, v.p], axis=-1)  # of each arm
    ones = jnp.ones_like(chance)
    of_unit, of_coin = (1 / chance[v.own], 1 - chance) if across else (ones[v.own], ones)
    # the pairs are read twice, which is what the time is spent on
    each = by_arm(v)
    twice = jnp.concatenate([of_unit, of_unit], axis=-1)
    if even:  # weights are one number for each arm
        reached = by_coin(v, each)
        sent = reached * twice[:1]
    else:
        both = by_coin(v, jnp.concatenate([each, twice * each], axis=-1))
        reached, sent = both[:, :4], both[:, 4:]
    means = left_out(v, each, reached) if baseline else jnp.zeros_like(chance)
    mine = v.score[v.own] * (v.y - centre(v, means)[v.own])
    score = v.score[:, None]
    if even:
        near = by_unit(v, jnp.concatenate([score, score * means], axis=-1))
        level, centred = near[:, :1] * of_coin[:1], near[:, 1:] * of_coin[:1]
    else:
        near = by_unit(v, score * jnp.concatenate([of_coin, of_coin * means], axis=-1))
        level, centred = near[:, :2], near[:, 2:]
    parts = mine + (of_unit * each[:, 2:] * (v.y[:, None] * level - centred)).sum(-1)
    coins = (score * of_coin * (sent[:, :2] - means * sent[:, 2:])).sum(-1)
    return Scored(parts, of_own(v, mine) + coins, parts - parts.mean())


def standard_error(v: View, scored: Scored) -> tuple[jax.Array, dict]:
    """The larger of two standard errors, each blind to what the other sees.

    From the scores of coins, orthogonal if outcomes did not depend on coins: also where every unit
    overlaps with most others. From pairs of units that one coin reaches: also how outcomes depend
    on coins.
    """
    said, found = {}, []
    if scored.by_coin is not None:
        ones = jnp.full_like(v.y, 1 / v.reach.own.shape[1])
        # a coin's score has the mean of its units' effects
        off = scored.by_coin - scored.parts.mean() * of_own(v, ones)
        said["stderr_scores"] = jnp.sqrt(jnp.sum(off**2)) / len(v.y)
    if v.reach.first is not None:
        said["stderr_overlap"] = jnp.sqrt(overlap_variance(v, scored.influence))
    found = list(said.values()) or [jnp.sqrt(jnp.sum(scored.influence**2)) / len(v.y)]
    return jnp.max(jnp.stack(found)), said


def overlap_variance(v: View, influence: jax.Array) -> jax.Array:
    """Variance of a mean of parts of which those that no coin reaches together are independent.

    Sums over blocks of units with the same coins, and over pairs of blocks that one coin reaches;
    at least the sum over blocks alone.
    """
    blocks = jax.ops.segment_sum(influence, v.reach.block, len(v.y))
    alone = jnp.sum(blocks**2)
    together = alone + 2 * jnp.sum(blocks[v.reach.first] * blocks[v.reach.second])
    return jnp.maximum(together, alone) / len(v.y) ** 2
