"""Plots of results; matplotlib is imported when a plot is drawn."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from decisionppl._result import Result

# Okabe and Ito: told apart with every kind of colour vision
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


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
    from matplotlib.figure import Figure

    results = {"": results} if isinstance(results, Result) else results
    if axes is None:
        axes = Figure(figsize=(7, 4.5), layout="constrained").add_subplot()
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
