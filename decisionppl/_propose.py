"""Deciding where actions cannot be listed: the rule's score, maximised over the action space."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from decisionppl import rules
from decisionppl._decision import (
    MOST_TARGETS,
    Context,
    Decision,
    hopeful,
    net_of,
    one_row,
    unwrapped,
    visited_actions,
)
from decisionppl._gaussian_process import check_drawn
from decisionppl._knowledge import normal_nodes
from decisionppl._maximise import Maximum, ascend, maximise
from decisionppl._preposterior import (
    log_knowledge_bound,
    log_knowledge_gradient,
    log_max_value_information,
)
from decisionppl._space import availability
from decisionppl._utility import expectations

if TYPE_CHECKING:
    from decisionppl._decide import Decider

# rules whose score of an action is a function of its own utility and of the incumbent
_LOCAL = (
    rules.expected_improvement, rules.log_ei, rules.greedy, rules.ucb,
)  # fmt: skip
_IMPROVING = (rules.expected_improvement, rules.log_ei)
_LOOKAHEAD = (
    rules.knowledge_gradient, rules.noisy_expected_improvement, rules.max_value_entropy,
)  # fmt: skip
_VISITED = 32  # incumbents that searches start from
_CANDIDATES = 512
_RESTARTS = 8
_OUTCOMES = 16  # of an action, for which the best target is looked for
_TARGET_STEPS = 24


def check_searchable(rule: Callable) -> None:
    """Refuse rules that compare a list of actions with each other."""
    base = unwrapped(rule)[0]
    if base in (*_LOCAL, *_LOOKAHEAD, rules.thompson, rules.uniform):
        return
    names = sorted(r.__name__ for r in (*_LOCAL, *_LOOKAHEAD, rules.thompson, rules.uniform))
    raise ValueError(
        f"{getattr(base, '__name__', base)} compares a list of actions, but the action space is "
        f"not finite. Give candidates through actions=, or use one of {', '.join(names)}."
    )


def propose(parts: "Decider", keys: Any, belief: Any, context: Context) -> Decision:
    """Search the action space for the action that the rule scores highest.

    Args:
        parts: with `space` set.
        keys: three PRNG keys, for the worlds, for what stays random in utilities, for the search.
        belief: of the engine.
        context: what is known.

    Returns:
        Decision; its index is 0 and its propensity, a density, is NaN: it is not known.
    """
    assert parts.space is not None
    base = unwrapped(parts.rule)[0]
    search_key = keys[2]
    asked = Asked(parts, keys, belief, context)
    if base is rules.uniform:
        return _decision(_drawn(parts.space, search_key, asked.where_allowed(lambda _: 0.0)))
    incumbent_key, final_key = jax.random.split(search_key)
    starts = asked.visited()
    search = functools.partial(maximise, space=parts.space, num_candidates=_CANDIDATES)
    screen = sharpen = None
    if base is rules.thompson:
        score = asked.thompson()
    elif base in _LOOKAHEAD:
        mean = asked.where_allowed(asked.mean)
        best = search(mean, key=incumbent_key, num_restarts=_RESTARTS // 2, starts=starts)
        score, screen, sharpen = asked.lookahead(base, best, starts, final_key)
        starts = {n: jnp.concatenate([starts[n], best.action[n][None]]) for n in starts}
    else:
        extra = {}
        if base in _IMPROVING and "best" not in _options(parts.rule):
            mean = asked.where_allowed(asked.mean)
            best = search(mean, key=incumbent_key, num_restarts=_RESTARTS // 2, starts=starts)
            # where nothing is allowed the score is masked everywhere, whatever the incumbent
            extra = {"best": jnp.where(jnp.isfinite(best.value), best.value, 0.0)}
        score = asked.local(extra)
    bound = None if screen is None else asked.where_allowed(screen)
    return _decision(
        search(
            asked.where_allowed(score), key=final_key, num_restarts=_RESTARTS, starts=starts,
            screen=bound, sharpen=sharpen,
        )
    )  # fmt: skip


def _drawn(space: Mapping[str, dist.Distribution], key: Any, allowed: Callable) -> Maximum:
    """The first of many draws of each site's law that is allowed; the first of all if none is."""
    keys = jax.random.split(key, len(space))
    draws = {
        n: jnp.asarray(law.sample(k, (_CANDIDATES,)))
        for k, (n, law) in zip(keys, space.items(), strict=True)
    }
    first = jnp.argmax(jax.vmap(allowed)(draws))
    return Maximum({n: a[first] for n, a in draws.items()}, jnp.zeros(()))


def _decision(found: Maximum) -> Decision:
    none = jnp.zeros((), jnp.int32)
    value = found.value[None]
    return Decision(found.action, none, jnp.full((), jnp.nan, value.dtype), value)


