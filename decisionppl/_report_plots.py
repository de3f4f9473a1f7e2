"""The pictures of a report, as SVG inside the page."""

import base64
import io
import itertools
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from decisionppl._plots_style import finish, make_axes, mean_band
from decisionppl._report_numbers import Run, columns
from decisionppl._result import Result

_POINTS = 30  # of a curve of rewards


def pictures(runs: Sequence[Run]) -> Iterable[str]:
    """Regret, reward, and which arms were chosen, each as an element of a page."""
    from decisionppl import plots

    parts = []
    # a dollar in a name begins no formula
    runs = [r._replace(label=r.label.replace("$", r"\$")) for r in runs]
    with_regret = {r.label: r.result for r in runs if "regret" in r.result.data}
    if with_regret:
        ax = plots.regret(_shortened(with_regret), ax=make_axes())
        last = {n: float(r.data["regret"].sum()) / r.data.sizes["replication"]
                for n, r in with_regret.items()}  # fmt: skip
        ends = "; ".join(f"{n} {x:.4g}".strip() for n, x in last.items())
        parts.append(image(ax, f"Cumulative regret by round; at the end: {ends}."))
    ax, ends = make_axes(), []
    for i, run in enumerate(runs):
        found = [c for c in columns(run) if c.name.startswith("reward")][:1]
        for column in found:
            x, values = _blocks(column.values)
            mean_band(ax, x, values, i, run.label or column.name)
            ends.append(f"{run.label or column.name} {values[:, -1].mean():.4g}")
    if ends:
        finish(ax, xlabel="round", ylabel="reward per decision (mean of a block of rounds)")
        parts.append(image(ax, f"Reward per decision by round; in the last block: "
                                f"{'; '.join(ends)}."))  # fmt: skip
    if len(runs) == 1:
        parts += _arms_plot(runs[0])
    return parts or ["<p>There is nothing to draw: neither regret nor a known reward.</p>"]


def _arms_plot(run: Run) -> list[str]:
    from decisionppl import plots

    data = run.result.data
    index = np.asarray(data["action_index"]) if "action_index" in data else np.zeros((1, 1))
    levels = len(np.unique(index))
    if len(index) < 2 or not 2 <= levels <= 6:
        return []
    ax = plots.fidelities(index.reshape(len(index), -1), "arm, by number", ax=make_axes())
    return [image(ax, f"Share of replications that chose each of {levels} arms, by decision.")]


def _blocks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of blocks of rounds, [replications, blocks], and their last rounds."""
    edges = np.unique(np.linspace(0, values.shape[1], _POINTS + 1).round().astype(int))
    parts = [values[:, a:b].mean(1) for a, b in itertools.pairwise(edges)]
    return edges[1:], np.stack(parts, axis=1)


def _shortened(results: dict[str, Result]) -> dict[str, Result]:
    """The same without other variables; drawn with at most some hundreds of rounds by SVG."""
    return {n: Result(r.data[["regret"]], {}, []) for n, r in results.items()}


def image(ax: Any, words: str) -> str:
    """A figure as part of a page, with words in place of it."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    # the same run gives the same page
    with mpl.rc_context({"svg.hashsalt": "decisionppl", "path.simplify_threshold": 0.5}):
        ax.figure.savefig(buffer, format="svg", metadata={"Date": None})
    code = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(words)}" src="data:image/svg+xml;base64,{code}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )
