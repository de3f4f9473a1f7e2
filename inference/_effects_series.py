"""Taylor expansions of a total reward, from runs of finite length."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from decisionppl.inference._effect import Effect, check_level, normal_interval
from decisionppl.inference._scores import check_data
from decisionppl.inference._trajectories import Trajectories


def score_series(
    data: Trajectories, order: int = 1, *, arms: tuple[int, int] = (0, 1), level: float = 0.95
) -> Effect:
    r"""Effect on the total reward of a run, to an order of its Taylor expansion.

    With :math:`s^a_t = 1\{a_t = a\} / \pi(a | s_t) - 1` the value of arm a is

    .. math:: J_a = \sum_{k=0}^{K} E \sum_t R_t\, e_k(s^a_1, \dots, s^a_t)

    with the elementary symmetric polynomials :math:`e_k`: which is unbiased for the Taylor
    polynomial of order K about the law of the experiment (`taylor(horizon=T, order=K)`), whatever
    the states, seen or not. At K = T it is importance sampling, unbiased for the effect itself;
    order 1 is the policy gradient. The variance grows with the order. Several decisions a step
    (units) count as so many factors, so in one step of a network it is the estimator of
    low-order interactions.

    Args:
        data: `Trajectories`, runs independent of each other, each from its beginning.
        order: K.
        arms: (control, treated), by number.
        level: of the interval.

    Returns:
        `Effect` on the total reward of a run.

    Raises:
        ValueError: a single run, a bad order, a probability of zero.

    Example:
        >>> import numpy as np
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> chain = reference.two_state_mdp()
        >>> runs = markov.rollout(chain.model, 0, 3, key=0, num_runs=5000)
        >>> known = effects.taylor(
        ...     markov.kernel(chain.model, np.arange(2)), 2, horizon=3, initial=0)
        >>> found = effects.score_series(runs, 2)
        >>> bool(abs(found.estimate - known.estimate) < 4 * found.stderr)
        True
    """
    check_data(data, arms)
    check_level(level)
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"order: expected a whole number from 1, got {order!r}.")
    if len(data.reward) < 2:
        raise ValueError(
            "data: expected several independent runs, got one. For one long run use dq."
        )
    return _series(data, order, tuple(arms), level)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _series(data: Trajectories, order: int, arms: tuple[int, int], level: float) -> Effect:
    mask = jnp.broadcast_to(data.mask, data.reward.shape)
    reward = jnp.where(mask, data.reward, 0.0)

    def worth(arm: int) -> jax.Array:
        chance = data.propensity[..., arm]
        score = jnp.where(data.arm == arm, 1 / jnp.where(chance > 0, chance, 1.0), 0.0) - 1
        score = score.reshape(*mask.shape, -1) * mask[..., None]

        def forward(e: jax.Array, now: tuple) -> tuple:
            scores, gain = now
            # e_k of one score more: e_k + s e_(k - 1), for each unit of the step
            e, _ = jax.lax.scan(lambda e, s: (e.at[1:].add(s * e[:-1]), None), e, scores)
            return e, gain * e.sum()

        def run(scores: jax.Array, gains: jax.Array) -> jax.Array:
            start = jnp.zeros(order + 1, reward.dtype).at[0].set(1.0)
            return jax.lax.scan(forward, start, (scores, gains))[1].sum()

        return jax.vmap(run)(score.astype(reward.dtype), reward)

    each = worth(arms[1]) - worth(arms[0])
    estimate = each.mean()
    stderr = each.std(ddof=1) / jnp.sqrt(len(each))
    total: dict[str, Any] = {"total_reward": reward.sum(1).mean()}
    return Effect(estimate, stderr, normal_interval(estimate, stderr, level), total)
