"""Plots of results; matplotlib is imported when a plot is drawn.

Every plot takes `ax=None`, draws into it or makes a figure, and returns the axes (those of several
panels an array of axes), so that plots compose and can be changed further. Series differ in dash
and mark, and in lightness, not in hue alone: a copy in grey says the same.

- `regret`: cumulative, with bands; `beliefs`: about the arms, through time;
- `acquisition`: along a line of actions; `fidelities`: those chosen; `mixture_search`, made of
  `search_regret` and `mixture_slices`: runs bought of a table;
- `effects`: estimates with intervals, by name or by order; `counterfactual`: of a panel;
- `frontier`: bias and variance of designs and estimators; `exposure`: of a network;
- `queue_lengths`: of a queueing network over time;
- `ecdf_difference`: ranks of simulation-based calibration; `checks`: all statistics of a report.
"""

from decisionppl._plots_checks import checks, ecdf_difference
from decisionppl._plots_effects import counterfactual, effects
from decisionppl._plots_network import exposure, frontier
from decisionppl._plots_rounds import beliefs, queue_lengths, regret
from decisionppl._plots_search import (
    acquisition,
    fidelities,
    mixture_search,
    mixture_slices,
    search_regret,
)

__all__ = [
    "acquisition",
    "beliefs",
    "checks",
    "counterfactual",
    "ecdf_difference",
    "effects",
    "exposure",
    "fidelities",
    "frontier",
    "mixture_search",
    "mixture_slices",
    "queue_lengths",
    "regret",
    "search_regret",
]
