"""Synthetic difference-in-differences: weighted units, weighted periods."""

from typing import Any

import numpy as np

from decisionppl.inference._effect import Effect, check_level, normal_interval
from decisionppl.inference._panel import Panel, split

_TIME_PENALTY = 1e-4  # on squared time weights, in units of the noise of the controls
_TOLERANCE = 1e-10  # duality gap, in units of the objective at equal weights


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
    series = np.column_stack([s.outcome, s.controls]) - s.controls.mean()
    count = s.controls.shape[1]
    free = np.tile(np.arange(count + 1) > 0, (count + 1, 1))
    np.fill_diagonal(free, False)  # placebo i does without control i, and without the treated unit
    targets = np.broadcast_to(series.T, (count + 1, len(series.T[0])))
    tau, units, times, gap, synthetic = _estimate(series, targets, free, s.pre)
    placebos = tau[1:]
    stderr = np.std(placebos)
    misses = (targets - synthetic)[1:]
    said = {
        "unit_weights": units[0, 1:], "time_weights": times[0], "placebos": placebos,
        "counterfactual": synthetic[0] + s.controls.mean(),
        "counterfactual_sd": np.sqrt((misses**2).mean(0)), "gap": gap.max(),
    }  # fmt: skip
    low, high = (float(x) for x in normal_interval(0.0, 1.0, level))
    return Effect(tau[0], stderr, (tau[0] + low * stderr, tau[0] + high * stderr), said)


def _estimate(series: np.ndarray, targets: np.ndarray, free: np.ndarray, pre: int) -> tuple:
    """Estimates for many targets at once.

    Args:
        series: [periods, units].
        targets: [targets, periods].
        free: bool [targets, units], which units may have weight.
        pre: periods before treatment.

    Returns:
        (effects [targets], unit weights [targets, units], time weights [targets, pre], gaps
        [targets], synthetic series [targets, periods]).
    """
    post = len(series) - pre
    change = np.diff(series[:pre], axis=0)  # [pre - 1, units]
    weight = free / free.sum(1, keepdims=True)
    mean = weight @ change.mean(0)
    spread = weight @ (change**2).mean(0) - mean**2
    # one degree of freedom less, as a sample standard deviation has it
    number = free.sum(1) * len(change)
    zeta2 = np.sqrt(post) * spread * number / np.maximum(number - 1, 1)
    before, after = series[:pre], series[pre:].mean(0)
    centred = before - before.mean(0)
    gram = np.broadcast_to(centred.T @ centred, (len(targets), *2 * (series.shape[1],)))
    gram = gram + (zeta2 * pre)[:, None, None] * np.eye(series.shape[1])
    own = targets[:, :pre] - targets[:, :pre].mean(1, keepdims=True)
    units, unit_gap = simplex_fit(gram, own @ centred, (own**2).sum(1), free)
    # each target's controls: rows of periods, centred over those units
    x = before.T[None] - (weight @ before.T)[:, None]  # [targets, units, pre]
    y = after[None] - (weight @ after)[:, None]
    x, y = x * free[:, :, None], y * free
    # enough that they are unique where there are more periods than controls
    tiny = _TIME_PENALTY * spread * free.sum(1)
    gram = np.einsum("kit,kis->kts", x, x) + tiny[:, None, None] * np.eye(pre)
    open_ = np.ones((len(targets), pre), bool)
    times, time_gap = simplex_fit(gram, np.einsum("kit,ki->kt", x, y), (y**2).sum(1), open_)
    level = (times * targets[:, :pre]).sum(1)
    base = times @ before  # [targets, units]
    tau = targets[:, pre:].mean(1) - level - (units * (after - base)).sum(1)
    synthetic = units @ series.T + (level - (units * base).sum(1))[:, None]
    return tau, units, times, np.maximum(unit_gap, time_gap), synthetic


def simplex_fit(
    gram: np.ndarray, cross: np.ndarray, square: np.ndarray, free: np.ndarray,
    max_steps: int = 20_000,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    r"""Least squares over the simplex, many problems at once: accelerated projected gradient.

    Minimises :math:`w^T G w - 2 c^T w + s` over shares w. The duality gap bounds the distance of
    the objective from its least value.

    Args:
        gram: G, [problems, n, n].
        cross: c, [problems, n].
        square: s, [problems].
        free: bool [problems, n], which shares may be positive.
        max_steps: bound on the steps.

    Returns:
        (w [problems, n], gap [problems] in units of the objective at equal weights).
    """
    start = free / free.sum(1, keepdims=True)
    value = lambda w: np.einsum("ki,kij,kj->k", w, gram, w) - 2 * (cross * w).sum(1) + square  # noqa: E731
    unit = np.maximum(value(start), np.finfo(float).tiny)
    step = 0.5 / np.maximum(np.linalg.eigvalsh(gram)[:, -1:], np.finfo(float).tiny)
    slope = lambda w: 2 * (np.einsum("kij,kj->ki", gram, w) - cross)  # noqa: E731
    w, ahead, t = start, start, np.ones((len(gram), 1))
    gap = np.full(len(gram), np.inf)
    for i in range(max_steps):
        new = _project(ahead - step * slope(ahead), free)
        # momentum is dropped where it points uphill
        turned = ((ahead - new) * (new - w)).sum(1, keepdims=True) > 0
        later = np.where(turned, 1.0, (1 + np.sqrt(1 + 4 * t**2)) / 2)
        ahead = new + np.where(turned, 0.0, (t - 1) / later) * (new - w)
        w, t = new, later
        if i % 50 == 49:
            g = slope(w)
            gap = ((g * w).sum(1) - np.where(free, g, np.inf).min(1)) / unit
            if gap.max() < _TOLERANCE:
                break
    return w, gap


def _project(v: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The closest shares to each row."""
    v = np.where(free, v, -np.inf)
    ordered = -np.sort(-v, axis=1)
    finite = np.where(np.isfinite(ordered), ordered, 0.0)
    excess = (np.cumsum(finite, 1) - 1) / np.arange(1, v.shape[1] + 1)
    last = np.sum(ordered > excess, axis=1)[:, None] - 1
    return np.maximum(v - np.take_along_axis(excess, last, 1), 0.0)
