"""Beliefs about the rates of exponential networks, from logs of events."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from decisionppl.models._arguments import check_number
from decisionppl.models._queue_events import servable, shares
from decisionppl.models._queue_network import Network


class Rates(NamedTuple):
    r"""Gamma beliefs about rates: shapes count events, rates add up exposure.

    A pytree: it works under `jit` and `scan`, as a belief does.

    Attributes:
        arrivals, time: shape and rate of the belief about each :math:`\lambda_j`, [n].
        completions, effort: of each :math:`\mu_{ij}`, [m, n].
    """

    arrivals: Any
    time: Any
    completions: Any
    effort: Any

    def law(self) -> dict[str, dist.Distribution]:
        """Laws of `arrival` [n] and `service` [m, n]."""
        return {
            "arrival": dist.Gamma(self.arrivals, self.time).to_event(1),
            "service": dist.Gamma(self.completions, self.effort).to_event(2),
        }

    def sample(self, key: Any, network: Network) -> Network:
        """The network with rates drawn from the belief: a world, for Thompson sampling."""
        first, second = jax.random.split(key)
        laws = self.law()
        # what cannot arrive or be served is known
        arrival = jnp.where(network.arrival > 0, laws["arrival"].sample(first), 0.0)
        service = jnp.where(network.topology, laws["service"].sample(second), 0.0)
        return network.replace(arrival=arrival, service=service)

    def mean(self, network: Network) -> Network:
        """The network with the means of the belief as rates."""
        arrival = jnp.where(network.arrival > 0, self.arrivals / self.time, 0.0)
        service = jnp.where(network.topology, self.completions / self.effort, 0.0)
        return network.replace(arrival=arrival, service=service)


def rates_prior(network: Network, *, events: float = 1.0, exposure: float = 1.0) -> Rates:
    """The same Gamma belief about all rates, as if `events` had been seen in `exposure`.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.rates_prior(queueing.criss_cross()).completions.shape
        (2, 3)
    """
    check_number("events", events, above=0)
    check_number("exposure", exposure, above=0)
    n, m = network.num_classes, network.num_servers
    full = jnp.full
    return Rates(full(n, events), full(n, exposure), full((m, n), events), full((m, n), exposure))


def update_rates(belief: Rates, network: Network, states: Any, serve: Any, elapsed: Any) -> Rates:
    r"""The belief after a log of events.

    Given the events, :math:`\lambda_j \sim \mathrm{Gamma}(a + N_j, b + t)` with the arrivals
    :math:`N_j` in time t, and :math:`\mu_{ij} \sim \mathrm{Gamma}(a + C_{ij}, b + t_{ij})` with the
    completions and the time that server i spent on class j. Exact for any policy: decisions depend
    on the past alone.

    Args:
        belief: from `rates_prior` or an earlier update.
        network: whose topology is known; its rates are not used. No class has two servers.
        states: `Queues` with a leading axis [steps + 1], as `markov.rollout` gives.
        serve: what servers worked on, int [steps, m].
        elapsed: time until each event, [steps].

    Returns:
        `Rates`.

    Raises:
        ValueError: a class that several servers work on: the log does not say who was done.

    Example:
        >>> import jax
        >>> from decisionppl.inference import markov
        >>> from decisionppl.models import queueing
        >>> net = queueing.multiclass([0.2, 0.4], [1.0, 2.0], [1, 1])
        >>> states, serve, elapsed = queueing.log_events(net, queueing.cmu(net), 5000, key=0)
        >>> belief = queueing.update_rates(
        ...     queueing.rates_prior(net), net, states, serve, elapsed)
        >>> bool(abs(belief.mean(net).service - net.service).max() < 0.3)
        True
    """
    if (network.topology.sum(0) > 1).any():
        raise ValueError(
            "update_rates: several servers work on one class, and the log does not say which of "
            f"them was done; servers work on {network.served}."
        )
    elapsed = jnp.asarray(elapsed)
    came = (states.came[-1] - states.came[0]).astype(elapsed.dtype)
    done = (states.done[-1] - states.done[0]).astype(elapsed.dtype)
    n = network.num_classes

    def effort(length: Any, chosen: Any, time: Any) -> Any:
        return shares(chosen, n) * servable(network, length) * time

    spent = jax.vmap(effort)(states.length[:-1], serve, elapsed).sum(0)
    return Rates(
        belief.arrivals + came, belief.time + elapsed.sum(),
        belief.completions + jnp.where(np.asarray(network.topology), done, 0.0),
        belief.effort + spent,
    )  # fmt: skip


def log_events(
    network: Network, policy: Any, num_events: int, *, key: Any, state: Any = None
) -> tuple[Any, Any, Any]:
    """Simulate a log of events, as a system would keep it.

    Args:
        network: from `network`, with single servers.
        policy: see `event_model`.
        num_events: events.
        key: PRNG key or int seed.
        state: `Queues` to go on from; default an empty network.

    Returns:
        (states [events + 1, ...], serve [events, m], elapsed [events]).

    Example:
        >>> from decisionppl.models import queueing
        >>> net = queueing.mm1(0.5)
        >>> states, serve, elapsed = queueing.log_events(net, queueing.cmu(net), 10, key=0)
        >>> states.length.shape, serve.shape, elapsed.shape
        ((11, 1), (10, 1), (10,))
    """
    from numpyro import handlers

    from decisionppl._play import as_key, play
    from decisionppl.models._queue_events import event_model

    model = event_model(network)
    begin, key = jax.random.split(as_key(key))
    first = handlers.seed(model.init, begin)() if state is None else state

    def forward(state: Any, key: Any) -> tuple:
        kept: list = []
        trace = play(lambda s: kept.append(model.step(s)), key, policy)(state)
        return kept[0], (state, trace["serve"]["value"], trace["elapsed"]["value"])

    last, (states, serve, elapsed) = jax.lax.scan(forward, first, jax.random.split(key, num_events))
    states = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), states, last)
    return states, serve, elapsed
