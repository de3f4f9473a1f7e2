"""Every plot on a small input made of numbers alone, so that a picture depends on nothing else."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text

from decisionppl import plots
from decisionppl.experiment import BeliefPath, Profile, Result
from decisionppl.inference import designs, network, panels
from decisionppl.inference.effects import Effect, EffectPosterior, Taylor
from decisionppl.testing._check import Statistic
from decisionppl.testing._sbc import SBC

FOLDER = Path(__file__).parent / "images"
WIDTH, HEIGHT, DPI = 4.0, 3.0, 60

STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10.0, "lines.linewidth": 1.5, "hatch.linewidth": 1.0,
    "savefig.dpi": DPI, "figure.dpi": DPI, "lines.antialiased": True, "axes.xmargin": 0.05,
    "axes.ymargin": 0.05, "path.simplify": False,
}  # fmt: skip


def wave(*shape: int) -> np.ndarray:
    """Numbers in [-1, 1] that look random and are the same everywhere."""
    return np.sin(1.7 * np.arange(1, np.prod(shape) + 1) ** 1.5).reshape(shape)


def result(slope: float, replications: int = 4, rounds: int = 30) -> Result:
    noise = 0.4 * wave(replications, rounds)
    regret = slope * (1 + noise) / np.sqrt(1 + np.arange(rounds))
    size = 10.0 ** (np.arange(rounds)[None] // 8 + (wave(replications, rounds) > 0.7))
    axes = ("replication", "round")
    return Result(xr.Dataset({"regret": (axes, regret), "size": (axes, size)}), {}, [])


def path() -> BeliefPath:
    rounds = np.arange(31)
    mean = np.array([0.2, 0.5, 0.8]) * (1 - np.exp(-rounds / 8))[:, None]
    half = np.array([0.5, 0.7, 0.9]) / np.sqrt(1 + rounds)[:, None]
    return BeliefPath(rounds, mean, mean - half, mean + half, 0.9, ("arm 0", "arm 1", "arm 2"))


def queues(level: float) -> Any:
    time = np.full((3, 20), 5.0)
    jobs = level * (1 + 0.2 * wave(3, 20, 1)) * np.linspace(0.3, 1, 20)[None, :, None]
    return SimpleNamespace(time=time, queue=jobs * np.array([1.0, 2.0]) * 5)


def effect(centre: float, half: float) -> Effect:
    return Effect(centre, half / 2, (centre - half, centre + half), {})


def taylor() -> Taylor:
    terms = np.array([0.0, -1.2, 0.0, 0.4, 0.0, -0.13])
    orders, ones = np.cumsum(terms), np.ones(2)
    return Taylor(orders[-1], orders, np.zeros((2, 6)), -0.95, 0.02, ones, ones, True, "policy")


def posterior() -> EffectPosterior:
    draws = taylor().by_order + 0.3 * wave(40, 1) * np.arange(6) ** 0.5
    return EffectPosterior(*(draws[:, -1],) * 6, draws)


def study() -> designs.DesignStudy:
    bias, sd = (
        np.array([[1.0, 0.2, 0.5], [0.4, 0.1, 0.3]]),
        np.array([[0.2, 1.0, 0.5], [0.4, 1.3, 0.6]]),
    )
    zero = np.zeros((2, 3))
    return designs.DesignStudy(
        ("unit", "cluster"), ("means", "DN", "Hajek"), (-2.0, 0.0), bias, sd, zero, zero, zero,
        zero, 10,
    )  # fmt: skip


def sbc() -> SBC:
    right = np.arange(60) * 100 // 59
    narrow = np.concatenate([np.zeros(25, int), np.full(25, 100), np.arange(10) * 10])
    shifted = np.minimum(right + 40, 100)
    names = ("mean", "scale", "slope")
    return SBC(
        False, "", tuple(Statistic(n, v, 1.0) for n, v in zip(names, (0.1, 5, 4), strict=True)),
        names, np.stack([right, narrow, shifted], 1), np.ones(3), 100, 0.01,
    )  # fmt: skip


def checks() -> Any:
    def check(*strains: float) -> Any:
        return SimpleNamespace(statistics=[Statistic(str(s), s, 1.0) for s in strains])

    return SimpleNamespace(checks={"model": check(0, 0.2), "sbc": check(0.5, 3.0, 0.01),
                                   "martingale": check(0.05, 0.7)})  # fmt: skip


def profile() -> Profile:
    x = np.linspace(0, 1, 41)
    mean, sd = np.sin(5 * x), 0.1 + 0.5 * np.abs(x - 0.4)
    score = np.maximum(mean + 2 * sd - 1, 0)
    told = {"dose": np.array([0.1, 0.35, 0.45])}
    return Profile({"dose": x}, mean, sd, score, "expected_improvement", told)


def table() -> tuple[Any, Any]:
    mixtures = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])

    def utility(view: Any, actions: Any, *_: Any) -> Any:
        loc = -3.0 + ((actions["mixture"] - 0.4) ** 2).sum(1)
        return SimpleNamespace(loc=loc[None], scale=np.full((1, len(loc)), 0.1))

    surrogate = SimpleNamespace(view=lambda belief: belief, utility=utility)
    found = SimpleNamespace(
        bought=np.array([0, 0, 0, 1, 1]), spent=np.array([1.0, 2, 3, 13, 23]),
        decisions=np.array([1, 3, 4, 5]), regret=np.array([0.3, 0.4, 0.1, 0.05]), belief=None,
        recommended=np.array([1, 1, 0, 0]), engine=SimpleNamespace(surrogate=surrogate),
    )  # fmt: skip
    runs = SimpleNamespace(
        mixtures=mixtures, scale=np.array([1.0, 10.0]), scales=np.array([1.0, 10.0]),
        sources=("books", "code", "web"),
    )  # fmt: skip
    return found, runs


def counterfactual(ax: Any) -> Any:
    y = wave(4, 24).cumsum(1)
    data = panels.panel(y, np.arange(24) >= 16, periods=range(2000, 2024))
    middle = 0.8 * y[0]
    said = {"counterfactual": middle, "counterfactual_sd": np.full(24, 0.4)}
    return plots.counterfactual(data, Effect(0.0, 1.0, (-1.0, 1.0), said), ax=ax)


def exposure(ax: Any) -> Any:
    ring = network.graph([[i, (i + k) % 12] for i in range(12) for k in (1, 2)])
    return plots.exposure(ring, [1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0], ax=ax)


CASES: dict[str, Callable[[Any], Any]] = {
    "regret": lambda ax: plots.regret(
        {"thompson": result(1.0), "greedy": result(2.0), "uniform": result(3.0)}, ax=ax),
    "beliefs": lambda ax: plots.beliefs(path(), [0.2, 0.5, 0.8], ax=ax),
    "queue_lengths": lambda ax: plots.queue_lengths({"cmu": queues(2), "random": queues(4)}, ax=ax),
    "acquisition": lambda ax: plots.acquisition(profile(), ax=ax),
    "fidelities_sequence": lambda ax: plots.fidelities(
        [1, 1, 1, 10, 1, 10, 10, 100, 10, 100], "size", ax=ax),
    "fidelities_shares": lambda ax: plots.fidelities(result(1.0), "size", ax=ax),
    "fidelities_continuous": lambda ax: plots.fidelities(0.5 + 0.5 * wave(6, 30), ax=ax),
    "effects_named": lambda ax: plots.effects(
        {"naive": effect(1.2, 0.4), "first order": effect(-0.8, 0.9), "model": -1.0}, -0.95, ax=ax),
    "effects_by_order": lambda ax: plots.effects(
        {"posterior": posterior(), "true market": taylor(),
         "estimates": [effect(0.0, 0.2), effect(-1.0, 0.5)]}, ax=ax),
    "frontier": lambda ax: plots.frontier(study(), ax=ax),
    "exposure": exposure,
    "counterfactual": counterfactual,
    "ecdf_difference": lambda ax: plots.ecdf_difference(sbc(), ax=ax),
    "checks": lambda ax: plots.checks(checks(), ax=ax),
    "search_regret": lambda ax: plots.search_regret(table()[0], ax=ax),
    "mixture_slices": lambda ax: plots.mixture_slices(*table(), ax=ax),
}  # fmt: skip


def draw(name: str, words: bool = False) -> Any:
    """The axes of a case, in a figure of fixed size with axes at a fixed place."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained" if words else None)
        ax = figure.add_subplot() if words else figure.add_axes((0.1, 0.1, 0.85, 0.85))
        return CASES[name](ax)


def picture(name: str, file: Any) -> None:
    """Write the case as PNG without its words, whose shapes change with versions of fonts."""
    ax = draw(name)
    for one in ax.figure.axes:
        one.tick_params(labelbottom=False, labelleft=False, labelright=False)
        if one.get_legend() is not None:
            one.get_legend().set_visible(False)
    for text in ax.figure.findobj(Text):
        text.set_visible(False)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        ax.figure.savefig(file, dpi=DPI, format="png", metadata={"Software": None})
