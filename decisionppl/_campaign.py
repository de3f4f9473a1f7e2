"""Campaigns: batches planned, labelled and learned from, one after another."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decisionppl._imagined import simulated
from decisionppl._labelling import Estimate, Problem, estimate, rows_of
from decisionppl._plans import Plan, check_available
from decisionppl._play import as_key

Array = jax.Array


class Campaign(NamedTuple):
    """Batches labelled one after another.

    Attributes:
        chosen: int [batches, k], candidates in the order of their labels; -1 where none was left.
        estimate: `Estimate` of the functional before the first and after each batch,
            each [batches + 1].
        available: bool [candidates], which are left.
        belief: the last one.
    """

    chosen: Array
    estimate: Estimate
    available: Array
    belief: Any


def simulate(
    key: Any,
    found: Problem,
    planner: Callable,
    belief: Any,
    labels: Any,
    num_batches: int,
    available: Any = None,
    *,
    num_worlds: int = 256,
) -> Campaign:
    """Plan a batch, reveal its labels, learn, plan again: a simulated campaign, in one scan.

    The planner is given the belief and which candidates are left, never a label that was not
    revealed; labelled candidates leave the pool.

    Args:
        key: PRNG key (typed or raw) or an int seed.
        found: the problem.
        planner: `(key, problem, belief, available) -> Plan`, such as
            `functools.partial(lookahead.greedy, k=5)`.
        belief: to begin with; of an engine with room for all labels (`capacity=`).
        labels: the true labels, [candidates].
        num_batches: batches to label.
        available: bool [candidates], which may be labelled; default all.
        num_worlds: draws for estimates, where there is no closed form.

    Returns:
        Campaign.

    Raises:
        ValueError: labels of another length than the candidates.

    Example:
        >>> import functools
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl import lookahead
        >>> def model():
        ...     m = numpyro.sample("m", dist.Normal(0, 1).expand([3]).to_event(1))
        ...     dp.reward("y", dist.Normal(m[dp.action("arm", 3)], 0.5))
        >>> engine = dp.inference.conjugate(model)
        >>> arms = jnp.arange(3)
        >>> goal = lookahead.mean_outcome(arms, jnp.array([0.7, 0.2, 0.1]))
        >>> pool = lookahead.problem(model, engine, arms, goal)
        >>> planner = functools.partial(lookahead.greedy, k=1)
        >>> done = lookahead.simulate(0, pool, planner, engine.init(0), jnp.zeros(3), 2)
        >>> done.chosen.tolist(), done.available.tolist()
        ([[0], [1]], [False, False, True])
    """
    labels = jnp.asarray(labels)
    if labels.shape != (found.size,):
        raise ValueError(
            f"labels: expected one per candidate, [{found.size}], got {list(labels.shape)}."
        )
    available = check_available(found, available, 1)
    return _simulate(
        as_key(key), found, belief, labels, available, planner, num_batches, num_worlds
    )


@partial(jax.jit, static_argnums=(5, 6, 7))
def _simulate(
    key: Array, found: Problem, belief: Any, labels: Array, available: Array, planner: Callable,
    num_batches: int, num_worlds: int,
) -> Campaign:  # fmt: skip
    key, first_key = jax.random.split(key)
    first = estimate(first_key, found, belief, num_worlds=num_worlds)

    def step(state: tuple, key: Any) -> tuple:
        belief, free = state
        plan_key, learn_key, estimate_key = jax.random.split(key, 3)
        chosen = planner(plan_key, found, belief, free).chosen
        rows = rows_of(found, chosen, labels[chosen])
        belief = found.inference.update(learn_key, belief, rows)
        # as an index, -1 is the last candidate; one beyond the end is dropped
        place = jnp.where(chosen < 0, found.size, chosen)
        free = free.at[place].set(False, mode="drop")
        then = estimate(estimate_key, found, belief, num_worlds=num_worlds)
        return (belief, free), (chosen, then)

    keys = jax.random.split(key, num_batches)
    (belief, available), (chosen, then) = jax.lax.scan(step, (belief, available), keys)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, then)
    return Campaign(chosen, joined, available, belief)


def rollout(
    key: Any,
    found: Problem,
    belief: Any,
    available: Any = None,
    *,
    proposals: Sequence[Callable],
    base: Callable,
    horizon: int,
    num_paths: int = 8,
    num_worlds: int = 256,
) -> Plan:
    """Lookahead over several batches: try each proposal, then follow a base planner.

    For each proposed batch, labels are imagined in `num_paths` worlds drawn from the belief, the
    base planner labels `horizon - 1` batches more, re-planning after each, and the proposal with
    the least variance in the end, on average, is taken. All proposals are tried in the same worlds.
    With the base planner among the proposals the choice is, up to the error of the average, not
    worse than it.

    Args:
        key: PRNG key (typed or raw) or an int seed.
        found: the problem.
        belief: of its engine, with room for all labels (`capacity=`).
        available: bool [candidates], which may be chosen; default all.
        proposals: planners, each of which proposes one batch, all of one size.
        base: the planner of later batches.
        horizon: batches, the proposed one included.
        num_paths: imagined worlds.
        num_worlds: draws for variances, where there is no closed form.

    Returns:
        Plan of the best proposal; its `expected` are the first and the last variance.

    Raises:
        ValueError: no proposal, or a horizon below 1.

    References:
        Bertsekas, Tsitsiklis and Wu, Rollout algorithms for combinatorial optimization (1997).
    """
    if not proposals or horizon < 1:
        raise ValueError(
            f"rollout needs proposals and a horizon of at least 1, got {len(proposals)} and "
            f"{horizon}."
        )
    available = check_available(found, available, 1)
    return _rollout(
        as_key(key), found, belief, available, tuple(proposals), base, horizon, num_paths,
        num_worlds,
    )  # fmt: skip


@partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _rollout(
    key: Array, found: Problem, belief: Any, available: Array, proposals: tuple, base: Callable,
    horizon: int, num_paths: int, num_worlds: int,
) -> Plan:  # fmt: skip
    plan_key, world_key, label_key, path_key = jax.random.split(key, 4)
    batches = jnp.stack([p(plan_key, found, belief, available).chosen for p in proposals])
    worlds = found.inference.sample(world_key, belief, num_paths)
    labels = simulated(found, label_key, worlds)

    def end(chosen: Array) -> Array:
        def path(key: Any, labels: Array) -> Array:
            learn_key, key = jax.random.split(key)
            learned = found.inference.update(
                learn_key, belief, rows_of(found, chosen, labels[chosen])
            )
            place = jnp.where(chosen < 0, found.size, chosen)
            free = available.at[place].set(False, mode="drop")
            later = simulate(
                key, found, base, learned, labels, horizon - 1, free, num_worlds=num_worlds
            )
            return later.estimate.variance[-1]

        return jnp.mean(jax.vmap(path)(jax.random.split(path_key, num_paths), labels))

    ends = jax.lax.map(end, batches)
    best = jnp.argmin(ends)
    now = estimate(plan_key, found, belief, num_worlds=num_worlds).variance
    chosen = batches[best]
    expected = jnp.stack([now, ends[best]])
    return Plan(chosen, jnp.zeros(chosen.shape), expected)
