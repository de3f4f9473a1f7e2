r"""A panel with common shocks: one unit may be treated in any period, others never are.

Period t, control units i = 1..n, the unit of interest 0, rank r:

.. math::

    z_t &= z_{t-1} + \delta \eta_t, \quad \eta_t \sim N(0, I_r), \quad z_{-1} = 0 \\
    y^i_t &\sim N(\ell_i^T z_t, \sigma^2), \quad \ell_i \sim N(0, s_\ell^2 I_r) \\
    y^0_t &\sim N(c + \ell_0^T z_t + \tau a_t, \sigma^2), \quad \ell_0 \sim N(0, s_\ell^2 I_r),
        \ c \sim N(0, 1), \ \tau \sim N(m, s^2)

Whether to treat in period t, :math:`a_t`, is decided before its outcomes are seen; in the first
:math:`T_0` periods there is no choice. Factors wander, so outcomes before and after a change of
treatment do not compare; the controls tell what would have been. With the effect :math:`\tau` the
regret of a design is known exactly: :math:`\max(\tau, 0)\,T - \tau \sum_t a_t`.

References:
    Farias, Moallemi, Peng and Zheng, Synthetically Controlled Bandits, arXiv 2202.07079, for the
    problem; the sizes and the random walk are ours.
"""

from typing import Any

import jax
import numpy as np

from decisionppl._play import as_key
from decisionppl.models._arguments import check_count
from decisionppl.models._factor_panel import SyntheticControl, synthetic_control
from decisionppl.models._panel_experiment import PanelExperiment, from_panel

__all__ = ["PanelExperiment", "SyntheticControl", "from_panel", "switchback", "synthetic_control"]


def switchback(key: Any, pre_periods: int, periods: int, *, block: int = 1) -> np.ndarray:
    """A treatment path that flips a fair coin for every block of periods.

    Args:
        key: PRNG key (typed or raw) or an int seed.
        pre_periods: periods at the start that are not treated.
        periods: periods after them.
        block: periods that share a coin.

    Returns:
        int [pre_periods + periods].

    Raises:
        ValueError: a size out of range.

    Example:
        >>> from decisionppl.models import synthetic_control as panels
        >>> panels.switchback(0, 2, 6, block=2).tolist()
        [0, 0, 0, 0, 0, 0, 1, 1]
    """
    before, after = check_count("pre_periods", pre_periods, 0), check_count("periods", periods)
    size = check_count("block", block)
    coins = np.asarray(jax.random.bernoulli(as_key(key), 0.5, (-(-after // size),)), int)
    return np.concatenate([np.zeros(before, int), np.repeat(coins, size)[:after]])
