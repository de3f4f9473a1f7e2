"""Differences-in-Neighbors and the first-order expansion, linear in pairs of unit and coin."""

import jax.numpy as jnp

from decisionppl.inference._left_out import centre, left_out, moments, plain_sums
from decisionppl.inference._network_weights import Scored, View, by_coin, by_unit, of_own


def differences(v: View, baseline: bool, *, across: bool, even: bool) -> Scored:
    r"""Own scores, and those of the other coins weighted by :math:`\xi`.

    Args:
        v: the experiment.
        baseline: whether to take off what `left_out` expects.
        across: with :math:`\xi_{ij} = (1-p_j) z/p + p_j (1-z)/(1-p)` of the unit's own coin
            (Differences-in-Neighbors), else 1 (first-order expansion).
        even: whether all coins have one probability.
    """
    chance = jnp.stack([1 - v.p, v.p], axis=-1)  # of each arm
    ones, count = jnp.ones_like(chance), v.x.shape[1]
    of_unit, of_coin = (1 / chance[v.own], 1 - chance) if across else (ones[v.own], ones)
    # the time is spent on reading pairs: twice, or three times where weights differ within an arm
    each = moments(v)
    reached = by_coin(v, each)
    if even:
        y, x = plain_sums(reached * of_unit[:1, :, None], count)
    else:
        plain = jnp.concatenate([v.y[:, None], v.x], axis=-1)
        sent = by_coin(v, (of_unit * v.arms)[:, :, None] * plain[:, None])
        y, x = sent[..., 0], sent[..., 1:]
    shape = (len(v.z), 2, count)
    found = left_out(v, each, reached) if baseline else jnp.zeros(shape, v.y.dtype)
    mine = v.score[v.own] * (v.y - (v.x * centre(v, found)[v.own]).sum(-1))
    score = v.score[:, None]
    columns = [score if even else score * of_coin]
    columns.append(
        (score[:, None] * (1.0 if even else of_coin[:, :, None]) * found).reshape(-1, 2 * count)
    )
    near = by_unit(v, jnp.concatenate(columns, axis=-1))
    level, off = near[:, : -2 * count], near[:, -2 * count :].reshape(-1, 2, count)
    if even:
        level, off = level * of_coin[:1], off * of_coin[:1, :, None]
    felt = v.y[:, None] * level - (v.x[:, None] * off).sum(-1)
    parts = mine + (of_unit * v.arms * felt).sum(-1)
    coins = (score * of_coin * (y - (found * x).sum(-1))).sum(-1)
    return Scored(parts, of_own(v, mine) + coins, parts - parts.mean())
