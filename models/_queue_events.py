"""Queueing networks event by event: the transition, and the NumPyro model of one event."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.inference.pathwise import race
from decisionppl.models._markov import MarkovModel
from decisionppl.models._queue_network import Network

_NEVER = -1e30  # log-odds of what is not possible; finite, so that gradients are zero and not NaN


class Queues(NamedTuple):
    """State of a network between events.

    Durations and work, not times of a running clock: these keep their precision in long runs.

    Attributes:
        length: jobs in each class, [n], whole numbers as floats.
        gap: what is left of each interval between arrivals, in units of its mean, [n].
        work: what is left of the first job in each class, or of the next one to come, [n].
        came, done: arrivals from outside and completions so far in each class, int [n].
        phase: which of the arrival rates holds, and the time left of it; None where there is one.
    """

    length: Any
    gap: Any
    work: Any
    came: Any
    done: Any
    phase: Any = None


class Draws(NamedTuple):
    """What is random in one event.

    Attributes:
        gap: the next interval between arrivals, of mean one, [] or [n].
        work: the workload of the next job, of mean one, [] or [n].
        to: class that a job of each class becomes if it is done now, n where it leaves, int [n];
            None where routing is not random.
    """

    gap: Any
    work: Any
    to: Any = None


class Jobs(NamedTuple):
    """The jobs of a run, drawn beforehand: the same under every policy.

    Attributes:
        gap: interval before the k-th arrival of each class, of mean one, [n, jobs].
        work: workload of the k-th job that each class serves, of mean one, [n, jobs].
        to: class that it becomes when done, n where it leaves, int [n, jobs], or None.
    """

    gap: Any
    work: Any
    to: Any = None


class Event(NamedTuple):
    """What happened in one event.

    Attributes:
        cost: holding costs until the event, and costs of rejected arrivals at it.
        elapsed: time until the event.
        busy: share of each server that worked until the event, [m].
        lost: arrivals that were rejected at the event, [n].
    """

    cost: Any
    elapsed: Any
    busy: Any
    lost: Any


def servable(network: Network, length: Any) -> jax.Array:
    """Whether each server has a job of each class to work on, bool [m, n]."""
    return jnp.asarray(network.topology) & (length > 0)


def shares(serve: Any, num_classes: int) -> Any:
    """What each server gives to each class, [m, n].

    From choices, int [m]; numbers of servers, int [m, n]; or shares, [m, n + 1].
    """
    serve = jnp.asarray(serve)
    if jnp.issubdtype(serve.dtype, jnp.integer) and serve.ndim == 1:
        return jax.nn.one_hot(serve, num_classes, dtype=jnp.result_type(float))
    return serve[..., :num_classes].astype(jnp.result_type(float))


def transition(network: Network, state: Queues, share: Any, draws: Draws) -> tuple[Queues, Event]:
    r"""The next event.

    Class j runs down its work at rate :math:`\sum_i u_{ij} \mu_{ij}` and its interval between
    arrivals at rate :math:`\lambda_j`; what ends first is the event. Work is resumed where it was
    left.

    Args:
        network: from `network`.
        state: before the event.
        share: what each server gives to each class until the event u, [m, n].
        draws: what is random.

    Returns:
        (state after the event, what happened).
    """
    n = network.num_classes
    working = share * jnp.asarray(network.service) * servable(network, state.length)
    arrival = jnp.asarray(network.arrival)
    shape = state.gap.shape
    gap, work = (jnp.broadcast_to(x, shape) for x in (draws.gap, draws.work))
    if state.phase is None:
        clocks = ((state.gap, arrival, gap), (state.work, working.sum(0), work))
    else:
        number, left = state.phase
        more = jnp.asarray(number < network.num_phases - 1, left.dtype)  # the last one stays
        clocks = (
            (state.gap, arrival[number], gap), (state.work, working.sum(0), work),
            (left[None], more[None], _length_of(network, number + 1)[None]),
        )  # fmt: skip
    clock, rate, fresh = (jnp.concatenate(x) for x in zip(*clocks, strict=True))
    first = race(clock, rate, fresh, held=np.arange(len(clock)) // n == 1)
    came, done = first.event[:n], first.event[n : 2 * n]
    if draws.to is None:
        inside = _routed(network, done)
    else:
        inside = done @ jax.nn.one_hot(draws.to, n, dtype=done.dtype)
    # never below zero; said so, because a queue that is empty carries no derivative on
    length = jax.nn.relu(state.length - done + inside + came)
    lost = jnp.zeros_like(length)
    cost = jnp.dot(jnp.asarray(network.holding), state.length) * first.time
    if network.limited:
        lost = jax.nn.relu(length - network.buffer)
        length = length - lost
        cost = cost + jnp.dot(jnp.asarray(network.rejection), lost)
    phase = state.phase
    if phase is not None:
        phase = (phase[0] + (first.event[2 * n] > 0), first.clock[2 * n])
    counted = state.came is not None
    after = Queues(
        length, first.clock[:n], first.clock[n : 2 * n],
        state.came + (came > 0) if counted else None,
        state.done + (done > 0) if counted else None, phase,
    )  # fmt: skip
    busy = jnp.where(working > 0, share, 0.0).sum(1)
    return after, Event(cost, first.time, busy, lost)


def _routed(network: Network, done: Any) -> Any:
    """Arrivals from inside where routing is not random: sums, since most classes feed one."""
    fed = [[] for _ in range(network.num_classes)]
    for j, row in enumerate(network.routing):
        for k, p in enumerate(row):
            if p:
                fed[k].append(done[j])
    return jnp.stack([sum(f[1:], f[0]) if f else jnp.zeros_like(done[0]) for f in fed])


def random_routing(network: Network) -> bool:
    """Whether some class has several ways to go on."""
    return any(p not in (0.0, 1.0) for row in network.routing for p in row)


def routing_law(network: Network) -> dist.Distribution:
    """Where a job of each class goes when done, n where it leaves, int [n]."""
    moves = np.asarray(network.routing)
    whole = np.clip(np.concatenate([moves, 1 - moves.sum(1, keepdims=True)], axis=1), 0, 1)
    return dist.Categorical(probs=jnp.asarray(whole, jnp.result_type(float))).to_event(1)


def _length_of(network: Network, number: Any) -> Any:
    lengths = jnp.append(jnp.asarray(network.switches), 1.0)
    return lengths[jnp.minimum(number, len(lengths) - 1)]


def one_law(network: Network) -> bool:
    """Whether one draw does for both kinds of clocks, since only one of them ends."""
    return all(
        isinstance(law, dist.Exponential) and not law.batch_shape
        for law in (network.interarrival, network.workload)
    )


def taken(jobs: Jobs, state: Queues) -> Draws:
    """The draws of the next event from jobs drawn beforehand; NaN where there are no more."""

    def pick(table: Any, count: Any, default: Any) -> Any:
        found = jnp.take_along_axis(jnp.asarray(table), (count + 1)[:, None], 1, mode="fill",
                                    fill_value=default)  # fmt: skip
        return found[:, 0]

    to = None
    if jobs.to is not None:  # of the job in service, not of the one after it
        to = pick(jobs.to, state.done - 1, 0)
    return Draws(pick(jobs.gap, state.came, jnp.nan), pick(jobs.work, state.done, jnp.nan), to)


def start(network: Network, gap: Any, work: Any, *, count: bool = True) -> Queues:
    """An empty network with the given clocks, [] or [n]."""
    n = network.num_classes
    zero = jnp.zeros(n, jnp.int32) if count else None
    phase = None
    if network.num_phases > 1:
        phase = (jnp.zeros((), jnp.int32), jnp.asarray(network.switches)[0])
    gap, work = (jnp.broadcast_to(jnp.asarray(x, jnp.result_type(float)), (n,))
                 for x in (gap, work))  # fmt: skip
    return Queues(jnp.zeros_like(gap), gap, work, zero, zero, phase)


def clock_laws(network: Network) -> tuple[dist.Distribution, dist.Distribution]:
    """Laws of the draws of an event; batch shape [] or [n] as events."""
    return tuple(law.to_event(len(law.batch_shape))
                 for law in (network.interarrival, network.workload))  # fmt: skip


def draw_jobs(network: Network, num_jobs: int) -> Jobs:
    """The model of the jobs of a run: sites `gaps`, `workloads` and, where random, `routes`.

    Args:
        network: from `network`.
        num_jobs: how many per class; a run that needs more becomes NaN.

    Returns:
        `Jobs`, what `event_model(network).step` takes as second argument.

    Example:
        >>> import numpyro
        >>> from decisionppl.models import queueing
        >>> jobs = numpyro.handlers.seed(queueing.draw_jobs, 0)(queueing.mm1(), 100)
        >>> jobs.gap.shape, jobs.work.shape
        ((1, 100), (1, 100))
    """
    n = network.num_classes

    def table(name: str, law: dist.Distribution) -> Any:
        return jnp.asarray(numpyro.sample(name, law.expand((num_jobs, n)).to_event(2))).T

    gap, work = table("gaps", network.interarrival), table("workloads", network.workload)
    if not random_routing(network):
        return Jobs(gap, work)
    law = routing_law(network).expand((num_jobs,)).to_event(1)
    return Jobs(gap, work, jnp.asarray(numpyro.sample("routes", law)).T)


def event_model(network: Network) -> MarkovModel:
    r"""A network as a Markov model whose step is one event.

    What each server works on until the event is the decision: action site `serve`, [m] in a plate
    over servers, class 0 .. n - 1 or n for none. A policy sees the lengths of the queues, [n].
    Unless `decisionppl.act` says otherwise, each server picks one of its classes with jobs at
    random, and none only if there is none. Under `pathwise.relaxed` the site holds probabilities
    [m, n + 1] and a server splits its rate.

    Args:
        network: from `network`; with single servers.

    Returns:
        `MarkovModel`. `step(state, jobs=None)` has the sites `serve`; `clock`, or `gap` and `work`
        where intervals between arrivals and workloads have different laws; `to` where routing is
        random; the outcome `elapsed`, time until the event; the outcomes `queue` [n] and `lost`
        [n]; the cost `holding`, as a reward below zero, so that averages of it are -1 times costs.
        With `jobs` the clocks come from these instead of sites. `init(jobs=None)` is an empty
        network, with sites `first_gap` and `first_work`.

    Raises:
        ValueError: pools of several servers: the first jobs of a class do not describe these.

    Example:
        >>> import jax
        >>> from decisionppl.inference import markov
        >>> from decisionppl.models import queueing
        >>> net = queueing.criss_cross("BH")
        >>> model = queueing.event_model(net)
        >>> runs = markov.rollout(model.step, model.init, 100, key=0, policy=queueing.cmu(net))
        >>> runs.state.length.shape, runs.arm.shape
        ((1, 101, 3), (1, 100, 2))

    References:
        Che, Dong and Namkoong, arXiv 2409.03740, section 3, for the dynamics.
    """
    if max(network.pools) > 1:
        raise ValueError(
            f"pools: {network.pools}; events with residual work are of single servers. Use "
            "chain_model(network), the Markov chain of exponential clocks."
        )
    n, same = network.num_classes, one_law(network)
    gap_law, work_law = clock_laws(network)

    def init(jobs: Jobs | None = None) -> Queues:
        if jobs is not None:
            return start(network, jobs.gap[:, 0], jobs.work[:, 0])
        laws = (law.expand((n,)) for law in (network.interarrival, network.workload))
        first = [numpyro.sample(name, law.to_event(1))
                 for name, law in zip(("first_gap", "first_work"), laws, strict=True)]  # fmt: skip
        return start(network, *first)

    def step(state: Queues, jobs: Jobs | None = None) -> Queues:
        can = servable(network, state.length)
        space = jnp.concatenate([can, ~can.any(1, keepdims=True)], axis=1)
        with numpyro.plate("server", network.num_servers):
            space = dist.CategoricalLogits(jnp.where(space, 0.0, _NEVER))
            serve = dp.action("serve", space, given=state.length)
        if jobs is not None:
            draws = taken(jobs, state)
        else:
            if same:
                gap = work = numpyro.sample("clock", gap_law)
            else:
                gap, work = numpyro.sample("gap", gap_law), numpyro.sample("work", work_law)
            to = numpyro.sample("to", routing_law(network)) if random_routing(network) else None
            draws = Draws(gap, work, to)
        after, event = transition(network, state, shares(serve, n), draws)
        dp.outcome("elapsed", event.elapsed)
        dp.outcome("lost", event.lost)
        dp.reward("holding", -event.cost)
        return after._replace(length=dp.state("queue", after.length))

    return MarkovModel(step, init, None, lambda state: jnp.append(state.length, 1.0))
