r"""Policies of queueing networks: what each server works on, given the lengths of the queues.

Server i scores class j by an index :math:`\rho_{ij}(x)` and works on the best class that has jobs,
or, for the soft ones, on a class drawn with probability proportional to :math:`e^{\rho_{ij}}` among
those that have. All are work-conserving unless they say otherwise, and all are values of the action
site `serve` of `event_model`, `f(length, space) -> classes [m] or a Categorical`.

They are `jax.tree_util.Partial`s: arrays among their parameters may be traced, and changed without
compiling again.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial

from decisionppl.models._queue_chain import fill
from decisionppl.models._queue_columns import columns, last_axis, onward, pairs_of
from decisionppl.models._queue_events import servable
from decisionppl.models._queue_network import Network

_NEVER = -1e30  # finite, so that gradients of what is not possible are zero and not NaN


def _best(network: Network, factor: Any, value: Any, length: Any, idle: bool = False) -> jax.Array:
    """The class with jobs of the largest factor [m, n] times value [n, ...] for each server.

    n where there is none; int [m, ...]. Pools: [m, n].
    """
    if max(network.pools) > 1:
        return fill(network, factor * value, length, idle)
    n, pairs = network.num_classes, pairs_of(network)
    column = np.append(pairs.column, n)[pairs.of_server]  # [m, classes of a server]
    place = np.minimum(column, n - 1)
    listed = jnp.broadcast_to(factor, network.service.shape)
    listed = jnp.take_along_axis(listed, place, axis=1)
    if value.ndim < length.ndim:
        value = columns(value, length)
    value = jnp.broadcast_to(value, length.shape)
    can = (length > 0)[place] & columns(column < n, length)
    if idle:
        can = can & (columns(listed, length) * value[place] >= 0)
    index = jnp.where(can, columns(listed, length) * value[place], -jnp.inf)
    # the first one of equal ones; lists are in the order of classes
    chosen = can & (index == index.max(1, keepdims=True))
    return jnp.where(chosen, columns(column, length), n).min(1)


def _soft(network: Network, index: Any, length: Any) -> dist.Distribution:
    """The law of what each server works on, by a masked log-softmax over its classes with jobs."""
    can = servable(network, length)
    index = jnp.broadcast_to(index, can.shape)
    logits = jnp.where(can, index, _NEVER)
    rest = jnp.where(can.any(1), _NEVER, 0.0)
    return dist.CategoricalLogits(jnp.concatenate([logits, rest[:, None]], axis=1))


@last_axis
def _priority(network: Network, index: Any, length: Any, space: Any = None) -> jax.Array:
    return _best(network, index, jnp.ones(network.num_classes), length)


def priority(network: Network, index: Any) -> Partial:
    """Fixed priorities: each server works on its class of the largest index.

    Args:
        network: from `network`.
        index: [n] or [m, n].

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> net = queueing.criss_cross()
        >>> queueing.priority(net, [3.0, 2.0, 1.0])(jnp.array([0.0, 0.0, 4.0]), None).tolist()
        [2, 3]
    """
    return Partial(_priority, network, jnp.asarray(index, jnp.result_type(float)))


def cmu(network: Network) -> Partial:
    r"""The c-mu rule: index :math:`h_j \mu_{ij}`; ties to the first class.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> queueing.cmu(queueing.criss_cross())(jnp.array([1.0, 0.0, 4.0]), None).tolist()
        [0, 3]
    """
    return priority(network, jnp.asarray(network.holding) * jnp.asarray(network.service))


@last_axis
def _max_weight(network: Network, length: Any, space: Any = None) -> jax.Array:
    return _best(network, network.holding * network.service, length, length)


def max_weight(network: Network) -> Partial:
    r"""MaxWeight: index :math:`h_j \mu_{ij} x_j`.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> queueing.max_weight(queueing.criss_cross())(jnp.array([1.0, 0.0, 4.0]), None).tolist()
        [2, 3]
    """
    return Partial(_max_weight, network)


def _pressure(network: Network, weighted: Any) -> Any:
    return network.service * (weighted - jnp.asarray(network.routing, weighted.dtype) @ weighted)


@last_axis
def _max_pressure(network: Network, idle: Any, length: Any, space: Any = None) -> jax.Array:
    weighted = columns(network.holding, length) * length
    value = weighted - onward(network, weighted)
    # of no use where it would not serve anyway
    rule = (network, network.service, value, length)
    return jnp.where(idle, _best(*rule, idle=True), _best(*rule))


def max_pressure(network: Network, *, idle: bool = False) -> Partial:
    r"""MaxPressure: index :math:`\mu_{ij} (h_j x_j - \sum_l P_{jl} h_l x_l)`.

    Args:
        network: from `network`.
        idle: whether a server rests where all its indices are below zero. As published it does;
            working on the largest one costs less almost everywhere.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> net = queueing.criss_cross()
        >>> busy = jnp.array([1.0, 4.0, 0.0])
        >>> queueing.max_pressure(net)(busy, None).tolist()
        [0, 1]
        >>> queueing.max_pressure(net, idle=True)(busy, None).tolist()
        [3, 1]
    """
    return Partial(_max_pressure, network, bool(idle))


@last_axis
def _threshold(network: Network, rule: Any, length: Any, space: Any = None) -> jax.Array:
    server, early, late, watched, level = rule
    ordinary = _best(
        network, network.holding * network.service, jnp.ones(network.num_classes), length
    )
    can = columns(jnp.asarray(network.topology)[server], length) & (length > 0)
    short = length[watched] <= level
    preferred, other = jnp.where(short, early, late), jnp.where(short, late, early)
    has = [jnp.where(short, can[j], can[k]) for j, k in ((early, late), (late, early))]
    choice = jnp.where(has[0], preferred, jnp.where(has[1], other, ordinary[server]))
    return ordinary.at[server].set(choice)


def threshold(
    network: Network, level: float, *, server: int = 0, classes: Sequence[int] = (0, 2),
    watched: int = 1,
) -> Partial:  # fmt: skip
    """One server works on one class while a queue is short, and on another when it is long.

    The other servers follow the c-mu rule. The defaults are those of the criss-cross network: the
    first server feeds the second while at most `level` jobs wait there.

    Args:
        network: from `network`.
        level: the longest queue that counts as short.
        server: the one that switches.
        classes: what it works on first while the queue is short, and while it is long; on the
            other one if there is none of the first.
        watched: class whose queue is watched.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> rule = queueing.threshold(queueing.criss_cross(), 3)
        >>> [rule(jnp.array([1.0, x, 1.0]), None).tolist() for x in (3.0, 4.0)]
        [[0, 1], [2, 1]]

    References:
        Harrison and Wein (1989), for thresholds in the criss-cross network.
    """
    first, second = (int(c) for c in classes)
    for j in (first, second):
        if not network.topology[server, j]:
            raise ValueError(f"classes: server {server} cannot work on class {j}.")
    short = jnp.asarray(level, jnp.result_type(float))
    return Partial(_threshold, network, (int(server), first, second, int(watched), short))


def soft_priority(network: Network, theta: Any) -> Partial:
    r"""Soft priorities: index :math:`\theta_j \mu_{ij}`, a Categorical for each server.

    Args:
        network: from `network`.
        theta: [n].

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> law = queueing.soft_priority(queueing.criss_cross(), [1.0, 1.0, 1.0])(jnp.ones(3), None)
        >>> law.probs.round(2).tolist()
        [[0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]
    """
    return Partial(_soft_priority, network, jnp.asarray(theta, jnp.result_type(float)))


def _soft_priority(network: Network, theta: Any, length: Any, space: Any = None) -> Any:
    return _soft(network, theta * network.service, length)


def soft_max_weight(network: Network, theta: Any) -> Partial:
    r"""Soft MaxWeight: index :math:`\theta_j \mu_{ij} x_j`, as `soft_priority`."""
    return Partial(_soft_max_weight, network, jnp.asarray(theta, jnp.result_type(float)))


def _soft_max_weight(network: Network, theta: Any, length: Any, space: Any = None) -> Any:
    return _soft(network, theta * network.service * length, length)


def soft_max_pressure(network: Network, theta: Any) -> Partial:
    r"""Soft MaxPressure: that of `max_pressure` with :math:`\theta` for h, as `soft_priority`."""
    return Partial(_soft_max_pressure, network, jnp.asarray(theta, jnp.result_type(float)))


def _soft_max_pressure(network: Network, theta: Any, length: Any, space: Any = None) -> Any:
    return _soft(network, _pressure(network, theta * length), length)


def init_neural(key: Any, network: Network, hidden: Sequence[int] = (128, 128, 128, 128)) -> list:
    """Weights of a network for `neural`: layers of (weight, bias).

    The last layer starts at zero: at first every class with jobs is as likely as any other.

    Args:
        key: PRNG key.
        network: from `network`.
        hidden: widths of the hidden layers.

    Example:
        >>> import jax
        >>> from decisionppl.models import queueing
        >>> weights = queueing.init_neural(jax.random.key(0), queueing.criss_cross(), (8,))
        >>> [w.shape for w, _ in weights]
        [(3, 8), (8, 6)]
    """
    sizes = [network.num_classes, *hidden, network.num_servers * network.num_classes]
    keys = jax.random.split(key, len(sizes) - 1)
    make = jax.nn.initializers.he_normal()
    pairs = zip(keys, itertools.pairwise(sizes), strict=True)
    layers = [(make(k, pair), jnp.zeros(pair[1])) for k, pair in pairs]
    layers[-1] = (jnp.zeros_like(layers[-1][0]), layers[-1][1])
    return layers


def _scores(weights: Any, length: Any, shape: tuple[int, int]) -> jax.Array:
    # queues vary over orders of magnitude
    x = jnp.log1p(length)
    for w, b in weights[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = weights[-1]
    return (x @ w + b).reshape(shape)


def neural(network: Network, weights: Any) -> Partial:
    """A network from the lengths of the queues to a Categorical for each server.

    Args:
        network: from `network`.
        weights: from `init_neural`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> net = queueing.criss_cross()
        >>> law = queueing.neural(net, queueing.init_neural(jax.random.key(0), net))(jnp.ones(3), 0)
        >>> law.probs.tolist()
        [[0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]
    """
    return Partial(_neural, network, weights)


def _neural(network: Network, weights: Any, length: Any, space: Any = None) -> Any:
    return _soft(network, _scores(weights, length, network.service.shape), length)


def _hard(soft: Any, length: Any, space: Any = None) -> jax.Array:
    return jnp.argmax(soft(length, space).logits, axis=-1)


def hardened(soft: Any) -> Partial:
    """The most likely class of a soft policy, in place of a draw.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import queueing
        >>> soft = queueing.soft_priority(queueing.criss_cross(), [1.0, 1.0, 2.0])
        >>> queueing.hardened(soft)(jnp.ones(3), None).tolist()
        [2, 1]
    """
    return Partial(_hard, soft)
