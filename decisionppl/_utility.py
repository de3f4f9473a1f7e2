"""The utility matrix: what each action is worth in each world."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from decisionppl._play import Trace, as_key, play
from decisionppl._roles import role_of
from decisionppl._space import as_actions

Worlds = Mapping[str, Any]  # latent site -> values with a leading axis [draws, ...]


def expected_value(site: Mapping[str, Any]) -> jax.Array:
    """The mean of a random site where it has a closed form, else its value."""
    if site["type"] == "sample" and not site["is_observed"]:
        try:
            return jnp.asarray(site["fn"].mean)
        except NotImplementedError:
            pass
    return jnp.asarray(site["value"])


def split_utility(trace: Trace) -> tuple[jax.Array, jax.Array]:
    """Expected (reward, cost) of one run: sums over the sites of each role."""
    totals = {
        role: sum((jnp.sum(expected_value(s)) for s in trace.values() if role_of(s) == role), 0.0)
        for role in ("reward", "cost")
    }
    if not any(role_of(s) == "reward" for s in trace.values()):
        raise ValueError(
            f"the model has no reward site (its sites: {list(trace)}), so no action is better "
            'than another. Declare what is wanted with dp.reward("name", ...).'
        )
    return jnp.asarray(totals["reward"]), jnp.asarray(totals["cost"])


def _over_cells(
    value: Callable, worlds: Worlds, actions: Mapping[str, Any], key: Any, num_samples: int
) -> Any:
    """`value(key, world, action)` over draws and actions, averaged over common keys."""
    key = as_key(key)

    def cell(world: Any, action: Any) -> Any:
        if num_samples == 1:
            return value(key, world, action)
        keys = jax.random.split(key, num_samples)
        samples = jax.vmap(lambda k: value(k, world, action))(keys)
        return jax.tree.map(lambda v: jnp.mean(v, axis=0), samples)

    over_actions = jax.vmap(cell, in_axes=(None, 0))
    if not jax.tree.leaves(dict(worlds)):
        return jax.tree.map(lambda v: v[None], over_actions(dict(worlds), actions))
    return jax.vmap(over_actions, in_axes=(0, None))(dict(worlds), actions)


def utility(
    model: Callable,
    worlds: Worlds,
    actions: Any = None,
    *,
    key: Any,
    args: tuple = (),
    data: Mapping[str, Any] | None = None,
    num_samples: int = 1,
) -> jax.Array:
    """Expected utility of every action in every world: `U[draw, action]`.

    `U[s, a] = E[sum of rewards - sum of costs | do(a), world s]`. Sites of closed-form mean
    enter by their mean. What is left random is drawn with one key for all cells (common
    random numbers), so differences between actions are as precise as they can be.

    Args:
        model: a one-round model.
        worlds: dict from latent site to values [draws, ...]; `{}` if the model has none.
        actions: dict from action site to candidates [actions, ...]; an array if there is one
            action site; None enumerates the model's finite action space.
        key: PRNG key (typed or raw) or an int seed.
        args: the model's arguments (the context).
        data: values of context sites known before the decision.
        num_samples: draws per cell of what is left random.

    Returns:
        array [draws, actions] ([1, actions] for a model without latents).

    Raises:
        ValueError: no reward or action site, a world that names an unknown site, or one that
            leaves a latent site of the model open.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        ...     dp.reward("click", dist.Bernoulli(p[dp.action("arm", 2)]))
        >>> dp.utility(model, {"p": jnp.array([[0.25, 0.5]])}, key=0).tolist()
        [[0.25, 0.5]]
    """
    actions = as_actions(model, actions, *args)

    def value(key: Any, world: Any, action: Any) -> jax.Array:
        trace = play(model, key, policy=action, world=world, data=data)(*args)
        reward, cost = split_utility(trace)
        return reward - cost

    return _over_cells(value, worlds, actions, key, num_samples)


def expectations(
    model: Callable,
    worlds: Worlds,
    actions: Any = None,
    *,
    key: Any,
    args: tuple = (),
    data: Mapping[str, Any] | None = None,
    num_samples: int = 1,
) -> dict[str, jax.Array]:
    """Expected value of each outcome, reward and cost site, per world and action.

    What constraints are written on (`rules.feasible`), and what `utility` sums up.

    Args:
        model, worlds, actions, key, args, data, num_samples: as in `utility`.

    Returns:
        dict from site to array [draws, actions, ...].

    Example:
        >>> import decisionppl as dp
        >>> def model():
        ...     a = dp.action("dose", 3)
        ...     dp.reward("effect", 2.0 * a), dp.cost("price", 0.5 * a)
        >>> {n: v.tolist() for n, v in dp.expectations(model, {}, key=0).items()}
        {'effect': [[0.0, 2.0, 4.0]], 'price': [[0.0, 0.5, 1.0]]}
    """
    actions = as_actions(model, actions, *args)

    def value(key: Any, world: Any, action: Any) -> dict[str, jax.Array]:
        trace = play(model, key, policy=action, world=world, data=data)(*args)
        kept = {n: s for n, s in trace.items() if role_of(s) in ("outcome", "reward", "cost")}
        return {n: expected_value(s).astype(float) for n, s in kept.items()}

    return _over_cells(value, worlds, actions, key, num_samples)
