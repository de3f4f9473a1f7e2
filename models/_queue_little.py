"""Little's law: averages over time and over jobs, and long-run costs with less noise."""

from typing import Any, NamedTuple

import numpy as np

from decisionppl.inference._effect import Effect, check_level
from decisionppl.models._queue_network import Network
from decisionppl.models._queue_simulate import Simulated, ratio


class Little(NamedTuple):
    r"""Averages over time and over jobs, joined by :math:`L = \lambda W`.

    Attributes:
        length: jobs in each class, averaged over time, [n].
        flow: jobs that came to each class per unit of time, from outside and inside, [n].
        response: time that a job spends in a class, [n], `length / flow`; NaN where none came.
        cost: holding cost per unit of time.
        by_response: the same from response times, with the known flows in place of the counted.
        controlled: the same with all known means as control variates. Diagnostics
            `coefficients` [controls], `variance_ratio`: the variance of `cost` over that of this.
    """

    length: np.ndarray
    flow: np.ndarray
    response: np.ndarray
    cost: Effect
    by_response: Effect
    controlled: Effect


def littles_law(
    network: Network, runs: Simulated, *, level: float = 0.95, warm_up: float = 0.0
) -> Little:
    r"""Averages of a simulation by Little's law, and its cost with known rates made use of.

    Little's law holds on every path that begins and ends empty: the jobs in a class, summed over
    time, are its response times, summed over jobs, :math:`\int x_j dt = N_j \hat W_j`. So the cost
    is :math:`\sum_j h_j \hat\theta_j \hat W_j` with the counted flow :math:`\hat\theta_j = N_j /
    T`, and with the known one, :math:`\theta = (I - P')^{-1} \lambda`, it is `by_response`: the
    cost less :math:`\sum_j h_j \hat W_j (\hat\theta_j - \theta_j)`, whose mean is zero. These
    coefficients are not the best ones. `controlled` regresses the cost over runs on

    .. math:: N^0_j - \lambda_j T, \qquad \sum_{j \in S_i} D_j / \mu_{ij} - B_i,

    with the arrivals from outside :math:`N^0`, the completions D and the time B that server i
    worked on its classes S_i: martingales of exponential networks, of mean zero exactly at any
    stopping time such as a number of events, under any policy. (Of other clocks the mean over T is
    of the order 1 / T.) Servers that share a class give no control. For M/M/1 in long runs the
    variance falls by the factor :math:`(1 + \rho) / \rho`.

    Args:
        network: from `network`; constant rates, no buffers.
        runs: from `simulate` with `count=True`; more runs than there are controls, by ten at least.
        level: of the intervals.
        warm_up: share of the chunks of each run that is left out.

    Returns:
        `Little`.

    Raises:
        ValueError: runs without counts, too few runs, buffers or rates that change.

    Example:
        >>> from decisionppl.models import queueing
        >>> net = queueing.mm1(0.5)
        >>> runs = queueing.simulate(
        ...     net, queueing.cmu(net), 4000, key=0, num_runs=200, count=True)
        >>> found = queueing.littles_law(net, runs)
        >>> bool(abs(found.controlled.estimate - 1) < 4 * found.controlled.stderr)
        True
        >>> bool(2 < found.controlled.diagnostics["variance_ratio"] < 4)   # three in long runs
        True

    References:
        Glynn and Whitt, Indirect estimation via L = lambda W, Operations Research (1989).
    """
    check_level(level)
    if network.limited or network.num_phases > 1:
        raise ValueError("littles_law: expected constant arrival rates and no buffers.")
    if not runs.came.any():
        raise ValueError("runs: no arrivals were counted. Simulate with count=True.")
    first = int(warm_up * runs.time.shape[1])

    def grown(counts: np.ndarray) -> np.ndarray:
        before = counts[:, first - 1] if first else 0.0
        return counts[:, -1] - before

    time, area = runs.time[:, first:].sum(1), runs.queue[:, first:].sum(1)
    came, done = grown(runs.came), grown(runs.done)
    flow = came + done @ np.asarray(network.routing, float)
    length, rate = area.sum(0) / time.sum(), flow.sum(0) / time.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        response = np.where(rate > 0, length / rate, np.nan)
    controls = _controls(network, time, came, done, runs.busy[:, first:].sum(1))
    count = controls.shape[1]
    if len(time) < count + 10:
        raise ValueError(
            f"runs: {count} controls need {count + 10} runs at least, got {len(time)}. Make more, "
            "shorter ones."
        )
    cost = runs.cost[:, first:].sum(1)
    plain = ratio(runs.cost, runs.time, level, warm_up)
    paid = np.asarray(network.holding) * np.nan_to_num(response)
    less = (flow - np.outer(time, network.flow())) @ paid
    return Little(
        length, rate, response, plain,
        _controlled(cost, time, less[:, None], level, plain, np.ones(1)),
        _controlled(cost, time, controls, level, plain),
    )  # fmt: skip


def _controls(network: Network, time: Any, came: Any, done: Any, busy: Any) -> np.ndarray:
    """Sums of mean zero of each run, [runs, controls]."""
    arrival, service = np.asarray(network.arrival, float), np.asarray(network.service, float)
    outside = arrival > 0
    found = [came[:, outside] - np.outer(time, arrival[outside])]
    alone = network.topology.sum(0) == 1
    for i, classes in enumerate(network.served):
        if alone[list(classes)].all():
            work = done[:, classes] @ (1 / service[i, list(classes)])
            found.append((work - network.pools[i] * busy[:, i])[:, None])
    return np.column_stack(found)


def _controlled(
    cost: Any, time: Any, controls: Any, level: float, plain: Effect, fixed: Any = None
) -> Effect:
    """A ratio of means over runs, less what controls of mean zero explain of it."""
    from scipy.stats import t

    runs, count = controls.shape
    unit = time.mean()
    scores = (cost - plain.estimate * time) / unit  # what each run adds to the error of the ratio
    x = controls / unit
    free = 0 if fixed is not None else count
    if fixed is None:
        fixed = np.linalg.lstsq(x - x.mean(0), scores - scores.mean(), rcond=None)[0]
    rest = scores - x @ fixed
    estimate = plain.estimate + rest.mean()
    # the mean of the controls, which the line is read at, is not where they were seen
    spread = (rest - rest.mean()) @ (rest - rest.mean()) / max(runs - 1 - free, 1)
    error = np.sqrt(spread / runs)
    if free:
        away = np.linalg.lstsq((x - x.mean(0)).T @ (x - x.mean(0)), x.mean(0), rcond=None)[0]
        error = np.sqrt(spread * (1 / runs + x.mean(0) @ away))
    half = t.ppf((1 + level) / 2, runs - 1 - free) * error
    said = {"coefficients": fixed, "variance_ratio": float((plain.stderr / error) ** 2)}
    return Effect(estimate, error, (estimate - half, estimate + half), said)
