"""Plots along the rounds of an experiment: regret, beliefs, queues."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from decisionppl._plots_style import axes_of, band, colour, dash, finish, mark, mean_band
from decisionppl._result import Result


def _short(x: float) -> str:
    """Three digits, all that stand before the point at least."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


def regret(
    results: Mapping[str, Result] | Result, *, title: str = "", units: str = "units of the reward",
    ax: Any = None,
) -> Any:  # fmt: skip
    """Cumulative regret by round: mean over replications, band of two standard errors.

    Args:
        results: a `Result`, or a dict from label to `Result`; each needs `regret`.
        title: of the axes.
        units: of the utility, for the label.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: a result without regret.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import build
        >>> problem = build("gaussian", num_arms=2)
        >>> result = dp.experiment.run(
        ...     problem.model, problem.engine(), dp.rules.greedy, horizon=5, key=0, replications=2)
        >>> dp.plots.regret(result, units="clicks").get_ylabel()
        'cumulative regret (clicks)'
    """
    results = results if isinstance(results, Mapping) else {"": results}
    for label, result in results.items():
        if "regret" not in result.data:
            raise ValueError(
                f"result {label!r} has no regret: its environment does not know expected "
                "utilities. Give an Environment with `value`."
            )
    ax = axes_of(ax)
    for i, (label, result) in enumerate(results.items()):
        values = result.data["regret"]
        extra = [d for d in values.dims if d not in ("replication", "round")]
        total = np.cumsum(np.asarray(values.sum(extra)), axis=1)
        rounds = np.arange(1, total.shape[1] + 1)
        mean_band(ax, rounds, total, i, f"{label} ({_short(total[:, -1].mean())})".strip())
    label = f"cumulative regret ({units})"
    return finish(ax, any(results), xlabel="round", ylabel=label, title=title)


def beliefs(
    path: Any, truth: Any = None, *, title: str = "", units: str = "units of the reward",
    ax: Any = None,
) -> Any:  # fmt: skip
    """What was known of every arm through time: posterior means, with the band of an interval.

    Args:
        path: of `experiment.belief_path`.
        truth: the utilities that beliefs are about, [actions], where they are known: ticks at the
            right.
        title: of the axes.
        units: of the utility, for the label.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: a truth for another number of actions.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import build
        >>> problem = build("gaussian", num_arms=2)
        >>> result = dp.experiment.run(
        ...     problem.model, problem.engine(), dp.rules.thompson, horizon=10, key=0)
        >>> ax = dp.plots.beliefs(dp.experiment.belief_path(problem.model, result))
        >>> [t.get_text() for t in ax.get_legend().get_texts()]
        ['arm 0', 'arm 1']
    """
    known = None if truth is None else np.asarray(truth, float)
    if known is not None and known.shape != path.mean.shape[1:]:
        raise ValueError(
            f"truth: expected one utility per action, {list(path.mean.shape[1:])}, got shape "
            f"{list(known.shape)}."
        )
    ax = axes_of(ax)
    last = path.rounds[-1]
    for i, label in enumerate(path.labels):
        band(ax, path.rounds, path.lower[:, i], path.upper[:, i], i)
        ax.plot(path.rounds, path.mean[:, i], linestyle=dash(i), color=colour(i), marker=mark(i),
                markevery=max(1, len(path.rounds) // 8), markersize=4, label=label)  # fmt: skip
        if known is not None:
            ax.plot([last, 1.03 * last], [known[i]] * 2, color=colour(i), linewidth=3,
                    label=None if i < len(known) - 1 else "truth")  # fmt: skip
    return finish(
        ax, xlabel="rounds learned from", title=title,
        ylabel=f"utility ({units}), {100 * path.level:.0f} % interval",
    )  # fmt: skip


def queue_lengths(
    results: Mapping[str, Any], holding: Any = 1.0, *, title: str = "",
    units: str = "units of the network", ax: Any = None,
) -> Any:  # fmt: skip
    """A queueing network over time: mean over runs, band of two standard errors.

    Args:
        results: dict from label to what `models.queueing.simulate` returns.
        holding: cost of a job of each class, [n] or one for all; 1 draws the number of jobs.
        title: of the axes.
        units: of time, for the label.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import queueing
        >>> net = queueing.criss_cross()
        >>> runs = queueing.simulate(net, queueing.cmu(net), 2000, key=0, num_runs=3)
        >>> ax = dp.plots.queue_lengths({"cmu": runs}, units="hours")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('time (hours)', 'jobs in the network')
    """
    ax = axes_of(ax)
    for i, (label, found) in enumerate(results.items()):
        time, jobs = np.asarray(found.time), np.asarray(found.queue) * holding
        mean_band(ax, np.cumsum(time.mean(0)), jobs.sum(-1) / time, i,
                  f"{label} ({jobs.sum() / time.sum():.2f})")  # fmt: skip
    jobs_alone = np.all(np.asarray(holding) == 1)
    cost = "jobs in the network" if jobs_alone else "holding cost per unit of time"
    return finish(ax, xlabel=f"time ({units})", ylabel=cost, title=title)
