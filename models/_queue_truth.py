"""Queues in closed form."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from decisionppl.models._arguments import check_count, check_number
from decisionppl.models._queue_network import Network


def _load(load: float) -> float:
    check_number("load", load, above=0)
    if load >= 1:
        raise ValueError(f"load: expected less than 1, got {load!r}: the queue would grow forever.")
    return float(load)


def mm1_length(load: float) -> float:
    r"""Jobs in an M/M/1 system, :math:`L = \rho / (1 - \rho)`.

    Example:
        >>> from decisionppl.models import queueing
        >>> round(queueing.mm1_length(0.9), 6)
        9.0
    """
    return _load(load) / (1 - load)


def mm1_buffer(load: float, buffer: int) -> np.ndarray:
    r"""Law of the jobs in an M/M/1 system that holds `buffer` at most, :math:`\propto \rho^k`.

    Returns:
        [buffer + 1]; the last entry is the share of arrivals that are lost.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.mm1_buffer(0.5, 1).round(4).tolist()
        [0.6667, 0.3333]
    """
    check_number("load", load, above=0)
    law = float(load) ** np.arange(check_count("buffer", buffer, 0) + 1)
    return law / law.sum()


def admission_cost(
    buffer: int, arrival: float, *, holding: float = 1.0, rejection: float = 100.0,
    service: float = 1.0,
) -> float:  # fmt: skip
    r"""Cost per unit of time of an M/M/1 system with a buffer, :math:`h L + b \lambda \pi_B`.

    Example:
        >>> from decisionppl.models import queueing
        >>> round(queueing.admission_cost(17, 0.9), 4)
        7.5872
    """
    law = mm1_buffer(arrival / service, buffer)
    return float(holding * law @ np.arange(buffer + 1) + rejection * arrival * law[-1])


def erlang_c(load: float, servers: int) -> float:
    """Probability that a job has to wait in an M/M/c system; `load` per server.

    Example:
        >>> from decisionppl.models import queueing
        >>> round(queueing.erlang_c(0.9, 2), 6)
        0.852632
    """
    load, count = _load(load), check_count("servers", servers)
    blocked = 1.0
    for k in range(1, count + 1):  # Erlang B by its recursion, which neither over- nor underflows
        blocked = count * load * blocked / (k + count * load * blocked)
    return blocked / (1 - load * (1 - blocked))


def mmc_length(load: float, servers: int) -> float:
    r"""Jobs in an M/M/c system, :math:`L = c \rho + C \rho / (1 - \rho)`.

    Example:
        >>> from decisionppl.models import queueing
        >>> round(queueing.mmc_length(0.9, 2), 6)
        9.473684
    """
    return servers * load + erlang_c(load, servers) * load / (1 - load)


def mg1_length(load: float, scv: float) -> float:
    r"""Jobs in an M/G/1 system (Pollaczek and Khinchine).

    .. math:: L = \rho + \rho^2 \frac{1 + c_s^2}{2 (1 - \rho)}

    Args:
        load: :math:`\rho`.
        scv: squared coefficient of variation of the workload :math:`c_s^2`.

    Example:
        >>> from decisionppl.models import queueing
        >>> round(queueing.mg1_length(0.9, 2.28), 3)
        14.184
    """
    check_number("scv", scv, least=0)
    return _load(load) + load**2 * (1 + scv) / (2 * (1 - load))


def priority_lengths(
    arrival: Sequence[float], service: Sequence[float], order: Sequence[int] | None = None
) -> np.ndarray:
    r"""Jobs of each class in an M/M/1 system with preemptive priorities.

    With :math:`\sigma_k = \sum_{i \le k} \lambda_i / \mu_i` over the classes of higher priority,

    .. math:: T_k = \frac{1 / \mu_k}{1 - \sigma_{k-1}}
        + \frac{\sum_{i \le k} \lambda_i / \mu_i^2}{(1 - \sigma_{k-1})(1 - \sigma_k)},
        \qquad L_k = \lambda_k T_k.

    Args:
        arrival, service: rates, [n].
        order: classes from the highest priority to the lowest; default as listed.

    Returns:
        [n], by class.

    Example:
        >>> from decisionppl.models import queueing
        >>> queueing.priority_lengths([0.5, 0.4], [1.0, 1.0]).round(6).tolist()
        [1.0, 8.0]
    """
    lam, mu = np.asarray(arrival, float), np.asarray(service, float)
    turn = np.arange(len(lam)) if order is None else np.asarray(order, int)
    if sorted(turn.tolist()) != list(range(len(lam))):
        raise ValueError(f"order: expected each of {len(lam)} classes once, got {order!r}.")
    _load(float((lam / mu).sum()))
    used = np.cumsum((lam / mu)[turn])
    before = np.concatenate([[0.0], used[:-1]])
    work = np.cumsum((lam / mu**2)[turn])
    stay = 1 / mu[turn] / (1 - before) + work / ((1 - before) * (1 - used))
    found = np.empty(len(lam))
    found[turn] = lam[turn] * stay
    return found


def best_priorities(
    arrival: Sequence[float], service: Sequence[float], holding: Any = 1.0
) -> tuple[tuple[int, ...], float]:
    """The order of preemptive priorities of least holding cost, by trying all of them.

    Returns:
        (classes from the highest priority to the lowest, cost per unit of time).

    Example:
        >>> from decisionppl.models import queueing
        >>> order, cost = queueing.best_priorities([0.18] * 5, [1.0] * 5, [5, 4, 3, 2, 1])
        >>> order, round(cost, 6)
        ((0, 1, 2, 3, 4), 13.527354)
    """
    count = len(arrival)
    if count > 9:
        raise ValueError(f"{math.factorial(count)} orders of {count} classes are too many to try.")
    h = np.broadcast_to(np.asarray(holding, float), (count,))
    costs = {
        order: float(h @ priority_lengths(arrival, service, order))
        for order in itertools.permutations(range(count))
    }
    best = min(costs, key=lambda o: costs[o])
    return best, costs[best]


def jackson_lengths(network: Network) -> np.ndarray:
    r"""Jobs in each queue of a network with one class per server (Jackson).

    The stationary law is a product of geometric ones with :math:`\rho_j = \theta_j / \mu_j`, where
    :math:`\theta` solves the traffic equations.

    Args:
        network: exponential, each class with a server of its own, without buffers.

    Returns:
        [n].

    Raises:
        ValueError: another network.

    Example:
        >>> from decisionppl.models import queueing
        >>> feedback = queueing.network([0.3], [[1.0]], routing=[[0.5]])
        >>> queueing.jackson_lengths(feedback).round(6).tolist()
        [1.5]
    """
    alone = sorted(network.served) == [(j,) for j in range(network.num_classes)]
    if not alone or not network.exponential or network.limited or max(network.pools) > 1:
        raise ValueError(
            "expected an exponential network in which each class has one server of its own, "
            f"without buffers and pools; servers work on {network.served}."
        )
    load = network.flow() / np.asarray(network.service, float).max(0)
    return load / (1 - np.array([_load(float(x)) for x in load]))


def criss_cross_priority(network: Network) -> float:
    r"""Cost of the criss-cross network where server 1 works on class 0 first (its c-mu rule).

    Server 1 is M/M/1 in total, and so by Burke's theorem is the queue of class 1:
    :math:`(\lambda_0 + \lambda_2) / (\mu - \lambda_0 - \lambda_2) + \lambda_0 / (\mu_1 -
    \lambda_0)`, as long as both classes of server 1 are served at the same rate.

    Example:
        >>> from decisionppl.models import queueing
        >>> round(queueing.criss_cross_priority(queueing.criss_cross("BH")), 4)
        18.0
    """
    rates = np.asarray(network.service, float)
    known = network.served == ((0, 2), (1,)) and network.exponential and not network.limited
    if not known or rates[0, 0] != rates[0, 2]:
        raise ValueError(
            "expected an exponential criss-cross network whose first server is as fast on both of "
            f"its classes, got servers of {network.served} with rates {rates.tolist()}."
        )
    first, _, third = (float(x) for x in np.asarray(network.arrival))
    work, second = (first + third) / rates[0, 0], first / rates[1, 1]
    return float(mm1_length(work) + mm1_length(second))
