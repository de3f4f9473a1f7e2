"""A common effect on any cells of a panel, by nuclear-norm regression."""

import numpy as np

from decisionppl.inference._effect import Effect, check_level
from decisionppl.inference._panel import Panel
from decisionppl.inference._panel_regression import student
from decisionppl.inference._singular_values import check_positive, noise_level


def nuclear_norm(
    panel: Panel, *, penalty: float | None = None, level: float = 0.95, max_steps: int = 5000
) -> Effect:
    r"""A common effect by nuclear-norm regression, its shrinkage taken off.

    .. math:: \min_{M, \tau} \tfrac12 |Y - \tau Z - M|_F^2 + \lambda |M|_*

    with Z the treated cells, any of them, of any units. The low-rank part takes some of the effect;
    what it took is read off the optimality conditions, :math:`\lambda \langle Z, U V^T\rangle /
    |P_\perp Z|_F^2`, with U, V the singular vectors of M and :math:`P_\perp` the projection off
    their rows and columns. The standard error is :math:`\sigma / |P_\perp Z|_F`.

    Args:
        panel: `Panel`, with treated and untreated cells.
        penalty: :math:`\lambda` in units of :math:`\sigma (\sqrt N + \sqrt T)`, the size of noise;
            None is one. The noise's level is estimated from the median singular value.
        level: of the interval.
        max_steps: bound on the alternating steps.

    Returns:
        `Effect`; diagnostics `rank`, `noise`, `steps`.

    Raises:
        ValueError: no treated or no untreated cell, an effect that cannot be told from the low-rank
            part, steps that did not converge, a bad penalty or level.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference import panels
        >>> rng = np.random.default_rng(0)
        >>> y = np.outer(rng.normal(size=30), rng.normal(size=40)) + 0.1 * rng.normal(size=(30, 40))
        >>> treat = rng.integers(0, 2, (30, 40))
        >>> found = panels.nuclear_norm(panels.panel(y + 2 * treat, treat))
        >>> bool(abs(found.estimate - 2) < 4 * found.stderr)
        True

    References:
        Farias, Li and Peng, arXiv 2106.02780.
    """
    check_level(level)
    scale = 1.0 if penalty is None else check_positive("penalty", penalty)
    z = panel.treated.astype(float)
    if z.all() or not z.any():
        raise ValueError("panel: expected treated and untreated cells, got one kind alone.")
    # the level of what is not treated: taken off, it does not depend on the effect
    y = panel.outcome - panel.outcome[~panel.treated].mean()
    tau, steps = 0.0, 0
    size = (z**2).sum()
    threshold = scale * noise_level(_without_effect(y, z)) * sum(np.sqrt(y.shape))
    for steps in range(1, max_steps + 1):  # noqa: B007
        left, values, right = np.linalg.svd(y - tau * z, full_matrices=False)
        cut = np.maximum(values - threshold, 0.0)
        before, tau = tau, float((z * (y - (left * cut) @ right)).sum() / size)
        if abs(tau - before) <= 1e-11 * np.abs(y).max():
            break
    else:
        raise ValueError(f"nuclear_norm: no convergence in {max_steps} steps. Raise max_steps.")
    rank = int((cut > 0).sum())
    left, right = left[:, :rank], right[:rank]
    off = lambda x: (x - left @ (left.T @ x)) @ (np.eye(x.shape[1]) - right.T @ right)  # noqa: E731
    apart = off(z)
    room = (apart**2).sum()
    if room < 1e-8 * size:
        raise ValueError("panel: treatment lies in the low-rank part. Raise penalty.")
    estimate = tau - threshold * (z * (left @ right)).sum() / room
    freedom = (y.shape[0] - rank) * (y.shape[1] - rank) - 1
    noise = np.sqrt((off(y - estimate * z) ** 2).sum() / max(freedom, 1))
    said = {"rank": rank, "noise": noise, "steps": steps}
    return student(estimate, noise / np.sqrt(room), freedom, level, said)


def _without_effect(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The table less its least-squares effect, which the noise's level does not depend on."""
    return y - (z * y).sum() / (z**2).sum() * z
