r"""Bandits: Beta-Bernoulli, Gaussian, linear and logistic; fixed, per-round and top-k actions.

Each function returns a one-round model. Notation: arm a, context x in R^d, reward r.

- `beta_bernoulli`: :math:`p_a \sim \mathrm{Beta}(\alpha, \beta)`,
  :math:`r \sim \mathrm{Bernoulli}(p_a)`.
- `gaussian`: :math:`\mu_a \sim N(0, s^2)`, :math:`r \sim N(\mu_a, \sigma^2)`.
- `linear`: :math:`w_a \sim N(0, s^2 I)`, :math:`r \sim N(w_a^T x, \sigma^2)`.
- `logistic`: the same with :math:`r \sim \mathrm{Bernoulli}(1 / (1 + e^{-w_a^T x}))`.
- `items`: one :math:`w` for all items, item features :math:`x_i`, a new offer every round.
- `slate`: k of the items are shown together, each is clicked or not.

References:
    Thompson (1933), Biometrika 25; Russo et al., A Tutorial on Thompson Sampling, arXiv
    1707.02038; Agrawal and Goyal, arXiv 1209.3352; Chapelle and Li (2011); Kveton et al.,
    arXiv 1410.0949 (combinatorial semi-bandits).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import decisionppl as dp


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}.")


def beta_bernoulli(num_arms: int = 5, alpha: float = 1.0, beta: float = 1.0) -> Callable:
    """Arms with unknown success probabilities and a Beta prior.

    Args:
        num_arms: number of arms.
        alpha, beta: of the Beta prior.

    Returns:
        A model without arguments; sites `probability` [num_arms], `arm`, `reward`.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import bandits
        >>> list(dp.play(bandits.beta_bernoulli(2), 0)())
        ['probability', 'arm', 'reward']
    """
    _positive(num_arms=num_arms, alpha=alpha, beta=beta)

    def model() -> None:
        prior = dist.Beta(alpha, beta).expand([num_arms]).to_event(1)
        p = numpyro.sample("probability", prior)
        dp.reward("reward", dist.Bernoulli(p[dp.action("arm", num_arms)]))

    return model


def gaussian(num_arms: int = 5, prior_scale: float = 1.0, noise: float = 1.0) -> Callable:
    """Arms with unknown means and Gaussian rewards.

    Args:
        num_arms: number of arms.
        prior_scale: standard deviation of the means.
        noise: standard deviation of a reward.

    Returns:
        A model without arguments; sites `mean` [num_arms], `arm`, `reward`.
    """
    _positive(num_arms=num_arms, prior_scale=prior_scale, noise=noise)

    def model() -> None:
        prior = dist.Normal(0, prior_scale).expand([num_arms]).to_event(1)
        mean = numpyro.sample("mean", prior)
        dp.reward("reward", dist.Normal(mean[dp.action("arm", num_arms)], noise))

    return model


def _weights(num_arms: int, dim: int, prior_scale: float) -> Any:
    return numpyro.sample("w", dist.Normal(0, prior_scale).expand([num_arms, dim]).to_event(2))


def linear(
    num_arms: int = 10, dim: int = 10, prior_scale: float = 1.0, noise: float = 1.0
) -> Callable:
    """Contextual bandit with linear Gaussian rewards, weights apart for each arm.

    Args:
        num_arms, dim: number of arms, dimension of the context.
        prior_scale: standard deviation of a weight.
        noise: standard deviation of a reward.

    Returns:
        A model of the context x [dim]; sites `w` [num_arms, dim], `arm`, `reward`.
    """
    _positive(num_arms=num_arms, dim=dim, prior_scale=prior_scale, noise=noise)

    def model(x: Any) -> None:
        w = _weights(num_arms, dim, prior_scale)
        arm = dp.action("arm", num_arms, given=x)
        dp.reward("reward", dist.Normal(w[arm] @ x, noise))

    return model


def logistic(num_arms: int = 10, dim: int = 10, prior_scale: float = 1.0) -> Callable:
    """Contextual bandit with success or failure, weights apart for each arm.

    Args:
        num_arms, dim: number of arms, dimension of the context.
        prior_scale: standard deviation of a weight.

    Returns:
        A model of the context x [dim]; sites `w` [num_arms, dim], `arm`, `reward`.
    """
    _positive(num_arms=num_arms, dim=dim, prior_scale=prior_scale)

    def model(x: Any) -> None:
        w = _weights(num_arms, dim, prior_scale)
        arm = dp.action("arm", num_arms, given=x)
        dp.reward("reward", dist.BernoulliLogits(w[arm] @ x))

    return model


def items(
    num_items: int = 10, dim: int = 5, prior_scale: float = 1.0, noise: float = 1.0
) -> Callable:
    """Items with features and one common weight vector; what is on offer changes every round.

    Args:
        num_items, dim: number of items, dimension of their features.
        prior_scale: standard deviation of a weight.
        noise: standard deviation of a reward.

    Returns:
        A model of (features [num_items, dim], offered bool [num_items]); sites `w` [dim],
        `item`, `reward`. Items not offered have probability zero under the action's law, so
        no rule chooses them.
    """
    _positive(num_items=num_items, dim=dim, prior_scale=prior_scale, noise=noise)

    def model(features: Any, offered: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0, prior_scale).expand([dim]).to_event(1))
        offer = dist.CategoricalProbs(offered / jnp.sum(offered))
        item = dp.action("item", offer, given=features)
        dp.reward("reward", dist.Normal(features[item] @ w, noise))

    return model


def slate(num_items: int = 8, k: int = 3, alpha: float = 1.0, beta: float = 1.0) -> Callable:
    """Top-k choice: k items are shown together, and each of them is clicked or not.

    Args:
        num_items, k: number of items, size of a slate.
        alpha, beta: of the Beta prior.

    Returns:
        A model without arguments; sites `probability` [num_items], `slate` [k] (increasing
        indices), `clicks` [k].
    """
    _positive(num_items=num_items, k=k, alpha=alpha, beta=beta)

    def model() -> None:
        prior = dist.Beta(alpha, beta).expand([num_items]).to_event(1)
        p = numpyro.sample("probability", prior)
        shown = dp.action("slate", dp.Subsets(num_items, k))
        dp.reward("clicks", dist.Bernoulli(p[shown]).to_event(1))

    return model


def normal_contexts(dim: int) -> tuple[tuple, Callable]:
    """Example arguments and a source of standard normal contexts for `linear`, `logistic`."""
    return (jnp.ones(dim),), lambda key, t: jax.random.normal(key, (dim,))


def item_contexts(num_items: int, dim: int) -> tuple[tuple, Callable]:
    """Example arguments and a source of random offers for `items`; one item is always offered."""

    def draw(key: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
        features_key, offer_key, first_key = jax.random.split(key, 3)
        features = jax.random.normal(features_key, (num_items, dim)) / jnp.sqrt(dim)
        offered = jax.random.bernoulli(offer_key, 0.5, (num_items,))
        return features, offered.at[jax.random.randint(first_key, (), 0, num_items)].set(True)

    return (jnp.ones((num_items, dim)), jnp.ones(num_items, bool)), draw


def two_armed_value(horizon: int, policy: str = "thompson") -> float:
    """Exact expected total reward of the two-armed Beta-Bernoulli bandit, uniform priors.

    All beliefs that `horizon` rounds can reach are enumerated, so this is the truth that a
    simulation of the same policy must agree with.

    Args:
        horizon: number of rounds (up to about 60).
        policy: "thompson", "greedy" (ties shared), or "optimal" (the Bayes-optimal policy, by
            backward induction).

    Returns:
        Expected number of successes.

    Raises:
        ValueError: an unknown policy.

    Example:
        >>> from decisionppl.models import bandits
        >>> bandits.two_armed_value(1), round(bandits.two_armed_value(2, "optimal"), 4)
        (0.5, 1.0833)
    """
    if policy not in ("thompson", "greedy", "optimal"):
        raise ValueError(f"policy: expected thompson, greedy or optimal, got {policy!r}.")

    def first_arm(s1: int, f1: int, s2: int, f2: int) -> float:
        """Probability of choosing the first arm."""
        if policy == "thompson":
            return _probability_first_better(s1 + 1, f1 + 1, s2 + 1, f2 + 1)
        left, right = (s1 + 1) * (s2 + f2 + 2), (s2 + 1) * (s1 + f1 + 2)
        return float(left > right) + 0.5 * (left == right)

    @functools.cache
    def value(s1: int, f1: int, s2: int, f2: int) -> float:
        if s1 + f1 + s2 + f2 == horizon:
            return 0.0
        p1, p2 = (s1 + 1) / (s1 + f1 + 2), (s2 + 1) / (s2 + f2 + 2)
        one = p1 * (1 + value(s1 + 1, f1, s2, f2)) + (1 - p1) * value(s1, f1 + 1, s2, f2)
        two = p2 * (1 + value(s1, f1, s2 + 1, f2)) + (1 - p2) * value(s1, f1, s2, f2 + 1)
        if policy == "optimal":
            return max(one, two)
        q = first_arm(s1, f1, s2, f2)
        return q * one + (1 - q) * two

    return value(0, 0, 0, 0)


@functools.cache
def _probability_first_better(a1: int, b1: int, a2: int, b2: int) -> float:
    """P(Beta(a1, b1) > Beta(a2, b2)) for whole numbers: a finite sum over the first's successes."""

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    return sum(
        math.exp(
            log_beta(a2 + i, b1 + b2) - math.log(b1 + i) - log_beta(1 + i, b1) - log_beta(a2, b2)
        )
        for i in range(a1)
    )
