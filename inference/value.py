r"""Values of policies in Markov models: exact for finite chains, and from trajectories.

Notation: a policy :math:`\pi(a | s)` mixes the kernels of the arms,
:math:`P = \sum_a \pi(a | s) P_a(s, \cdot)`, and rewards r likewise.

- Average reward: :math:`J = \rho r`, :math:`V = (I - P + 1\rho)^{-1} (r - J 1)`, the solution of
  Poisson's equation with :math:`\rho V = 0`.
- Discounted: :math:`J = \mu V`, :math:`V = (I - \gamma P)^{-1} r`.
- Horizon T: :math:`V_h = r + P V_{h-1}`, :math:`V_0 = 0`, :math:`J = \mu V_T`.

References:
    Puterman, Markov Decision Processes (1994), chapters 4, 6 and 8.
"""

from typing import Any, NamedTuple

import numpy as np

from decisionppl.inference._kernel import Kernel
from decisionppl.inference._markov_chain import initial_law, make_chain, mixed, policy_table
from decisionppl.inference._value_estimates import LinearValue, advantages, lstd, one_hot, returns

__all__ = [
    "Evaluation",
    "LinearValue",
    "advantages",
    "evaluate",
    "lstd",
    "one_hot",
    "returns",
    "stationary",
]


class Evaluation(NamedTuple):
    """What a policy is worth.

    Attributes:
        value: J, the average reward per step, or the total (discounted) reward.
        state_value: V, [states].
        action_value: Q, [arms, states]: one step of an arm, the policy afterwards.
        occupancy: share of time in each state; where there is a discount or a horizon, the
            expected (discounted) number of visits, [states].
    """

    value: float
    state_value: np.ndarray
    action_value: np.ndarray
    occupancy: np.ndarray


def stationary(kernel: Kernel, policy: Any = None) -> np.ndarray:
    """Long-run share of time in each state.

    Args:
        kernel: from `markov.kernel`.
        policy: None is the logging law; a number is the probability of arm 1 of two; an array
            [arms] or [states, arms] of probabilities.

    Returns:
        float64 [states].

    Raises:
        ValueError: a chain that is periodic, or reducible into several classes of states.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import markov, value
        >>> from decisionppl.testing import reference
        >>> chain = markov.kernel(reference.two_state_mdp().model, jnp.arange(2))
        >>> value.stationary(chain, 1.0).round(4).tolist()
        [0.5556, 0.4444]
    """
    return make_chain(kernel, policy_table(kernel, policy)).weights


def evaluate(
    kernel: Kernel,
    policy: Any = None,
    *,
    discount: float | None = None,
    horizon: int | None = None,
    initial: Any = None,
) -> Evaluation:
    """Solve for the value of a policy, in double precision, sparse.

    Args:
        kernel: from `markov.kernel`.
        policy: see `stationary`.
        discount: total reward discounted by this factor per step. Without it and without a
            horizon, the average reward per step.
        horizon: total reward of so many steps.
        initial: with a discount or a horizon, the first state: its number, or probabilities
            [states]; default uniform.

    Returns:
        `Evaluation`.

    Raises:
        ValueError: a chain that is periodic or reducible (average reward), a bad setting.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import markov, value
        >>> from decisionppl.testing import reference
        >>> market = reference.rental_marketplace(10)
        >>> known = markov.kernel(market.model, jnp.arange(11))
        >>> round(value.evaluate(known, 1.0).value - value.evaluate(known, 0.0).value, 10)
        0.0153478329
    """
    table = policy_table(kernel, policy)
    if horizon is not None:
        return _finite(kernel, table, horizon, discount, initial)
    chain = make_chain(kernel, table, discount, initial)
    total = float(chain.weights @ chain.reward)
    scale, level = (1.0, total) if discount is None else (discount, 0.0)
    state_value = chain.resolve(chain.reward - level) / scale
    return Evaluation(
        total, state_value, _action_value(kernel, scale * state_value) - level, chain.weights
    )


def _action_value(kernel: Kernel, later: np.ndarray) -> np.ndarray:
    """Reward of a step and what is expected later, [arms, states]."""
    flat = kernel.arm * kernel.num_states + kernel.source
    gain = kernel.probability * later[kernel.target]
    return kernel.reward + np.bincount(flat, gain, kernel.reward.size).reshape(kernel.reward.shape)


def _finite(
    kernel: Kernel, table: np.ndarray, horizon: int, discount: float | None, initial: Any
) -> Evaluation:
    check_horizon(horizon, discount)
    transition, reward = mixed(kernel, table)
    law = initial_law(kernel, initial)
    state_value, later = np.zeros_like(reward), np.zeros_like(reward)
    visits, now = np.zeros_like(reward), law
    for _ in range(horizon):
        later, state_value = state_value, reward + transition @ state_value
        visits, now = visits + now, now @ transition
    return Evaluation(float(law @ state_value), state_value, _action_value(kernel, later), visits)


def check_horizon(horizon: Any, discount: Any) -> None:
    """Refuse what is no number of steps, or two criteria at once."""
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"horizon: expected a number of steps, at least one, got {horizon!r}.")
    if discount is not None:
        raise ValueError("give a discount or a horizon, not both.")
