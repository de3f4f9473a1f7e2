r"""Gradients of an expected cost over random subsets, and descent along them.

The policy :math:`\pi_\omega` draws k candidates by Plackett-Luce; wanted is the slope of
:math:`J(\omega) = E_{S \sim \pi_\omega} c(S)`.

- `score_function`: :math:`(c(S) - b)\, \nabla \log \pi_\omega(S)`, unbiased for any baseline b
  that does not depend on S; costs may be noisy, and need no derivative.
- `smoothed`: the derivative of the cost of a `smooth_subset`, through its shares: a bias that
  depends on the temperature and on what the cost makes of shares between 0 and 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from decisionppl._play import as_key
from decisionppl._subsets import plackett_luce, plackett_luce_log_prob, smooth_subset

Array = jax.Array
_BASELINES = (None, "leave_one_out", "optimal")


class Gradient(NamedTuple):
    """An estimate of the slope of the expected cost.

    Attributes:
        slope: [candidates].
        value: mean of the costs that were seen.
    """

    slope: Array
    value: Array


class Descent(NamedTuple):
    """What a descent arrived at.

    Attributes:
        logits: [candidates].
        values: mean cost seen at each step, [steps].
    """

    logits: Array
    values: Array


def score_function(
    cost: Callable, k: int, *, num_samples: int, baseline: str | None = "leave_one_out"
) -> Callable:
    r"""The score-function (REINFORCE) estimator, with a baseline that leaves it unbiased.

    Baselines come from the other samples alone: "leave_one_out" is their mean cost; "optimal" their
    mean weighted by :math:`|\nabla \log \pi(S)|^2`, the constant that minimises the total variance
    if samples are many.

    Args:
        cost: `(key, subset [k]) -> scalar`, an unbiased estimate of what a batch costs.
        k: size of a batch.
        num_samples: batches drawn; at least 2 with a baseline.
        baseline: None, "leave_one_out" or "optimal".

    Returns:
        `(key, logits) -> Gradient`.

    Raises:
        ValueError: an unknown baseline, or too few samples.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> price = jnp.array([3.0, 1.0, 2.0])
        >>> gradient = lookahead.score_function(lambda key, s: price[s].sum(), 1, num_samples=4000)
        >>> jnp.round(gradient(0, jnp.zeros(3)).slope, 1).tolist()    # (price - 2) / 3
        [0.30000001192092896, -0.30000001192092896, 0.0]

    References:
        Williams (1992); Kool, van Hoof and Welling, Buy 4 REINFORCE samples, get a baseline for
        free! (2019); Greensmith, Bartlett and Baxter (2004) for the optimal constant.
    """
    if baseline not in _BASELINES:
        raise ValueError(f"baseline: expected one of {_BASELINES}, got {baseline!r}.")
    if num_samples < (1 if baseline is None else 2):
        raise ValueError(f"num_samples: too few for baseline={baseline!r}, got {num_samples}.")

    def gradient(key: Any, logits: Any) -> Gradient:
        logits = jnp.asarray(logits, float)

        def sample(key: Any) -> tuple:
            draw_key, cost_key = jax.random.split(key)
            order = plackett_luce(draw_key, logits, k)
            # without candidates that cannot be drawn, whose slope would be 0 * inf
            slope = jax.grad(plackett_luce_log_prob)(logits, order)
            return jnp.nan_to_num(slope), cost(cost_key, order)

        # one after another, as in `smoothed`
        scores, costs = jax.lax.map(sample, jax.random.split(as_key(key), num_samples))
        return Gradient(_slope(scores, costs, baseline), jnp.mean(costs))

    return gradient


def _slope(scores: Array, costs: Array, baseline: str | None) -> Array:
    """Mean of scores [samples, candidates] times costs [samples] less their baselines."""
    if baseline is None:
        gains = costs
    else:
        size = jnp.ones_like(costs) if baseline == "leave_one_out" else jnp.sum(scores**2, axis=1)
        # of the others alone: a sample's own cost would bring a bias
        others = jnp.sum(size) - size
        gains = costs - (size @ costs - size * costs) / jnp.where(others > 0, others, 1.0)
    return gains @ scores / costs.shape[0]


def smoothed(cost: Callable, k: int, *, num_samples: int, temperature: float) -> Callable:
    """The pathwise estimator, through batches whose membership is a share.

    Args:
        cost: `(key, shares [candidates]) -> scalar`, differentiable; at shares of 0 and 1 what the
            batch costs.
        k: size of a batch.
        num_samples: batches drawn.
        temperature: of the relaxation: less bias and more variance the lower it is.

    Returns:
        `(key, logits) -> Gradient`; its value is that of shares, not of batches.

    Raises:
        ValueError: a temperature that is not positive, or no sample.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> price = jnp.array([3.0, 1.0, 2.0])
        >>> gradient = lookahead.smoothed(
        ...     lambda key, a: a @ price, 1, num_samples=4000, temperature=0.5)
        >>> slope = gradient(0, jnp.zeros(3)).slope
        >>> bool(slope[0] > slope[2] > slope[1])
        True

    References:
        Mittal et al., arXiv 2502.06076 (Smoothed-Autodiff).
    """
    if not temperature > 0 or num_samples < 1:
        raise ValueError(
            f"expected a positive temperature and at least one sample, got {temperature!r} and "
            f"{num_samples!r}."
        )

    def gradient(key: Any, logits: Any) -> Gradient:
        def mean_cost(logits: Array) -> Array:
            def sample(key: Any) -> Array:
                draw_key, cost_key = jax.random.split(key)
                return cost(cost_key, smooth_subset(draw_key, logits, k, temperature))

            # one after another: batches of factorisations, which the costs of Gaussian beliefs
            # are, have been seen to deadlock in threads of XLA's on a CPU
            return jnp.mean(jax.lax.map(sample, jax.random.split(as_key(key), num_samples)))

        value, slope = jax.value_and_grad(mean_cost)(jnp.asarray(logits, float))
        return Gradient(jnp.nan_to_num(slope), value)

    return gradient


def descend(
    key: Any,
    gradient: Callable,
    logits: Any,
    *,
    num_steps: int,
    optimizer: optax.GradientTransformation | None = None,
) -> Descent:
    """Follow an estimate of the gradient from some logits, in one scan.

    Args:
        key: PRNG key (typed or raw) or an int seed.
        gradient: `(key, logits) -> Gradient`.
        logits: where to begin, [candidates].
        num_steps: steps.
        optimizer: an optax optimizer; default Adam at 0.1.

    Returns:
        Descent.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> price = jnp.array([3.0, 1.0, 2.0])
        >>> gradient = lookahead.score_function(lambda key, s: price[s].sum(), 1, num_samples=8)
        >>> int(lookahead.descend(0, gradient, jnp.zeros(3), num_steps=50).logits.argmax())
        1
    """
    optimizer = optax.adam(0.1) if optimizer is None else optimizer
    logits = jnp.asarray(logits, float)

    def step(state: tuple, key: Any) -> tuple:
        logits, memory = state
        found = gradient(key, logits)
        change, memory = optimizer.update(found.slope, memory, logits)
        return (optax.apply_updates(logits, change), memory), found.value

    keys = jax.random.split(as_key(key), num_steps)
    (logits, _), values = jax.lax.scan(step, (logits, optimizer.init(logits)), keys)
    return Descent(logits, values)
