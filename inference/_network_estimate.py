"""Estimates of the global effect: from an experiment to an `Effect`, by the name of the method."""

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
from decisionppl.inference._interference import Interference
from decisionppl.inference._left_out import expected
from decisionppl.inference._network_data import NetworkData
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


def exposed(
    data: NetworkData, how: str, exposure: Any, key: Any, num_draws: int, level: float
) -> Effect:
    chances = None
    if exposure is not None:
        if key is None:
            raise ValueError("exposure: its probabilities are found by drawing. Give key=.")
        if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < 1:
            raise ValueError(f"num_draws: expected a whole number from 1, got {num_draws!r}.")
        reach = jax.tree.map(jnp.asarray, data.reach)
        chances = drawn_chances(Same(exposure), num_draws, as_key(key), data.probability, reach)
    return estimate(
        data, (how, None if exposure is None else Same(exposure)), level, chances=chances
    )


def estimate(
    data: NetworkData, how: tuple, level: float, *, features: Any = None, chances: Any = None
) -> Effect:
    """An estimate of each run."""
    check_level(level)
    check_data(data)
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
def drawn_chances(
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


def check_data(data: Any) -> None:
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
