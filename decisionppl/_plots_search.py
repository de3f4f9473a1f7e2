"""Plots of searches: acquisition along a line, chosen fidelities, runs that were bought."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from decisionppl._plots_style import HATCHES, axes_of, band, colour, dash, finish, mark

_BLOCKS = 60
_LEVELS = 6  # so many fidelities can be told apart as areas


def acquisition(
    profile: Any, along: str | None = None, *, title: str = "",
    units: str = "units of the utility", ax: Any = None,
) -> Any:  # fmt: skip
    """A slice through a search: posterior of the utility along a line, and the rule's score.

    The score is drawn in the lower fifth, scaled to its own range, since only its shape decides;
    a vertical line marks its maximum, ticks below the actions asked so far.

    Args:
        profile: of `experiment.profile`, of actions along a line.
        along: action site on the horizontal axis; default the one that varies.
        title: of the axes.
        units: of the utility, for the label.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: actions that vary in several numbers, and `along` does not say which.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     f = numpyro.sample("f", dp.GaussianProcess(dp.kernels.Matern52(0.3)))
        ...     dp.reward("y", dist.Normal(f(dp.action("dose", dist.Uniform(0, 1))), 0.1))
        >>> trial = dp.experiment.Experiment(
        ...     model, dp.inference.gaussian_process(model, capacity=8), dp.rules.log_ei, key=0)
        >>> trial.tell(trial.ask().token, 0.5)
        >>> found = dp.experiment.profile(trial, jnp.linspace(0, 1, 50))
        >>> ax = dp.plots.acquisition(found, units="mg")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('dose', 'utility (mg), ± 2 sd')
    """
    name, x = _line(profile.actions, along)
    order = np.argsort(x, kind="stable")
    x, mean, sd, score = (np.asarray(v)[order] for v in (x, profile.mean, profile.sd,
                                                         profile.score))  # fmt: skip
    ax = axes_of(ax)
    band(ax, x, mean - 2 * sd, mean + 2 * sd, 0)
    ax.plot(x, mean, color=colour(0), label="posterior mean")
    low, high = float((mean - 2 * sd).min()), float((mean + 2 * sd).max())
    room = 0.28 * ((high - low) or 1.0)
    real = np.isfinite(score)
    if real.any():
        span = np.ptp(score[real]) or 1.0
        height = low - room + 0.8 * room * (score - score[real].min()) / span
        height = np.where(real, height, np.nan)
        ax.plot(x, height, linestyle=dash(1), color=colour(1))
        ax.fill_between(x, low - room, height, facecolor="none", edgecolor=colour(1), hatch="////",
                        linewidth=0, label=f"{profile.rule}, scaled")  # fmt: skip
        top = x[np.nanargmax(height)]
        ax.axvline(top, color="0.3", linestyle=":", linewidth=1.2, label=f"next: {top:.3g}")
    told = profile.told.get(name, ())
    if len(told) and np.ndim(told) == 1:
        ax.plot(told, np.full(len(told), low - 1.12 * room), "|", color="black", markersize=9,
                label="asked so far", clip_on=False)  # fmt: skip
    finish(
        ax, False, xlabel=name, ylabel=f"utility ({units}), ± 2 sd", title=title,
        ylim=(low - 1.2 * room, high + 1.1 * room),  # the names stand above the curves
    )  # fmt: skip
    ax.legend(frameon=False, handlelength=3.2, ncols=2, loc="upper center", fontsize="small")
    return ax


def _line(actions: Mapping[str, np.ndarray], along: str | None) -> tuple[str, np.ndarray]:
    """Name and values of the action site that varies; a vector's place along its own line."""
    moving = {n: a for n, a in actions.items() if np.any(np.asarray(a) != np.asarray(a)[:1])}
    if along is None and len(moving) != 1:
        raise ValueError(
            f"along: {sorted(moving) or 'no action site'} varies; say which of {sorted(actions)} "
            "is the horizontal axis."
        )
    name = next(iter(moving)) if along is None else along
    if name not in actions:
        raise ValueError(f"along: no action site {name!r}; there are {sorted(actions)}.")
    values = np.asarray(actions[name], float)
    if values.ndim == 1:
        return name, values
    # points on a line from the first to the last: the share of the way
    way = values.reshape(len(values), -1)
    step = way[-1] - way[0]
    share = (way - way[0]) @ step / (step @ step if step.any() else 1.0)
    return f"{name}, share of the way from the first to the last", share


