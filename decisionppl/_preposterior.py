"""Rules that ask what an action would teach; public through `decisionppl.rules`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from decisionppl import _posterior as post
from decisionppl._choice import Choice, largest, masked
from decisionppl._knowledge import log_pairwise_rise, log_rise, truncation_information

Array = jax.Array

_MAXIMA = 16


class Preposterior(NamedTuple):
    """What the outcome of each action would tell about the utilities of targets.

    Utilities are Gaussian. An outcome, standardised to independent standard normal coordinates Z,
    moves the posterior mean of target t from `mean[t]` to `mean[t] + change[:, t] @ Z`. Every
    array has a leading axis [draws] of hyperparameter values.

    Attributes:
        mean: [draws, targets], posterior means of the targets' utilities.
        covariance: [draws, targets, targets].
        change: [draws, actions, outcomes, targets].
        own_mean: [draws, actions], posterior means of the actions' own utilities.
        own_sd: [draws, actions].
        own_change: [draws, actions, outcomes].

    References:
        Raiffa and Schlaifer, Applied Statistical Decision Theory (1961), for the name; Frazier,
        arXiv 1807.02811, section 4.2.
    """

    mean: Array
    covariance: Array
    change: Array
    own_mean: Array
    own_sd: Array
    own_change: Array


def knowledge_gradient(
    key: Array, preposterior: Preposterior, *, mask: Any = None, cost: Any = None
) -> Choice:
    r"""The expected rise of the best posterior mean that an action's outcome brings.

    :math:`KG_a = E \max_t \mu'_t - \max_t \mu_t` over targets and the action itself, where
    :math:`\mu'` are the means after the outcome. Exact for outcomes of one number, by the sorted
    upper envelope; for several (a run's trace of losses) by 512 quasi-random points. Actions are
    valued for what they teach about targets, such as utilities at the target fidelity, so a cheap
    action is worth what its correlation with them makes it worth.

    Args:
      key: random key, for ties.
      preposterior: what outcomes would tell.
      mask: [actions], True where feasible.
      cost: [actions], positive; divides the rise.

    Returns:
      Choice: ``scores`` are the rises, averaged over hyperparameter draws.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> change = jnp.array([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # each action teaches about itself
      >>> known = Preposterior(
      ...     jnp.zeros((1, 2)), jnp.diag(jnp.array([1.0, 4.0]))[None], change,
      ...     jnp.zeros((1, 2)), jnp.array([[1.0, 2.0]]), jnp.array([[[1.0], [2.0]]]))
      >>> [round(s, 3) for s in knowledge_gradient(jax.random.key(0), known).scores.tolist()]
      [0.399, 0.798]

    References:
      Frazier, Powell and Dayanik, The Knowledge-Gradient Policy for Correlated Normal Beliefs
      (2009); with fidelities and traces, Wu et al. (2019).
    """
    return _choose(key, log_knowledge_gradient(_checked(preposterior)), mask, cost)


def noisy_expected_improvement(
    key: Array, preposterior: Preposterior, *, mask: Any = None, cost: Any = None
) -> Choice:
    """The knowledge gradient over the actions tried so far and the action itself.

    With noise-free outcomes at the target this is expected improvement. Experiments give it
    preposteriors whose targets are the actions of the history; given the same preposterior it is
    `knowledge_gradient`.

    Args:
      key, preposterior, mask, cost: as for `knowledge_gradient`.

    Returns:
      Choice: ``scores`` are the expected improvements.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    References:
      Frazier, A Tutorial on Bayesian Optimization, arXiv 1807.02811, section 5.2.
    """
    return _choose(key, log_knowledge_gradient(_checked(preposterior)), mask, cost)


def max_value_entropy(
    key: Array, preposterior: Preposterior, *, mask: Any = None, cost: Any = None
) -> Choice:
    r"""The information in an action's outcome about the largest utility, in nats.

    :math:`I(y_a; U^*)`, with the largest utility of the targets drawn jointly 16 times and, as in
    max-value entropy search, taken to bound the action's own utility alone.

    Args:
      key: random key, for the draws of the largest utility and for ties.
      preposterior: what outcomes would tell.
      mask: [actions], True where feasible.
      cost: [actions], positive; divides the information.

    Returns:
      Choice: ``scores`` are the informations, averaged over hyperparameter draws.

    Raises:
      ValueError, TypeError: on malformed arguments; see `decisionppl.rules`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> change = jnp.array([[[[1.0, 0.0]], [[0.0, 0.1]]]])  # the second teaches little
      >>> known = Preposterior(
      ...     jnp.zeros((1, 2)), jnp.eye(2)[None], change,
      ...     jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([[[1.0], [0.1]]]))
      >>> int(max_value_entropy(jax.random.key(0), known).action)
      0

    References:
      Wang and Jegelka, arXiv 1703.01968; with fidelities, Takeno et al., arXiv 1901.08275.
    """
    known = _checked(preposterior)
    draw_key, tie_key = jax.random.split(key)
    return _choose(tie_key, log_max_value_information(draw_key, known), mask, cost)


def log_knowledge_gradient(known: Preposterior) -> Array:
    """Log knowledge gradient of each action, [actions]."""
    return _log_mean_rise(log_rise, known)


def log_knowledge_bound(known: Preposterior) -> Array:
    """A lower bound of the log knowledge gradient of each action that costs little, [actions]."""
    return _log_mean_rise(log_pairwise_rise, known)


def _log_mean_rise(rise: Any, known: Preposterior) -> Array:
    """The rise averaged over hyperparameter draws, [actions]."""

    def one(mean: Array, change: Array, own_mean: Array, own_change: Array) -> Array:
        means = jnp.append(mean, own_mean)
        return rise(means, jnp.concatenate([change, own_change[:, None]], axis=1))

    over_actions = jax.vmap(one, (None, 0, 0, 0))
    rises = jax.vmap(over_actions)(known.mean, known.change, known.own_mean, known.own_change)
    return logsumexp(rises, axis=0) - jnp.log(rises.shape[0])


def log_max_value_information(key: Array, known: Preposterior) -> Array:
    """Log information of each action about the largest utility, [actions]."""

    def one(key: Array, known: Preposterior) -> Array:
        size = known.mean.shape[0]
        diagonal = jnp.diagonal(known.covariance)
        eps = jnp.finfo(known.mean.dtype).eps
        jitter = 4 * size * eps * jnp.mean(diagonal) + jnp.finfo(known.mean.dtype).tiny
        root = jnp.linalg.cholesky(known.covariance + jitter * jnp.eye(size))
        root = jnp.where(jnp.all(jnp.isfinite(root)), root, jnp.diag(jnp.sqrt(diagonal)))
        noise = jax.random.normal(key, (_MAXIMA, size), known.mean.dtype)
        largest_utility = jnp.max(known.mean + noise @ root.T, axis=1)
        # not below what is already thought best: the grid of targets may miss it
        best = jnp.maximum(largest_utility, jnp.max(known.mean))
        random = known.own_sd > 0
        sd = jnp.where(random, known.own_sd, 1.0)
        gamma = (best[:, None] - known.own_mean) / sd  # [maxima, actions]
        size_of_change = jnp.sqrt(jnp.maximum(jnp.sum(known.own_change**2, axis=1), tiny))
        rho = jnp.where(random, size_of_change / sd, 0.0)
        information = truncation_information(gamma, jnp.broadcast_to(rho, gamma.shape))
        return jnp.where(random, jnp.mean(information, axis=0), 0.0)

    tiny = jnp.finfo(known.mean.dtype).tiny
    keys = jax.random.split(key, known.mean.shape[0])
    information = jnp.mean(jax.vmap(one)(keys, known), axis=0)
    return jnp.log(jnp.maximum(information, tiny))


knowledge_gradient.targets = "space"  # pyright: ignore[reportFunctionMemberAccess]
max_value_entropy.targets = "space"  # pyright: ignore[reportFunctionMemberAccess]
noisy_expected_improvement.targets = "visited"  # pyright: ignore[reportFunctionMemberAccess]


def _checked(known: Any) -> Preposterior:
    if not isinstance(known, Preposterior):
        raise TypeError(
            f"expected a Preposterior, got {type(known).__name__}. This rule asks an engine with a "
            "surrogate, such as inference.gaussian_process, what outcomes would tell."
        )
    return known


def _choose(key: Array, log_score: Array, mask: Any, cost: Any) -> Choice:
    count = log_score.shape[0]
    feasible = post.check_mask(mask, count)
    log_score = log_score - jnp.log(post.check_cost(cost, count))
    choice = largest(key, log_score, feasible)
    return choice._replace(scores=masked(jnp.exp(log_score), feasible))
