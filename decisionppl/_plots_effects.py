"""Plots of effects: estimates with intervals, by name or by order; counterfactuals."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from decisionppl._plots_style import axes_of, band, colour, dash, finish, mark


class _Points(NamedTuple):
    """Estimates and intervals in their order; NaN bounds where there is no interval."""

    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    truth: float | None
    several: bool  # orders of a series, rather than one estimate


def effects(
    found: Any, truth: float | None = None, *, level: float = 0.95, title: str = "",
    units: str = "units of the reward", ax: Any = None,
) -> Any:  # fmt: skip
    """Effect estimates with their intervals, side by side by name or along the order of a series.

    Args:
        found: a dict from label to `Effect`, number, or one of the following; or one of them
            alone. A `Taylor` or an `EffectPosterior` has an estimate for every order, and so has
            a sequence of `Effect`, of orders 0, 1, ...; then the orders are along the axis.
        truth: the effect, where it is known: a horizontal line. A `Taylor` knows it.
        level: of the intervals of an `EffectPosterior`; an `Effect` brings its own.
        title: of the axes.
        units: of the effect, for the label.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Raises:
        TypeError: something that is no estimate of an effect.
        ValueError: nothing to draw, or a bad level.

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.inference import effects, markov
        >>> chain = dp.testing.reference.two_state_mdp()
        >>> series = effects.taylor(markov.kernel(chain.model, jnp.arange(2)), 5)
        >>> dp.plots.effects(series).get_xlabel()
        'order of the Taylor polynomial'
        >>> ax = dp.plots.effects({"naive": 1.0, "first order": series.estimate}, series.effect)
        >>> [t.get_text() for t in ax.get_xticklabels()]
        ['naive', 'first order']
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}.")
    single = not isinstance(found, Mapping)
    items = {"": found} if single else dict(found)
    points = {str(n): _points(str(n), x, level) for n, x in items.items()}
    if not points:
        raise ValueError("found: expected at least one estimate, got none.")
    known = truth
    for p in points.values():
        known = p.truth if known is None else known
    ax = axes_of(ax)
    if known is not None:
        ax.axhline(known, color="0.3", linestyle="--", linewidth=1, label="truth")
    if any(p.several for p in points.values()):
        _by_order(ax, points)
        label = "order of the Taylor polynomial"
    else:
        for i, p in enumerate(points.values()):
            _errorbar(ax, np.array([i]), p, 0)
        ax.set_xticks(range(len(points)), list(points))
        ax.set_xlim(-0.6, len(points) - 0.4)
        label = "estimator" if len(points) > 1 else ""
    return finish(ax, xlabel=label, ylabel=f"effect ({units})", title=title)


def _by_order(ax: Any, points: Mapping[str, _Points]) -> None:
    orders = max(len(p.estimate) for p in points.values())
    for i, (label, p) in enumerate(points.items()):
        # beside each other where bars would hide each other
        x = np.arange(len(p.estimate)) + 0.12 * (i - (len(points) - 1) / 2)
        if not p.several:
            _errorbar(ax, np.array([orders + i]), p, i, label)
            continue
        ax.plot(x, p.estimate, linestyle=dash(i), color=colour(i), marker=mark(i), markersize=5,
                label=label or None)  # fmt: skip
        if np.isfinite(p.lower).any():
            _errorbar(ax, x, p, i)
    ax.set_xticks(range(orders))


def _errorbar(ax: Any, x: np.ndarray, p: _Points, i: int, label: str | None = None) -> None:
    size = np.stack([p.estimate - p.lower, p.upper - p.estimate])
    # an interval need not hold its estimate (a bootstrap's may not)
    size = np.maximum(np.nan_to_num(size), 0.0)
    ax.errorbar(x, p.estimate, size, fmt=mark(i), color=colour(i), capsize=3, markersize=5,
                linewidth=1.2, label=label)  # fmt: skip


