"""Which design and which estimator answer best on a model: bias, spread, coverage, power."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from decisionppl._play import as_key
from decisionppl.inference import network
from decisionppl.inference._design import Design
from decisionppl.inference._effect import check_level
from decisionppl.inference._graph import Graph
from decisionppl.inference._interference import Interference, interference


class DesignStudy(NamedTuple):
    """What estimators make of designs, over many simulated experiments.

    Attributes:
        designs, estimators: names.
        effect: the global effect, and its standard error.
        bias, sd, rmse: of the estimates [designs, estimators].
        stderr: mean of the reported standard errors [designs, estimators].
        coverage: share of intervals that hold the effect [designs, estimators].
        power: share of intervals without zero [designs, estimators].
        num_runs: experiments of each design.
    """

    designs: tuple[str, ...]
    estimators: tuple[str, ...]
    effect: tuple[float, float]
    bias: np.ndarray
    sd: np.ndarray
    rmse: np.ndarray
    stderr: np.ndarray
    coverage: np.ndarray
    power: np.ndarray
    num_runs: int

    def ranking(self) -> list[tuple[str, str, float]]:
        """(design, estimator, rmse), best first; those without an estimate last."""
        found = [
            (d, e, float(self.rmse[i, j]))
            for i, d in enumerate(self.designs)
            for j, e in enumerate(self.estimators)
        ]
        return sorted(found, key=lambda x: (not np.isfinite(x[2]), x[2]))

    def __str__(self) -> str:
        lines = [f"effect {self.effect[0]:.4g} (standard error {self.effect[1]:.2g}), "
                 f"{self.num_runs} experiments of each design",
                 f"{'design':<20} {'estimator':<28} {'bias':>9} {'sd':>9} {'rmse':>9} "
                 f"{'cover':>6} {'power':>6}"]  # fmt: skip
        for design, estimator, rmse in self.ranking():
            i, j = self.designs.index(design), self.estimators.index(estimator)
            lines.append(
                f"{design:<20} {estimator:<28} {self.bias[i, j]:>9.3g} {self.sd[i, j]:>9.3g} "
                f"{rmse:>9.3g} {self.coverage[i, j]:>6.3f} {self.power[i, j]:>6.3f}"
            )
        return "\n".join(lines)


def compare(
    model: Callable,
    designs: Mapping[str, Design | tuple[Design, Interference]],
    *,
    key: Any,
    graph: Graph | None = None,
    estimators: Mapping[str, Callable] | None = None,
    num_runs: int = 200,
    truth_runs: int = 200,
    args: tuple = (),
    level: float = 0.95,
) -> DesignStudy:
    """Simulate a model under several designs, and rank what estimators make of them.

    Args:
        model: `(design, *args)`, see `network.experiment`.
        designs: by name, a design; or a design and its interference, where that does not follow
            from `graph`.
        key: PRNG key or int seed.
        graph: over units, see `network.graph`.
        estimators: by name, `NetworkData -> Effect`; default difference in means,
            Differences-in-Neighbors and Hajek's.
        num_runs: experiments of each design.
        truth_runs: pairs of runs, all treated and none, that the effect is the mean of.
        args: further arguments of the model.
        level: of the intervals.

    Returns:
        `DesignStudy`; `print` shows its table, `plots.frontier` draws it.

    Raises:
        ValueError: no designs, fewer than two runs; see `network.experiment`.

    Example:
        >>> from decisionppl.inference import designs, network
        >>> from decisionppl.models import network as gallery
        >>> ring = network.graph([[i, (i + 1) % 300] for i in range(300)])
        >>> market = gallery.spillovers(ring, response="linear", noise=0.5)
        >>> study = designs.compare(
        ...     market.model, {"unit": designs.unit(300),
        ...                    "blocks": designs.cluster([i // 10 for i in range(300)])},
        ...     graph=ring, key=0, num_runs=50)
        >>> study.ranking()[0][0], study.ranking()[-1][1]
        ('blocks', 'difference in means')
    """
    check_level(level)
    if not designs:
        raise ValueError("designs: expected at least one, by name.")
    for name, value in (("num_runs", num_runs), ("truth_runs", truth_runs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise ValueError(f"{name}: expected a whole number from 2, got {value!r}.")
    how = estimators or {
        "difference in means": partial(network.difference_in_means, level=level),
        "differences-in-neighbors": partial(network.dn, level=level),
        "hajek": partial(network.hajek, level=level),
    }
    key, of_truth = jax.random.split(as_key(key))
    made = {n: d if isinstance(d, tuple) and not isinstance(d, Design) else
            (d, interference(d, graph)) for n, d in designs.items()}  # fmt: skip
    first = next(iter(made.values()))[0]
    truth = network.total_effect(model, first, key=of_truth, num_runs=truth_runs, args=args)
    effect = float(truth.estimate)
    rows = []
    for i, (design, reach) in enumerate(made.values()):
        now = jax.random.fold_in(key, i)
        data = network.experiment(model, design, reach, key=now, num_runs=num_runs, args=args)
        rows.append([_summary(estimate(data), effect) for estimate in how.values()])
    table = np.asarray(rows).transpose(2, 0, 1)
    return DesignStudy(
        tuple(made), tuple(how), (effect, float(truth.stderr)), *table, num_runs=num_runs
    )


def _summary(found: Any, effect: float) -> list[Any]:
    estimate, stderr = np.asarray(found.estimate, float), np.asarray(found.stderr, float)
    lower, upper = (np.asarray(x, float) for x in found.interval)
    off = estimate - effect
    return [
        off.mean(), estimate.std(ddof=1), np.sqrt((off**2).mean()), stderr.mean(),
        np.mean((lower <= effect) & (effect <= upper)), np.mean((lower > 0) | (upper < 0)),
    ]  # fmt: skip
