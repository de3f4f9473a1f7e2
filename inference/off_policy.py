r"""The value of a policy, and the effect of one against another, from rounds that others decided.

Rows of one-round data: context x, action a drawn from the logging law b(a | x), reward r (rewards
less costs). Wanted is the value :math:`V(\pi) = E[\sum_a \pi(a | x) E[r | x, a]]` of a policy
:math:`\pi`, or the difference of two. With :math:`w = \pi(a | x) / b(a | x)` and a regression
:math:`q(x, a)` of the reward:

- `ips`: the mean of :math:`w r`, unbiased if b is known.
- `self_normalised`: :math:`\sum w r / \sum w`; less variance, and unmoved by constants in r.
- `doubly_robust`: the mean of :math:`\sum_a \pi(a | x) q(x, a) + w (r - q(x, a))`, unbiased if
  b or q is right, with q derived from a belief about the same model.
- `model_based`: the belief's own answer, right if the model is.

The logging law is that of the model's action site, whatever it depends on. A policy is what
`decisionppl.act` takes; an empty dict stands for the logging law itself. Several action sites, and
decisions in a plate, are weighed by the product of their probabilities, continuous ones by
densities.

References:
    Horvitz and Thompson (1952), JASA 47; Dudik, Langford and Li, arXiv 1103.4601 (doubly robust);
    Swaminathan and Joachims, NeurIPS 2015 (self-normalisation); Chernozhukov et al., arXiv
    1608.00060 (cross-fitting).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from decisionppl._inference import Inference, Rows
from decisionppl._play import as_key
from decisionppl.inference._effect import Effect, check_level, mean_effect, normal_interval
from decisionppl.inference._logged_actions import Played, check_rows, known, played
from decisionppl.inference._outcome_regression import (
    default_engine,
    posterior_values,
    regression,
    setting,
)

__all__ = ["Effect", "doubly_robust", "ips", "model_based", "self_normalised"]


def ips(
    model: Callable,
    rows: Rows,
    policy: Any,
    *,
    baseline: Any = None,
    propensity: Any = None,
    level: float = 0.95,
) -> Effect:
    r"""Inverse propensity scoring: the mean of :math:`w r`.

    Args:
        model: a one-round model; the laws of its action sites are those that logged the rows.
        rows: logged rounds, see `decisionppl.observe`.
        policy: what `decisionppl.act` takes.
        baseline: another policy; the estimate is then the difference of the two values.
        propensity: probability of the action taken (density, if it is continuous), [rows], in
            place of the model's law.
        level: of the interval.

    Returns:
        `Effect`, with the standard error of a mean. Diagnostics of the weights:
        `effective_sample_size` :math:`(\sum w)^2 / \sum w^2`, `largest_weight`, `mean_weight` (1
        in expectation) and `share_unused` (of rows whose action the policy never plays), and the
        same of the baseline, `baseline_...`.

    Raises:
        ValueError: a policy that plays what the logging law does not, an action that the logging
            law cannot have taken, a bad propensity, a value for a continuous action, rewards that
            were not logged, no reward or action site. What depends on numbers is not checked
            inside `jax.jit`.
        TypeError: rows that are no `Rows`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        ...     arm = dp.action("arm", dist.Bernoulli(0.25))
        ...     dp.reward("click", dist.Bernoulli(p[arm]))
        >>> rows = dp.observe(model, sites={"arm": [0, 0, 0, 1], "click": [1, 0, 0, 1]})
        >>> found = dp.inference.off_policy.ips(model, rows, 1, baseline=0)
        >>> round(float(found.estimate), 3)
        0.667
    """
    check_level(level)
    seen = played(model, rows, _policies(policy, baseline), propensity)
    return _weighed(seen, rows.mask, level)


def self_normalised(
    model: Callable,
    rows: Rows,
    policy: Any,
    *,
    baseline: Any = None,
    propensity: Any = None,
    level: float = 0.95,
) -> Effect:
    r"""Self-normalised inverse propensity scoring: :math:`\sum w r / \sum w`.

    Its bias vanishes like one over the number of rows. The standard error is that of the
    linearised ratio, :math:`w (r - \hat V) / \bar w`.

    Args:
        model, rows, policy, baseline, propensity, level: as for `ips`.

    Returns:
        `Effect`, with the diagnostics of `ips`; NaN if the policy plays none of the actions that
        were taken.

    Raises:
        ValueError, TypeError: as `ips`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        ...     arm = dp.action("arm", dist.Bernoulli(0.25))
        ...     dp.reward("click", dist.Bernoulli(p[arm]))
        >>> rows = dp.observe(model, sites={"arm": [0, 0, 1, 1], "click": [1, 0, 1, 1]})
        >>> float(dp.inference.off_policy.self_normalised(model, rows, 1).estimate)
        1.0

    References:
        Swaminathan and Joachims, The self-normalized estimator for counterfactual learning,
        NeurIPS 2015.
    """
    check_level(level)
    seen = played(model, rows, _policies(policy, baseline), propensity)
    return _ratio(seen, rows.mask, level)


def doubly_robust(
    model: Callable,
    rows: Rows,
    policy: Any,
    *,
    key: Any,
    baseline: Any = None,
    propensity: Any = None,
    engine: Inference | None = None,
    outcome_model: Callable | None = None,
    folds: int = 2,
    num_worlds: int = 200,
    num_actions: int = 32,
    level: float = 0.95,
) -> Effect:
    r"""Doubly robust estimation, cross-fitted: a regression, and what it misses, weighed.

    The regression q(x, a) is the posterior mean of the reward: a belief learns from the rows of
    all folds but one and predicts that one. A belief that is wrong costs precision, not
    unbiasedness, as long as the logging law is right.

    Args:
        model, rows, policy, baseline, propensity, level: as for `ips`.
        key: PRNG key or int seed, for engines and policies that draw.
        engine: what learns; default the exact engine of a conjugate model, else
            `inference.laplace`. Give it to repeated calls, which then compile once.
        outcome_model: `(args, action) -> expected reward` of one round, in place of an engine; it
            must not have learnt from these rows. `action` is a dict by action site.
        folds: into how many parts the rows are dealt, in turn.
        num_worlds: draws of the belief, where the engine does not predict in closed form.
        num_actions: draws of each policy per row, where actions cannot be listed (continuous ones,
            many at once).

    Returns:
        `Effect`, with the diagnostics of `ips` and `residual_share`: variance of the rewards about
        the regression over their variance.

    Raises:
        ValueError: as `ips`; both an engine and an outcome model, a number of folds below 2 or
            above that of the rows, no engine inside `jax.jit`.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model(x):
        ...     w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        ...     dp.reward("y", dist.Normal(w[dp.action("arm", 2, given=x)] * x, 0.1))
        >>> x, arm = jnp.array([1.0, 2.0, 1.0, 2.0]), jnp.array([0, 0, 1, 1])
        >>> rows = dp.observe(model, (x,), {"arm": arm, "y": (2 * arm - 1) * x})
        >>> found = dp.inference.off_policy.doubly_robust(model, rows, 1, baseline=0, key=0)
        >>> round(float(found.estimate), 1)
        3.0

    References:
        Dudik, Langford and Li, arXiv 1103.4601; Chernozhukov et al., arXiv 1608.00060.
    """
    check_level(level)
    policies = _policies(policy, baseline)
    seen = played(model, rows, policies, propensity)
    if outcome_model is not None and engine is not None:
        raise ValueError("engine and outcome_model are both given: the regression is one of them.")
    if outcome_model is None:
        _check_folds(folds, rows)
        source, folds = engine or default_engine(model, rows), folds
    else:
        source, folds = outcome_model, 0
    fixed, *rest = setting(model, rows, policies, source, num_worlds, num_actions)
    taken, expected = regression(fixed, folds, as_key(key), rows, *rest)
    return _corrected(seen, taken, expected, rows.mask, level)


def model_based(
    model: Callable,
    rows: Rows,
    policy: Any,
    *,
    key: Any,
    baseline: Any = None,
    engine: Inference | None = None,
    num_worlds: int = 1000,
    num_actions: int = 32,
    level: float = 0.95,
) -> Effect:
    r"""The posterior of a policy's average value over the logged contexts.

    In every world drawn from the belief, the mean over rows of
    :math:`\sum_a \pi(a | x) E[r | x, a]`. Nothing is divided by a propensity, so policies may
    play what was never tried; the answer is then what the model extrapolates.

    Args:
        model, rows, policy, baseline, key, engine, num_actions: as for `doubly_robust`.
        num_worlds: draws of the belief.
        level: posterior probability of the interval, equal tails.

    Returns:
        `Effect`: posterior mean (exact, where the engine predicts in closed form), standard
        deviation and quantiles of the draws, which are `diagnostics["draws"]` [num_worlds]. It is
        about the contexts of these rows: that others will come is not in the interval.

    Raises:
        ValueError: no reward or action site, no engine inside `jax.jit`.
        TypeError: rows that are no `Rows`.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     m = numpyro.sample("m", dist.Normal(0, 1).expand([2]).to_event(1))
        ...     dp.reward("y", dist.Normal(m[dp.action("arm", 2)], 1.0))
        >>> rows = dp.observe(model, sites={"arm": [0, 1], "y": [0.0, 3.0]})
        >>> found = dp.inference.off_policy.model_based(model, rows, 1, key=0)
        >>> round(float(found.estimate), 3)
        1.5
    """
    check_level(level)
    policies = _policies(policy, baseline)
    check_rows(model, rows, policies)
    source = engine or default_engine(model, rows)
    fixed, *rest = setting(model, rows, policies, source, num_worlds, num_actions)
    mean, draws = posterior_values(fixed, as_key(key), rows, *rest)
    return _posterior(mean, draws, level)


def _policies(policy: Any, baseline: Any) -> tuple:
    return (policy,) if baseline is None else (policy, baseline)


def _difference(x: jax.Array) -> jax.Array:
    """The policy's [1, ...], or the policy's less the baseline's [2, ...]."""
    return x[0] if len(x) == 1 else x[0] - x[1]


