"""Effects from panels by regression on what the control units share."""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from decisionppl.inference._effect import Effect, check_level
from decisionppl.inference._panel import Panel, Split, split
from decisionppl.inference._singular_values import check_positive, choose_rank

_PENALTIES = 10.0 ** np.arange(-10, 3, 0.5)


def robust_synthetic_control(
    panel: Panel, rank: int | None = None, *, penalty: float | None = None, unit: Any = None,
    level: float = 0.95,
) -> Effect:  # fmt: skip
    r"""Robust synthetic control: controls without their small singular values, then ridge.

    With :math:`\hat C_t` the control outcomes of period t, centred on their means before
    treatment and cut to the largest singular values,

    .. math:: (\hat b, \hat w) = \arg\min \sum_{t < T_0} (y_t - b - w^T \hat C_t)^2 +
        \lambda |w|^2, \qquad \hat\tau = \text{mean over treated } t \text{ of } y_t - \hat b -
        \hat w^T \hat C_t .

    The fit uses the periods before the first treated one, and not that one. Later periods without
    treatment are not used.

    Args:
        panel: `Panel`.
        rank: number of singular values that are kept; None keeps those above the threshold that is
            optimal for white noise of unknown level.
        penalty: :math:`\lambda` as a share of the largest squared singular value before
            treatment; None chooses it by generalised cross-validation.
        unit: the treated unit, where there are several.
        level: of the interval, by Student's t.

    Returns:
        `Effect` on the treated, on average over treated periods. The standard error counts the
        noise of the unit and the uncertainty of the weights, and takes noise for independent
        between periods. It does not count the noise of the controls: where this is as large as what
        they share, 95 % intervals cover about 80 % (`benchmarks/_synthetic_control.py`).
        Diagnostics: `counterfactual` and `counterfactual_sd` [periods] (with the noise of
        an outcome), `rank`, `weights` [controls], `penalty`, `noise`.

    Raises:
        ValueError: too few controls or periods before treatment, a bad rank, penalty or level.
        TypeError: no `Panel`.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference import panels
        >>> rng = np.random.default_rng(0)
        >>> y = np.outer([1, 2, 3, 1, 1], rng.normal(size=40)) + 0.1 * rng.normal(size=(5, 40))
        >>> y[0, 30:] += 2                                        # treated in the last ten
        >>> found = panels.robust_synthetic_control(panels.panel(y, np.arange(40) >= 30), 1)
        >>> bool(abs(found.estimate - 2) < 4 * found.stderr)
        True

    References:
        Amjad, Shah and Shen, arXiv 1711.06940 (robust synthetic control); Gavish and Donoho, arXiv
        1305.5870 (the threshold).
    """
    s = split(panel, unit, pre=3)
    centred = s.controls - s.controls[: s.pre].mean(0)
    kept = choose_rank(rank, centred)
    basis = np.linalg.svd(centred, full_matrices=False)[2][:kept].T
    return _ridge(s, centred @ basis, basis, penalty, level, {"rank": kept})


def ridge(
    panel: Panel, *, penalty: float | None = None, unit: Any = None, level: float = 0.95
) -> Effect:
    """Ridge regression of the treated unit on all controls before treatment.

    `robust_synthetic_control` with every singular value kept; see there for arguments.

    Returns:
        `Effect`, see `robust_synthetic_control`.
    """
    s = split(panel, unit, pre=3)
    centred = s.controls - s.controls[: s.pre].mean(0)
    return _ridge(s, centred, np.eye(centred.shape[1]), penalty, level, {})


