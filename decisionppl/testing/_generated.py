"""What strategies draw: decision processes, bandits and covariance functions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp


class TabularMDP(NamedTuple):
    """A Markov decision process with finitely many states and actions.

    Attributes:
        transition: float32 [actions, states, next states], rows sum to one.
        reward: float32 [actions, states], expected reward of a step.
    """

    transition: np.ndarray
    reward: np.ndarray


class Bandit(NamedTuple):
    """A one-round model and example arguments.

    Attributes:
        model: a callable pytree: its parameters are leaves, its program is static.
        args: example arguments, () or one context [dim].
    """

    model: Callable
    args: tuple


def beta_bernoulli(alpha: Any, beta: Any) -> None:
    p = numpyro.sample("probability", dist.Beta(alpha, beta).to_event(1))
    dp.reward("reward", dist.Bernoulli(p[dp.action("arm", len(alpha))]))


def gaussian(loc: Any, scale: Any, noise: Any) -> None:
    mean = numpyro.sample("mean", dist.Normal(loc, scale).to_event(1))
    dp.reward("reward", dist.Normal(mean[dp.action("arm", len(loc))], noise))


def linear(loc: Any, scale: Any, noise: Any, x: Any) -> None:
    w = numpyro.sample("w", dist.Normal(loc, scale).to_event(2))
    arm = dp.action("arm", len(loc), given=x)
    dp.reward("reward", dist.Normal(w[arm] @ x, noise))


def logistic(loc: Any, scale: Any, x: Any) -> None:
    w = numpyro.sample("w", dist.Normal(loc, scale).to_event(2))
    arm = dp.action("arm", len(loc), given=x)
    dp.reward("reward", dist.BernoulliLogits(w[arm] @ x))


class Kernel(NamedTuple):
    """A positive definite covariance function, `k(x [n, d], y [m, d]) -> [n, m]`.

    One or two stationary kernels, each `variance * correlation(distance / lengthscale)`. Which
    ones, and how they are joined, are leaves too: all kernels share one compilation.

    Attributes:
        family: int32 [2]; 0 squared exponential, 1, 2, 3 Matern of order 1/2, 3/2, 5/2.
        lengthscale: float32 [2].
        variance: float32 [2].
        joined: int32; 0 the first alone, 1 sum, 2 product.
    """

    family: Any
    lengthscale: Any
    variance: Any
    joined: Any

    def __call__(self, x: Any, y: Any) -> jax.Array:
        """Covariance [n, m] between the points x [n, d] and y [m, d]."""
        square = jnp.sum((jnp.asarray(x)[:, None] - jnp.asarray(y)[None]) ** 2, axis=-1)
        scaled = square / jnp.asarray(self.lengthscale)[:, None, None] ** 2
        # the gradient of a root at zero is infinite, and would reach through `where`
        r = jnp.where(scaled > 0, jnp.sqrt(jnp.where(scaled > 0, scaled, 1.0)), 0.0)
        r3, r5 = math.sqrt(3) * r, math.sqrt(5) * r
        correlations = jnp.stack([
            jnp.exp(-scaled / 2),
            jnp.exp(-r),
            (1 + r3) * jnp.exp(-r3),
            (1 + r5 + r5**2 / 3) * jnp.exp(-r5),
        ])  # fmt: skip
        first, second = (
            jnp.asarray(self.variance)[i] * correlations[jnp.asarray(self.family)[i], i]
            for i in range(2)
        )
        return jnp.stack([first, first + second, first * second])[self.joined]
