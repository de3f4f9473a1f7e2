"""A user's panel as a sequential experiment: history to learn from, or a record to replay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import decisionppl as dp
from decisionppl.experiment import Environment
from decisionppl.inference.panels import Panel
from decisionppl.models._arguments import check_count
from decisionppl.models._factor_panel import SyntheticControl, synthetic_control


class PanelExperiment(NamedTuple):
    """A panel of recorded outcomes as an experiment, in standard units.

    Attributes:
        problem: the `SyntheticControl` of its size, scales estimated before the experiment.
        rows: the recorded periods, for `Experiment.learn` or an engine's `update`.
        replay: `(effect) -> Environment` in which treating a period adds an effect, in the panel's
            units, to what was recorded.
        scale: one standard unit in units of the panel: effects are multiplied by it.
    """

    problem: SyntheticControl
    rows: dp.Rows
    replay: Callable
    scale: float


def from_panel(
    panel: Panel, unit: Any, rank: int, *, pre_periods: int, prior: tuple[float, float] = (0.0, 1.0)
) -> PanelExperiment:
    r"""An experiment on one unit of a user's panel.

    Series are centred on their means before the experiment, and divided by one number, the
    standard deviation of all control outcomes there. Noise and drift are estimated there too: the
    noise from the singular values that the rank leaves, the drift from the differences of the
    leading ones.

    Args:
        panel: `Panel`, of `inference.panels`.
        unit: the unit that may be treated; controls are all others that never are.
        rank: number of factors.
        pre_periods: periods before the experiment, in which nothing is treated.
        prior: mean and standard deviation of the effect, in units of the panel's scale.

    Returns:
        `PanelExperiment`.

    Raises:
        ValueError: an unknown unit, too few controls or periods, treatment before the experiment,
            controls that do not vary; from `replay`, a unit whose record has treated periods.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference import panels
        >>> from decisionppl.models import synthetic_control
        >>> y = np.random.default_rng(0).normal(size=(6, 40)).cumsum(1)
        >>> ours = synthetic_control.from_panel(
        ...     panels.panel(y, np.zeros((6, 40))), unit=0, rank=1, pre_periods=20)
        >>> ours.problem.num_periods, ours.rows.sites["controls"].shape
        (40, (40, 5))
    """
    if unit not in panel.units:
        raise ValueError(f"unit: no {unit!r}; the panel has {list(panel.units)[:20]}.")
    at = panel.units.index(unit)
    keep = ~panel.treated.any(1)
    keep[at] = False
    controls, total = panel.outcome[keep], len(panel.periods)
    before, r = check_count("pre_periods", pre_periods, 3), check_count("rank", rank)
    if before >= total or r >= min(len(controls), before - 1):
        raise ValueError(
            f"panel: {len(controls)} controls and {total} periods, {before} of them before the "
            f"experiment, are too few for a rank of {r}."
        )
    if panel.treated[at, :before].any():
        raise ValueError(
            f"pre_periods: unit {unit!r} is treated within the first {before} periods. Lower it."
        )
    centred = controls - controls[:, :before].mean(1, keepdims=True)
    scale = float(np.sqrt((centred[:, :before] ** 2).mean()))
    if not scale > 0:
        raise ValueError("panel: the controls do not vary before the experiment.")
    y = centred / scale
    own = (panel.outcome[at] - panel.outcome[at, :before].mean()) / scale
    _, values, right = np.linalg.svd(y[:, :before], full_matrices=False)
    noise = np.sqrt((values[r:] ** 2).sum() / ((len(y) - r) * (before - 1 - r)))
    walk = (values[:r, None] * right[:r]) / np.sqrt(len(y))  # [rank, periods]
    # each difference holds the noise of two periods, which averages over controls
    step = np.mean(np.diff(walk, axis=1) ** 2) - 2 * noise**2 / len(y)
    drift = np.sqrt(max(step, 1e-4))
    problem = synthetic_control(
        len(y), r, pre_periods=before, periods=total - before, drift=float(drift),
        noise=float(max(noise, 1e-3)), prior=prior,
    )  # fmt: skip
    treated = panel.treated[at]
    series, outcome = jnp.asarray(y.T, float), jnp.asarray(own, float)
    sites = {"controls": series, "treat": jnp.asarray(treated.astype(int)), "outcome": outcome}

    def replay(effect: float) -> Environment:
        if treated.any():
            raise ValueError(
                f"unit {unit!r} was treated in {int(treated.sum())} recorded periods, so its "
                "record does not say what it would have been. Replay a unit that was not."
            )
        size = float(effect) / scale

        def step(key: Any, state: Any, t: Any, context: Any, action: Any) -> dict[str, Any]:
            return {"controls": series[t], "outcome": outcome[t] + size * action["treat"]}

        return Environment(
            lambda key: (), lambda key, state, t: (t,), step,
            lambda state, t, context, actions: size * actions["treat"],
        )  # fmt: skip

    rows = dp.Rows((jnp.arange(total),), sites, jnp.ones(total, bool))
    return PanelExperiment(problem, rows, replay, scale)
