"""Steps of trajectories as estimators see them: scores, weights, rewards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from decisionppl.inference._effects_exact import check_arms
from decisionppl.inference._trajectories import Trajectories


class Steps(NamedTuple):
    """Steps as estimators see them, each [runs, steps].

    Attributes:
        score: treated less control, each over its probability; summed over units.
        inverse: (control, treated): 1 over the probability where that arm was taken, else 0.
        reward: rewards less costs.
        ones: one, and zero where there is no step.
    """

    score: jax.Array
    inverse: tuple[jax.Array, jax.Array]
    reward: jax.Array
    ones: jax.Array


def read_steps(data: Trajectories, arms: tuple[int, int]) -> Steps:
    """Scores and weights of the steps."""
    by_arm = jnp.moveaxis(jnp.asarray(data.propensity), -1, 0)
    chance = tuple(by_arm[a] for a in arms)
    inverse = tuple(
        jnp.where(data.arm == a, 1 / jnp.where(p > 0, p, 1.0), 0.0)
        for a, p in zip(arms, chance, strict=True)
    )
    score = inverse[1] - inverse[0]
    if score.ndim == 3:
        score = score.sum(-1)
    reward = jnp.asarray(data.reward, score.dtype)
    ones = jnp.broadcast_to(data.mask, reward.shape).astype(score.dtype)
    return Steps(score * ones, inverse, reward * ones, ones)  # pyright: ignore


def check_data(data: Any, arms: Any, *, units: bool = True) -> None:
    """Refuse what cannot be estimated from, by name."""
    if not isinstance(data, Trajectories):
        raise TypeError(
            f"expected Trajectories (markov.rollout, markov.from_table), got {type(data).__name__}."
        )
    shape, several = jnp.shape(data.reward), jnp.ndim(data.arm) == 3
    count = jnp.shape(data.propensity)[-1]
    expected = (*shape, *jnp.shape(data.arm)[2:], count)
    if len(shape) != 2 or jnp.shape(data.propensity) != expected:
        raise ValueError(
            f"data: expected reward [runs, steps] and propensity {list(expected)}, got "
            f"{list(shape)} and {list(jnp.shape(data.propensity))}."
        )
    check_arms(arms, count)
    if several and not units:
        raise ValueError(
            "data: several units are decided upon at each step, and this estimator asks for steps "
            "on which all are treated or none. Use dq."
        )
    if any(isinstance(x, Tracer) for x in (data.propensity, data.mask)):
        return
    chance = np.asarray(data.propensity)[..., list(arms)]
    mask = np.asarray(data.mask).reshape(shape + (1,) * (chance.ndim - 2))
    wrong = ~(chance > 0) & mask
    if wrong.any():
        place = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"propensity: arm {arms[place[-1]]} has probability {chance[tuple(place)]:g} in run "
            f"{place[0]} at step {place[1]} ({int(wrong.any(-1).sum())} such decisions), and this "
            "estimator divides by it. Every decision must be random; where the design decides "
            "once for a stretch of time, let one step be one stretch."
        )
