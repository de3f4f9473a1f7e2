r"""Standard errors of estimates from dependent steps.

Every estimate is a function of weights of the steps, all one. Its derivative in the weight of a
step is that step's influence :math:`\psi_t` (the infinitesimal jackknife), found by one reverse
pass; what remains is the variance of a sum of :math:`\psi_t`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from scipy import stats

from decisionppl._play import as_key
from decisionppl.inference._effect import Effect, normal_interval
from decisionppl.inference._trajectories import Trajectories

PIECES = 4  # of which a moving block consists


class Interval(NamedTuple):
    """How the standard error of an estimate from dependent steps is found.

    Made by `martingale`, `batch_means`, `regeneration` and `bootstrap`.
    """

    method: str
    num_blocks: int = 50
    num_replicates: int = 500
    state: int | None = None
    key: Any = None


def martingale() -> Interval:
    r"""Steps are taken to add nothing to each other's variance, :math:`\sum_t \psi_t^2`.

    So it is, for long runs, in Differences-in-Q and off-policy evaluation by LSTD where the value
    function is linear in the features; tabular features always are enough.
    """
    return Interval("martingale")


def batch_means(num_blocks: int = 50) -> Interval:
    """Sums of influence over long blocks of steps are taken to be independent.

    Args:
        num_blocks: of consecutive steps; runs are blocks where there are so many. Blocks should
            be much longer than the chain remembers.

    Raises:
        ValueError: fewer than two blocks.
    """
    return Interval("batch_means", _blocks(num_blocks))


def regeneration(state: int) -> Interval:
    """Sums of influence between visits to one state are independent.

    Args:
        state: its number; best one that is often visited.
    """
    return Interval("regeneration", state=int(state))


def bootstrap(key: Any, num_replicates: int = 500, num_blocks: int = 50) -> Interval:
    """The moving-block bootstrap: blocks are drawn with replacement, and all is fitted anew.

    Args:
        key: PRNG key or int seed.
        num_replicates: how often.
        num_blocks: drawn in each replicate.

    Raises:
        ValueError: fewer than two blocks or replicates.
    """
    if (
        isinstance(num_replicates, bool)
        or not isinstance(num_replicates, int)
        or num_replicates < 2
    ):
        raise ValueError(f"num_replicates: expected a whole number from 2, got {num_replicates!r}.")
    return Interval("bootstrap", _blocks(num_blocks), num_replicates, key=as_key(key))


def _blocks(count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ValueError(f"num_blocks: expected a whole number from 2, got {count!r}.")
    return count


def as_interval(interval: Any, default: Interval) -> Interval:
    """What was asked for, or the default."""
    if interval is None:
        return default
    if not isinstance(interval, Interval):
        raise ValueError(
            "interval: expected effects.martingale(), batch_means(), regeneration(state), "
            f"bootstrap(key) or None, got {interval!r}."
        )
    return interval


def interval_without_key(how: Interval) -> Interval:
    """What may be a static argument."""
    return how._replace(key=None)


def in_blocks(x: jax.Array, num_blocks: int) -> jax.Array:
    """Steps [runs, steps] in blocks of consecutive steps of one run, [blocks, length].

    Every run is a block where there are enough runs. What does not fill a block is padded with
    zeros.
    """
    runs, steps = x.shape[:2]
    each = min(max(1, -(-num_blocks // runs)), steps)
    length = -(-steps // each)
    padding = ((0, 0), (0, each * length - steps)) + ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, padding).reshape(runs * each, length, *x.shape[2:])


class Part(NamedTuple):
    """A stretch of steps, or all of them.

    Attributes:
        step: `(x [runs, steps, ...]) -> [length, ...]`.
        state: `(x [runs, steps + 1, ...]) -> (before, after)` of the steps, each [length, ...].
    """

    step: Callable
    state: Callable


def combine(
    moments: Callable, finish: Callable, data: Trajectories, ones: jax.Array, key: Any,
    how: Interval, level: float,
) -> Effect:  # fmt: skip
    """An estimate made of sums over steps, with its interval.

    Args:
        moments: `(part, weights [length]) -> sums` over the steps of a `Part`.
        finish: `sums -> (estimate, diagnostics)`.
        data: the trajectories.
        ones: weights of the steps: one, and zero where there is none.
        key: for the bootstrap.
        how: to make the interval.
        level: of the interval.
    """
    if how.method in ("bootstrap", "batch_means"):
        count = how.num_blocks * (PIECES if how.method == "bootstrap" else 1)
        sums = _by_block(moments, ones, count)
        if how.method == "bootstrap":
            return bootstrap_effect(finish, sums, key, how.num_replicates, level)
        total = jax.tree.map(lambda m: m.sum(0), sums)
        (found, said), slope = jax.value_and_grad(finish, has_aux=True)(total)
        parts = jax.tree.map(lambda g, m: m.reshape(len(m), -1) @ g.ravel(), slope, sums)
        return batch_effect(found, said, sum(jax.tree.leaves(parts)), level)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(-1, *x.shape[2:])

    whole = Part(flat, lambda x: (flat(x[:, :-1]), flat(x[:, 1:])))
    return influence_effect(lambda w: finish(moments(whole, flat(w))), ones, how, level, data.state)


def _by_block(moments: Callable, ones: jax.Array, count: int) -> Any:
    """Sums over blocks of consecutive steps of one run, leaves [blocks, ...].

    Every run is a block where there are enough runs. One block after the other is read, so that
    what is read stays in the processor's cache.
    """
    runs, steps = ones.shape
    each = min(max(1, -(-count // runs)), steps)
    length = -(-steps // each)

    def block(i: jax.Array) -> Any:
        run, begin = i // each, (i % each) * length
        start = jnp.minimum(begin, steps - length)  # the last block reaches back

        def cut(x: jax.Array, size: int) -> jax.Array:
            sizes = (1, size, *x.shape[2:])
            return jax.lax.dynamic_slice(x, (run, start, *(0 for _ in sizes[2:])), sizes)[0]

        def state(x: jax.Array) -> tuple:
            both = cut(x, length + 1)
            return both[:-1], both[1:]

        fresh = start + jnp.arange(length) >= begin
        part = Part(lambda x: cut(x, length), state)
        return moments(part, jnp.where(fresh, part.step(ones), 0.0))

    return jax.lax.map(block, jnp.arange(runs * each))


def batch_effect(found: jax.Array, said: dict, sums: Any, level: float) -> Effect:
    """An estimate with its interval, from sums of influence over blocks [blocks]."""
    blocks = len(sums)
    stderr = jnp.sqrt(jnp.sum((sums - sums.mean()) ** 2) * blocks / (blocks - 1))
    half = float(stats.t.ppf((1 + level) / 2, blocks - 1)) * stderr
    return Effect(found, stderr, (found - half, found + half), said)


def influence_effect(
    estimate: Callable, ones: jax.Array, how: Interval, level: float, state: Any
) -> Effect:
    """An estimate with its standard error, by the influence of single steps.

    Args:
        estimate: `weights [runs, steps] -> (estimate, diagnostics)`.
        ones: weights of the steps: one, and zero where there is none.
        how: to combine influences.
        level: of the interval.
        state: states of the runs, [runs, steps + 1, ...].
    """
    (found, said), influence = jax.value_and_grad(estimate, has_aux=True)(ones)
    influence = influence * (ones > 0)
    if how.method == "batch_means":
        return batch_effect(found, said, in_blocks(influence, how.num_blocks).sum(1), level)
    if how.method == "martingale":
        sums = influence
    else:
        visits = jax.tree.leaves(state)[0][:, :-1] == how.state
        cycle = jnp.cumsum(visits.ravel())
        sums = jax.ops.segment_sum(influence.ravel(), cycle, visits.size + 1)
        said = {**said, "num_cycles": cycle[-1]}
        sums = jnp.where(cycle[-1] > 1, sums, jnp.nan)  # one sum says nothing about its spread
    stderr = jnp.sqrt(jnp.sum(sums**2))
    return Effect(found, stderr, normal_interval(found, stderr, level), said)


def bootstrap_effect(
    finish: Callable, moments: Any, key: Any, num_replicates: int, level: float
) -> Effect:
    """An estimate with the interval of the moving-block bootstrap.

    Args:
        finish: `sums -> (estimate, diagnostics)`.
        moments: what the estimate is made of, summed over pieces of blocks: leaves
            [pieces, ...].
        key: PRNG key or int seed.
        num_replicates: how often blocks are drawn.
        level: of the interval, whose ends are `2 estimate - quantile` ("basic" bootstrap).
    """
    count = len(jax.tree.leaves(moments)[0])
    if count < 2 * PIECES:
        raise ValueError(
            f"bootstrap: expected at least {2 * PIECES} pieces of blocks, got {count}."
        )
    found, diagnostics = finish(jax.tree.map(lambda m: m.sum(0), moments))
    draws = -(-count // PIECES)
    shape = (num_replicates, draws)
    start = jax.random.randint(as_key(key), shape, 0, count)  # round the end, so all weigh alike
    piece = (start[..., None] + jnp.arange(PIECES)) % count
    rows = jnp.broadcast_to(jnp.arange(num_replicates)[:, None, None], piece.shape)
    often = jnp.zeros((num_replicates, count)).at[rows, piece].add(count / (draws * PIECES))

    def resummed(m: jax.Array) -> jax.Array:
        flat = m.reshape(count, -1)
        return (often.astype(flat.dtype) @ flat).reshape(num_replicates, *m.shape[1:])

    replicates = jax.vmap(lambda m: finish(m)[0])(jax.tree.map(resummed, moments))
    stderr = jnp.std(replicates, ddof=1)
    ends = jnp.quantile(replicates, jnp.array([(1 + level) / 2, (1 - level) / 2]))
    return Effect(
        found, stderr, (2 * found - ends[0], 2 * found - ends[1]),
        {**diagnostics, "replicates": replicates},
    )  # fmt: skip
