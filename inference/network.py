r"""Effects on networks: experiments in which units are affected by the treatment of others.

Notation: unit i has the outcome :math:`Y_i`, which depends on what the coins that reach it said:
its own coin c(i), and the other coins :math:`j \in N_i` of its neighbours. Coin j says
:math:`z_j = 1` with probability :math:`p_j`; its score is :math:`\eta_j = z_j / p_j - (1 - z_j) /
(1 - p_j)`. With a coin for each unit, these are units; with clusters, or stretches of time, coins
are fewer than units. Wanted is the global effect, all treated less none treated,

.. math:: \tau = \frac1n \sum_i \left( Y_i(1, \dots, 1) - Y_i(0, \dots, 0) \right).

A `designs.Design` says what is randomised, and `interference` which coins reach which units.
Probabilities are those of the law of the action site, so unit, cluster, switchback and zone by
period designs are declared in the model, not coded in an estimator. `experiment` simulates a model,
`from_table` reads data, `total_effect` is the truth by intervention.

| estimator | unbiased if | variance |
| --- | --- | --- |
| `difference_in_means` | there is no interference | least |
| `dn`, `snipe` of order 1 | effects of neighbours add up | polynomial in the number of neighbours |
| `snipe` of order k | at most k coins interact in an outcome | grows with the power k |
| `horvitz_thompson`, `hajek` | exposures are right | exponential in the number of neighbours |

Standard errors are the larger of two. One comes from pairs of units that one coin reaches together;
all others are independent. It is blind where every unit overlaps with most others, and is left out
where there are too many pairs to list. The other comes from what each coin adds to the estimate,
coins taken in an order: martingale differences, if outcomes do not depend on coins.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from decisionppl.inference._effect import Effect
from decisionppl.inference._graph import Graph, graph
from decisionppl.inference._interference import Interference, interference, recent
from decisionppl.inference._network_data import NetworkData, experiment, from_table, total_effect
from decisionppl.inference._network_estimate import check_data, estimate, exposed

__all__ = [
    "Graph",
    "Interference",
    "NetworkData",
    "difference_in_means",
    "dn",
    "experiment",
    "from_table",
    "graph",
    "hajek",
    "horvitz_thompson",
    "interference",
    "recent",
    "snipe",
    "total_effect",
]

_MOST_ORDER = 6


def difference_in_means(data: NetworkData, *, level: float = 0.95) -> Effect:
    """Mean outcome of treated less that of control units, weighted by one over the probability.

    Blind to interference: it misses what treatment does to others. In a two-sided design it is
    between units whose coins all say one and all others.

    Args:
        data: see `experiment` and `from_table`.
        level: of the interval.

    Returns:
        `Effect`, [runs] where the data have runs; NaN where all or none are treated.

    Raises:
        ValueError: data of other shapes.

    Example:
        >>> from decisionppl.inference import designs, network
        >>> design = designs.unit(4)
        >>> data = network.NetworkData([1.0, 2.0, 0.0, 0.0], [1, 1, 0, 0], design.probability,
        ...     network.interference(design))
        >>> float(network.difference_in_means(data).estimate)
        1.5
    """
    return estimate(data, ("means",), level)


def dn(
    data: NetworkData, *, baseline: bool = True, features: Any = None, level: float = 0.95
) -> Effect:
    r"""Differences-in-Neighbors: own scores, and those of the neighbours.

    .. math:: \frac1n \sum_i \left( \eta_{c(i)} Y_i + Y_i \sum_{j \in N_i} \xi_{ij} \eta_j \right),
        \quad \xi_{ij} = (1 - p_j) \frac{z}{p} + p_j \frac{1 - z}{1 - p} \text{ of the own coin.}

    Without bias where the effects of neighbours add up, also in interaction with the own
    treatment; else its bias is of second order in their size. (With one probability for all,
    :math:`\xi` is the published weight; with several, that one would have a bias.)

    Since scores have mean zero, whatever does not depend on coin j may be taken off the outcome
    that :math:`\eta_j` weighs. The baseline is the mean outcome of the units that coin j does not
    reach, of the unit's own arm: without it the level of the outcome dominates the variance, and a
    mean that does not leave these out would absorb a part of the effect.

    Args:
        data: see `experiment` and `from_table`; each unit hangs on one coin.
        baseline: whether to take the baseline off.
        features: of the units, [units, k] or [runs, units, k]: the baseline is then a regression
            on them, again by the units that coin j does not reach. They must not depend on coins:
            covariates, the time, outcomes of earlier periods. The cost grows with the square of k.
        level: of the interval.

    Returns:
        `Effect`, [runs] where the data have runs. Diagnostics `stderr_scores` and `stderr_overlap`,
        of which the standard error is the larger: from scores of coins, and from pairs of units.

    Raises:
        ValueError: a two-sided design, data of other shapes.

    Example:
        >>> from decisionppl.inference import designs, network
        >>> from decisionppl.models import network as gallery
        >>> ring = network.graph([[i, (i + 1) % 500] for i in range(500)])
        >>> design = designs.unit(500)
        >>> reach = network.interference(design, ring)
        >>> market = gallery.spillovers(ring, response="linear", noise=0.1)
        >>> found = network.dn(network.experiment(market.model, design, reach, key=0))
        >>> bool(abs(found.estimate - market.effect) < 4 * found.stderr)
        True

    References:
        Peng, Ye and Zheng, Differences-in-Neighbors for Network Interference in Experiments, arXiv
        2503.02271.
    """
    check_data(data)
    if np.shape(data.reach.own)[-1] != 1:
        raise ValueError(
            "dn: each unit hangs on several coins (a two-sided design), and the estimator asks "
            "for one of its own. Use snipe(data, order=2)."
        )
    return estimate(data, ("differences", bool(baseline), True), level, features=features)


def snipe(
    data: NetworkData, order: int = 1, *, baseline: bool = True, features: Any = None,
    level: float = 0.95,
) -> Effect:  # fmt: skip
    r"""The expansion of the global effect up to an order in the coins that reach a unit.

    .. math:: \frac1n \sum_i Y_i \sum_{S \subseteq N_i \cup c(i), 1 \le |S| \le k} \left(
        \prod_{j \in S} (1 - p_j) - \prod_{j \in S} (-p_j) \right) \prod_{j \in S} \eta_j

    Without bias where at most k coins interact in the outcome of a unit. The order of all coins
    that reach a unit is `horvitz_thompson`; at probability 1/2 order 1 is `dn`.

    Args:
        data: see `experiment` and `from_table`.
        order: k, from 1 to 6.
        baseline, features: see `dn`; a set of coins is centred by the mean of the units that the
            last of them does not reach.
        level: of the interval.

    Returns:
        `Effect`, [runs] where the data have runs.

    Raises:
        ValueError: an order out of range, data of other shapes.

    Example:
        >>> from decisionppl.inference import designs, network
        >>> path = network.graph([[0, 1], [1, 2]])
        >>> design = designs.unit(3)
        >>> data = network.NetworkData([1.0, 2.0, 0.0], [1, 1, 0], design.probability,
        ...     network.interference(design, path))
        >>> full = network.snipe(data, 3, baseline=False).estimate
        >>> bool(abs(full - network.horvitz_thompson(data).estimate) < 1e-5)
        True

    References:
        Cortez-Rodriguez, Eichhorn and Yu, Exploiting Neighborhood Interference with Low Order
        Interactions under Unit Randomized Design, arXiv 2208.05553.
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= _MOST_ORDER:
        raise ValueError(f"order: expected a whole number from 1 to {_MOST_ORDER}, got {order!r}.")
    check_data(data)
    if order == 1 and np.shape(data.reach.own)[-1] == 1:
        return estimate(data, ("differences", bool(baseline), False), level, features=features)
    return estimate(data, ("expansion", bool(baseline), order), level, features=features)


