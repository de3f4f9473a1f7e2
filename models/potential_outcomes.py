r"""Contextual bandits whose arms come with features: the outcomes that each arm would have had.

The synthetic environment of Thompson sampling by generating missing outcomes. Arm a has features
:math:`z_a \in R^2`, round t a context :math:`x_t \in R^5`, all standard normal, and the arm's
outcome is a success with log-odds

.. math:: U_0 + z^T U_Z + x^T U_X + \sum_{j \le 2} x_j u_j z_j,

with :math:`U_0 \sim N(0, 1)` and all other coefficients :math:`N(1, 0.25^2)`, independently for
each arm. The log-odds are linear in (1, x), and given z their weights are independent Gaussians,
so the environment is a logistic bandit with a prior that depends on the arm's features.

The published description is in words; this display is reconstructed from them.

References:
    Contextual Thompson Sampling via Generation of Missing Data, arXiv 2502.07064, synthetic
    experiments.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike

import decisionppl as dp
from decisionppl._play import as_key

_FEATURES, _CONTEXT = 2, 5
_SPREAD = 0.25  # of every coefficient but the constant


def _count(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}: expected an int of at least 1, got {value!r}.")


def logistic_features(key: Any, num_arms: int) -> jax.Array:
    """Features of the arms, standard normal.

    Args:
        key: PRNG key or int seed.
        num_arms: number of arms K.

    Returns:
        z, [K, 2].

    Raises:
        ValueError: `num_arms` is not a positive int.

    Example:
        >>> from decisionppl.models import potential_outcomes
        >>> potential_outcomes.logistic_features(0, 10).shape
        (10, 2)
    """
    _count(num_arms=num_arms)
    return jax.random.normal(as_key(key), (num_arms, _FEATURES))


def logistic_prior(z: ArrayLike) -> tuple[jax.Array, jax.Array]:
    r"""Law of the weights of (1, x) given the features of an arm: independent Gaussians.

    The intercept is :math:`N(z_1 + z_2, 1 + 0.25^2 |z|^2)`, the weights of :math:`x_1, x_2` are
    :math:`N(1 + z_j, 0.25^2 (1 + z_j^2))`, and those of :math:`x_3, x_4, x_5` are
    :math:`N(1, 0.25^2)`.

    Args:
        z: features, [..., 2].

    Returns:
        Mean and standard deviation of the weights, each [..., 6], the intercept first.

    Raises:
        ValueError: `z` does not have two features.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.models import potential_outcomes
        >>> potential_outcomes.logistic_prior(jnp.array([0.5, -1.0]))[0].tolist()
        [-0.5, 1.5, 0.0, 1.0, 1.0, 1.0]
    """
    if np.shape(z)[-1:] != (_FEATURES,):
        raise ValueError(f"z: expected shape [..., {_FEATURES}], got {np.shape(z)}.")
    z = jnp.asarray(z, float)
    plain = jnp.ones((*z.shape[:-1], _CONTEXT - _FEATURES))
    intercept = jnp.sqrt(1 + _SPREAD**2 * jnp.sum(z**2, axis=-1, keepdims=True))
    mean = jnp.concatenate([jnp.sum(z, axis=-1, keepdims=True), 1 + z, plain], axis=-1)
    slopes = jnp.concatenate([jnp.sqrt(1 + z**2), plain], axis=-1)
    return mean, jnp.concatenate([intercept, _SPREAD * slopes], axis=-1)


def logistic(z: ArrayLike) -> Callable:
    """The environment as a one-round model, for arms with given features.

    Args:
        z: features of the arms, [K, 2].

    Returns:
        A model of the context x [5]; sites `w` [K, 6] (the intercept first), `arm`, `reward`.

    Raises:
        ValueError: `z` is not an array [K, 2].

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import potential_outcomes
        >>> model = potential_outcomes.logistic(jnp.zeros((3, 2)))
        >>> dp.play(model, 0)(jnp.ones(5))["w"]["value"].shape
        (3, 6)
    """
    if np.ndim(z) != 2:
        raise ValueError(f"z: expected shape [K, {_FEATURES}], got {np.shape(z)}.")
    mean, scale = logistic_prior(z)

    def model(x: Any) -> None:
        w = numpyro.sample("w", dist.Normal(mean, scale).to_event(2))
        chosen = w[dp.action("arm", mean.shape[0], given=x)]
        dp.reward("reward", dist.Bernoulli(logits=chosen[0] + chosen[1:] @ x))

    return model


def draw_tasks(key: Any, num_tasks: int, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Data to train a sequence model of one arm: many arms, each with a history of its own.

    Args:
        key: PRNG key or int seed.
        num_tasks: number of arms n.
        length: observations of each.

    Returns:
        Features [n, 2], contexts [n, length, 5], outcomes 0 or 1 int [n, length].

    Raises:
        ValueError: a number that is not a positive int.

    Example:
        >>> from decisionppl.models import potential_outcomes
        >>> z, x, y = potential_outcomes.draw_tasks(0, num_tasks=4, length=20)
        >>> z.shape, x.shape, y.shape
        ((4, 2), (4, 20, 5), (4, 20))
    """
    _count(num_tasks=num_tasks, length=length)
    arm_key, weight_key, context_key, outcome_key = jax.random.split(as_key(key), 4)
    z = logistic_features(arm_key, num_tasks)
    mean, scale = logistic_prior(z)
    w = mean + scale * jax.random.normal(weight_key, mean.shape)
    x = jax.random.normal(context_key, (num_tasks, length, _CONTEXT))
    logits = w[:, :1] + jnp.sum(w[:, None, 1:] * x, axis=-1)
    return z, x, jax.random.bernoulli(outcome_key, jax.nn.sigmoid(logits)).astype(int)