def _options(rule: Any) -> dict[str, Any]:
    """Keyword arguments that `functools.partial` has set on a rule."""
    options: dict[str, Any] = {}
    while isinstance(rule, functools.partial) or hasattr(rule, "rule"):
        if isinstance(rule, functools.partial):
            options = {**rule.keywords, **options}
            rule = rule.func
        else:
            rule = rule.rule
    return options


class Asked:
    """What a belief says about one action, as functions that are searched; built once.

    Args:
        parts: model, engine, rule, constraint.
        keys: PRNG keys, for the worlds and for what stays random in utilities.
        belief: of the engine.
        context: what is known.
    """

    def __init__(self, parts: "Decider", keys: Any, belief: Any, context: Context) -> None:
        self.parts, self.keys, self.belief = parts, keys, belief
        self.args, self.data = context.args, dict(context.sites)
        self.surrogate = parts.inference.surrogate
        self.per_cost = unwrapped(parts.rule)[1]
        self.view = None if self.surrogate is None else self.surrogate.view(belief)
        needs_worlds = self.view is None or self.per_cost or parts.constraint is not None
        self.worlds: Any = None
        if needs_worlds:
            worlds = parts.inference.sample(keys[0], belief, parts.draws)
            self.worlds = check_drawn(worlds) if self.view is None else worlds
        if self.per_cost and not parts.roles["cost"]:
            raise ValueError("per_cost needs a cost site in the model: dp.cost(name, ...).")

    def visited(self) -> dict[str, jax.Array]:
        """Actions of the history from which searches start; else one draw of each law."""
        space = self.parts.space
        assert space is not None
        if self.surrogate is None:
            return {n: jnp.asarray(s.sample(self.keys[1], (1,))) for n, s in space.items()}
        actions = visited_actions(self.surrogate, self.belief)
        actions = {n: actions[n] for n in space}
        count = len(next(iter(actions.values())))
        if count <= _VISITED:
            return actions
        mean = self.law(actions).mean
        best = jax.lax.top_k(jnp.mean(mean, axis=0), _VISITED)[1]
        return {n: a[best] for n, a in actions.items()}

    def law(self, actions: Any) -> Any:
        """Utility of each action by the surrogate, [draws, actions]."""
        assert self.surrogate is not None
        return self.surrogate.utility(self.view, actions, self.args, self.data, not self.per_cost)

    def values(self, worlds: Any, actions: Any) -> dict[str, jax.Array]:
        """Expectations by site, [draws, actions, ...]."""
        model, key = self.parts.model, self.keys[1]
        return expectations(model, worlds, actions, key=key, args=self.args, data=self.data)

    def offered(self, actions: Any) -> jax.Array | None:
        """Which actions the model offers now, [actions]; None for all."""
        if self.parts.available is None:
            return None
        return availability(self.parts.model, actions, self.args, self.data)

    def _utility(self, worlds: Any, action: Any) -> jax.Array:
        """Utility of one action per world, [draws]; rewards alone if costs divide."""
        reward, cost = net_of(self.values(worlds, one_row(action)), self.parts.roles)
        net = reward if cost is None or self.per_cost else reward - cost
        return net[:, 0]

    def price(self, action: Any) -> jax.Array | None:
        """Expected cost [1] where the rule is per unit of cost."""
        if not self.per_cost:
            return None
        cost = net_of(self.values(self.worlds, one_row(action)), self.parts.roles)[1]
        assert cost is not None
        return jnp.mean(cost, axis=0)

    def mean(self, action: Any) -> jax.Array:
        """Posterior mean of the utility."""
        if self.view is None:
            return jnp.mean(self._utility(self.worlds, action))
        return jnp.mean(self.law(one_row(action)).mean)

    def local(self, extra: dict[str, Any]) -> Callable:
        """The rule's score of the action's own utility."""
        rule = self.parts.rule
        logarithmic = unwrapped(rule)[0] is rules.log_ei

        def score(action: Any) -> jax.Array:
            given = dict(extra)
            price = self.price(action)
            if price is not None:
                given["cost"] = price
            if self.view is None:
                draws = self._utility(self.worlds, action)[:, None]
                return rule(self.keys[1], draws, **given).scores[0]
            law = self.law(one_row(action))

            def one(loc: Any, scale: Any) -> jax.Array:
                return rule(self.keys[1], dist.Normal(loc, scale), **given).scores[0]

            scores = jax.vmap(one)(law.loc, law.scale)
            if logarithmic:
                return logsumexp(scores) - jnp.log(scores.shape[0])
            return jnp.mean(scores)

        return score

    def thompson(self) -> Callable:
        """The utility in one world."""
        world = check_drawn(self.parts.inference.sample(self.keys[0], self.belief, 1))

        def score(action: Any) -> jax.Array:
            value = self._utility(world, action)[0]
            price = self.price(action)
            return value if price is None else value / price[0]

        return score

    def lookahead(
        self, base: Callable, best: Maximum, starts: Any, key: Any
    ) -> tuple[Callable, Callable | None, Callable | None]:
        """The logarithm of what the action's outcome is worth, a bound that costs less, and what
        makes it more exact near given actions."""
        space = self.parts.space
        assert space is not None
        draw_key, max_key = jax.random.split(key)
        targets = {n: jnp.concatenate([starts[n], best.action[n][None]]) for n in space}
        if base is not rules.noisy_expected_improvement:
            more = promising(space, draw_key, self.law)
            targets = {n: jnp.concatenate([targets[n], a]) for n, a in more.items()}
        if base is rules.max_value_entropy:
            value_of = functools.partial(log_max_value_information, max_key)
            return self._told(value_of, targets), None, None

        def sharpen(actions: Any) -> Callable:
            best_after = self._best_after(actions, targets)
            union = {n: jnp.concatenate([targets[n], a]) for n, a in best_after.items()}
            return self.where_allowed(self._told(log_knowledge_gradient, union))

        score = self._told(log_knowledge_gradient, targets)
        bound = self._told(log_knowledge_bound, targets)
        return score, bound, sharpen if base is rules.knowledge_gradient else None

    def _preposterior(self, action: Any, targets: Any) -> Any:
        surrogate = self.surrogate
        assert surrogate is not None
        net = not self.per_cost
        return surrogate.preposterior(
            self.view, one_row(action), targets, self.args, self.data, net
        )

    def _told(self, value_of: Callable, targets: Any) -> Callable:
        """The value of an action's outcome by what it tells of the targets, less the log price."""

        def score(action: Any) -> jax.Array:
            value = value_of(self._preposterior(action, targets))[0]
            price = self.price(action)
            return value if price is None else value - jnp.log(price[0])

        return score

    def _best_after(self, actions: Any, targets: Any) -> dict[str, jax.Array]:
        """What would be settled for after some outcomes of each action, [actions * outcomes, ...].

        The knowledge gradient looks for the best among fixed targets; with these it has, for
        outcomes spread evenly, what a search of the whole space would find.
        """
        space = self.parts.space
        assert space is not None
        before = jax.lax.map(lambda a: self._preposterior(a, targets), actions)
        change = before.change[:, :, 0]  # [actions, draws, outcomes, targets]
        count, draws = change.shape[:2]
        nodes = jnp.asarray(normal_nodes(_OUTCOMES, change.shape[2]), change.dtype)
        which = jnp.arange(count * _OUTCOMES) // _OUTCOMES
        node = nodes[jnp.arange(count * _OUTCOMES) % _OUTCOMES]
        draw = jnp.arange(count * _OUTCOMES) % draws
        after = before.mean[which, draw] + jnp.einsum("kot,ko->kt", change[which, draw], node)
        first = jnp.argmax(after, axis=1)
        rows = {n: targets[n][first] for n in space}
        index, of, outcome = (f"{min(space)}/{n}" for n in ("action", "draw", "outcome"))

        def height(row: Any) -> jax.Array:
            action = {n: a[row[index]] for n, a in actions.items()}
            known = self._preposterior(action, one_row({n: row[n] for n in space}))
            move = known.change[row[of], 0, :, 0] @ row[outcome]
            return known.mean[row[of], 0] + move

        rows = {**rows, index: which, of: draw, outcome: node}
        found = ascend(height, space, rows, max_steps=_TARGET_STEPS)
        return {n: found[n] for n in space}

    def where_offered(self, score: Callable) -> Callable:
        """The score, minus infinity where the model does not offer the action."""

        def restricted(action: Any) -> jax.Array:
            on_offer = self.offered(one_row(action))
            value = score(action)
            return value if on_offer is None else jnp.where(on_offer[0], value, -jnp.inf)

        return restricted

    def where_allowed(self, score: Callable) -> Callable:
        """The same, and where the constraint is not met."""
        constraint, score = self.parts.constraint, self.where_offered(score)
        if constraint is None:
            return score

        def constrained(action: Any) -> jax.Array:
            met = constraint(self.values(self.worlds, one_row(action)))[0]
            return jnp.where(met, score(action), -jnp.inf)

        return constrained


def promising(
    space: Mapping[str, dist.Distribution], key: Any, law: Callable, times: int = 1
) -> dict[str, jax.Array]:
    """Points of the space between which the best is looked for, one step ahead.

    Args:
        space: law of each action site.
        key: PRNG key.
        law: `(actions) -> Normal` [draws, actions] of their utilities.
        times: by how much there are to be more of them.

    Returns:
        dict from site to [points, ...]: half those of many draws that may well be the best, half
        from everywhere, so that no region is left out.
    """
    keys = jax.random.split(key, len(space))
    many = {
        n: jnp.asarray(site.sample(k, (16 * MOST_TARGETS,)))
        for k, (n, site) in zip(keys, space.items(), strict=True)
    }
    count = times * MOST_TARGETS // 4
    pick = jnp.concatenate([hopeful(law, many, count), jnp.arange(count)])
    return {n: a[pick] for n, a in many.items()}