def horvitz_thompson(
    data: NetworkData, *, exposure: Callable | None = None, key: Any = None,
    num_draws: int = 2000, level: float = 0.95,
) -> Effect:  # fmt: skip
    r"""Outcomes of units of which all coins said one, less those of which none did.

    Each is weighed by one over the probability of that. Without bias, with a variance that grows
    exponentially with the number of coins.

    Args:
        data: see `experiment` and `from_table`.
        exposure: a weaker demand, `(treated [units], share [units]) -> (bool [units], bool
            [units])`: which units count as if all were treated, and as if none were, by their own
            treatment and the share of treated among the other coins that reach them (their own
            treatment where there are none). Unbiased only if these exposures are all that matters.
        key: with `exposure`: PRNG key or int seed; its probabilities are found by drawing.
        num_draws: with `exposure`: how often the coins are drawn.
        level: of the interval.

    Returns:
        `Effect`, [runs] where the data have runs. Diagnostics `treated` and `control`, the shares
        of units that count as such.

    Raises:
        ValueError: an exposure without a key, data of other shapes.

    Example:
        >>> from decisionppl.inference import designs, network
        >>> pairs = network.graph([[0, 1], [2, 3]])
        >>> design = designs.unit(4)
        >>> data = network.NetworkData([1.0, 2.0, 0.0, 0.0], [1, 1, 0, 0], design.probability,
        ...     network.interference(design, pairs))
        >>> float(network.horvitz_thompson(data).estimate)      # (1 + 2) / 4 / 0.25
        3.0
        >>> most = lambda treated, share: ((share > 0.5) & (treated == 1),
        ...     (share < 0.5) & (treated == 0))
        >>> found = network.horvitz_thompson(data, exposure=most, key=0)
        >>> bool(abs(found.estimate - 3.0) < 0.3)
        True

    References:
        Aronow and Samii, arXiv 1305.6156 (exposures).
    """
    return exposed(data, "horvitz", exposure, key, num_draws, level)


def hajek(
    data: NetworkData, *, exposure: Callable | None = None, key: Any = None,
    num_draws: int = 2000, level: float = 0.95,
) -> Effect:  # fmt: skip
    """`horvitz_thompson` with weights that sum to one in each arm; see there.

    Much less variance, for a bias that vanishes as more units are exposed. NaN where no unit of an
    arm is. Its standard error is that of the linearised ratio.

    Example:
        >>> from decisionppl.inference import designs, network
        >>> pairs = network.graph([[0, 1], [2, 3]])
        >>> design = designs.unit(4)
        >>> data = network.NetworkData([1.0, 2.0, 0.0, 0.0], [1, 1, 0, 0], design.probability,
        ...     network.interference(design, pairs))
        >>> float(network.hajek(data).estimate)
        1.5
    """
    return exposed(data, "hajek", exposure, key, num_draws, level)
