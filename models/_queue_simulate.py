"""Long runs of queueing networks: the transition compiled without sites."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers

from decisionppl._play import as_key
from decisionppl.inference._effect import Effect, check_level
from decisionppl.inference._rule import Rule
from decisionppl.models import _queue_columns as columns
from decisionppl.models._arguments import check_count
from decisionppl.models._queue_chain import clock_rate, probabilities, tick
from decisionppl.models._queue_events import (
    Draws,
    Jobs,
    clock_laws,
    draw_jobs,
    one_law,
    random_routing,
    routing_law,
    shares,
    start,
)
from decisionppl.models._queue_network import Network

_CHUNK = 500  # events whose sums are kept in single precision


class Simulated(NamedTuple):
    """Sums over the runs of a network, float64.

    Chunks are of equal numbers of events; sums within a chunk are single precision, so that those
    of a run lose no digits.

    Attributes:
        cost: holding and rejection costs, [runs, chunks].
        time: [runs, chunks].
        queue: time-integral of the length of each queue, [runs, chunks, n].
        busy: time that each server worked, [runs, chunks, m].
        length: queues at the end of each chunk, [runs, chunks, n].
        came, done: arrivals from outside and completions at the end of each chunk,
            [runs, chunks, n]; zero unless asked for by `count`.
    """

    cost: np.ndarray
    time: np.ndarray
    queue: np.ndarray
    busy: np.ndarray
    length: np.ndarray
    came: np.ndarray
    done: np.ndarray

    def average(self, level: float = 0.95, warm_up: float = 0.0) -> Effect:
        """Cost per unit of time.

        The ratio of the means over runs, with the standard error of a ratio (delta method). Runs
        begin empty, which biases the average of a heavily loaded network downwards: leave out a
        first share of each run, or make runs longer.

        Args:
            level: of the interval.
            warm_up: share of the chunks of each run that is left out.

        Returns:
            `Effect`, in double precision; diagnostics `half_width`, relative to the estimate.
        """
        return ratio(self.cost, self.time, level, warm_up)

    def queues(self, warm_up: float = 0.0) -> np.ndarray:
        """Average length of each queue over time and runs, [n]."""
        first = int(warm_up * self.time.shape[1])
        return self.queue[:, first:].sum((0, 1)) / self.time[:, first:].sum()

    def to_xarray(self) -> Any:
        """An xarray Dataset over (run, chunk), with classes and servers."""
        import xarray as xr

        last = {"queue": "class", "length": "class", "came": "class", "done": "class",
                "busy": "server"}  # fmt: skip
        return xr.Dataset({
            name: (("run", "chunk", *((last[name],) if name in last else ())), x)
            for name, x in self._asdict().items()
        })  # fmt: skip


def ratio(above: Any, below: Any, level: float = 0.95, warm_up: float = 0.0) -> Effect:
    """Ratio of two means over runs, from sums [runs, chunks]."""
    from scipy.special import ndtri

    check_level(level)
    first = int(warm_up * above.shape[1])
    a, b = (np.asarray(x, float)[:, first:].sum(1) for x in (above, below))
    estimate = a.sum() / b.sum()
    runs = len(a)
    error = np.nan
    if runs > 1:
        error = np.sqrt(((a - estimate * b) ** 2).sum() / (runs - 1) / runs) / b.mean()
    half = ndtri((1 + level) / 2) * error
    found = {"half_width": half / abs(estimate)}
    return Effect(estimate, error, (estimate - half, estimate + half), found)


def simulate(
    network: Network,
    policy: Callable,
    num_events: int,
    *,
    key: Any,
    num_runs: int = 1,
    jobs: Jobs | None = None,
    num_jobs: int | None = None,
    count: bool = False,
    unroll: int = 1,
) -> Simulated:
    """Simulate many runs of a network from empty queues.

    The transition of `event_model`, without sites: many times as fast. Networks with pools of
    servers are simulated as the chain of `chain_model`; an event is then a tick of its clock.

    Args:
        network: from `network`.
        policy: what servers work on, see `event_model`; one of the policies of this module, or
            `f(length, space) -> classes [m] or a Categorical`. `space` is None here. An array in
            a `jax.tree_util.Partial` may change without compiling again.
        num_events: events of each run, rounded up to a multiple of 500 if there are more.
        key: PRNG key or int seed.
        num_runs: runs, independent of each other.
        jobs: the same jobs in all runs, one table [n, jobs] or one per run [runs, n, jobs].
        num_jobs: draw tables of so many jobs per class and run: calls with the same key share the
            jobs under every policy, class by class. A run that needs more becomes NaN.
        count: count arrivals and completions.
        unroll: events per iteration of the compiled loop.

    Returns:
        `Simulated`.

    Raises:
        ValueError: sizes below one, or jobs for pools of servers.

    Example:
        >>> from decisionppl.models import queueing
        >>> net = queueing.mm1(0.5)
        >>> runs = queueing.simulate(net, queueing.cmu(net), 20_000, key=0, num_runs=50)
        >>> bool(abs(runs.average().estimate - 1.0) < 4 * runs.average().stderr)
        True
    """
    check_count("num_events", num_events)
    check_count("num_runs", num_runs)
    pooled = max(network.pools) > 1
    if pooled and (jobs is not None or num_jobs is not None or not network.exponential):
        raise ValueError(
            f"pools: {network.pools}; these are simulated as a Markov chain of exponential clocks, "
            "which has no jobs of its own. Leave out jobs and num_jobs, and other clocks."
        )
    size = min(num_events, _CHUNK)
    sizes = (size, -(-num_events // size), num_runs, num_jobs, count, unroll)
    per_run = jobs is not None and np.ndim(jobs.gap) == 3
    rule = Rule(policy)
    run = _simulate_ticks if pooled else _simulate
    found = run(rule, sizes, per_run, as_key(key), network, rule.arrays(policy), jobs)
    return Simulated(*(np.asarray(x, float) for x in found))


def decided(policy: Callable, length: Any, key: Any, classes: int) -> jax.Array:
    """Shares [m, n] of what a policy decides; a law is drawn from."""
    chosen = policy(length, None)
    if isinstance(chosen, dist.Distribution):
        chosen = chosen.sample(key)
    return shares(chosen, classes)


def draws_from_law(policy: Callable, classes: int) -> bool:
    """Whether a policy gives laws, which need keys."""
    kinds = []

    def look(length: Any) -> Any:
        kinds.append(isinstance(policy(length, None), dist.Distribution))
        return length

    jax.eval_shape(look, jnp.zeros(classes))
    return kinds[0]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _simulate(
    rule: Rule, sizes: tuple, per_run: bool, key: jax.Array, network: Network, arrays: list,
    jobs: Any,
) -> tuple:  # fmt: skip
    size, chunks, runs, num_jobs, count, unroll = sizes
    decide = rule.policy(arrays)
    n, same, pairs = network.num_classes, one_law(network), columns.pairs_of(network)
    drawing = draws_from_law(decide, n)
    both = jax.vmap(jax.random.split, out_axes=1)(jax.random.split(key, runs))
    begins, keys = both[0], both[1]
    if num_jobs is not None and jobs is None:
        jobs = jax.vmap(lambda k: handlers.seed(draw_jobs, k)(network, num_jobs))(begins)
        per_run = True
    if per_run:
        jobs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), jobs)

    def begin(key: jax.Array) -> Any:
        laws = (law.expand((n,)) for law in (network.interarrival, network.workload))
        return start(network, *(x.sample(k) for x, k in zip(laws, jax.random.split(key),
                                                            strict=True)), count=count)  # fmt: skip

    if jobs is None:
        first = jax.vmap(begin, out_axes=-1)(begins)
    else:
        first = jax.vmap(lambda gap, work: start(network, gap, work), -1 if per_run else None, -1,
                         axis_size=runs)(jobs.gap[:, 0], jobs.work[:, 0])  # fmt: skip

    def chunk(state: Any, number: jax.Array) -> tuple:
        now = jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)
        drawn, turns = None, None
        if jobs is None:
            # a run's draws come from a key of its own, whatever runs beside it
            drawn = jax.vmap(lambda k: _drawn(network, k, size, same), out_axes=-1)(now)
        if drawing:
            turns = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, 1), size),
                             out_axes=1)(now)  # fmt: skip

        def forward(carry: tuple, given: tuple) -> tuple:
            state, sums = carry
            draws, key = given
            draws = draws if jobs is None else columns.taken(jobs, state)
            share = columns.given(_decided(decide, state.length, key), pairs)
            after, event = columns.transition(network, pairs, state, share, draws)
            more = (event.cost, event.elapsed, state.length * event.elapsed,
                    event.busy * event.elapsed)  # fmt: skip
            return (after, jax.tree.map(jnp.add, sums, more)), None

        zeros = tuple(jnp.zeros((*s, runs)) for s in ((), (), (n,), (network.num_servers,)))
        state, sums = jax.lax.scan(
            forward, (state, zeros), (drawn, turns), size, unroll=unroll
        )[0]  # fmt: skip
        counts = (state.came, state.done)
        if state.came is None:
            counts = (jnp.zeros((n, runs), jnp.int32),) * 2
        return state, (*sums, state.length, *counts)

    found = jax.lax.scan(chunk, first, jnp.arange(chunks))[1]
    # [chunks, ..., runs]
    return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), found)


def _decided(policy: Callable, length: Any, keys: Any) -> Any:
    """What a policy decides of lengths [n, runs], the runs last; a law is drawn from."""
    if keys is None:
        return columns.over_runs(policy)(length)
    return jax.vmap(lambda x, key: policy(x, None).sample(key), (-1, 0), -1)(length, keys)


def _drawn(network: Network, key: jax.Array, size: int, same: bool) -> Draws:
    """The draws of a chunk of events."""
    gap_law, work_law = clock_laws(network)
    gap = gap_law.sample(key, (size,))
    work = gap if same else work_law.sample(jax.random.fold_in(key, 2), (size,))
    to = None
    if random_routing(network):
        to = routing_law(network).sample(jax.random.fold_in(key, 3), (size,))
    return Draws(gap, work, to)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _simulate_ticks(
    rule: Rule, sizes: tuple, per_run: bool, key: jax.Array, network: Network, arrays: list,
    jobs: Any,
) -> tuple:  # fmt: skip
    size, chunks, runs, _, _, unroll = sizes
    decide = rule.policy(arrays)
    n, drawing = network.num_classes, draws_from_law(decide, network.num_classes)
    pools = np.asarray(network.pools, np.float32)

    def one(key: jax.Array) -> Any:
        def chunk(state: Any, number: jax.Array) -> tuple:
            now = jax.random.fold_in(key, number)
            drawn = jax.random.uniform(now, (size,))
            keys = jax.random.split(jax.random.fold_in(now, 1), size) if drawing else None
            to = None
            if random_routing(network):
                to = routing_law(network).sample(jax.random.fold_in(now, 3), (size,))

            def forward(carry: tuple, given: tuple) -> tuple:
                (length, came, done), sums = carry
                u, to, key = given
                share = decided(decide, length, key, n)
                law = probabilities(network, share)
                event = jnp.sum(u > jnp.cumsum(law)[:-1])
                after, cost, _ = tick(network, length, event, to)
                came = came + (event == jnp.arange(n))
                done = done + (event == jnp.arange(n, 2 * n))
                more = (cost, 1.0, length, share.sum(1) / pools)
                return ((after, came, done), jax.tree.map(jnp.add, sums, more)), None

            zeros = (0.0, 0.0, jnp.zeros(n), jnp.zeros(network.num_servers))
            begin = (state, jax.tree.map(jnp.asarray, zeros))
            state, sums = jax.lax.scan(forward, begin, (drawn, to, keys), unroll=unroll)[0]
            sums = jax.tree.map(lambda x: x / clock_rate(network), sums)
            return state, (*sums, *state)

        none = jnp.zeros(n, jnp.int32)
        return jax.lax.scan(chunk, (jnp.zeros(n), none, none), jnp.arange(chunks))[1]

    return jax.vmap(one)(jax.random.split(key, runs))
