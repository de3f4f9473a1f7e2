"""What deciding among candidates and searching a space have in common."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decisionppl._inference import Surrogate

NUM_KEYS = 3
# utilities between which the best is looked for one step ahead
MOST_TARGETS = 256


class Context(NamedTuple):
    """What is known before a decision.

    Attributes:
        args: the model's arguments.
        sites: dict from context site to value.
    """

    args: tuple = ()
    sites: Mapping[str, Any] = {}


def as_context(context: Any) -> Context:
    """A `Context` from a tuple of arguments, a dict of context sites, one value, or None."""
    if isinstance(context, Context):
        return context
    if context is None:
        return Context()
    if isinstance(context, Mapping):
        return Context((), context)
    return Context(context if isinstance(context, tuple) else (context,))


class Decision(NamedTuple):
    """A decision and its law.

    Attributes:
        action: dict from action site to the value chosen.
        index: its position among the candidate actions.
        propensity: probability with which the rule chose it, given what it saw: the exact
            law of the choice given the Monte Carlo draws (if any), so weights of
            1/propensity are unbiased wherever it is positive.
        scores: [actions], what the rule maximised.
    """

    action: dict[str, jax.Array]
    index: jax.Array
    propensity: jax.Array
    scores: jax.Array


def unwrapped(rule: Any) -> tuple[Callable, bool]:
    """The rule inside `functools.partial` and `rules.per_cost`; whether it is per unit of cost."""
    per_cost = False
    while isinstance(rule, functools.partial) or hasattr(rule, "rule"):
        per_cost |= getattr(rule, "per_cost", False)
        rule = rule.func if isinstance(rule, functools.partial) else rule.rule
    return rule, per_cost


def rule_name(rule: Any) -> str:
    """A rule in words that are the same in every process: its name, with options that are set.

    Example:
        >>> import functools
        >>> from decisionppl import rules
        >>> rule_name(rules.per_cost(functools.partial(rules.ucb, quantile=0.9)))
        'per_cost(ucb(quantile=0.9))'
    """
    if isinstance(rule, functools.partial):
        options = [*map(repr, rule.args), *(f"{k}={v!r}" for k, v in rule.keywords.items())]
        return f"{rule_name(rule.func)}({', '.join(options)})"
    if hasattr(rule, "rule"):
        return f"per_cost({rule_name(rule.rule)})"
    return getattr(rule, "__name__", None) or repr(rule)


def sum_sites(values: Mapping[str, jax.Array], names: tuple[str, ...]) -> jax.Array:
    """Sum over sites and their entries, [draws, actions]."""
    return sum(values[n].reshape(*values[n].shape[:2], -1).sum(-1) for n in names)  # pyright: ignore


def net_of(
    values: Mapping[str, jax.Array], roles: Mapping[str, tuple[str, ...]]
) -> tuple[jax.Array, jax.Array | None]:
    """Rewards, and costs if the model has any, from expectations by site; [draws, actions]."""
    cost = sum_sites(values, roles["cost"]) if roles["cost"] else None
    return sum_sites(values, roles["reward"]), cost


def allowed(
    constraint: Callable | None, values: Mapping[str, jax.Array], mask: jax.Array | None
) -> jax.Array | None:
    """The mask of what is on offer and meets the constraint.

    If nothing would be left, the constraint is dropped rather than the round.
    """
    if constraint is None:
        return mask
    met = constraint(values)
    met = jnp.where(jnp.any(met if mask is None else met & mask), met, True)
    return met if mask is None else met & mask


def hopeful(
    law: Callable, actions: Mapping[str, jax.Array], count: int, mask: jax.Array | None = None
) -> jax.Array:
    """Indices [count] of the actions that may well be the best, by mean and two deviations.

    Args:
        law: `(actions) -> Normal` [draws, actions] of their utilities.
        actions: dict from site to [actions, ...], at least `count` of them.
        count: how many.
        mask: [actions], True for those that come first; None for all.
    """
    found = law(actions)
    hope = jnp.mean(found.loc + 2 * found.scale, axis=0)
    return jax.lax.top_k(hope if mask is None else jnp.where(mask, hope, -jnp.inf), count)[1]


def one_row(action: Mapping[str, Any]) -> dict[str, jax.Array]:
    """One action as a list of one, every value with a leading axis."""
    return {n: jnp.asarray(a)[None] for n, a in action.items()}


def visited_actions(surrogate: Surrogate, belief: Any) -> dict[str, jax.Array]:
    """Actions of the history [rows, ...]; padding repeats the first."""
    return surrogate.visited(belief)[0]
