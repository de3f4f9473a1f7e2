"""From a belief to a decision: the one path that loops and ask/tell share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from decisionppl import rules
from decisionppl._decision import (
    MOST_TARGETS,
    Context,
    Decision,
    allowed,
    hopeful,
    net_of,
    unwrapped,
    visited_actions,
)
from decisionppl._gaussian_process import check_drawn
from decisionppl._inference import Inference
from decisionppl._maximise import check_space, elements, product
from decisionppl._play import Same, example_run
from decisionppl._propose import check_searchable, propose
from decisionppl._roles import role_of
from decisionppl._space import action_sites, as_actions, availability, is_finite
from decisionppl._structure import depends
from decisionppl._utility import expectations


class Decider(NamedTuple):
    """What a decision is derived from; `decide` is a pure function of it.

    Attributes:
        model: a one-round model.
        inference: the belief engine.
        rule: a rule from `decisionppl.rules`, or any callable of that form.
        actions: candidates per action site, [actions, ...]; empty where the space is searched.
        draws: worlds drawn per decision where no closed form serves.
        constraint: None, or a function of `expectations` (dict site -> [draws, actions, ...])
            that returns a bool mask [actions] of what is allowed.
        available: bool [actions] if the logging law is the same in every round, None if it
            always offers every action, or "per round"; in a searched space "per round" or None.
        roles: names of the reward and of the cost sites.
        space: None, or the law of each action site, where there are no candidates and the
            action is searched for in their supports.
        targets: None, or indices of candidates that between them have every utility.
    """

    model: Callable
    inference: Inference
    rule: Callable
    actions: dict[str, jax.Array]
    draws: int
    constraint: Callable | None
    available: Any
    roles: dict[str, tuple[str, ...]]
    space: dict[str, dist.Distribution] | None = None
    targets: np.ndarray | None = None


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
        draws = 1 if unwrapped(rule)[0] is rules.thompson else 128
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}.")
    space = None
    if actions is None:
        sites = action_sites(model, *example.args)
        space = None if is_finite(sites) else sites
    candidates = {} if space is not None else as_actions(model, actions, *example.args)
    trace = example_run(model, example.args, example.sites, at_mean=True, values=False)
    roles = {r: tuple(n for n, s in trace.items() if role_of(s) == r) for r in ("reward", "cost")}
    if not roles["reward"]:
        raise ValueError(
            f"the model has no reward site (its sites: {list(trace)}), so no action is better "
            'than another. Declare what is wanted with dp.reward("name", ...).'
        )
    needs_targets = hasattr(unwrapped(rule)[0], "targets")
    if needs_targets and inference.surrogate is None:
        raise ValueError(
            f"{getattr(unwrapped(rule)[0], '__name__', rule)} asks what outcomes would tell, which "
            "needs an engine with a surrogate: inference.gaussian_process."
        )
    if space is not None:
        check_searchable(rule)
        offered = _availability(model, _everywhere(space), example)
        offered = None if offered is None else "per round"
        return Decider(
            model, inference, rule, {}, draws, constraint, offered, roles, space, None
        )  # fmt: skip
    available = _availability(model, candidates, example)
    targets = None
    if needs_targets:
        targets = distinct(inference, candidates, net=not unwrapped(rule)[1])
    return Decider(
        model, inference, rule, candidates, draws, constraint, available, roles, None, targets
    )


def distinct(inference: Inference, actions: dict[str, jax.Array], *, net: bool) -> np.ndarray:
    """Indices of candidates that between them have every utility: one per set of equals."""
    return np.unique(same_utility(inference, actions, net=net))


def same_utility(inference: Inference, actions: dict[str, jax.Array], *, net: bool) -> np.ndarray:
    """For each candidate the index of the first with the same utility, [actions]."""
    assert inference.surrogate is not None
    names = inference.surrogate.relevant.get(net, tuple(actions))
    relevant = [np.asarray(actions[n]) for n in names]
    count = len(next(iter(actions.values())))
    if not relevant:
        return np.zeros(count, int)
    table = np.concatenate([a.reshape(count, -1) for a in relevant], axis=1)
    _, first, which = np.unique(table, axis=0, return_index=True, return_inverse=True)
    return first[which.ravel()]


def _everywhere(space: dict[str, dist.Distribution]) -> dict[str, jax.Array]:
    """Every combination of the finite sites of a searched space, one value of the others."""
    check_space(space)
    values = {}
    for name, law in space.items():
        found = elements(name, law)
        if found is None:
            found = law.support.feasible_like(jnp.zeros(law.event_shape))[None]
        values[name] = found
    product(values)
    index = np.indices([len(v) for v in values.values()]).reshape(len(values), -1)
    return {n: v[i] for (n, v), i in zip(values.items(), index, strict=True)}


def _availability(model: Callable, actions: dict[str, jax.Array], example: Context) -> Any:
    """What is known before the rounds about which actions are on offer."""
    law = functools.partial(availability, model, actions)
    sites = dict(example.sites)
    if any(depends(law, i, example.args, sites) for i in (0, 1)):
        return "per round"
    mask = _offered_now(Same(model), actions, example.args, sites)
    return None if np.asarray(mask).all() else mask


@functools.partial(jax.jit, static_argnums=0)
def _offered_now(
    model: Same, actions: dict[str, jax.Array], args: tuple, sites: dict[str, Any]
) -> jax.Array:
    """As `availability`, compiled once for each model."""
    return availability(model.value, actions, args, sites)


def offered(parts: Decider, context: Context) -> jax.Array | None:
    """Which candidates the model offers now, [actions]; None for all."""
    if isinstance(parts.available, str):
        return availability(parts.model, parts.actions, context.args, dict(context.sites))
    return parts.available


def decide(parts: Decider, keys: Any, belief: Any, context: Context) -> Decision:
    """Choose an action: utilities from the belief, the rule's choice among what is allowed.

    Args:
        parts: model, engine, rule, candidates.
        keys: three PRNG keys, for the worlds, for what stays random in utilities, for the rule.
        belief: of the engine.
        context: what is known.
    """
    if parts.space is not None:
        return propose(parts, keys, belief, context)
    mask = offered(parts, context)
    world_key, utility_key, rule_key = keys
    per_cost = unwrapped(parts.rule)[1]
    inference, args, data = parts.inference, context.args, dict(context.sites)
    predict = inference.predict
    closed = predict is not None and not per_cost and parts.constraint is None
    if closed and parts.targets is None:
        law = predict(belief, parts.actions, args, data or None)  # pyright: ignore
        choice = parts.rule(rule_key, law, mask=mask)
    else:
        utility, cost = None, None
        if parts.targets is None or parts.constraint is not None or per_cost:
            worlds = inference.sample(world_key, belief, parts.draws)
            worlds = check_drawn(worlds) if parts.targets is None else worlds
            values = expectations(
                parts.model, worlds, parts.actions, key=utility_key, args=args, data=data
            )
            mask = allowed(parts.constraint, values, mask)
            utility, cost = net_of(values, parts.roles)
            utility = utility if cost is None or per_cost else utility - cost
        extra = {"cost": _price(cost)} if per_cost else {}
        if parts.targets is not None:
            utility = _preposterior(parts, belief, args, data, net=not per_cost)
        choice = parts.rule(rule_key, utility, mask=mask, **extra)
    action = {n: a[choice.action] for n, a in parts.actions.items()}
    return Decision(action, choice.action, choice.probabilities[choice.action], choice.scores)


def _preposterior(parts: Decider, belief: Any, args: tuple, data: Any, *, net: bool) -> Any:
    """What the outcome of each candidate would tell about the distinct utilities."""
    surrogate = parts.inference.surrogate
    assert surrogate is not None
    view = surrogate.view(belief)
    if unwrapped(parts.rule)[0].targets == "visited":
        targets = visited_actions(surrogate, belief)
    else:
        targets = {n: a[parts.targets] for n, a in parts.actions.items()}
        if len(parts.targets) > MOST_TARGETS:  # pyright: ignore[reportArgumentType]
            law = lambda a: surrogate.utility(view, a, args, data, net)  # noqa: E731
            best = hopeful(law, targets, MOST_TARGETS)
            targets = {n: a[best] for n, a in targets.items()}
    return surrogate.preposterior(view, parts.actions, targets, args, data, net)


def _price(cost: jax.Array | None) -> jax.Array:
    if cost is None:
        raise ValueError("per_cost needs a cost site in the model: dp.cost(name, ...).")
    return jnp.mean(cost, axis=0)
