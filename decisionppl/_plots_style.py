"""What all plots share: marks that tell series apart without colour, bands, and axes."""

from typing import Any

import numpy as np

# Hues told apart with every kind of colour vision, and lightness (CIE L* of 33, 71, 0, 56, 45, 80)
# at least 10 apart: a copy in grey still shows which line is which, and dashes say it again.
COLOURS = ("#07507F", "#E6A000", "#000000", "#D9601A", "#00765A", "#8FCDF0")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "\\\\\\", "xx", "++")
GREY = "0.45"


def colour(i: int) -> str:
    """Colour of series number i."""
    return COLOURS[i % len(COLOURS)]


def dash(i: int) -> Any:
    """Line style of series number i; with the colour it recurs after 30 series."""
    return DASHES[i % len(DASHES)]


def mark(i: int) -> str:
    """Marker of series number i."""
    return MARKS[i % len(MARKS)]


def band(ax: Any, x: Any, lower: Any, upper: Any, i: int, label: str | None = None) -> None:
    """An interval along x, with edges in the dashes of its line."""
    ax.fill_between(x, lower, upper, color=colour(i), alpha=0.15, linewidth=0, label=label)
    for edge in (lower, upper):
        ax.plot(x, edge, linestyle=dash(i), color=colour(i), linewidth=0.6, alpha=0.7)


def mean_band(ax: Any, x: Any, values: np.ndarray, i: int, label: str) -> None:
    """Mean of rows [replications, x], and a band of two standard errors."""
    mean = values.mean(axis=0)
    if len(values) > 1:
        error = 2 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
        band(ax, x, mean - error, mean + error, i)
    ax.plot(x, mean, linestyle=dash(i), color=colour(i), label=label)


def make_axes(width: float = 7.0, height: float = 4.5, columns: int = 1) -> Any:
    """Axes of a figure that no window or notebook shows, to be saved to a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    made = figure.subplots(1, columns, squeeze=False)[0]
    return made[0] if columns == 1 else made


def axes_of(ax: Any, width: float = 7.0, height: float = 4.5) -> Any:
    """The axes to draw into; None makes a figure, which a notebook shows.

    Raises:
        TypeError: something that is not axes.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        return plt.subplots(figsize=(width, height), layout="constrained")[1]
    if not hasattr(ax, "plot") or not hasattr(ax, "figure"):
        raise TypeError(f"ax: expected matplotlib axes or None, got {type(ax).__name__}.")
    return ax


def finish(ax: Any, legend: bool = True, **options: Any) -> Any:
    """Labels, open frame, and a legend where something has a label; returns the axes."""
    ax.set(**options)
    ax.spines[["top", "right"]].set_visible(False)
    if legend and ax.get_legend_handles_labels()[1]:
        # dashes are to be seen whole beside their name
        ax.legend(frameon=False, handlelength=3.2)
    return ax
