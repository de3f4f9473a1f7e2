"""The transition of a queueing network for many runs at a time, without sites.

Arrays have the runs last, [n, runs]: a processor then works on many runs in one instruction, and
what a class needs of its servers, or a server of its classes, is picked by rows. Pairs of servers
and classes that do not go together are left out, so that work grows with the number of classes and
not with its square. What happens is that of `_queue_events.transition`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl.models._queue_events import Draws, Event, Jobs, Queues, random_routing
from decisionppl.models._queue_network import Network


class Pairs(NamedTuple):
    """Which servers work on which classes, as lists.

    Attributes:
        server, column: of each pair, int [pairs].
        of_class: pairs of each class, [n, servers of a class], filled up with the number of pairs.
        of_server: pairs of each server, [m, classes of a server], filled up alike.
    """

    server: np.ndarray
    column: np.ndarray
    of_class: np.ndarray
    of_server: np.ndarray


def pairs_of(network: Network) -> Pairs:
    """The lists of a network, classes first."""
    column, server = np.nonzero(network.topology.T)
    groups = [np.flatnonzero(column == j) for j in range(network.num_classes)]
    return Pairs(
        server,
        column,
        padded(groups, len(server)),
        padded([np.flatnonzero(server == i) for i in range(network.num_servers)], len(server)),
    )


def padded(groups: Any, filling: int) -> np.ndarray:
    """Lists of numbers as a table, filled up."""
    width = max(1, *(len(g) for g in groups))
    table = np.full((len(groups), width), filling)
    for row, group in zip(table, groups, strict=True):
        row[: len(group)] = group
    return table


def totals(x: Any, table: np.ndarray) -> Any:
    """Sums of rows of x [pairs, ...] that a table lists, [groups, ...]."""
    rows = x
    if (table == len(x)).any():
        rows = jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])
    return sum(rows[table[:, k]] for k in range(1, table.shape[1])) + rows[table[:, 0]]


def columns(x: Any, like: Any) -> Any:
    """Numbers of classes or servers [n] beside arrays [n, runs]."""
    x = jnp.asarray(x)
    return x.reshape(*x.shape, *(1,) * (like.ndim - 1))


def given(serve: Any, pairs: Pairs) -> Any:
    """What a server gives to each of its classes, [pairs, runs].

    From choices, int [m, runs], or shares, [m, n, runs] or [m, n + 1, runs].
    """
    if jnp.issubdtype(serve.dtype, jnp.integer) and serve.ndim == 2:
        found = serve[pairs.server] == pairs.column[:, None]
    else:
        found = serve[pairs.server, pairs.column]
    return found.astype(jnp.result_type(float))


def transition(
    network: Network, pairs: Pairs, state: Queues, share: Any, draws: Draws
) -> tuple[Queues, Event]:
    """The next event of each run.

    Args:
        network: from `network`.
        pairs: of it.
        state: leaves [n, runs], phase [runs].
        share: from `given`, [pairs, runs].
        draws: leaves [runs] or [n, runs].

    Returns:
        (state after the event, what happened).
    """
    n = network.num_classes
    length = state.length
    service = jnp.asarray(network.service)[pairs.server, pairs.column]
    works = (share > 0) & (length > 0)[pairs.column]
    rate = totals(jnp.where(works, share * columns(service, share), 0.0), pairs.of_class)
    arrival = jnp.asarray(network.arrival)
    if state.phase is None:
        arrival = columns(arrival, length)
        clocks = [(state.gap, arrival), (state.work, rate)]
    else:
        number, left = state.phase
        arrival = arrival[number].T
        more = (number < network.num_phases - 1).astype(left.dtype)  # the last one stays
        clocks = [(state.gap, arrival), (state.work, rate), (left[None], more[None])]
    # no derivatives here, so that the smallest rates need no care
    times = jnp.concatenate(
        [jnp.where(r > 0, c / jnp.where(r > 0, r, 1.0), jnp.inf) for c, r in clocks]
    )
    time = times.min(0)
    number_of = np.arange(len(times))[:, None]
    first = jnp.where(times == time, number_of, len(times)).min(0)  # the first one of equal ones
    came, done = (first == number_of[:n]), (first == number_of[n : 2 * n])
    after = [jnp.maximum(c - time * r, 0.0) for c, r in clocks]
    gap = jnp.where(came, draws.gap, after[0])
    work = jnp.where(done, draws.work, after[1])
    moved = length + came - done + _inside(network, done, draws.to)
    lost = jnp.zeros_like(length)
    cost = (columns(network.holding, length) * length).sum(0) * time
    if network.limited:
        lost = jnp.maximum(moved - columns(network.buffer, length), 0.0)
        moved = moved - lost
        cost = cost + (columns(network.rejection, length) * lost).sum(0)
    phase = state.phase
    if phase is not None:
        over = first == 2 * n
        lengths = jnp.append(jnp.asarray(network.switches), 1.0)
        fresh = lengths[jnp.minimum(phase[0] + 1, len(lengths) - 1)]
        phase = (phase[0] + over, jnp.where(over, fresh, after[2][0]))
    counts = (None, None)
    if state.came is not None:
        counts = (state.came + came, state.done + done)
    busy = totals(jnp.where(works, share, 0.0), pairs.of_server)
    return Queues(moved, gap, work, *counts, phase), Event(cost, time, busy, lost)


def _inside(network: Network, done: Any, to: Any) -> Any:
    """Jobs that become jobs of each class, [n, runs]."""
    moves = np.asarray(network.routing)
    if to is not None:
        n = network.num_classes
        return sum(done[j] & (to[j] == np.arange(n)[:, None]) for j in range(n))
    feeding = padded([np.flatnonzero(row) for row in moves.T], len(moves))
    return totals(done.astype(jnp.result_type(float)), feeding)


def onward(network: Network, x: Any) -> Any:
    r"""Mean of x over what a job of each class becomes, :math:`P x`, [n, ...]."""
    if random_routing(network):
        return jnp.asarray(network.routing, x.dtype) @ x
    moves = np.asarray(network.routing)
    return totals(x, padded([np.flatnonzero(row) for row in moves], len(moves)))


def taken(jobs: Jobs, state: Queues) -> Draws:
    """The draws of the next events from jobs drawn beforehand; NaN where there are no more.

    Args:
        jobs: leaves [n, jobs], or [n, jobs, runs] for jobs of each run's own.
        state: with counts.
    """

    def pick(table: Any, count: Any, default: Any) -> Any:
        at = count + 1
        table = jnp.asarray(table)
        if table.ndim == 3:
            at, table = at[:, None], table
        found = jnp.take_along_axis(table, at, 1, mode="fill", fill_value=default)
        return found[:, 0] if table.ndim == 3 else found

    to = None
    if jobs.to is not None:  # of the job in service, not of the one after it
        to = pick(jobs.to, state.done - 1, 0)
    return Draws(pick(jobs.gap, state.came, jnp.nan), pick(jobs.work, state.done, jnp.nan), to)


def last_axis(function: Any) -> Any:
    """Mark a policy that takes lengths [n, runs] as well as [n]."""
    function.takes_runs = True
    return function


def takes_runs(policy: Any) -> bool:
    """Whether a policy is marked so."""
    return getattr(getattr(policy, "func", policy), "takes_runs", False)


def over_runs(policy: Any) -> Any:
    """A policy as a function of lengths [n, runs], its decisions with the runs last."""
    if takes_runs(policy):
        return lambda length: policy(length, None)
    return jax.vmap(lambda length: policy(length, None), -1, -1)
