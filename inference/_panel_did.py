"""Synthetic difference-in-differences: weighted units, weighted periods."""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from decisionppl.inference._effect import Effect, check_level, normal_interval
from decisionppl.inference._panel import Panel, split

_TIME_PENALTY = 1e-4  # on squared time weights, in units of the noise of the controls


def synthetic_did(panel: Panel, *, unit: Any = None, level: float = 0.95) -> Effect:
    r"""Synthetic difference-in-differences of a unit that stays treated once it is.

    Weights :math:`\omega` of the controls make them follow the treated unit before treatment, up
    to a constant; weights :math:`\lambda` of periods before treatment make these predict the mean
    of later ones, in the controls. Both are shares: not negative, with sum one.

    .. math:: \hat\tau = (\bar y_{post} - \sum_t \lambda_t y_t) - \sum_i \omega_i (\bar y^i_{post}
        - \sum_t \lambda_t y^i_t)

    The controls' fit is penalised by :math:`\zeta^2 T_0 |\omega|^2` with :math:`\zeta = T_1^{1/4}
    \hat\sigma` and :math:`\hat\sigma` the standard deviation of the controls' first differences
    before treatment. Time weights have a penalty of :math:`10^{-4} n \hat\sigma^2 |\lambda|^2`,
    so that they are unique.

    Args:
        panel: `Panel`.
        unit: the treated unit, where there are several.
        level: of the interval.

    Returns:
        `Effect` on the treated, on average over treated periods. The standard error is that of
        placebos: each control taken for the treated unit in turn, the others its controls.
        Diagnostics: `unit_weights` [controls], `time_weights` [periods before treatment],
        `placebos` [controls], `counterfactual` and `counterfactual_sd` [periods] (the latter from
        the placebos' gaps), and `gap`, by how much at most either fit misses its optimum, in units
        of its objective at equal weights.

    Raises:
        ValueError: treatment that ends, fewer than two periods before it, fewer than three
            controls.
        TypeError: no `Panel`.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference import panels
        >>> rng = np.random.default_rng(0)
        >>> y = np.outer([1, 1, 2, 0, 1], rng.normal(size=40)) + 0.1 * rng.normal(size=(5, 40))
        >>> y[0, 30:] += 2
        >>> found = panels.synthetic_did(panels.panel(y, np.arange(40) >= 30))
        >>> bool(abs(found.estimate - 2) < 4 * found.stderr)
        True

    References:
        Arkhangelsky, Athey, Hirshberg, Imbens and Wager, arXiv 1812.09970.
    """
    check_level(level)
    s = split(panel, unit, pre=2, controls=3)
    if not s.treated[s.pre :].all():
        t = s.pre + int(np.argmin(s.treated[s.pre :]))
        raise ValueError(
            f"panel: unit {s.unit!r} is treated from {panel.periods[s.pre]!r} on, but not in "
            f"{panel.periods[t]!r}; expected treatment that stays. Cut the panel there, or use "
            "latent_regression."
        )
    # a common level cancels; taken off, it costs no digits
    level_of = s.controls.mean()
    own, controls = s.outcome - level_of, s.controls - level_of
    # placebo i does without control i, and without the treated unit
    others = [np.delete(controls, i, 1) for i in range(controls.shape[1])]
    fits = [_fit(own, controls, s.pre)]
    fits += [_fit(y, x, s.pre) for y, x in zip(controls.T, others, strict=True)]
    tau = np.array([f.estimate for f in fits])
    placebos = tau[1:]
    stderr = np.std(placebos)
    misses = controls.T - np.stack([f.synthetic for f in fits[1:]])
    said = {
        "unit_weights": fits[0].units, "time_weights": fits[0].times, "placebos": placebos,
        "counterfactual": fits[0].synthetic + level_of,
        "counterfactual_sd": np.sqrt((misses**2).mean(0)), "gap": max(f.gap for f in fits),
    }  # fmt: skip
    low, high = (float(x) for x in normal_interval(0.0, 1.0, level))
    return Effect(tau[0], stderr, (tau[0] + low * stderr, tau[0] + high * stderr), said)


class _Fit(NamedTuple):
    estimate: float
    units: np.ndarray
    times: np.ndarray
    synthetic: np.ndarray
    gap: float


def _fit(own: np.ndarray, controls: np.ndarray, pre: int) -> _Fit:
    """One series [periods] against controls [periods, controls]."""
    before, after = controls[:pre], controls[pre:].mean(0)
    variance = np.diff(before, axis=0).var(ddof=1)
    zeta2 = np.sqrt(len(controls) - pre) * variance
    target = own[:pre] - own[:pre].mean()
    units, unit_gap = simplex_fit(before - before.mean(0), target, zeta2 * pre)
    # enough of a penalty that weights are unique where there are more periods than controls
    rows, means = (before - before.mean(1, keepdims=True)).T, after - after.mean()
    times, time_gap = simplex_fit(rows, means, _TIME_PENALTY * variance * len(after))
    level = times @ (own[:pre] - before @ units)
    synthetic = controls @ units + level
    estimate = own[pre:].mean() - synthetic[pre:].mean()
    return _Fit(float(estimate), units, times, synthetic, max(unit_gap, time_gap))


def simplex_fit(
    design: np.ndarray, target: np.ndarray, penalty: float = 0.0
) -> tuple[np.ndarray, float]:
    r"""Least squares over the simplex: :math:`|X w - y|^2 + \kappa |w|^2` for shares w.

    On the simplex :math:`X w - y = (X - y 1^T) w`, a linear function of w. Nonnegative least
    squares of that with one more row that asks for a sum of one gives a multiple of the minimiser,
    since its objective is increasing in :math:`|C w|^2` for the best multiple. An active-set method
    solves it to rounding.

    Args:
        design: X, [rows, n].
        target: y, [rows].
        penalty: :math:`\kappa`.

    Returns:
        (w [n]; by how much at most its objective exceeds the least, in units of the objective at
        equal shares).

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference._panel_did import simplex_fit
        >>> simplex_fit(np.eye(2), np.array([0.75, 0.25]))[0].round(6).tolist()
        [0.75, 0.25]
    """
    n = design.shape[1]
    homogeneous = np.vstack([design - target[:, None], np.sqrt(penalty) * np.eye(n)])
    equal = np.linalg.norm(homogeneous.mean(1))
    size = equal if equal > 0 else 1.0
    stacked = np.vstack([homogeneous / size, np.ones(n)])
    multiple = nnls(stacked, np.append(np.zeros(len(homogeneous)), 1.0), maxiter=50 * n)[0]
    w = multiple / multiple.sum()
    slope = 2 * (homogeneous / size).T @ (homogeneous / size @ w)
    return w, float(slope @ w - slope.min())
