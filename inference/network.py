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

Standard errors come from parts of units: outcomes of units that no coin reaches together are
independent, given the potential outcomes. Where too many pairs of units overlap to list them, those
of `dn` and `snipe` of order 1 come from the scores of coins.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from decisionppl._play import Same, as_key
from decisionppl.inference._differences import differences
from decisionppl.inference._effect import Effect, check_level, normal_interval
from decisionppl.inference._graph import Graph, graph
from decisionppl.inference._interference import Interference, interference, recent
from decisionppl.inference._left_out import expected
from decisionppl.inference._network_data import NetworkData, experiment, from_table, total_effect
from decisionppl.inference._network_weights import (
    Scored,
    View,
    added_weight,
    all_by_unit,
    by_unit,
    sorted_pairs,
    standard_error,
    view,
)

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
    return _estimate(data, ("means",), level)


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
    _check(data)
    if np.shape(data.reach.own)[-1] != 1:
        raise ValueError(
            "dn: each unit hangs on several coins (a two-sided design), and the estimator asks "
            "for one of its own. Use snipe(data, order=2)."
        )
    return _estimate(data, ("differences", bool(baseline), True), level, features=features)


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
        Cortez, Eichhorn and Yu, Staggered Rollout Designs and low-order interactions, arXiv
        2208.05553.
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= _MOST_ORDER:
        raise ValueError(f"order: expected a whole number from 1 to {_MOST_ORDER}, got {order!r}.")
    _check(data)
    if order == 1 and np.shape(data.reach.own)[-1] == 1:
        return _estimate(data, ("differences", bool(baseline), False), level, features=features)
    return _estimate(data, ("expansion", bool(baseline), order), level, features=features)


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
    return _exposed(data, "horvitz", exposure, key, num_draws, level)


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
    return _exposed(data, "hajek", exposure, key, num_draws, level)


def _exposed(
    data: NetworkData, how: str, exposure: Any, key: Any, num_draws: int, level: float
) -> Effect:
    chances = None
    if exposure is not None:
        if key is None:
            raise ValueError("exposure: its probabilities are found by drawing. Give key=.")
        if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < 1:
            raise ValueError(f"num_draws: expected a whole number from 1, got {num_draws!r}.")
        reach = jax.tree.map(jnp.asarray, data.reach)
        chances = _chances(Same(exposure), num_draws, as_key(key), data.probability, reach)
    return _estimate(
        data, (how, None if exposure is None else Same(exposure)), level, chances=chances
    )


def _estimate(
    data: NetworkData, how: tuple, level: float, *, features: Any = None, chances: Any = None
) -> Effect:
    """An estimate of each run."""
    check_level(level)
    _check(data)
    outcome, drawn = jnp.asarray(data.outcome, float), jnp.asarray(data.drawn)
    runs = outcome.ndim == 2
    if features is not None:
        features = jnp.asarray(features, float)
        if features.ndim < 2 or features.shape[:-1] not in (outcome.shape, outcome.shape[-1:]):
            raise ValueError(
                f"features: expected {[*outcome.shape, 'k']} or {[outcome.shape[-1], 'k']}, got "
                f"{list(features.shape)}."
            )
        features = jnp.broadcast_to(features, (*outcome.shape, features.shape[-1]))
    if how[0] == "differences":
        how = (*how, _even(data.probability))
    by_pairs = how[0] == "expansion" or (how[0] in ("horvitz", "hajek") and chances is None)
    pairs = sorted_pairs(data.reach) if by_pairs else None
    rows = (outcome, drawn, features)
    rows = rows if runs else jax.tree.map(lambda x: x[None], rows)
    found = _estimates(how, level, rows, data.probability, data.reach, pairs, chances)
    return found if runs else jax.tree.map(lambda x: x[0], found)


@partial(jax.jit, static_argnums=(0, 1))
def _estimates(
    how: tuple, level: float, rows: tuple, chance: Any, reach: Interference, pairs: Any,
    chances: Any,
) -> Effect:  # fmt: skip
    def one(row: tuple) -> Effect:
        outcome, drawn, features = row
        v = view(outcome, drawn, chance, reach, pairs, features)
        make = _HOW[how[0]]
        scored, said = make(v, chances, *how[1:])
        estimate = scored.parts.mean()
        stderr, more = standard_error(v, scored)
        said = {**said, **more}
        return Effect(estimate, stderr, normal_interval(estimate, stderr, level), said)

    return jax.lax.map(one, rows, batch_size=16)


def _differences(v: View, _: Any, baseline: bool, across: bool, even: bool) -> tuple[Scored, dict]:
    return differences(v, baseline, across=across, even=even), {}


def _even(probability: Any) -> bool:
    """Whether all coins are known to have one probability."""
    return not isinstance(probability, Tracer) and bool(np.ptp(np.asarray(probability)) == 0)


def _expansion(v: View, _: Any, baseline: bool, order: int | None) -> tuple[Scored, dict]:
    weight = added_weight(v, order)
    each = (weight[:, 0] - weight[:, 1]) * (v.y[v.pairs[0]] - expected(v, baseline))
    return _summed(v, each), {}


def _summed(v: View, each: jax.Array) -> Scored:
    """From what the coins of a unit contribute to it [pairs]."""
    unit, coin = v.pairs
    parts = jax.ops.segment_sum(each, unit, len(v.y), indices_are_sorted=True)
    return Scored(parts, jax.ops.segment_sum(each, coin, len(v.z)), parts - parts.mean())


