r"""Two states, where the treatment moves the chain and so changes what later steps earn.

In state :math:`s \in \{0, 1\}` a step treated with arm a earns :math:`r(s, a)`, and

.. math:: P(0 \to 1 \mid a) = u_a, \qquad P(1 \to 0 \mid a) = d_a.

When each step is treated with probability :math:`\theta`, the chain moves with the mixed
probabilities :math:`u_\theta, d_\theta`, spends a share
:math:`\rho_\theta = u_\theta / (u_\theta + d_\theta)` of its time in state 1, and earns

.. math:: J(\theta) = \sum_s \rho_\theta(s) r_\theta(s), \qquad
    r_\theta(s) = (1 - \theta) r(s, 0) + \theta r(s, 1)

per step. The treatment effect is J(1) - J(0). It is the smallest model in which comparing treated
with control steps is wrong: with the default parameters that gives 1, the effect is 14 / 9.

References:
    Farias, Li, Peng and Zheng, Markovian Interference in Experiments, arXiv 2206.02371, for the
    estimands; the rewards are those of Johari, Peng and Xing, arXiv 2506.05308.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.models._arguments import (
    check_inner_probability,
    check_pair,
    check_probability,
    check_table,
    check_treatment,
)
from decisionppl.models._markov import MarkovModel

_REWARD = ((0.0, 1.0), (5.0, 6.0))


def two_state(
    *,
    up: tuple[float, float] = (0.1, 0.4),
    down: tuple[float, float] = (0.2, 0.5),
    reward: tuple[tuple[float, float], tuple[float, float]] = _REWARD,
    p: float = 0.5,
    unknown: bool = False,
) -> MarkovModel:
    """A chain of two states that the treatment moves.

    Args:
        up: probability of moving from state 0 to 1, (control, treated).
        down: probability of moving from state 1 to 0, (control, treated).
        reward: reward[state][arm] of a step.
        p: probability of treatment under the logging policy.
        unknown: make the moving probabilities latent sites `up` [2] and `down` [2], uniform a
            priori; the parameters of those names are not used. A step is then one round of
            evidence about them. Trajectories and kernels are of a step in which they are fixed,
            `handlers.block(handlers.substitute(step, world), hide=list(world))` with NumPyro's
            handlers: they would be drawn anew at every step.

    Returns:
        `MarkovModel`; sites `treat`, `reward`, `state`; starts in state 0.

    Raises:
        ValueError: a probability out of range, or a table of another shape.

    Example:
        >>> from decisionppl.inference import markov
        >>> from decisionppl.models import two_state
        >>> model = two_state.two_state()
        >>> markov.kernel(model.step, model.states).dense()[1].round(3).tolist()  # treated
        [[0.6, 0.4], [0.5, 0.5]]
        >>> round(two_state.value(1.0) - two_state.value(0.0), 8)
        1.55555556
    """
    moving = _moving(up, down)
    table = check_table("reward", reward)
    check_treatment(p)

    def step(state: Any) -> Any:
        if unknown:
            prior = dist.Beta(1.0, 1.0).expand([2]).to_event(1)
            rise, fall = (jnp.asarray(numpyro.sample(name, prior)) for name in ("up", "down"))
        else:
            rise, fall = jnp.asarray(moving)
        treat = dp.action("treat", dist.Bernoulli(p), given=state)
        dp.reward("reward", jnp.asarray(table)[state, treat])
        one = jnp.where(state == 1, 1 - fall[treat], rise[treat])
        return dp.state("state", dist.Bernoulli(one))

    return MarkovModel(step, np.asarray(0), np.arange(2), None)


def value(
    theta: float,
    *,
    up: tuple[float, float] = (0.1, 0.4),
    down: tuple[float, float] = (0.2, 0.5),
    reward: tuple[tuple[float, float], tuple[float, float]] = _REWARD,
) -> float:
    r"""Average reward per step :math:`J(\theta)`, in closed form.

    Args:
        theta: probability of treatment, from 0 to 1.
        up, down, reward: as in `two_state`.

    Returns:
        J in double precision.

    Raises:
        ValueError: a probability out of range, or a table of another shape.

    Example:
        >>> from decisionppl.models import two_state
        >>> round(two_state.value(0.0), 8)
        1.66666667
    """
    law = np.array([1 - check_probability("theta", theta), theta])
    rise, fall = _moving(up, down) @ law
    low, high = check_table("reward", reward) @ law
    return float((fall * low + rise * high) / (rise + fall))


def _moving(up: Any, down: Any) -> np.ndarray:
    """Probabilities [up or down, arms]."""
    return np.array([
        [check_inner_probability(f"{name}[{a}]", x) for a, x in enumerate(check_pair(name, pair))]
        for name, pair in (("up", up), ("down", down))
    ])  # fmt: skip
