"""Queueing networks with exponential clocks as Markov chains, with pools of servers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import decisionppl as dp
from decisionppl.models._markov import MarkovModel
from decisionppl.models._queue_events import (
    _NEVER,
    random_routing,
    routing_law,
    servable,
    shares,
)
from decisionppl.models._queue_network import Network


def fill(network: Network, index: Any, length: Any, idle: bool = False) -> jax.Array:
    """Servers of pools to jobs, the pair of the largest index first; int [m, n].

    Args:
        network: from `network`.
        index: [m, n].
        length: jobs in each class, [n].
        idle: leave out pairs whose index is below zero.
    """
    pairs = np.argwhere(network.topology)
    rows, columns = jnp.asarray(pairs.T)
    scores = jnp.broadcast_to(index, network.service.shape)[rows, columns]
    order = jnp.argsort(-scores)
    counts = jnp.zeros(network.service.shape, jnp.int32)
    free, waiting = jnp.asarray(network.pools, jnp.int32), jnp.asarray(length, jnp.int32)

    def one(k: Any, carry: tuple) -> tuple:
        counts, free, waiting = carry
        i, j = rows[order[k]], columns[order[k]]
        now = jnp.minimum(free[i], waiting[j])
        now = jnp.where(idle & (scores[order[k]] < 0), 0, now)
        return counts.at[i, j].set(now), free.at[i].add(-now), waiting.at[j].add(-now)

    return jax.lax.fori_loop(0, len(pairs), one, (counts, free, waiting))[0]


class Assignments(dist.Distribution):
    """How many servers of each pool work on each class: int [m, n].

    A draw takes the pairs of pool and class in random order, and gives each as many servers as
    there are free ones and jobs. Its probabilities are not known in closed form.

    Args:
        network: from `network`.
        length: jobs in each class, [n].
    """

    pytree_data_fields = ("network", "length")

    def __init__(self, network: Network, length: Any, *, validate_args: bool | None = None) -> None:
        self.network, self.length = network, length
        super().__init__((), (network.num_servers, network.num_classes),
                         validate_args=validate_args)  # fmt: skip

    @property
    def support(self) -> Any:
        """Whole numbers of servers."""
        return constraints.independent(constraints.nonnegative_integer, 2)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Work-conserving assignments in random order, `sample_shape + [m, n]`."""
        noise = jax.random.uniform(key, (*sample_shape, *self.event_shape))
        flat = noise.reshape(-1, *self.event_shape)
        found = jax.vmap(lambda x: fill(self.network, x, self.length))(flat)
        return found.reshape(noise.shape)

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Not known."""
        raise NotImplementedError(
            "the probability of an assignment of pools has no closed form. Decide by a policy "
            "(decisionppl.act) where densities are needed."
        )


def clock_rate(network: Network) -> Any:
    r"""Ticks per unit of time, :math:`\Lambda = \sum_j \lambda_j + \sum_i c_i \max_j \mu_{ij}`."""
    pools = np.asarray(network.pools, float)
    return network.arrival.sum() + (network.service.max(1) * pools).sum()


def probabilities(network: Network, share: Any) -> jax.Array:
    """Of an arrival to each class, of a completion of each, and of nothing, [2 n + 1]."""
    done = (share * jnp.asarray(network.service)).sum(0)
    moving = jnp.concatenate([jnp.asarray(network.arrival), done]) / clock_rate(network)
    return jnp.append(moving, jnp.maximum(1 - moving.sum(), 0.0))


def tick(network: Network, length: Any, event: Any, to: Any = None) -> tuple[Any, Any, Any]:
    """Lengths after an event, the cost per unit of time of the tick, and lost jobs [n]."""
    n = network.num_classes
    event = jnp.asarray(event)
    came, gone = event == jnp.arange(n), event == jnp.arange(n, 2 * n)
    if to is None:
        moves = np.asarray(network.routing)
        to = np.where(moves.sum(1) > 0, moves.argmax(1), n)
    inside = gone.astype(int) @ (jnp.asarray(to)[:, None] == jnp.arange(n))
    after = length + came - gone + inside
    cost = jnp.dot(jnp.asarray(network.holding), length)
    if not network.limited:
        return after, cost, jnp.zeros(n)
    lost = jax.nn.relu(after - network.buffer)
    after = after - lost.astype(after.dtype)
    return after, cost + clock_rate(network) * jnp.dot(jnp.asarray(network.rejection), lost), lost


def chain_model(network: Network) -> MarkovModel:
    r"""An exponential network as a Markov chain on the lengths of its queues.

    A step is a tick of a Poisson clock of rate :math:`\Lambda`: with probability
    :math:`\lambda_j / \Lambda` a job of class j arrives, with :math:`\sum_i u_{ij} \mu_{ij} /
    \Lambda` one is done, else nothing happens. Ticks see averages over time, so that the average
    reward per step is -1 times the cost per unit of time, as for `event_model`.

    Args:
        network: from `network`, with exponential clocks and constant rates.

    Returns:
        `MarkovModel` of states [n] (int), which starts empty. `step` has the action site `serve`:
        for single servers as in `event_model`, and for pools the number of servers of each on each
        class, [m, n]; policies see the lengths of the queues. Its other sites are `event`, `to`
        where routing is random, `queue`, and the reward `holding`.

    Raises:
        ValueError: clocks that are not exponential, or rates that change.

    Example:
        >>> from decisionppl.inference import markov
        >>> from decisionppl.models import queueing
        >>> net = queueing.mm1(0.5)
        >>> chain = queueing.chain_model(net)
        >>> runs = markov.rollout(
        ...     chain.step, chain.init, 4000, key=0, policy=queueing.cmu(net), num_runs=20)
        >>> bool(abs(-runs.reward.mean() - queueing.mm1_length(0.5)) < 0.2)
        True

    References:
        Lippman, Applying a New Device in the Optimization of Exponential Queuing Systems,
        Operations Research (1975), for the clock.
    """
    if not network.exponential:
        raise ValueError(
            "chain_model: expected exponential clocks and constant rates. Use "
            "event_model(network) for others."
        )
    n, pooled = network.num_classes, max(network.pools) > 1

    def step(length: Any) -> Any:
        if pooled:
            serve = dp.action("serve", Assignments(network, length), given=length)
            share = serve * 1.0
        else:
            can = servable(network, length)
            space = jnp.concatenate([can, ~can.any(1, keepdims=True)], axis=1)
            with numpyro.plate("server", network.num_servers):
                law = dist.CategoricalLogits(jnp.where(space, 0.0, _NEVER))
                serve = dp.action("serve", law, given=length)
            share = shares(serve, n) * can
        law: Any = dist.Categorical(probs=probabilities(network, share))
        event = dp.outcome("event", law)
        to = numpyro.sample("to", routing_law(network)) if random_routing(network) else None
        after, cost, _ = tick(network, length, event, to)
        dp.reward("holding", -cost)
        return dp.state("queue", after.astype(jnp.asarray(length).dtype))

    return MarkovModel(step, np.zeros(n, int), None, lambda x: jnp.append(x, 1) * 1.0)