def _points(label: str, found: Any, level: float) -> _Points:
    if hasattr(found, "interval") and hasattr(found, "estimate"):
        values = [np.atleast_1d(np.asarray(x, float)) for x in (found.estimate, *found.interval)]
        if any(v.shape != (1,) for v in values):
            raise TypeError(
                f"effect {label!r}: expected one estimate, got shape {list(values[0].shape)}. "
                "Give one Effect per label."
            )
        return _Points(values[0], values[1], values[2], None, False)
    if hasattr(found, "by_order"):
        orders = np.asarray(found.by_order, float)
        if orders.ndim == 2:  # draws of a posterior
            low, high = np.quantile(orders, [(1 - level) / 2, (1 + level) / 2], axis=0)
            return _Points(orders.mean(0), low, high, None, True)
        nothing = np.full(orders.shape, np.nan)
        return _Points(orders, nothing, nothing, float(found.effect), True)
    if isinstance(found, Sequence) and not isinstance(found, str) and len(found):
        parts = [_points(f"{label}[{k}]", x, level) for k, x in enumerate(found)]
        if not any(p.several for p in parts):
            joined = [np.concatenate(x) for x in zip(*(p[:3] for p in parts), strict=True)]
            return _Points(joined[0], joined[1], joined[2], None, True)
    try:
        value = np.array([float(found)])  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise TypeError(
            f"effect {label!r}: expected an Effect, a Taylor, an EffectPosterior, a sequence of "
            f"Effects by order or a number, got {type(found).__name__}."
        ) from None
    return _Points(value, np.array([np.nan]), np.array([np.nan]), None, False)


def counterfactual(
    panel: Any, effect: Any, *, unit: Any = None, level: float = 0.95, title: str = "",
    units: str = "units of the panel", ax: Any = None,
) -> Any:  # fmt: skip
    """A treated unit beside what is estimated to have been without treatment.

    The band holds outcomes, noise included: the unit's series should stay in it while it is not
    treated. Treated periods are shaded.

    Args:
        panel: of `inference.panels`.
        effect: of an estimator of `inference.panels` that says a counterfactual.
        unit: the treated unit, where there are several.
        level: of the band.
        title: of the axes.
        units: of the outcome, for the label.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: an effect without a counterfactual, or of another panel; a bad level.

    Example:
        >>> import numpy as np
        >>> import decisionppl as dp
        >>> from decisionppl.inference import panels
        >>> y = np.random.default_rng(0).normal(size=(5, 30)).cumsum(1)
        >>> data = panels.panel(y, np.arange(30) >= 20)
        >>> ax = dp.plots.counterfactual(data, panels.ridge(data), units="sales")
        >>> ax.get_ylabel()
        'outcome (sales)'
    """
    from decisionppl.inference._effect import normal_interval
    from decisionppl.inference._panel import split

    series = split(panel, unit)
    said = effect.diagnostics
    if "counterfactual" not in said:
        raise ValueError(
            f"effect: its diagnostics {sorted(said)} have no counterfactual. Use an estimator of "
            "one unit, such as panels.synthetic_did."
        )
    middle = np.asarray(said["counterfactual"])
    if middle.shape != series.outcome.shape:
        raise ValueError(
            f"effect: its counterfactual has {middle.size} periods, the panel "
            f"{series.outcome.size}. Estimate it from this panel."
        )
    half = np.asarray(normal_interval(0.0, said["counterfactual_sd"], level)[1])
    ax = axes_of(ax)
    names = panel.periods
    numeric = all(isinstance(p, int | float | np.number) for p in names)
    x = np.asarray(names if numeric else np.arange(len(names)), float)
    edges = np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
    jumps = np.flatnonzero(np.diff(np.concatenate([[0], series.treated, [0]])))
    for i, (start, stop) in enumerate(zip(jumps[::2], jumps[1::2], strict=True)):
        label = "treated" if i == 0 else None
        ax.axvspan(edges[start], edges[stop], color="0.92", linewidth=0, label=label)
    band(ax, x, middle - half, middle + half, 1)
    ax.plot(x, middle, linestyle=dash(1), color=colour(1), label="without treatment, estimated")
    ax.plot(x, series.outcome, color=colour(0), label=str(series.unit))
    if not numeric:
        ticks = np.unique(np.linspace(0, len(names) - 1, min(len(names), 8)).astype(int))
        ax.set_xticks(ticks, [str(names[t]) for t in ticks])
    return finish(ax, xlabel="period", ylabel=f"outcome ({units})", title=title)
