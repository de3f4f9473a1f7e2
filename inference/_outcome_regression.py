"""What a policy would earn at logged contexts, by a belief or by a given regression."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decisionppl._inference import Inference, Rows
from decisionppl._play import Same, example_run, play
from decisionppl._roles import role_of
from decisionppl._space import action_sites, action_space
from decisionppl._utility import split_utility
from decisionppl.inference._logged_actions import (
    LARGEST_SUPPORT,
    Split,
    known,
    log_probability,
    split,
)
from decisionppl.inference.conjugate import conjugate
from decisionppl.inference.laplace import laplace

Values = Mapping[str, Any]


class Setting(NamedTuple):
    """What a compiled regression depends on beside arrays: a static argument.

    Attributes:
        model: the one-round model.
        names: its action sites.
        contexts: its context sites in the rows.
        programs: of the policies, see `Split`.
        source: the engine, or the given regression.
        num_worlds: draws of the belief.
        num_actions: draws of the policies where actions are not enumerated.
    """

    model: Same
    names: tuple[str, ...]
    contexts: tuple[str, ...]
    programs: tuple
    source: Same
    num_worlds: int
    num_actions: int


def setting(
    model: Callable, rows: Rows, policies: tuple, source: Any, num_worlds: int, num_actions: int
) -> tuple[Setting, tuple, dict | None]:
    """The static part, the arrays of the policies, and all actions if they can be listed."""
    args = jax.tree.map(lambda x: x[0], rows.args)
    trace = example_run(model, args, at_mean=True, values=False)
    by_role = {r: tuple(n for n, s in trace.items() if role_of(s) == r and n in rows.sites)
               for r in ("action", "context")}  # fmt: skip
    parts = [split(p) for p in policies]
    programs, arrays = tuple(p.program for p in parts), tuple(p.arrays for p in parts)
    static = Setting(
        Same(model), by_role["action"], by_role["context"], programs, Same(source),
        num_worlds, num_actions,
    )  # fmt: skip
    return static, arrays, _listed(model, args)


def _listed(model: Callable, args: tuple) -> dict[str, jax.Array] | None:
    """All actions of a round, unless there are too many or they are continuous."""
    sites = action_sites(model, *args)
    if any(s.batch_shape or not s.has_enumerate_support for s in sites.values()):
        return None
    try:
        found = action_space(model, *args)
    except (ValueError, NotImplementedError):
        return None
    count = len(next(iter(found.values())))
    return found if count <= LARGEST_SUPPORT else None


def default_engine(model: Callable, rows: Rows) -> Inference:
    """The exact engine where the model is conjugate, else streaming Laplace."""
    args = jax.tree.map(lambda x: x[0], rows.args)
    if not known(args):
        raise ValueError(
            "engine: a belief is not derived from a model inside jax.jit or jax.vmap. Make it "
            "outside, engine = decisionppl.inference.laplace(model, *args), and give engine=."
        )
    try:
        return conjugate(model, *args)
    except TypeError:
        return laplace(model, *args)


def _considered(
    fixed: Setting, arrays: tuple, listed: dict | None, key: Any, args: tuple, data: Values
) -> tuple[Values, jax.Array]:
    """Actions [actions, ...] of one round, and their shares in each policy [policies, actions]."""
    policies = [Split(p, a).join() for p, a in zip(fixed.programs, arrays, strict=True)]
    if listed is not None:

        def share(action: Values, policy: Any) -> jax.Array:
            given = {**data, **action}
            found = log_probability(fixed.model.value, policy, list(fixed.names), args, given)
            return jnp.exp(jnp.sum(found))

        shares = [jax.vmap(lambda a, p=p: share(a, p))(listed) for p in policies]
        return listed, jnp.stack(shares)

    def draw(key: Any, policy: Any) -> dict[str, Any]:
        trace = play(fixed.model.value, key, policy=policy, data=data)(*args)
        return {n: trace[n]["value"] for n in fixed.names}

    # the same keys for all policies, so that their difference has little noise
    keys = jax.random.split(key, fixed.num_actions)
    drawn = [jax.vmap(lambda k, p=p: draw(k, p))(keys) for p in policies]
    actions = jax.tree.map(lambda *x: jnp.concatenate(x), *drawn)
    shares = jnp.repeat(jnp.eye(len(policies)) / fixed.num_actions, fixed.num_actions, 1)
    return actions, shares


def _utilities(fixed: Setting, world: Values, key: Any, row: tuple) -> jax.Array:
    """Expected rewards less costs of actions in one round of one world, [actions]."""
    args, data, actions = row

    def one(action: Values) -> jax.Array:
        trace = play(fixed.model.value, key, policy=action, world=world, data=data)(*args)
        reward, cost = split_utility(trace)
        return reward - cost

    return jax.vmap(one)(actions)


def _row_keys(key: Any, rows: Rows) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(rows.mask.shape[0]))


def _rounds(fixed: Setting, arrays: tuple, listed: dict | None, key: Any, rows: Rows) -> tuple:
    """Per row: arguments, contexts, actions and their shares; and a key."""
    keys = _row_keys(key, rows)
    data = {n: rows.sites[n] for n in fixed.contexts}
    considered = partial(_considered, fixed, arrays, listed)
    actions, shares = jax.vmap(considered)(keys, rows.args, data)
    return keys, (rows.args, data, actions), shares


@partial(jax.jit, static_argnums=(0, 1))
def regression(
    fixed: Setting, folds: int, key: Any, rows: Rows, arrays: tuple, listed: dict | None
) -> tuple[jax.Array, jax.Array]:
    """Expected reward of the action taken [rows], and of each policy [policies, rows].

    Each row is predicted without it: by a belief that has seen the other folds alone, or, with
    `folds=0`, by a given regression.
    """
    fit_key, row_key = jax.random.split(key)
    keys, (args, data, actions), shares = _rounds(fixed, arrays, listed, row_key, rows)
    taken = {n: rows.sites[n] for n in fixed.names}
    actions = {n: jnp.concatenate([taken[n][:, None], a], 1) for n, a in actions.items()}
    each = (args, data, actions)
    if folds == 0:
        given = fixed.source.value
        values = jax.vmap(lambda x, _, a: jax.vmap(lambda one: given(x, one))(a))(*each)
    else:
        # counted over rows that matter, so that padding moves none to another fold
        fold = (jnp.cumsum(rows.mask) - 1) % folds

        def predicted(f: jax.Array) -> jax.Array:
            others = rows._replace(mask=rows.mask & (fold != f))
            belief, worlds = _belief(fixed, jax.random.fold_in(fit_key, f), others)
            return _posterior_mean(fixed, belief, worlds, keys, each)

        every = jax.lax.map(predicted, jnp.arange(folds))
        values = jnp.take_along_axis(every, fold[None, :, None], 0)[0]
    return values[:, 0], jnp.einsum("rpa,ra->pr", shares, values[:, 1:])


def _belief(fixed: Setting, key: Any, rows: Rows) -> tuple[Any, Any]:
    """The belief, and draws of it where it does not predict in closed form."""
    engine = fixed.source.value
    init_key, update_key, key = jax.random.split(key, 3)
    belief = engine.update(update_key, engine.init(init_key), rows)
    closed = engine.predict is not None
    return belief, None if closed else engine.sample(key, belief, fixed.num_worlds)


def _posterior_mean(fixed: Setting, belief: Any, worlds: Any, keys: Any, each: tuple) -> jax.Array:
    """Posterior mean of the utilities, [rows, actions]."""
    if worlds is None:
        predict = fixed.source.value.predict
        return jax.vmap(lambda args, data, a: predict(belief, a, args, data).mean)(*each)

    def add(total: jax.Array, world: Values) -> tuple[jax.Array, None]:
        return total + jax.vmap(partial(_utilities, fixed, world))(keys, each), None

    shape = jax.eval_shape(lambda: add(jnp.zeros(()), jax.tree.map(lambda x: x[0], worlds))[0])
    total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), worlds)
    return total / fixed.num_worlds


@partial(jax.jit, static_argnums=0)
def posterior_values(
    fixed: Setting, key: Any, rows: Rows, arrays: tuple, listed: dict | None
) -> tuple[jax.Array, jax.Array]:
    """Value of each policy, mean over rows: posterior mean [policies], draws [worlds, policies]."""
    fit_key, world_key, row_key = jax.random.split(key, 3)
    keys, each, shares = _rounds(fixed, arrays, listed, row_key, rows)
    belief, _ = _belief(fixed, fit_key, rows)
    engine = fixed.source.value
    worlds = engine.sample(world_key, belief, fixed.num_worlds)

    def average(values: jax.Array) -> jax.Array:
        worth = jnp.einsum("rpa,ra->rp", shares, values)
        return jnp.sum(jnp.where(rows.mask[:, None], worth, 0.0), 0) / jnp.sum(rows.mask)

    draws = jax.lax.map(
        lambda world: average(jax.vmap(partial(_utilities, fixed, world))(keys, each)), worlds
    )
    if engine.predict is None:
        return jnp.mean(draws, 0), draws
    return average(_posterior_mean(fixed, belief, None, keys, each)), draws