def fidelities(
    found: Any, site: str | None = None, *, title: str = "", units: str = "", ax: Any = None
) -> Any:
    """Which fidelities were chosen, in the order of the decisions.

    One sequence is drawn as points; several replications as the share that chose each level (up
    to six levels), else as their median with the band of the middle half.

    Args:
        found: an `Experiment`, a `Result`, or an array [decisions] or [replications, decisions].
        site: the action site that holds the fidelity, where there are several.
        title: of the axes.
        units: of the fidelity, for the label.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: no such site, several and none named, or a fidelity that is no number.

    Example:
        >>> import decisionppl as dp
        >>> ax = dp.plots.fidelities([1, 1, 10, 1, 100], units="million parameters")
        >>> ax.get_ylabel()
        'fidelity (million parameters)'
    """
    name, values = _chosen(found, site)
    values = np.asarray(values)
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2) or not values.size:
        raise ValueError(
            f"{name}: expected numbers [decisions] or [replications, decisions], got shape "
            f"{list(values.shape)} of {values.dtype}."
        )
    ax = axes_of(ax)
    label = f"{name} ({units})" if units else name
    levels = np.unique(values)
    many = values.ndim == 2 and len(values) > 1
    decisions = np.arange(1, values.shape[-1] + 1)
    if not many:
        _levels(ax, decisions, values.ravel(), levels)
    elif len(levels) <= _LEVELS:
        # of many decisions, means of blocks
        edges = np.linspace(0, len(decisions), min(len(decisions), _BLOCKS) + 1).round().astype(int)
        starts, middles = edges[:-1], (edges[1:] + edges[:-1] + 1) / 2
        decisions, bottom = middles, np.zeros(len(middles))
        for i, level in enumerate(levels):
            here = 100 * (values == level).mean(0)
            share = np.add.reduceat(here, starts) / np.diff(edges)
            # levels have an order: so has their lightness
            fill, hatching = f"{0.95 - 0.75 * i / max(len(levels) - 1, 1):.3f}", HATCHES[i]
            ax.fill_between(decisions, bottom, bottom + share, step="mid", facecolor=fill,
                            edgecolor=colour(1 if i > len(levels) / 2 else 0), hatch=hatching,
                            linewidth=0.3, label=f"{level:g}")  # fmt: skip
            bottom = bottom + share
        ax.set(ylim=(0, 100), xlim=(0.5, values.shape[1] + 0.5))
        finish(ax, False, xlabel="decision", ylabel="share of replications (%)", title=title)
        ax.legend(title=label, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return ax
    else:
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
        band(ax, decisions, low, high, 0, label="middle half of replications")
        ax.plot(decisions, middle, color=colour(0), label="median")
    return finish(ax, xlabel="decision", ylabel=label, title=title)


def _levels(ax: Any, decisions: np.ndarray, values: np.ndarray, levels: np.ndarray) -> None:
    """Points on evenly spaced levels where there are few, else at their values."""
    if len(levels) > 12:
        ax.plot(decisions, values, ".", color=colour(0))
        return
    place = np.searchsorted(levels, values)
    for i in range(len(levels)):
        those = place == i
        ax.plot(decisions[those], place[those], mark(i), color=colour(0), markersize=5)
    ax.set_yticks(range(len(levels)), [f"{v:.3g}" for v in levels])
    ax.set_ylim(-0.5, len(levels) - 0.5)


def _chosen(found: Any, site: str | None) -> tuple[str, Any]:
    held: Any = None
    if hasattr(found, "history"):
        sites = found._parts.space or found._parts.actions
        held = {n: found.history.get(n, []) for n in sites}
    elif hasattr(found, "data") and hasattr(found.data, "data_vars"):
        held = found.data.data_vars
    if held is None:
        return site or "fidelity", found
    if site is None and len(held) == 1:
        (site,) = held
    if site is None:
        raise ValueError(f"site: say which of {sorted(held)} is the fidelity.")
    if site not in held:
        raise ValueError(f"site: no site {site!r}; there are {sorted(held)}.")
    values = np.asarray(held[site])
    if hasattr(found, "data"):
        values = values.reshape(len(values), -1)  # rounds of several decisions, one after another
    return site, values


def search_regret(found: Any, *, title: str = "", units: str = "units of the loss",
                  ax: Any = None) -> Any:  # fmt: skip
    """True regret of what a search of a table recommends, against what was spent.

    Args:
        found: of `models.data_mixture.search`.
        title: of the axes.
        units: of the loss, for the label.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.
    """
    ax = axes_of(ax)
    ax.step(found.spent[found.decisions - 1], found.regret, where="post", color=colour(0))
    return finish(ax, xlabel="spent (units of the prices)", title=title,
                  ylabel=f"regret at the target ({units})")  # fmt: skip


def mixture_slices(found: Any, table: Any, *, title: str = "", units: str = "units of the loss",
                   ax: Any = None) -> Any:  # fmt: skip
    """Predicted loss at the target from the recommended mixture to its four largest sources.

    Args:
        found: of `models.data_mixture.search`.
        table: that was searched.
        title: of the axes.
        units: of the loss, for the label.
        ax: matplotlib axes to draw into; None makes a figure.

    Returns:
        The matplotlib axes.
    """
    ax = axes_of(ax)
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
        band(ax, share, mean - 1.645 * sd, mean + 1.645 * sd, i)
        ax.plot(share, mean, linestyle=dash(i), color=colour(i), label=table.sources[source])
    return finish(ax, xlabel="share of the way from the recommended mixture to one source",
                  ylabel=f"predicted loss ({units}), 90 %", title=title)  # fmt: skip


def mixture_search(found: Any, table: Any, *, units: str = "units of the loss",
                   ax: Any = None) -> Any:  # fmt: skip
    """What runs of a table were bought, and what they taught of the target, in three panels.

    `search_regret`, `mixture_slices` and `fidelities`, side by side.

    Args:
        found: of `models.data_mixture.search`.
        table: that was searched.
        units: of the loss, for the labels.
        ax: array of three matplotlib axes to draw into; None makes a figure.

    Returns:
        Array of the three matplotlib axes.

    Raises:
        ValueError: another number of axes.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")[1]
    axes = np.asarray(ax, dtype=object).ravel()
    if len(axes) != 3:
        raise ValueError(f"ax: expected three axes, got {len(axes)}.")
    search_regret(found, units=units, ax=axes[0])
    mixture_slices(found, table, units=units, ax=axes[1])
    fidelities(table.scale[found.bought], "scale", ax=axes[2]).set_xlabel("run")
    return axes
