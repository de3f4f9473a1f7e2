"""What an outcome is expected to be, by regression on the units that a coin does not reach."""

import jax
import jax.numpy as jnp

from decisionppl.inference._network_weights import View, by_coin, of_own


def moments(v: View) -> jax.Array:
    """Products of features with the outcome and with each other, by arm, [units, 2, k + k^2].

    The first feature is one, so that among them are the outcome (first) and the features (after
    those with the outcome).
    """
    count = v.x.shape[1]
    inner = (v.x[:, :, None] * v.x[:, None, :]).reshape(-1, count**2)
    both = jnp.concatenate([v.x * v.y[:, None], inner], axis=-1)
    return v.arms[:, :, None] * both[:, None, :]


def plain_sums(found: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Sums of outcomes [..., 2] and of features [..., 2, k], among sums of `moments`."""
    return found[..., 0], found[..., count : 2 * count]


def left_out(v: View, each: jax.Array, reached: jax.Array) -> jax.Array:
    """Coefficients of the outcome on features, of units that a coin does not reach, [coins, 2, k].

    By arm of the unit. Where no unit of an arm is left, those of both arms; where none is left at
    all, zero. With the constant alone they are means.

    Args:
        v: the experiment.
        each: `moments` of the units.
        reached: their sums over the units that a coin reaches beside its own.
    """
    rest, count = each.sum(0) - reached - of_own(v, each), v.x.shape[1]
    if count == 1:
        total, number = rest[..., 0], rest[..., 1]
        # numbers of units are whole, sums of the others' outcomes are not
        pooled = total.sum(-1, keepdims=True) / jnp.maximum(number.sum(-1, keepdims=True), 1.0)
        pooled = jnp.where(number.sum(-1, keepdims=True) > 0.5, pooled, 0.0)
        return jnp.where(number > 0.5, total / jnp.maximum(number, 1.0), pooled)[..., None]
    # a little of both arms, and of nothing, keeps small rests solvable; being made of the same
    # units, it takes nothing from what leaving out is for
    rest = rest + 1e-3 * rest.sum(1, keepdims=True)
    matrix = rest[..., count:].reshape(*rest.shape[:-1], count, count)
    whole = each[..., count:].sum((0, 1)).reshape(count, count)
    matrix = matrix + 1e-5 * jnp.diag(jnp.diag(whole))
    return solve_definite(matrix, rest[..., :count])


def solve_definite(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """Solutions of many small positive definite systems, [..., k, k] and [..., k].

    By elimination without pivots, one system beside the other: batches of LAPACK's solves run one
    after the other on a CPU, and inside larger batches they were seen to wait for each other for
    good.
    """

    def eliminate(i: jax.Array, both: jax.Array) -> jax.Array:
        row = both[..., i, :] / both[..., i, i][..., None]
        return (both - both[..., i][..., None] * row[..., None, :]).at[..., i, :].set(row)

    both = jnp.concatenate([matrix, right[..., None]], axis=-1)
    return jax.lax.fori_loop(0, matrix.shape[-1], eliminate, both)[..., -1]


def centre(v: View, found: jax.Array) -> jax.Array:
    """The mean of both arms that leaves the least variance to a unit's own score, [coins, k]."""
    return v.p[:, None] * found[:, 0] + (1 - v.p[:, None]) * found[:, 1]


def expected(v: View, baseline: bool) -> jax.Array:
    """What the outcome of a unit is expected to be, by the units that a coin does not reach.

    Returns:
        [pairs], in the order of `sorted_pairs`: for the unit's own arm, or for both arms where the
        coin is its own, on which its arm depends.
    """
    unit, coin = v.pairs
    if not baseline:
        return jnp.zeros(len(unit), v.y.dtype)
    each = moments(v)
    found = left_out(v, each, by_coin(v, each))
    mine = (v.reach.own[unit] == coin[:, None]).any(-1)
    arm = jnp.where(v.arms[unit, 1:] > 0.5, found[coin, 1], found[coin, 0])
    return (v.x[unit] * jnp.where(mine[:, None], centre(v, found)[coin], arm)).sum(-1)
