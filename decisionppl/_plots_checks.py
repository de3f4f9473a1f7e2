"""Plots of the validation toolkit: ranks of calibration, strain of checks."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from decisionppl._plots_style import GREY, axes_of, colour, dash, finish


def ecdf_difference(
    result: Any, names: Iterable[str] | None = None, *, title: str = "", ax: Any = None
) -> Any:
    """Ranks of simulation-based calibration: distribution function less the uniform one.

    A curve inside the band is compatible with a right posterior; a curve through the top left
    and the bottom right has too narrow posteriors, the reverse too wide ones, and a curve on one
    side of zero has shifted ones. The band is simultaneous over all ranks and quantities.

    Args:
        result: of `testing.sbc` or `testing.posterior_sbc`.
        names: quantities to draw; default all. Those that leave the band are thick and named.
        title: of the axes.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: an unknown quantity.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import build
        >>> problem = build("gaussian", num_arms=2)
        >>> found = dp.testing.sbc(problem.model, problem.engine(), key=0, num_simulations=20)
        >>> dp.plots.ecdf_difference(found).get_ylabel()
        'ECDF difference (share of simulations)'

    References:
        Säilynoja, Bürkner and Vehtari, arXiv 2103.10522.
    """
    from decisionppl.testing._uniformity import bands

    names = list(result.names if names is None else names)
    unknown = sorted(set(names) - set(result.names))
    if unknown:
        raise ValueError(f"no quantity {unknown[0]!r}; there are {list(result.names)}.")
    ax = axes_of(ax)
    count, values = len(result.ranks), result.num_draws + 1
    share, lower, upper = bands(count, values, result.level / len(result.names))
    ends = np.concatenate([[0.0], share, [1.0]])
    low, high = (np.concatenate([[0.0], b - share, [0.0]]) for b in (lower, upper))
    ax.fill_between(ends, low, high, color="0.88", linewidth=0, label="simultaneous band")
    outside = 0
    for name in names:
        i = result.names.index(name)
        ranks = np.sort(result.ranks[:, i])
        below = np.searchsorted(ranks, np.round(share * values), side="left") / count
        curve = np.concatenate([[0.0], below - share, [0.0]])
        if result.statistics[i].passed:
            ax.plot(ends, curve, color=GREY, linewidth=0.8)
        else:
            ax.plot(ends, curve, linestyle=dash(outside), color=colour(outside), linewidth=1.8,
                    label=name)  # fmt: skip
            outside += 1
    return finish(
        ax, xlabel="rank / number of draws", ylabel="ECDF difference (share of simulations)",
        title=title, xlim=(0, 1),
    )  # fmt: skip


def checks(report: Any, *, title: str = "", ax: Any = None) -> Any:
    """Every statistic of a report in units of its limit: what lies beyond 1 fails.

    Args:
        report: of `testing.report` or `testing.validate`.
        title: of the axes.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Example:
        >>> import decisionppl as dp
        >>> order = dp.testing.bias_order(lambda delta: delta**2, order=2)
        >>> ax = dp.plots.checks(dp.testing.report([order]))
        >>> [t.get_text() for t in ax.get_yticklabels()]
        ['bias order']
    """
    ax = axes_of(ax)
    names = list(report.checks)
    labels: dict[str, str | None] = {"o": "passed", "X": "failed"}
    for i, name in enumerate(names):
        strain = np.asarray([s.strain for s in report.checks[name].statistics])
        # measured without a limit, or exactly zero: at the left end; infinite: at the right
        shown = np.clip(strain, 1e-3, 1e3)
        failed = ~(strain <= 1)
        offset = -i + np.linspace(-0.15, 0.15, len(shown)) * (len(shown) > 1)
        for which, of, mark, size in ((~failed, colour(0), "o", 4), (failed, colour(3), "X", 8)):
            if which.any():
                ax.plot(shown[which], offset[which], mark, color=of, alpha=0.8, markersize=size,
                        label=labels[mark])  # fmt: skip
                labels[mark] = None
    ax.axvline(1.0, color="0.3", linewidth=1, linestyle="--", label="limit")
    ax.set(xscale="log", xlim=(8e-4, 1.3e3), ylim=(0.6 - len(names), 0.6))
    ax.set_yticks(-np.arange(len(names)), names)
    return finish(ax, xlabel="statistic / limit (no unit)", title=title)