def latent_regression(
    panel: Panel, rank: int | None = None, *, unit: Any = None, level: float = 0.95
) -> Effect:
    r"""Least squares of the treated unit on treatment, a constant and the controls' factors.

    .. math:: y_t = c + \beta^T \hat z_t + \tau a_t + \epsilon_t

    over all periods, with :math:`\hat z_t` the leading principal components of the controls. For
    designs that go to and fro, such as switchbacks and bandits: treated and untreated periods may
    come in any order.

    Args:
        panel: `Panel`.
        rank: number of components; None as in `robust_synthetic_control`.
        unit: the treated unit, where there are several.
        level: of the interval, by Student's t.

    Returns:
        `Effect`; diagnostics as in `robust_synthetic_control`, without weights and penalty. Where
        treatment was chosen by what was seen, as in a bandit, least squares is slightly biased; for
        the controls' noise see `robust_synthetic_control`. `inference.synthetic_control` counts it.

    Raises:
        ValueError: no untreated period, too few periods for the rank, a bad rank or level.
        TypeError: no `Panel`.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference import panels
        >>> rng = np.random.default_rng(0)
        >>> y = np.outer([1, 2, 3, 1, 1], rng.normal(size=40)) + 0.1 * rng.normal(size=(5, 40))
        >>> treat = rng.integers(0, 2, 40)
        >>> y[0] += 2 * treat
        >>> found = panels.latent_regression(panels.panel(y, treat), 1)
        >>> bool(abs(found.estimate - 2) < 4 * found.stderr)
        True

    References:
        Farias, Moallemi, Peng and Zheng, arXiv 2202.07079.
    """
    check_level(level)
    s = split(panel, unit)
    centred = s.controls - s.controls.mean(0)
    kept = choose_rank(rank, centred)
    basis = np.linalg.svd(centred, full_matrices=False)[2][:kept].T
    design = np.column_stack([s.treated, np.ones(len(s.outcome)), centred @ basis])
    freedom = len(design) - design.shape[1]
    if s.treated.all() or freedom < 1:
        what = "no untreated period" if s.treated.all() else f"{len(design)} periods"
        raise ValueError(
            f"panel: got {what}; a rank of {kept} needs more than {design.shape[1]} periods, "
            "untreated ones among them."
        )
    inverse = np.linalg.pinv(design.T @ design)
    # centred, so that a large common level costs no digits
    level_of = s.outcome.mean()
    weights = np.linalg.lstsq(design, s.outcome - level_of, rcond=None)[0]
    residual = s.outcome - level_of - design @ weights
    noise = np.sqrt(residual @ residual / freedom)
    without = design * np.append(0.0, np.ones(design.shape[1] - 1))
    spread = np.einsum("ti,ij,tj->t", without, inverse, without)
    said = {
        "counterfactual": level_of + without @ weights,
        "counterfactual_sd": noise * np.sqrt(1 + spread), "rank": kept, "noise": noise,
    }  # fmt: skip
    return student(weights[0], noise * np.sqrt(inverse[0, 0]), freedom, level, said)


class _Fit(NamedTuple):
    weights: np.ndarray
    penalty: float
    freedom: float
    noise: float


def _ridge(
    s: Split, z: np.ndarray, basis: np.ndarray, penalty: float | None, level: float, said: dict
) -> Effect:
    """Ridge of the treated unit on features z [periods, k], fitted before treatment."""
    check_level(level)
    pre, y = s.pre, s.outcome
    centre, mean = z[:pre].mean(0), y[:pre].mean()
    known = z[:pre] - centre
    left, values, right = np.linalg.svd(known, full_matrices=False)
    top = max(float(values.max(initial=0.0)) ** 2, np.finfo(float).tiny)

    def fit(share: float) -> _Fit:
        shrunk = values / (values**2 + share * top)
        weights = right.T @ (shrunk * (left.T @ (y[:pre] - mean)))
        residual = y[:pre] - mean - known @ weights
        freedom = pre - 1 - float((shrunk * values).sum())
        return _Fit(weights, share, freedom, float(np.sqrt((residual**2).sum() / freedom)))

    if penalty is None:
        fits = [f for f in map(fit, _PENALTIES) if f.freedom > 0.5]
        chosen = min(fits, key=lambda f: f.noise**2 / f.freedom)  # generalised cross-validation
    else:
        chosen = fit(check_positive("penalty", penalty))
        if not chosen.freedom > 0.5:
            raise ValueError(
                f"penalty: {penalty} leaves {chosen.freedom:.2g} degrees of freedom in {pre} "
                "periods before treatment. Raise it, or lower rank."
            )
    away = z - centre
    # directions that were not seen before treatment are as uncertain as the penalty says
    inverse = np.linalg.inv(known.T @ known + chosen.penalty * top * np.eye(z.shape[1]))
    treated = away[s.treated].mean(0)
    unsure = lambda x: np.einsum("...i,ij,...j->...", x, inverse, x)  # noqa: E731
    variance = 1 / s.treated.sum() + 1 / pre + unsure(treated)
    counterfactual = mean + away @ chosen.weights
    said = {
        **said, "counterfactual": counterfactual,
        "counterfactual_sd": chosen.noise * np.sqrt(1 + 1 / pre + unsure(away)),
        "weights": basis @ chosen.weights, "penalty": chosen.penalty, "noise": chosen.noise,
    }  # fmt: skip
    gap = (y - counterfactual)[s.treated].mean()
    return student(gap, chosen.noise * np.sqrt(variance), chosen.freedom, level, said)


def student(
    estimate: float, stderr: float, freedom: float, level: float, diagnostics: dict
) -> Effect:
    """An effect whose interval is by Student's t."""
    check_level(level)
    half = float(stdtrit(freedom, (1 + level) / 2)) * stderr
    return Effect(estimate, stderr, (estimate - half, estimate + half), diagnostics)
