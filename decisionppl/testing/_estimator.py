"""Is an estimator's bias of the order it claims, and do its intervals cover?"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from decisionppl._play import as_key
from decisionppl._storage import function_hash
from decisionppl.testing._check import (
    Statistic,
    check_count,
    check_probability,
    evidence,
    verdict,
)
from decisionppl.testing._repeat import repeat


class BiasOrder(NamedTuple):
    """How fast a bias vanishes.

    Attributes:
        passed: whether the order is the claimed one, or higher.
        message: the verdict.
        statistics: shortfall of the order, beside what is tolerated.
        order: log-log slope between the two smallest deltas whose bias is above rounding;
            infinite if the bias vanishes.
        slopes: log-log slope between consecutive deltas, NaN where a bias is rounding.
        delta: decreasing, [deltas].
        bias: [deltas].
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    order: float
    slopes: np.ndarray
    delta: np.ndarray
    bias: np.ndarray


class Coverage(NamedTuple):
    """How often intervals contain the truth.

    Attributes:
        passed: whether the share is compatible with `nominal` at `level`.
        message: the verdict.
        statistics: -log10(p) per component, beside its limit.
        coverage: share of intervals that contain the truth, [components].
        interval: exact 99 % interval of that share, [2, components].
        below, above: share of truths below the interval and above it, [components].
        width: mean width of the intervals, [components].
        bias: mean estimate less truth, [components]; NaN if no estimate is returned.
        ratio: standard deviation of the errors over the mean reported standard error,
            [components]; NaN if none is reported.
        num_repetitions: how many.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    coverage: np.ndarray
    interval: np.ndarray
    below: np.ndarray
    above: np.ndarray
    width: np.ndarray
    bias: np.ndarray
    ratio: np.ndarray
    num_repetitions: int


def bias_order(
    effect: Callable,
    delta: Sequence[float] = (0.4, 0.2, 0.1, 0.05),
    *,
    order: float | None = None,
    tolerance: float = 0.25,
) -> BiasOrder:
    r"""Check that a bias vanishes like a power of the size of the perturbation.

    A bias of order k satisfies :math:`|b(\delta)| \approx c\,\delta^k`, so its slope on
    logarithmic axes is k. Computed in float64.

    Args:
        effect: `delta -> bias`, or `delta -> (estimate, truth)`, exact (not simulated).
        delta: sizes of the perturbation, positive.
        order: the claimed order; None only measures.
        tolerance: by how much the measured order may fall short of it.

    Returns:
        `BiasOrder`.

    Raises:
        ValueError: fewer than two sizes, sizes that are not positive, a bias that is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import testing
        >>> found = testing.bias_order(lambda d: (d, jnp.sin(d)), order=3)  # a Taylor polynomial
        >>> found.passed, round(found.order, 1)
        (True, 3.0)
    """
    sizes = np.sort(np.asarray(delta, float).ravel())[::-1]
    if len(sizes) < 2 or not (sizes > 0).all() or len(np.unique(sizes)) < len(sizes):
        raise ValueError(f"delta: expected at least two different positive sizes, got {delta}.")
    bias, scale = np.zeros(len(sizes)), 0.0
    with jax.enable_x64(True):
        for i, size in enumerate(sizes):
            found = effect(jnp.asarray(size))
            pair = found if isinstance(found, tuple) else (found, 0.0)
            estimate, truth = (float(jnp.asarray(getattr(x, "estimate", x))) for x in pair)
            bias[i], scale = estimate - truth, max(scale, abs(estimate), abs(truth))
    if not np.isfinite(bias).all():
        raise ValueError(f"effect: the bias is not finite: {dict(zip(sizes, bias, strict=True))}.")
    # without a truth to compare with, the scale of what was subtracted is not known
    floor = 1e3 * np.finfo(float).eps * max(scale, 1e-300)
    known = np.abs(bias) > floor
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.diff(np.log(np.abs(bias))) / np.diff(np.log(sizes))
    slopes = np.where(known[1:] & known[:-1], slopes, np.nan)
    usable = slopes[~np.isnan(slopes)]
    vanished = math.nan if known[-1] else math.inf
    measured = float(usable[-1]) if len(usable) else vanished
    claimed = math.nan if order is None else float(order)
    shortfall = 0.0 if order is None or measured == math.inf else claimed - measured
    statistic = Statistic("order of the bias, shortfall", max(shortfall, 0.0), tolerance)
    if math.isnan(measured):
        statistic = Statistic("order of the bias, shortfall", math.nan, tolerance)
    text = f"the bias is of order {measured:.2f}" + ("" if order is None else f", claimed {order}")
    passed, message = verdict([statistic], f"{text}.", f"{text}:")
    return BiasOrder(passed, message, (statistic,), measured, slopes, sizes, bias)


def coverage(
    estimator: Callable,
    truth: Any,
    *,
    key: Any,
    num_repetitions: int = 1000,
    nominal: float = 0.95,
    tolerance: float = 0.0,
    at_least: bool = False,
    level: float = 0.01,
    jit: bool = True,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: Any = None,
) -> Coverage:
    """Check that intervals contain the truth as often as they promise.

    Args:
        estimator: `key -> interval`: simulate data, estimate. It returns a pair (lower, upper)
            of numbers or arrays [components], or an object with `.interval` (such a pair) and
            perhaps `.estimate` and `.stderr`.
        truth: number or array [components]; or `key -> truth`, called with the estimator's
            key, where each repetition has a truth of its own.
        key: PRNG key or int seed.
        num_repetitions: how many data sets.
        nominal: the promised coverage.
        tolerance: by how much the true coverage may differ, for approximate intervals.
        at_least: whether to let intervals that cover too often pass.
        level: probability that exact intervals fail, over all components.
        jit: False runs the estimator as plain Python, for those that JAX cannot compile.
        batch_size, progress, checkpoint: as in `sbc`; for `jit=True`.

    Returns:
        `Coverage`.

    Raises:
        TypeError: an estimator that returns no interval.
        ValueError: a bad setting.

    Example:
        >>> import jax
        >>> from decisionppl import testing
        >>> def mean(key):
        ...     y = 3.0 + jax.random.normal(key, (10,))
        ...     return y.mean() - 1.96 / 10**0.5, y.mean() + 1.96 / 10**0.5
        >>> testing.coverage(mean, 3.0, key=0).passed
        True
    """
    for name, value in (("nominal", nominal), ("level", level)):
        check_probability(name, value)
    check_count("num_repetitions", num_repetitions, 2)
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance: expected a number in [0, 1), got {tolerance!r}.")

    def one(key: jax.Array) -> dict[str, Any]:
        found = _interval(estimator(key))
        found["truth"] = jnp.asarray(truth(key) if callable(truth) else truth)
        return found

    key = as_key(key)
    if jit:
        out = repeat(
            one, key, num_repetitions, batch_size=batch_size, progress=progress,
            checkpoint=checkpoint, identity=f"coverage {function_hash(estimator)}",
        )  # fmt: skip
    else:
        each = [one(jax.random.fold_in(key, i)) for i in range(num_repetitions)]
        out = {n: np.stack([np.asarray(e[n]) for e in each]) for n in each[0]}
    shape = np.broadcast_shapes(*(np.shape(v)[1:] for v in out.values()))
    count = len(out["truth"])
    columns = {n: _columns(np.asarray(v, float), shape) for n, v in out.items()}
    return _covered(columns, count, nominal, tolerance, at_least, level)


def _interval(found: Any) -> dict[str, Any]:
    pair = getattr(found, "interval", found)
    try:
        lower, upper = pair
    except (TypeError, ValueError):
        raise TypeError(
            "estimator: expected a pair (lower, upper), or an object with `.interval`, got "
            f"{type(found).__name__}."
        ) from None
    out = {"lower": jnp.asarray(lower), "upper": jnp.asarray(upper)}
    for name in ("estimate", "stderr"):
        if getattr(found, name, None) is not None:
            out[name] = jnp.asarray(getattr(found, name))
    return out


def _columns(values: np.ndarray, shape: tuple) -> np.ndarray:
    values = values.reshape(len(values), *(1,) * (len(shape) - values.ndim + 1), *values.shape[1:])
    return np.broadcast_to(values, (len(values), *shape)).reshape(len(values), -1)


def _covered(
    columns: dict[str, np.ndarray], count: int, nominal: float, tolerance: float,
    at_least: bool, level: float,
) -> Coverage:  # fmt: skip
    lower, upper, truth = columns["lower"], columns["upper"], columns["truth"]
    # a NaN covers nothing
    hit = (lower <= truth) & (truth <= upper)
    total = hit.sum(axis=0)
    share = total / count
    num = len(share)
    least, most = max(nominal - tolerance, 0.0), min(nominal + tolerance, 1.0)
    too_few = stats.binom.cdf(total, count, least)
    too_many = np.ones(num) if at_least else stats.binom.sf(total - 1, count, most)
    sides = 1 if at_least else 2
    p_values = np.minimum(sides * np.minimum(too_few, too_many), 1.0)
    names = [f"coverage[{i}]" for i in range(num)] if num > 1 else ["coverage"]
    statistics = tuple(evidence(n, p, level / num) for n, p in zip(names, p_values, strict=True))
    worst = int(p_values.argmin())
    text = f"{names[worst]} {share[worst]:.3f} in {count} repetitions, nominal {nominal:g}" + (
        f" ± {tolerance:g}" if tolerance else ""
    )
    passed, message = verdict(statistics, f"{text}.", f"{text}:")
    if np.isnan(lower).any() or np.isnan(upper).any():
        bad = np.isnan(lower + upper).any(axis=1)
        message += f" {int(bad.sum())} intervals are NaN, the first in repetition {bad.argmax()}."
    low = stats.beta.ppf(0.005, total, count - total + 1)
    exact = np.stack([low, stats.beta.ppf(0.995, total + 1, count - total)])
    exact[0, total == 0], exact[1, total == count] = 0.0, 1.0
    bias = ratio = np.full(num, np.nan)
    if "estimate" in columns:
        error = columns["estimate"] - truth
        bias = error.mean(axis=0)
        if "stderr" in columns:
            ratio = error.std(axis=0, ddof=1) / columns["stderr"].mean(axis=0)
    return Coverage(
        passed, message, statistics, share, exact, (truth < lower).mean(axis=0),
        (truth > upper).mean(axis=0), (upper - lower).mean(axis=0), bias, ratio, count,
    )  # fmt: skip