def _weights(seen: Played, mask: jax.Array) -> dict[str, jax.Array]:
    count = jnp.sum(mask)
    found = {}
    for prefix, w in zip(("", "baseline_"), seen.weight, strict=False):
        squares = jnp.sum(w**2)
        found |= {
            f"{prefix}effective_sample_size": jnp.sum(w) ** 2 / jnp.where(squares > 0, squares, 1),
            f"{prefix}largest_weight": jnp.max(w),
            f"{prefix}mean_weight": jnp.sum(w) / count,
            f"{prefix}share_unused": jnp.sum(mask & (w == 0)) / count,
        }
    return found


@partial(jax.jit, static_argnums=2)
def _weighed(seen: Played, mask: jax.Array, level: float) -> Effect:
    scores = _difference(seen.weight) * seen.reward
    return mean_effect(scores, mask, level, _weights(seen, mask))


@partial(jax.jit, static_argnums=2)
def _ratio(seen: Played, mask: jax.Array, level: float) -> Effect:
    total = jnp.sum(seen.weight, 1)
    values = seen.weight @ seen.reward / total
    residual = seen.reward - values[:, None]
    scores = _difference(seen.weight * residual / (total / jnp.sum(mask))[:, None])
    found = mean_effect(scores, mask, level, _weights(seen, mask))
    estimate = _difference(values)
    interval = normal_interval(estimate, found.stderr, level)
    return found._replace(estimate=estimate, interval=interval)


@partial(jax.jit, static_argnums=4)
def _corrected(
    seen: Played, taken: jax.Array, expected: jax.Array, mask: jax.Array, level: float
) -> Effect:
    residual = seen.reward - taken
    scores = _difference(expected + seen.weight * residual)
    missed = jnp.var(residual, where=mask) / jnp.var(seen.reward, where=mask)
    return mean_effect(scores, mask, level, {**_weights(seen, mask), "residual_share": missed})


@partial(jax.jit, static_argnums=2)
def _posterior(mean: jax.Array, draws: jax.Array, level: float) -> Effect:
    draws = _difference(draws.T)
    tails = jnp.quantile(draws, jnp.array([(1 - level) / 2, (1 + level) / 2]))
    stderr = jnp.std(draws, ddof=1)
    return Effect(_difference(mean), stderr, (tails[0], tails[1]), {"draws": draws})


def _check_folds(folds: int, rows: Rows) -> None:
    count = int(jnp.sum(rows.mask)) if known(rows.mask) else rows.mask.shape[0]
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= count:
        raise ValueError(
            f"folds: expected a whole number from 2 to that of the rows, {count}, got {folds!r}."
        )
