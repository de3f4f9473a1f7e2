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

    .. math:: \min_{M, c, \tau} \tfrac12 |Y - c - \tau Z - M|_F^2 + \lambda |M|_*

    with Z the treated cells, any of them, of any units, and a level c. The low-rank part is shrunk;
    what the other terms then take for theirs is read off the optimality conditions: with U, V the
    singular vectors of M, :math:`P_\perp` the projection off their rows and columns, and D the
    inner products of :math:`P_\perp 1` and :math:`P_\perp Z`, it is :math:`\lambda D^{-1}` times
    those of 1 and Z with :math:`U V^T`. The standard error is :math:`\sigma` over the length of
    :math:`P_\perp Z` less its projection on :math:`P_\perp 1`.

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
    y, terms = panel.outcome, np.stack([np.ones_like(z), z])  # the level, the effect
    weights, flat = np.zeros(2), terms.reshape(2, -1)
    threshold = scale * noise_level(y - _fitted(terms, y)) * sum(np.sqrt(y.shape))
    for steps in range(1, max_steps + 1):  # noqa: B007
        rest = y - np.tensordot(weights, terms, 1)
        left, values, right = np.linalg.svd(rest, full_matrices=False)
        cut = np.maximum(values - threshold, 0.0)
        before, weights = weights, _least_squares(flat, (y - (left * cut) @ right).ravel())
        if np.abs(weights - before).max() <= 1e-11 * np.abs(y).max():
            break
    else:
        raise ValueError(f"nuclear_norm: no convergence in {max_steps} steps. Raise max_steps.")
    rank = int((cut > 0).sum())
    left, right = left[:, :rank], right[:rank]
    off = lambda x: (x - left @ (left.T @ x)) @ (np.eye(x.shape[1]) - right.T @ right)  # noqa: E731
    apart = np.stack([off(x) for x in terms]).reshape(2, -1)
    inner = apart @ apart.T
    # what of the effect's term is left beside the level and the low-rank part
    room = inner[1, 1] - (inner[0, 1] ** 2 / inner[0, 0] if inner[0, 0] > 1e-8 * y.size else 0.0)
    if room < 1e-8 * z.sum():
        raise ValueError("panel: treatment lies in the low-rank part. Raise penalty.")
    # shrinking the low-rank part leaves of it what the terms then take for theirs
    taken = threshold * flat @ (left @ right).ravel()
    weights = weights - np.linalg.pinv(inner, rcond=1e-8, hermitian=True) @ taken
    estimate = float(weights[1])
    freedom = (y.shape[0] - rank) * (y.shape[1] - rank) - 2
    noise = np.sqrt((off(y - np.tensordot(weights, terms, 1)) ** 2).sum() / max(freedom, 1))
    said = {"rank": rank, "noise": noise, "steps": steps}
    return student(estimate, noise / np.sqrt(room), freedom, level, said)


def _least_squares(flat: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights [terms] of the terms [terms, cells] in y [cells]."""
    return np.linalg.solve(flat @ flat.T, flat @ y)


def _fitted(terms: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the terms explain of the table, which the noise's level does not depend on."""
    return np.tensordot(_least_squares(terms.reshape(len(terms), -1), y.ravel()), terms, 1)
