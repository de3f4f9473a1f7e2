"""The posterior of a treatment effect, from a belief that predicts utilities."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from decisionppl._inference import Inference
from decisionppl.inference._effect import Effect, check_level, normal_interval


def treatment_effect(
    engine: Inference, belief: Any, args: tuple = (), *, level: float = 0.95
) -> Effect:
    r"""The posterior of what the second of two actions is worth more than the first.

    Args:
        engine: an engine with `predict`, of a model with two actions.
        belief: its belief.
        args: the model's arguments (of `synthetic_control`: any period, if the effect is the same
            in all).
        level: of the interval, which has equal tails.

    Returns:
        `Effect`: posterior mean, standard deviation and interval.

    Raises:
        ValueError: an engine without `predict`, another number of actions, a bad level.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl.inference.panels import treatment_effect
        >>> def model():
        ...     tau = numpyro.sample("tau", dist.Normal(0.5, 2))
        ...     dp.reward("y", dist.Normal(tau * dp.action("treat", 2), 1))
        >>> engine = dp.inference.conjugate(model)
        >>> found = treatment_effect(engine, engine.init(jax.random.key(0)))
        >>> float(found.estimate), float(found.stderr)
        (0.5, 2.0)
    """
    check_level(level)
    if engine.predict is None:
        raise ValueError("engine: it has no predict, so draw worlds and take dp.utility instead.")
    law = engine.predict(belief, None, args)
    mean = jnp.asarray(law.mean)
    if mean.shape != (2,):
        raise ValueError(f"engine: expected a model with two actions, got {mean.size} actions.")
    if isinstance(law, dist.Normal):
        variance = jnp.sum(jnp.asarray(law.variance))
    else:
        variance = jnp.sum((law.factor[1] - law.factor[0]) ** 2)  # pyright: ignore
    stderr = jnp.sqrt(variance)
    estimate = mean[1] - mean[0]
    return Effect(estimate, stderr, normal_interval(estimate, stderr, level), {})
