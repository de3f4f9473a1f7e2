"""Plots of results; matplotlib is imported when a plot is drawn."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from decisionppl._result import Result

# Okabe and Ito: told apart with every kind of colour vision
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


def regret(results: Mapping[str, Result] | Result, *, title: str = "", axes: Any = None) -> Any:
    """Cumulative regret by round: mean over replications, band of two standard errors.

    Args:
        results: a `Result`, or a dict from label to `Result`; each needs `regret`.
        title: of the axes.
        axes: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: a result without regret.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import build
        >>> problem = build("gaussian", num_arms=2)
        >>> result = dp.experiment.run(
        ...     problem.model, problem.engine(), dp.rules.greedy, horizon=5, key=0, replications=2)
        >>> type(dp.plots.regret(result)).__name__
        'Figure'
    """
    results = {"": results} if isinstance(results, Result) else results
    axes = _axes(axes)
    for i, (label, result) in enumerate(results.items()):
        if "regret" not in result.data:
            raise ValueError(
                f"result {label!r} has no regret: its environment does not know expected "
                "utilities. Give an Environment with `value`."
            )
        values = result.data["regret"]
        extra = [d for d in values.dims if d not in ("replication", "round")]
        total = np.cumsum(np.asarray(values.sum(extra)), axis=1)
        mean, rounds = total.mean(axis=0), np.arange(1, total.shape[1] + 1)
        colour, dash = _COLOURS[i % len(_COLOURS)], ("-", "--", "-.", ":")[i % 4]
        axes.plot(rounds, mean, dash, color=colour, label=f"{label} ({mean[-1]:.0f})".strip())
        if len(total) > 1:
            error = 2 * total.std(axis=0, ddof=1) / np.sqrt(len(total))
            axes.fill_between(
                rounds, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0
            )
    axes.set(xlabel="round", ylabel="cumulative regret", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    if any(results):
        axes.legend(frameon=False)
    return axes.figure


def queue_lengths(
    results: Mapping[str, Any], holding: Any = 1.0, *, title: str = "", axes: Any = None
) -> Any:
    """Holding cost of a queueing network over time: mean over runs, band of two standard errors.

    Args:
        results: dict from label to what `models.queueing.simulate` returns.
        holding: cost of a job of each class, [n] or one for all; ones draw the number of jobs.
        title: of the axes.
        axes: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib figure.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import queueing
        >>> net = queueing.criss_cross()
        >>> runs = queueing.simulate(net, queueing.cmu(net), 2000, key=0, num_runs=3)
        >>> type(dp.plots.queue_lengths({"cmu": runs})).__name__
        'Figure'
    """
    axes = _axes(axes)
    for i, (label, found) in enumerate(results.items()):
        time = np.cumsum(np.asarray(found.time).mean(0))
        cost = (np.asarray(found.queue) * holding).sum(-1) / np.asarray(found.time)
        mean, colour = cost.mean(0), _COLOURS[i % len(_COLOURS)]
        total = (np.asarray(found.queue) * holding).sum() / np.asarray(found.time).sum()
        dash = ("-", "--", "-.", ":")[i % 4]
        axes.plot(time, mean, dash, color=colour, label=f"{label} ({total:.2f})")
        if len(cost) > 1:
            error = 2 * cost.std(axis=0, ddof=1) / np.sqrt(len(cost))
            axes.fill_between(
                time, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0
            )
    axes.set(xlabel="time", ylabel="holding cost", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes.figure


def ecdf_difference(
    result: Any, names: Iterable[str] | None = None, *, title: str = "", axes: Any = None
) -> Any:
    """Ranks of simulation-based calibration: distribution function less the uniform one.

    A curve inside the band is compatible with a right posterior; a curve through the top left
    and the bottom right has too narrow posteriors, the reverse too wide ones, and a curve on one
    side of zero has shifted ones. The band is simultaneous over all ranks and quantities.

    Args:
        result: of `testing.sbc` or `testing.posterior_sbc`.
        names: quantities to draw; default all. Those that leave the band are coloured and named.
        title: of the axes.
        axes: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: an unknown quantity.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import build
        >>> problem = build("gaussian", num_arms=2)
        >>> found = dp.testing.sbc(problem.model, problem.engine(), key=0, num_simulations=20)
        >>> type(dp.plots.ecdf_difference(found)).__name__
        'Figure'

    References:
        Säilynoja, Bürkner and Vehtari, arXiv 2103.10522.
    """
    from decisionppl.testing._uniformity import bands

    names = list(result.names if names is None else names)
    unknown = sorted(set(names) - set(result.names))
    if unknown:
        raise ValueError(f"no quantity {unknown[0]!r}; there are {list(result.names)}.")
    axes = _axes(axes)
    count, values = len(result.ranks), result.num_draws + 1
    share, lower, upper = bands(count, values, result.level / len(result.names))
    ends = np.concatenate([[0.0], share, [1.0]])
    low, high = (np.concatenate([[0.0], b - share, [0.0]]) for b in (lower, upper))
    axes.fill_between(ends, low, high, color="0.85", linewidth=0, label="simultaneous band")
    coloured = 0
    for name in names:
        i = result.names.index(name)
        ranks = np.sort(result.ranks[:, i])
        below = np.searchsorted(ranks, np.round(share * values), side="left") / count
        curve = np.concatenate([[0.0], below - share, [0.0]])
        if result.statistics[i].passed:
            axes.plot(ends, curve, color="0.45", linewidth=0.8)
        else:
            colour = _COLOURS[coloured % len(_COLOURS)]
            axes.plot(ends, curve, color=colour, label=name)
            coloured += 1
    axes.set(xlabel="rank / number of draws", ylabel="ECDF difference", title=title, xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes.figure


def checks(report: Any, *, title: str = "", axes: Any = None) -> Any:
    """Every statistic of a report in units of its limit: what lies beyond 1 fails.

    Args:
        report: of `testing.report` or `testing.validate`.
        title: of the axes.
        axes: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib figure.

    Example:
        >>> import decisionppl as dp
        >>> order = dp.testing.bias_order(lambda delta: delta**2, order=2)
        >>> type(dp.plots.checks(dp.testing.report([order]))).__name__
        'Figure'
    """
    axes = _axes(axes)
    names = list(report.checks)
    for i, name in enumerate(names):
        strain = np.asarray([s.strain for s in report.checks[name].statistics])
        # measured without a limit, or exactly zero: at the left end; infinite: at the right
        shown = np.clip(strain, 1e-3, 1e3)
        failed = ~(strain <= 1)
        offset = -i + np.linspace(-0.15, 0.15, len(shown)) * (len(shown) > 1)
        for which, colour, mark in ((~failed, _COLOURS[0], "o"), (failed, _COLOURS[1], "X")):
            axes.plot(shown[which], offset[which], mark, color=colour, alpha=0.7, markersize=5)
    axes.axvline(1.0, color="0.3", linewidth=1, linestyle="--")
    axes.set(
        xscale="log", xlabel="statistic / limit", title=title, xlim=(8e-4, 1.3e3),
        yticks=-np.arange(len(names)), ylim=(0.6 - len(names), 0.6),
    )  # fmt: skip
    axes.set_yticklabels(names)
    axes.spines[["top", "right"]].set_visible(False)
    return axes.figure


def frontier(study: Any, *, title: str = "", axes: Any = None) -> Any:
    """Bias against standard deviation of estimators under designs: the lower left is better.

    Dotted arcs join equal root mean square errors. Estimators are told by colour and mark, designs
    by the label beside the mark. What has no estimate in some experiments is left out.

    Args:
        study: of `inference.designs.compare`.
        title: of the axes.
        axes: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib figure.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.inference import designs, network
        >>> from decisionppl.models import network as gallery
        >>> ring = network.graph([[i, (i + 1) % 60] for i in range(60)])
        >>> study = designs.compare(gallery.spillovers(ring).model, {"unit": designs.unit(60)},
        ...                         graph=ring, key=0, num_runs=20)
        >>> type(dp.plots.frontier(study)).__name__
        'Figure'
    """
    axes = _axes(axes)
    size = abs(study.effect[0]) or 1.0
    bias, sd = 100 * np.abs(study.bias) / size, 100 * study.sd / size
    for j, name in enumerate(study.estimators):
        axes.plot(
            bias[:, j], sd[:, j], _MARKS[j % len(_MARKS)], color=_COLOURS[j % len(_COLOURS)],
            label=name,
        )  # fmt: skip
        for i, design in enumerate(study.designs):
            if np.isfinite(bias[i, j] + sd[i, j]):
                axes.annotate(design, (bias[i, j], sd[i, j]), xytext=(5, 4), fontsize="x-small",
                              textcoords="offset points", color="0.3")  # fmt: skip
    most = np.nanmax(np.hypot(bias, sd)) if np.isfinite(bias + sd).any() else 1.0
    angle = np.linspace(0, np.pi / 2, 50)
    for radius in most * np.array([0.25, 0.5, 1.0]):
        axes.plot(radius * np.cos(angle), radius * np.sin(angle), ":", color="0.8", linewidth=1,
                  zorder=0)  # fmt: skip
    axes.set(
        xlabel="size of the bias, % of the effect", ylabel="standard deviation, % of the effect",
        title=title, xlim=(-0.03 * most, 1.1 * most), ylim=(-0.03 * most, 1.1 * most),
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes.figure


def exposure(
    graph: Any, treated: Any, positions: Any = None, *, title: str = "", axes: Any = None
) -> Any:
    """A network experiment: who is treated, and the share of treated among each one's neighbours.

    Treated units are squares, control units circles; the darker, the more of their neighbours are
    treated.

    Args:
        graph: of `inference.network.graph`.
        treated: 0 or 1 [units].
        positions: [units, 2], where to draw the units; default on a circle, in their order.
        title: of the axes.
        axes: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: values or positions of another number of units.

    Example:
        >>> import decisionppl as dp
        >>> path = dp.inference.network.graph([[0, 1], [1, 2]])
        >>> type(dp.plots.exposure(path, [1, 0, 0])).__name__
        'Figure'
    """
    from matplotlib.collections import LineCollection

    count, treated = graph.num_units, np.asarray(treated)
    if positions is None:
        angle = 2 * np.pi * np.arange(count) / count
        positions = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    positions = np.asarray(positions, float)
    for name, value, shape in (
        ("treated", treated, (count,)), ("positions", positions, (count, 2)),
    ):  # fmt: skip
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(value.shape)}.")
    axes = _axes(axes)
    ends = np.stack([positions[np.asarray(graph.sender)], positions[np.asarray(graph.receiver)]], 1)
    axes.add_collection(LineCollection(list(ends), colors="0.85", linewidths=0.5, zorder=0))
    share = np.asarray(graph.share(treated))
    for arm, mark, name in ((0, "o", "control"), (1, "s", "treated")):
        those = treated == arm
        shown = axes.scatter(
            *positions[those].T, c=share[those], marker=mark, cmap="viridis_r", vmin=0, vmax=1,
            s=30, edgecolors="black", linewidths=0.5, label=name,
        )  # fmt: skip
    axes.figure.colorbar(shown, ax=axes, label="share of treated neighbours")
    axes.set(title=title, xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2)
    return axes.figure


def counterfactual(
    panel: Any, effect: Any, *, unit: Any = None, level: float = 0.95, title: str = "",
    axes: Any = None,
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
        axes: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: an effect without a counterfactual, or of another panel; a bad level.

    Example:
        >>> import numpy as np
        >>> import decisionppl as dp
        >>> from decisionppl.inference import panels
        >>> y = np.random.default_rng(0).normal(size=(5, 30)).cumsum(1)
        >>> data = panels.panel(y, np.arange(30) >= 20)
        >>> type(dp.plots.counterfactual(data, panels.ridge(data))).__name__
        'Figure'
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
    axes = _axes(axes)
    names = panel.periods
    numeric = all(isinstance(p, int | float | np.number) for p in names)
    x = np.asarray(names if numeric else np.arange(len(names)), float)
    edges = np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
    jumps = np.flatnonzero(np.diff(np.concatenate([[0], series.treated, [0]])))
    for i, (start, stop) in enumerate(zip(jumps[::2], jumps[1::2], strict=True)):
        label = "treated" if i == 0 else None
        axes.axvspan(edges[start], edges[stop], color="0.9", linewidth=0, label=label)
    axes.fill_between(x, middle - half, middle + half, color=_COLOURS[1], alpha=0.2, linewidth=0)
    axes.plot(x, middle, "--", color=_COLOURS[1], label="without treatment, estimated")
    axes.plot(x, series.outcome, color=_COLOURS[0], label=str(series.unit))
    if not numeric:
        ticks = np.unique(np.linspace(0, len(names) - 1, min(len(names), 8)).astype(int))
        axes.set_xticks(ticks, [str(names[t]) for t in ticks])
    axes.set(xlabel="period", ylabel="outcome", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes.figure


def _axes(axes: Any) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(7, 4.5), layout="constrained").add_subplot() if axes is None else axes


def mixture_search(found: Any, table: Any) -> Any:
    """What runs of a table were bought, and what they taught of the target.

    Left: true regret of the recommended mixture against what was spent. Middle: the predicted
    loss at the target, with its 90 % interval, along lines from the recommended mixture to each
    of the four sources that weigh most in it. Right: scales of the runs bought, in their order.

    Args:
        found: of `models.data_mixture.search`.
        table: that was searched.

    Returns:
        The matplotlib figure.
    """
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    spent = found.spent[found.decisions - 1]
    left.step(spent, found.regret, where="post", color=_COLOURS[0])
    left.set(xlabel="spent", ylabel="regret at the target")
    best = table.mixtures[found.recommended[-1]]
    share = np.linspace(0, 1, 41)
    surrogate = found.engine.surrogate
    for i, source in enumerate(np.argsort(-best)[:4]):
        vertex = np.eye(len(best))[source]
        points = (1 - share)[:, None] * best + share[:, None] * vertex
        last = np.full(len(share), len(table.scales) - 1)
        actions = {"mixture": points, "size": last}
        law = surrogate.utility(surrogate.view(found.belief), actions, (), {}, False)
        loc, scale = np.asarray(law.loc), np.asarray(law.scale)
        mean = -loc.mean(0)
        sd = np.sqrt((scale**2).mean(0) + loc.var(0))
        dash = ("-", "--", "-.", ":")[i]
        middle.plot(share, mean, dash, color=_COLOURS[i], label=table.sources[source])
        middle.fill_between(share, mean - 1.645 * sd, mean + 1.645 * sd, color=_COLOURS[i],
                            alpha=0.12, linewidth=0)  # fmt: skip
    middle.set(xlabel="way from the recommended mixture to one source", ylabel="predicted loss")
    middle.legend(frameon=False, fontsize="small")
    scales = list(table.scales)
    level = [scales.index(s) for s in table.scale[found.bought]]
    right.plot(np.arange(1, len(level) + 1), level, ".", color=_COLOURS[0], markersize=3)
    right.set(xlabel="run", ylabel="scale", yticks=range(len(scales)))
    right.set_yticklabels([f"{s:.3g}" for s in scales])
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
