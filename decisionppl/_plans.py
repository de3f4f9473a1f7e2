"""Planners: which batch of candidates to label next; public through `decisionppl.lookahead`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decisionppl import _joint as gaussian
from decisionppl._imagined import reweighted_variance, table
from decisionppl._labelling import Problem, joint_of, means
from decisionppl._play import as_key

Array = jax.Array


class Plan(NamedTuple):
    """A batch to label.

    Attributes:
        chosen: indices of candidates, int [k]; -1 where no candidate was left.
        scores: [k], what each was chosen for, given those before.
        expected: posterior variance of the functional now, and expected after each label of the
            batch, [k + 1]; NaN where a planner does not look.
    """

    chosen: Array
    scores: Array
    expected: Array


def greedy(
    key: Any,
    found: Problem,
    belief: Any,
    available: Any = None,
    *,
    k: int,
    num_outcomes: int = 64,
    num_worlds: int = 512,
) -> Plan:
    r"""One-step lookahead: the labels after which the functional is expected to be known best.

    Minimises :math:`E_y \mathrm{Var}[g | y_S]` over batches S of k candidates, one candidate after
    another, each given that the labels of those before will be seen. Under a Gaussian belief and a
    quadratic functional the expectation is closed form and needs no label; else labels are drawn
    from the belief, a new set in each of `num_outcomes` worlds, and worlds are weighed by how
    likely they make them. True labels are never looked at.

    Args:
        key: PRNG key (typed or raw) or an int seed; used for draws alone.
        found: the problem.
        belief: of its engine.
        available: bool [candidates], which may be chosen; default all.
        k: size of the batch.
        num_outcomes: sets of labels that are imagined, without a closed form.
        num_worlds: worlds that are weighed, without a closed form.

    Returns:
        Plan; `scores` are falls of the expected variance.

    Raises:
        ValueError: a batch larger than the pool.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import lookahead
        >>> def model():
        ...     p = numpyro.sample("p", dist.Beta(1, 1).expand([3]).to_event(1))
        ...     dp.reward("y", dist.Bernoulli(p[dp.action("arm", 3)]))
        >>> engine = dp.inference.conjugate(model)
        >>> arms, share = jnp.arange(3), jnp.array([0.1, 0.8, 0.1])
        >>> pool = lookahead.problem(model, engine, arms, lookahead.mean_outcome(arms, share))
        >>> lookahead.greedy(0, pool, engine.init(0), k=1).chosen.tolist()
        [1]

    References:
        Closed form: see `decisionppl._joint`. Greedy choice of batches: Krause, Singh and Guestrin,
        Near-optimal sensor placements in Gaussian processes (2008).
    """
    available = check_available(found, available, k)
    return _greedy(as_key(key), found, belief, available, k, num_outcomes, num_worlds)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _greedy(
    key: Array, found: Problem, belief: Any, available: Array, k: int, num_outcomes: int,
    num_worlds: int,
) -> Plan:  # fmt: skip
    if found.is_gaussian:
        joint, goal = joint_of(found, belief), found.functional
        picks = gaussian.pick(joint, k, gaussian.by_variance(joint, goal), available)
        now = gaussian.functional_variance(joint, goal)
        expected = now - jnp.concatenate([jnp.zeros(1), jnp.cumsum(picks.gains)])
        return Plan(picks.chosen, picks.gains, expected)
    imagined = table(found, key, belief, num_outcomes, num_worlds)

    def step(state: tuple, _: Any) -> tuple:
        log_weights, free, now = state

        def after(log_likelihood: Array) -> Array:
            return jnp.mean(reweighted_variance(log_weights + log_likelihood, imagined.values))

        left = jax.lax.map(after, jnp.moveaxis(imagined.log_likelihood, -1, 0), batch_size=64)
        best = jnp.argmin(jnp.where(free, left, jnp.inf))
        some = free[best]
        gained = jnp.where(some, imagined.log_likelihood[..., best], 0.0)
        then = jnp.where(some, left[best], now)
        chosen = jnp.where(some, best, -1).astype(jnp.int32)
        return (log_weights + gained, free.at[best].set(False), then), (chosen, then)

    now = jnp.var(imagined.values, ddof=1)
    start = (jnp.zeros(imagined.log_likelihood.shape[:2]), available, now)
    _, (chosen, left) = jax.lax.scan(step, start, None, length=k)
    expected = jnp.concatenate([now[None], left])
    return Plan(chosen, -jnp.diff(expected), expected)


def most_uncertain(
    key: Any,
    found: Problem,
    belief: Any,
    available: Any = None,
    *,
    k: int,
    sequential: bool = True,
    num_worlds: int = 256,
) -> Plan:
    """Candidates whose labels are most uncertain: what the functional is does not matter.

    Args:
        key: PRNG key (typed or raw) or an int seed; used for draws alone.
        found: the problem.
        belief: of its engine.
        available: bool [candidates], which may be chosen; default all.
        k: size of the batch.
        sequential: condition each candidate on the labels of those before, where the belief is
            Gaussian; else, and without a closed form, the k largest variances of the mean.
        num_worlds: draws, without a closed form.

    Returns:
        Plan; `scores` are variances.

    Raises:
        ValueError: a batch larger than the pool; a sequential choice without a closed form.
    """
    available = check_available(found, available, k)
    if sequential and not found.is_gaussian:
        raise ValueError(
            "sequential=True needs a Gaussian belief in closed form, which this problem has not; "
            "give sequential=False for the k largest variances."
        )
    return _most_uncertain(as_key(key), found, belief, available, k, bool(sequential), num_worlds)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _most_uncertain(
    key: Array, found: Problem, belief: Any, available: Array, k: int, sequential: bool,
    num_worlds: int,
) -> Plan:  # fmt: skip
    if found.is_gaussian:
        joint = joint_of(found, belief)
        if sequential:
            picks = gaussian.pick(joint, k, gaussian.by_uncertainty, available)
            return Plan(picks.chosen, picks.gains, jnp.full(k + 1, jnp.nan))
        diagonal = jnp.diagonal(joint.label_covariance, axis1=-2, axis2=-1)
        return _largest(jnp.mean(diagonal + joint.noise**2, axis=0), available, k)
    worlds = found.inference.sample(key, belief, num_worlds)
    return _largest(jnp.var(means(found, worlds, found.candidates), axis=0), available, k)


def least_average_variance(
    key: Any, found: Problem, belief: Any, available: Any = None, *, k: int
) -> Plan:
    """Candidates after which the means at the targets are least uncertain on average.

    Minimises the expected sum of the variances of the targets' means, one candidate after
    another; needs a Gaussian belief.

    Args:
        key: not used.
        found: the problem.
        belief: of its engine.
        available: bool [candidates], which may be chosen; default all.
        k: size of the batch.

    Returns:
        Plan; `scores` are falls of the sum.

    Raises:
        ValueError: a batch larger than the pool, or a belief that is not Gaussian.

    References:
        Cohn, Ghahramani and Jordan, Active learning with statistical models, cs/9603104.
    """
    available = check_available(found, available, k)
    if not found.is_gaussian:
        raise ValueError("least_average_variance needs a Gaussian belief in closed form.")
    return _least_average_variance(found, belief, available, k)


@partial(jax.jit, static_argnums=3)
def _least_average_variance(found: Problem, belief: Any, available: Array, k: int) -> Plan:
    picks = gaussian.pick(joint_of(found, belief), k, gaussian.by_average, available)
    return Plan(picks.chosen, picks.gains, jnp.full(k + 1, jnp.nan))


def at_random(key: Any, found: Problem, belief: Any, available: Any = None, *, k: int) -> Plan:
    """Candidates drawn uniformly without replacement.

    Args:
        key: PRNG key (typed or raw) or an int seed.
        found: the problem.
        belief: of its engine; not looked at.
        available: bool [candidates], which may be chosen; default all.
        k: size of the batch.

    Returns:
        Plan; `scores` are random numbers.

    Raises:
        ValueError: a batch larger than the pool.
    """
    available = check_available(found, available, k)
    return _largest(jax.random.uniform(as_key(key), (found.size,)), available, k)


def _largest(scores: Array, available: Array, k: int) -> Plan:
    found, chosen = jax.lax.top_k(jnp.where(available, scores, -jnp.inf), k)
    some = available[chosen]
    return Plan(
        jnp.where(some, chosen, -1).astype(jnp.int32),
        jnp.where(some, found, 0.0),
        jnp.full(k + 1, jnp.nan),
    )


def check_available(found: Problem, available: Any, k: int) -> Array:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= found.size:
        raise ValueError(f"k: expected from 1 to the {found.size} candidates, got {k!r}.")
    if available is None:
        return jnp.ones(found.size, bool)
    available = jnp.asarray(available)
    if available.dtype != bool or available.shape != (found.size,):
        raise ValueError(
            f"available: expected bool [{found.size}], one per candidate, got "
            f"{available.dtype} {list(available.shape)}."
        )
    return available
