"""Prices that hold a policy to a restriction on a table of scores.

A price is subtracted from the score of an arm, and the argmax is played. The margin of an arm in a
row is its score minus the best other one; at a price between two neighbouring margins exactly the
rows above are won. Margins that agree up to rounding cannot be told apart by any price: a cut
between them is not clean, and is not used.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_ROUNDING = 16  # margins closer than this many units in the last place of the scores are tied


class Cuts(NamedTuple):
    """The ways to win the top k of `size` rows, k = 0, 1, ...; arrays [rows + 1].

    Attributes:
        size: number of rows that count.
        free: number of them won at price zero.
        value: sum of the margins won.
        clean: whether a price wins exactly these rows.
        price: that price; zero where it will do.
    """

    size: jax.Array
    free: jax.Array
    value: jax.Array
    clean: jax.Array
    price: jax.Array


def resolution(scores: jax.Array) -> jax.Array:
    """Distance below which scores of the table are tied."""
    scale = jnp.max(jnp.abs(scores))
    return _ROUNDING * jnp.finfo(scores.dtype).eps * jnp.where(scale > 0, scale, 1.0)


def margins(scores: jax.Array) -> jax.Array:
    """Score minus the best score of another arm, [rows, arms]."""
    top, where = jnp.max(scores, axis=1), jnp.argmax(scores, axis=1)
    mine = jnp.arange(scores.shape[1]) == where[:, None]
    second = jnp.max(jnp.where(mine, -jnp.inf, scores), axis=1)
    return scores - jnp.where(mine, second[:, None], top[:, None])


def cuts(margin: jax.Array, member: jax.Array, tie: jax.Array) -> Cuts:
    """All cuts of the margins [rows] of the rows with `member`."""
    k = jnp.arange(len(margin) + 1)
    size = jnp.sum(member)
    margin = jnp.sort(jnp.where(member, margin, -jnp.inf), descending=True)
    margin = jnp.where(k[:-1] < size, margin, 0.0)
    first, last = margin[0], margin[jnp.maximum(size - 1, 0)]
    # the cuts above all rows and below all rows are clean, by a gap that is sure to be one
    above = jnp.concatenate([first[None] + 2 * tie, margin])
    below = jnp.where(k < size, jnp.append(margin, 0.0), last - 2 * tie)
    clean = (above - below > tie) | (k == 0) | (k == size)
    free = jnp.sum((margin > 0) & (k[:-1] < size))
    untied = ~jnp.any((margin == 0) & (k[:-1] < size))
    here = (k == free) & untied
    price = jnp.where(here, 0.0, 0.5 * (above + below))
    value = jnp.concatenate([jnp.zeros(1, margin.dtype), jnp.cumsum(margin)])
    return Cuts(size, free, value, (clean | here) & (k <= size), price)


@jax.jit(static_argnames=("num_groups", "tolerance"))
def parity_prices(
    margin: jax.Array, group: jax.Array, num_groups: int, tolerance: float, tie: jax.Array
) -> jax.Array:
    """Prices [num_groups] at which an arm wins the same share of every group.

    The best rate is found by trying all that a group can have, and those `tolerance` away. What a
    group wins at a given rate is concave in the count, so within the counts allowed the clean cuts
    next to the unrestricted one, on either side, are the only candidates.
    """
    member = group == jnp.arange(num_groups)[:, None]
    ways = jax.vmap(cuts, (None, 0, None))(margin, member, tie)
    size = ways.size[:, None]
    share = jnp.cumsum(member, axis=1) / jnp.maximum(size, 1)
    rate = jnp.append(jnp.sum(jnp.where(member, share, 0.0), axis=0), 0.0)
    if tolerance > 0:
        rate = jnp.clip(jnp.concatenate([rate, rate - tolerance, rate + tolerance]), 0.0, 1.0)
    # counts within half a row of the rate are as close as they can be; the slack is for rounding
    width, slack = jnp.maximum(tolerance * size, 0.5), 1e-3
    low = jnp.clip(jnp.ceil(rate * size - width - slack), 0, size).astype(int)
    high = jnp.clip(jnp.floor(rate * size + width + slack), 0, size).astype(int)
    wanted = jnp.clip(ways.free[:, None], low, high)

    k = jnp.arange(len(margin) + 1)
    down = jax.lax.cummax(jnp.where(ways.clean, k, -1), axis=1)
    up = jax.lax.cummin(jnp.where(ways.clean, k, len(k)), axis=1, reverse=True)
    look = lambda table, at: jnp.take_along_axis(table, at, axis=1)  # noqa: E731
    below, above = look(down, wanted), look(up, wanted)
    value_below = jnp.where(below >= low, look(ways.value, below), -jnp.inf)
    value_above = jnp.where(above <= high, look(ways.value, above), -jnp.inf)
    # the empty cut is clean, so `below` is never out of range; `above` is not used where it is
    best = jnp.argmax(jnp.sum(jnp.maximum(value_below, value_above), axis=0))
    chosen = jnp.where(value_below >= value_above, below, above)[:, best]
    return jnp.where(ways.size > 0, look(ways.price, chosen[:, None])[:, 0], 0.0)


@jax.jit(static_argnames="arms")
def budget_prices(scores: jax.Array, arms: tuple[int, ...], limit: jax.Array) -> jax.Array:
    """Prices [budgeted arms] at which arms win at most `limit` rows of the table."""
    tie = resolution(scores)
    every = jnp.ones(len(scores), bool)
    indices = jnp.array(arms)

    def charged(price: jax.Array) -> jax.Array:
        return margins(scores.at[:, indices].add(-price))[:, indices]

    def over(price: jax.Array) -> jax.Array:
        # ties count against the budget, whoever they would be given to; at price zero scores
        # are played as they are, so that ties up to rounding are none
        return jnp.sum(charged(price) >= jnp.where(price > 0, -0.5 * tie, 0.0), axis=0) > limit

    def only(b: int | jax.Array, price: jax.Array) -> jax.Array:
        """The price of one arm at which it keeps to its limit, given those of the others."""
        margin = charged(price.at[b].set(0.0))[:, b]
        ways = cuts(margin, every, tie)
        k = jnp.arange(len(margin) + 1)
        most = jnp.max(jnp.where(ways.clean & (k <= limit[b]), k, 0))
        return jnp.where(jnp.sum(margin >= 0) <= limit[b], 0.0, ways.price[most])

    zero = jnp.zeros(len(arms), scores.dtype)
    if len(arms) == 1:
        return only(0, zero)[None]

    others = jnp.array([a for a in range(scores.shape[1]) if a not in arms])
    rival = jnp.max(scores[:, others], axis=1)
    closing = jnp.maximum(jnp.max(scores[:, indices] - rival[:, None], axis=0), 0.0) + 2 * tie

    def repair(price: jax.Array) -> jax.Array:
        """Ties stand in the way of the best split: settle arm by arm, close what is left over."""

        def settle(i: jax.Array, price: jax.Array) -> jax.Array:
            b = i % len(arms)
            return price.at[b].set(only(b, price))

        def close(price: jax.Array) -> jax.Array:
            return jnp.where(over(price), closing, price)

        price = jax.lax.fori_loop(0, 2 * len(arms), settle, price)
        # a closed arm stays below one without a budget, so this closes each at most once
        return jax.lax.while_loop(lambda p: jnp.any(over(p)), close, price)

    split = _split_prices(jnp.column_stack([scores[:, indices], rival]), limit)
    price = jnp.where(jnp.any(over(zero)), split, zero)
    return jax.lax.cond(jnp.any(over(price)), repair, lambda p: p, price)


def _split_prices(scores: jax.Array, limit: jax.Array) -> jax.Array:
    """Prices [arms - 1] behind the best split of rows among arms, the last without a limit.

    A transport problem: from every row at its best arm, rows leave the arms that have too many
    along cheapest chains of moves, one row at a time (successive shortest paths; Ahuja, Magnanti
    and Orlin, Network Flows, 1993, section 9.7). Prices follow from what each arm would lose by
    giving up a row to another.
    """
    rows, nodes = scores.shape
    capacity = jnp.append(limit, rows)
    full = lambda at: jnp.sum(at[:, None] == jnp.arange(nodes), axis=0) - capacity  # noqa: E731

    def move(state: tuple) -> tuple:
        i, at = state
        lost, which = _exchange(scores, at)
        excess = full(at)
        # fewest-hop layers cannot run in circles, as chains of predecessors do after rounding
        distance = jnp.where(excess < 0, 0.0, jnp.inf).astype(scores.dtype)
        distance, following = jax.lax.scan(_relax(lost), distance, length=nodes - 1)
        here = jnp.argmin(jnp.where(excess > 0, distance, jnp.inf))

        def hop(state: tuple, following: jax.Array) -> tuple:
            at, here = state
            there = following[here]
            moved = (jnp.arange(rows) == which[here, there]) & (here != there)
            return (jnp.where(moved, there, at), there), None

        (at, _), _ = jax.lax.scan(hop, (at, here), following, reverse=True)
        return i + 1, at

    def crowded(state: tuple) -> jax.Array:
        i, at = state
        return jnp.any(full(at) > 0) & (i < rows)

    _, at = jax.lax.while_loop(crowded, move, (0, jnp.argmax(scores, axis=1)))
    return _separating_prices(scores, at, full(at) == 0)


def _exchange(scores: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least loss of moving a row from an arm to another, and the row; both [arms, arms]."""
    own = jnp.take_along_axis(scores, at[:, None], axis=1)
    here = (at[:, None] == jnp.arange(scores.shape[1]))[:, :, None]
    lost = jnp.where(here, (own - scores)[:, None, :], jnp.inf)
    return jnp.min(lost, axis=0), jnp.argmin(lost, axis=0)