def _means(v: View, _: Any) -> tuple[Scored, dict]:
    own = jnp.asarray(v.reach.own)
    return _ratio(v, v.arms[:, 1], v.p[own].prod(-1), v.arms[:, 0], 1 - v.p[own].prod(-1))


def _horvitz(v: View, chances: Any, exposure: Any) -> tuple[Scored, dict]:
    treated, control = _exposures(v, exposure)
    said = {"treated": treated.mean(), "control": control.mean()}
    if chances is None:
        return _expansion(v, None, False, None)[0], said
    one, none = treated / chances[0], control / chances[1]
    parts = jnp.where(treated, one * v.y, 0.0) - jnp.where(control, none * v.y, 0.0)
    return Scored(parts, None, parts - parts.mean()), said


def _hajek(v: View, chances: Any, exposure: Any) -> tuple[Scored, dict]:
    treated, control = _exposures(v, exposure)
    of = _all_chances(v) if chances is None else chances
    scored, means = _ratio(v, treated, of[0], control, of[1])
    if chances is None:
        off = jnp.stack([v.y - means["treated"], means["control"] - v.y], axis=-1)
        linear = _summed(v, (added_weight(v, None) * off[v.pairs[0]]).sum(-1))
        scored = scored._replace(by_coin=linear.by_coin)
    return scored, {"treated": treated.mean(), "control": control.mean()}


def _ratio(v: View, treated: Any, one: Any, control: Any, none: Any) -> tuple[Scored, dict]:
    """Difference of weighted means, with linearised parts."""
    parts, influence, means = jnp.zeros_like(v.y), jnp.zeros_like(v.y), {}
    for name, sign, here, chance in (("treated", 1, treated, one), ("control", -1, control, none)):
        weight = jnp.where(here, 1 / jnp.where(chance > 0, chance, 1.0), 0.0)
        share = weight.mean()
        mean = (weight * v.y).mean() / share
        parts, means = parts + sign * mean, {**means, name: mean}
        influence = influence + sign * weight * (v.y - mean) / share
    return Scored(parts, None, influence), means


def _exposures(v: View, exposure: Any) -> tuple[jax.Array, jax.Array]:
    """Which units count as if all were treated, and as if none were [units]."""
    if exposure is None:
        ones = jnp.stack([v.z, 1 - v.z], axis=-1)
        missing = all_by_unit(v, 1 - ones)
        return missing[:, 0] < 0.5, missing[:, 1] < 0.5
    found = by_unit(v, jnp.stack([v.z, jnp.ones_like(v.z)], axis=-1))
    share = jnp.where(found[:, 1] > 0, found[:, 0] / jnp.maximum(found[:, 1], 1.0), v.arms[:, 1])
    both = exposure.value(v.arms[:, 1], share)
    if len(both) != 2 or any(jnp.shape(x) != v.y.shape for x in both):
        raise ValueError(
            f"exposure: expected two arrays [{len(v.y)}], (as if all treated, as if none), got "
            f"{[jnp.shape(x) for x in both]}."
        )
    return jnp.asarray(both[0], bool), jnp.asarray(both[1], bool)


def _all_chances(v: View) -> tuple[jax.Array, jax.Array]:
    """Probabilities that all coins of a unit say one, and that none does [units]."""
    logs = all_by_unit(v, jnp.stack([jnp.log(v.p), jnp.log1p(-v.p)], axis=-1))
    return jnp.exp(logs[:, 0]), jnp.exp(logs[:, 1])


@partial(jax.jit, static_argnums=(0, 1))
def _chances(
    exposure: Same, num_draws: int, key: jax.Array, chance: Any, reach: Interference
) -> tuple[jax.Array, jax.Array]:
    """Probabilities of declared exposures [units], by drawing.

    One draw is added in which a unit is exposed, so that none that is can have probability zero.
    """
    chance = jnp.asarray(chance, float)
    y = jnp.zeros(len(reach.own), chance.dtype)

    def drawn(count: tuple, key: jax.Array) -> tuple:
        z = jax.random.bernoulli(key, chance)
        found = _exposures(view(y, z, chance, reach), exposure)
        return tuple(c + x for c, x in zip(count, found, strict=True)), None

    counts, _ = jax.lax.scan(drawn, (y, y), jax.random.split(key, num_draws))
    return (counts[0] + 1) / (num_draws + 1), (counts[1] + 1) / (num_draws + 1)


_HOW: dict[str, Callable[..., tuple[Scored, dict]]] = {
    "means": _means, "differences": _differences, "expansion": _expansion,
    "horvitz": _horvitz, "hajek": _hajek,
}  # fmt: skip


def _check(data: Any) -> None:
    """Refuse data of other shapes, and coins that are certain."""
    if not isinstance(data, NetworkData):
        raise TypeError(
            "expected NetworkData (network.experiment, network.from_table), got "
            f"{type(data).__name__}."
        )
    y, z, p = (np.shape(x) for x in data[:3])
    units = len(data.reach.own)
    if len(y) not in (1, 2) or y[-1] != units or z != (*y[:-1], *p) or len(p) != 1:
        raise ValueError(
            f"data: expected outcome [{units}] or [runs, {units}] and coins {list(p)} in each run, "
            f"got outcome {list(y)} and coins {list(z)}."
        )
    if isinstance(data.probability, Tracer):
        return
    chance = np.asarray(data.probability)
    wrong = ~((chance > 0) & (chance < 1))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"probability: coin {i} says 1 with probability {chance[i]:g} "
            f"({int(wrong.sum())} such coins), and estimators divide by it and by one less it. "
            "Every coin must be random; leave out units that are always treated or never."
        )
