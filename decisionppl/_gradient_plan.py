"""The planner that learns a random batch by gradients, and the costs that it descends."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from decisionppl import _joint as gaussian
from decisionppl._imagined import Table, reweighted_variance, table
from decisionppl._labelling import Problem, joint_of
from decisionppl._plans import Plan, check_available
from decisionppl._play import as_key
from decisionppl._policy_gradient import descend, score_function, smoothed

Array = jax.Array


def policy_gradient(
    key: Any,
    found: Problem,
    belief: Any,
    available: Any = None,
    *,
    k: int,
    estimator: str = "score",
    baseline: str | None = "leave_one_out",
    temperature: float = 1.0,
    num_samples: int = 10,
    num_steps: int = 100,
    optimizer: optax.GradientTransformation | None = None,
    num_outcomes: int = 64,
    num_worlds: int = 512,
) -> Plan:
    r"""One-step lookahead by gradients: logits of a Plackett-Luce batch, and its k largest.

    The cost of a batch is :math:`E_y \mathrm{Var}[g | y_S]`, over its present value so that one
    step size fits all problems: closed form where the belief is Gaussian; else an average over
    imagined labels, new ones in each outcome, under which worlds are weighed,

    .. math:: w_n \propto \prod_i p(y_i | \text{world}_n)^{a_i},

    with shares a that are 0 or 1 for the score function and between for the smoothed estimator: a
    share of 0 has no effect and one of 1 is Bayes' rule, for any model and any engine.

    Args:
        key: PRNG key (typed or raw) or an int seed.
        found: the problem.
        belief: of its engine.
        available: bool [candidates], which may be chosen; default all.
        k: size of the batch.
        estimator: "score" or "smoothed".
        baseline: of the score function, see `score_function`.
        temperature: of the smoothed estimator, see `smoothed`.
        num_samples: batches drawn per step.
        num_steps: steps.
        optimizer: an optax optimizer; default Adam at 0.1.
        num_outcomes: sets of labels that are imagined, without a closed form.
        num_worlds: worlds that are weighed, without a closed form.

    Returns:
        Plan; `scores` are logits, `expected` holds the present variance first and that after the
        whole batch last.

    Raises:
        ValueError: a batch larger than the pool, an unknown estimator or baseline.

    References:
        Mittal et al., arXiv 2502.06076; Williams (1992).
    """
    if estimator not in ("score", "smoothed"):
        raise ValueError(f'estimator: expected "score" or "smoothed", got {estimator!r}.')
    available = check_available(found, available, k)
    settings = (k, estimator, baseline, temperature, num_samples, num_steps, optimizer)
    return _policy_gradient(
        as_key(key), found, belief, available, settings, num_outcomes, num_worlds
    )


@partial(jax.jit, static_argnums=(4, 5, 6))
def _policy_gradient(
    key: Array, found: Problem, belief: Any, available: Array, settings: tuple, num_outcomes: int,
    num_worlds: int,
) -> Plan:  # fmt: skip
    k, estimator, baseline, temperature, num_samples, num_steps, optimizer = settings
    table_key, key = jax.random.split(key)
    if found.is_gaussian:
        now, hard, soft = gaussian_costs(found, belief)
    else:
        imagined = table(found, table_key, belief, num_outcomes, num_worlds)
        now, hard, soft = drawn_costs(imagined)
    if estimator == "score":
        cost = lambda key, order: hard(order) / now  # noqa: E731
        gradient = score_function(cost, k, num_samples=num_samples, baseline=baseline)
    else:
        cost = lambda key, share: soft(share) / now  # noqa: E731
        gradient = smoothed(cost, k, num_samples=num_samples, temperature=temperature)
    start = jnp.where(available, 0.0, -jnp.inf)
    end = descend(key, gradient, start, num_steps=num_steps, optimizer=optimizer).logits
    scores, chosen = jax.lax.top_k(jnp.where(available, end, -jnp.inf), k)
    some = available[chosen]
    chosen = jnp.where(some, chosen, -1).astype(jnp.int32)
    expected = jnp.full(k + 1, jnp.nan).at[0].set(now).at[-1].set(hard(chosen))
    return Plan(chosen, jnp.where(some, scores, 0.0), expected)


def gaussian_costs(found: Problem, belief: Any) -> tuple[Array, Callable, Callable]:
    """Variance now; expected variance after a batch [k], and after shares [candidates]."""
    joint, goal = joint_of(found, belief), found.functional
    now = gaussian.functional_variance(joint, goal)
    return (
        now,
        lambda chosen: now - gaussian.subset_explained(joint, goal, chosen),
        lambda share: now - gaussian.soft_explained(joint, goal, share),
    )


def drawn_costs(imagined: Table) -> tuple[Array, Callable, Callable]:
    """The same by imagined labels, under which drawn worlds are weighed."""
    values, likelihood = imagined.values, imagined.log_likelihood

    def hard(chosen: Array) -> Array:
        rows = jnp.where(chosen >= 0, likelihood[..., chosen], 0.0)
        return jnp.mean(reweighted_variance(jnp.sum(rows, axis=-1), values))

    def soft(share: Array) -> Array:
        # a share above one would count a label more than once
        return jnp.mean(reweighted_variance(likelihood @ jnp.minimum(share, 1.0), values))

    return jnp.var(values, ddof=1), hard, soft