def _relax(lost: jax.Array):
    def layer(distance: jax.Array, _: None) -> tuple:
        through = lost + distance
        nearer = jnp.min(through, axis=1) < distance
        stay = jnp.arange(len(distance))
        following = jnp.where(nearer, jnp.argmin(through, axis=1), stay)
        return jnp.where(nearer, jnp.min(through, axis=1), distance), following

    return layer


def _separating_prices(scores: jax.Array, at: jax.Array, full: jax.Array) -> jax.Array:
    """Prices at which every row strictly prefers the arm it is at, by as much as can be.

    Only arms that are full have a price. Row by row `price[a] - price[b] <= lost[a, b]`: a system
    of difference constraints, whose solutions are shortest paths. All hold with a reserve of up
    to the least mean loss around a circle.
    """
    nodes = scores.shape[1]
    pool = jnp.max(jnp.where(full, -jnp.inf, scores), axis=1)
    scores = scores.at[:, -1].set(pool)
    lost, _ = _exchange(scores, jnp.where(full[at], at, nodes - 1))
    last = jnp.arange(nodes) == nodes - 1
    priced = full | last
    lost = jnp.where(priced[:, None] & priced & ~jnp.eye(nodes, dtype=bool), lost, jnp.inf)
    lost = lost.at[-1].min(jnp.where(full, 0.0, jnp.inf))  # no price is negative
    # an arm without rows has no largest price of its own
    spread = jnp.max(scores) - jnp.min(scores)
    lost = lost.at[:, -1].min(jnp.where(last, jnp.inf, 2 * spread + resolution(scores)))

    def lengthen(walks: jax.Array, i: jax.Array) -> tuple:
        """Walks by one more edge; the least mean of those that are closed."""
        longer = jnp.min(walks[:, :, None] + lost, axis=1)
        return longer, jnp.min(jnp.diagonal(longer)) / (i + 2)

    _, means = jax.lax.scan(lengthen, lost, jnp.arange(nodes - 1))
    least = jnp.min(means)
    reserve = jnp.where(jnp.isfinite(least), jnp.maximum(least, 0.0), 0.0)
    tight = lost - 0.5 * reserve
    distance = jnp.where(jnp.eye(nodes, dtype=bool), 0.0, tight)
    paths = jax.lax.fori_loop(
        0, nodes, lambda _, d: jnp.minimum(d, jnp.min(d[:, :, None] + d, axis=1)), distance
    )
    price = 0.5 * (paths[:, -1] - paths[-1])
    return jnp.where(full, jnp.maximum(price, 0.0), 0.0)[:-1]
