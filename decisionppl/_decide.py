"""From a belief to a decision: the one path that loops and ask/tell share."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl import rules
from decisionppl._inference import Inference
from decisionppl._play import play
from decisionppl._roles import role_of
from decisionppl._space import as_actions, availability
from decisionppl._structure import depends
from decisionppl._utility import expectations


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


class Decider(NamedTuple):
    """What a decision is derived from; `decide` is a pure function of it.

    Attributes:
        model: a one-round model.
        inference: the belief engine.
        rule: a rule from `decisionppl.rules`, or any callable of that form.
        actions: candidates per action site, [actions, ...].
        draws: worlds drawn per decision where no closed form serves.
        constraint: None, or a function of `expectations` (dict site -> [draws, actions, ...])
            that returns a bool mask [actions] of what is allowed.
        available: bool [actions] if the logging law is the same in every round, None if it
            always offers every action, or "per round".
        roles: names of the reward and of the cost sites.
    """

    model: Callable
    inference: Inference
    rule: Callable
    actions: dict[str, jax.Array]
    draws: int
    constraint: Callable | None
    available: Any
    roles: dict[str, tuple[str, ...]]


def decider(
    model: Callable,
    inference: Inference,
    rule: Callable,
    example: Context,
    *,
    actions: Any = None,
    draws: int | None = None,
    constraint: Callable | None = None,
) -> Decider:
    """Check the parts of a decision against each other."""
    if not isinstance(inference, Inference):
        raise TypeError(
            f"inference: expected an Inference, got {type(inference).__name__}. Build one from "
            "the model: inference.laplace(model, *example_args)."
        )
    if not callable(rule):
        raise TypeError(f"rule: expected a rule such as rules.thompson, got {rule!r}.")
    if draws is None:
        draws = 1 if _unwrapped(rule)[0] is rules.thompson else 128
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}.")
    candidates = as_actions(model, actions, *example.args)
    trace = play(model, 0, data=dict(example.sites))(*example.args)
    roles = {r: tuple(n for n, s in trace.items() if role_of(s) == r) for r in ("reward", "cost")}
    if not roles["reward"]:
        raise ValueError(
            f"the model has no reward site (its sites: {list(trace)}), so no action is better "
            'than another. Declare what is wanted with dp.reward("name", ...).'
        )
    available = _availability(model, candidates, example)
    return Decider(model, inference, rule, candidates, draws, constraint, available, roles)


def _unwrapped(rule: Any) -> tuple[Callable, bool]:
    """The rule inside `functools.partial` and `rules.per_cost`; whether it is per unit of cost."""
    per_cost = False
    while isinstance(rule, functools.partial) or hasattr(rule, "rule"):
        per_cost |= getattr(rule, "per_cost", False)
        rule = rule.func if isinstance(rule, functools.partial) else rule.rule
    return rule, per_cost


def _availability(model: Callable, actions: dict[str, jax.Array], example: Context) -> Any:
    """What is known before the rounds about which actions are on offer."""
    law = functools.partial(availability, model, actions)
    sites = dict(example.sites)
    if any(depends(law, i, example.args, sites) for i in (0, 1)):
        return "per round"
    mask = jax.jit(law)(example.args, sites)
    return None if np.asarray(mask).all() else mask


def _available(parts: Decider, context: Context) -> jax.Array | None:
    if isinstance(parts.available, str):
        return availability(parts.model, parts.actions, context.args, dict(context.sites))
    return parts.available


def _sum_sites(values: Mapping[str, jax.Array], names: tuple[str, ...]) -> jax.Array:
    return sum(values[n].reshape(*values[n].shape[:2], -1).sum(-1) for n in names)  # pyright: ignore


NUM_KEYS = 3


def decide(parts: Decider, keys: Any, belief: Any, context: Context) -> Decision:
    """Choose an action: utilities from the belief, the rule's choice among what is allowed.

    Args:
        parts: model, engine, rule, candidates.
        keys: three PRNG keys, for the worlds, for what stays random in utilities, for the rule.
        belief: of the engine.
        context: what is known.
    """
    mask = _available(parts, context)
    world_key, utility_key, rule_key = keys
    per_cost = _unwrapped(parts.rule)[1]
    predict = parts.inference.predict
    if predict is not None and not per_cost and parts.constraint is None:
        law = predict(belief, parts.actions, context.args, dict(context.sites) or None)
        choice = parts.rule(rule_key, law, mask=mask)
    else:
        worlds = parts.inference.sample(world_key, belief, parts.draws)
        values = expectations(
            parts.model, worlds, parts.actions, key=utility_key, args=context.args,
            data=dict(context.sites),
        )  # fmt: skip
        reward = _sum_sites(values, parts.roles["reward"])
        cost = _sum_sites(values, parts.roles["cost"]) if parts.roles["cost"] else None
        if parts.constraint is not None:
            allowed = parts.constraint(values)
            # if nothing is allowed, the constraint is dropped rather than the round
            allowed = jnp.where(jnp.any(allowed if mask is None else allowed & mask), allowed, True)
            mask = allowed if mask is None else allowed & mask
        if per_cost:
            if cost is None:
                raise ValueError("per_cost needs a cost site in the model: dp.cost(name, ...).")
            choice = parts.rule(rule_key, reward, mask=mask, cost=jnp.mean(cost, axis=0))
        else:
            utility = reward if cost is None else reward - cost
            choice = parts.rule(rule_key, utility, mask=mask)
    action = {n: a[choice.action] for n, a in parts.actions.items()}
    return Decision(action, choice.action, choice.probabilities[choice.action], choice.scores)
