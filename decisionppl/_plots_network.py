"""Plots of experiments on networks: which design and estimator, and who is exposed."""

from typing import Any

import numpy as np

from decisionppl._plots_style import axes_of, colour, finish, mark


def frontier(study: Any, *, title: str = "", ax: Any = None) -> Any:
    """Bias against standard deviation of estimators under designs: the lower left is better.

    Dotted arcs join equal root mean square errors. Estimators are told by mark and colour, designs
    by the label beside the mark. What has no estimate in some experiments is left out.

    Args:
        study: of `inference.designs.compare`.
        title: of the axes.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.inference import designs, network
        >>> from decisionppl.models import network as gallery
        >>> ring = network.graph([[i, (i + 1) % 60] for i in range(60)])
        >>> study = designs.compare(gallery.spillovers(ring).model, {"unit": designs.unit(60)},
        ...                         graph=ring, key=0, num_runs=20)
        >>> dp.plots.frontier(study).get_xlabel()
        'size of the bias (% of the effect)'
    """
    ax = axes_of(ax)
    size = abs(study.effect[0]) or 1.0
    bias, sd = 100 * np.abs(study.bias) / size, 100 * study.sd / size
    for j, name in enumerate(study.estimators):
        ax.plot(bias[:, j], sd[:, j], mark(j), color=colour(j), label=name)
        for i, design in enumerate(study.designs):
            if np.isfinite(bias[i, j] + sd[i, j]):
                ax.annotate(design, (bias[i, j], sd[i, j]), xytext=(5, 4), fontsize="x-small",
                            textcoords="offset points", color="0.3")  # fmt: skip
    most = np.nanmax(np.hypot(bias, sd)) if np.isfinite(bias + sd).any() else 1.0
    angle = np.linspace(0, np.pi / 2, 50)
    for radius in most * np.array([0.25, 0.5, 1.0]):
        ax.plot(radius * np.cos(angle), radius * np.sin(angle), ":", color="0.7", linewidth=1,
                zorder=0)  # fmt: skip
    # a handle beside its name, not the long ones of dashed lines
    finish(
        ax, False, xlabel="size of the bias (% of the effect)", title=title,
        ylabel="standard deviation (% of the effect)",
        xlim=(-0.03 * most, 1.1 * most), ylim=(-0.03 * most, 1.1 * most),
    )  # fmt: skip
    ax.legend(frameon=False)
    return ax


def exposure(
    graph: Any, treated: Any, positions: Any = None, *, title: str = "", ax: Any = None
) -> Any:
    """A network experiment: who is treated, and the share of treated among each one's neighbours.

    Treated units are squares, control units circles; the darker, the more of their neighbours are
    treated.

    Args:
        graph: of `inference.network.graph`.
        treated: 0 or 1 [units].
        positions: [units, 2], where to draw the units; default on a circle, in their order.
        title: of the axes.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes; the colour bar has axes of its own in the same figure.

    Raises:
        ValueError: values or positions of another number of units.

    Example:
        >>> import decisionppl as dp
        >>> path = dp.inference.network.graph([[0, 1], [1, 2]])
        >>> ax = dp.plots.exposure(path, [1, 0, 0])
        >>> [t.get_text() for t in ax.get_legend().get_texts()]
        ['control', 'treated']
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
    ax = axes_of(ax)
    ends = np.stack([positions[np.asarray(graph.sender)], positions[np.asarray(graph.receiver)]], 1)
    ax.add_collection(LineCollection(list(ends), colors="0.8", linewidths=0.5, zorder=0))
    share = np.asarray(graph.share(treated))
    for arm, shape, name in ((0, "o", "control"), (1, "s", "treated")):
        those = treated == arm
        # lightness alone carries the share, so a grey copy says the same
        shown = ax.scatter(
            *positions[those].T, c=share[those], marker=shape, cmap="Blues", vmin=0, vmax=1,
            s=34, edgecolors="black", linewidths=0.6, label=name,
        )  # fmt: skip
    ax.figure.colorbar(shown, ax=ax, label="share of treated neighbours")
    ax.set(title=title, xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2)
    return ax
