"""What to settle for: the best action by what is known, and what more knowledge could bring."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._decide import Decider, offered, same_utility
from decisionppl._decision import MOST_TARGETS, Context, allowed, hopeful, net_of, one_row
from decisionppl._gaussian_process import check_drawn
from decisionppl._maximise import maximise
from decisionppl._preposterior import log_knowledge_gradient
from decisionppl._propose import Asked, promising

_DRAWS = 2048


class Recommendation(NamedTuple):
    """The action of highest posterior mean, and how much there is left to learn.

    Attributes:
        action: dict from action site to value.
        mean: posterior mean of its utility.
        sd: posterior standard deviation of its utility.
        regret: expected shortfall, E[max U - U of the action], over the actions compared: the
            most that perfect knowledge could still gain on average.
        gain: largest knowledge gradient of any candidate, per unit of cost if the rule is; None
            without a surrogate. Once the best next observation is worth less than it costs,
            it is time to stop.
    """

    action: dict[str, jax.Array]
    mean: jax.Array
    sd: jax.Array
    regret: jax.Array
    gain: jax.Array | None


def recommend(parts: Decider, keys: Any, belief: Any, context: Context) -> Recommendation:
    """The recommendation of a belief.

    Args:
        parts: model, engine, rule, candidates or space.
        keys: three PRNG keys.
        belief: of the engine.
        context: what is known.
    """
    asked = Asked(parts, keys, belief, context)
    if asked.surrogate is None:
        return _by_draws(parts, asked, keys, context)
    net = not asked.per_cost
    if parts.space is None:
        best, compared = _of_list(parts, asked, context)
    else:
        best, compared = _of_space(parts, asked, keys)
    # what is not to be had adds nothing to a maximum if the best stands in for it
    targets = {
        n: jnp.concatenate([jnp.where(_column(compared.open, a), a, best[n]), best[n][None]])
        for n, a in compared.targets.items()
    }
    known = asked.surrogate.preposterior(
        asked.view, compared.candidates, targets, asked.args, asked.data, net
    )
    gain = jnp.where(compared.allowed, log_knowledge_gradient(known), -jnp.inf)
    if asked.per_cost:
        values = asked.values(asked.worlds, compared.candidates)
        gain = gain - jnp.log(jnp.mean(net_of(values, parts.roles)[1], axis=0))  # pyright: ignore
    law = asked.law(one_row(best))
    loc, scale = law.loc[:, 0], law.scale[:, 0]
    spread = jnp.mean(scale**2) + jnp.var(loc)
    return Recommendation(
        best, jnp.mean(loc), jnp.sqrt(spread), _shortfall(known, keys[2]), jnp.exp(jnp.max(gain))
    )


class _Compared(NamedTuple):
    """What the best is compared with.

    Attributes:
        candidates: actions that may be asked next, [actions, ...].
        allowed: [actions].
        targets: actions of different utilities, [targets, ...].
        open: [targets], True where an allowed action has this utility.
    """

    candidates: dict[str, jax.Array]
    allowed: jax.Array
    targets: dict[str, jax.Array]
    open: jax.Array


def _of_list(parts: Decider, asked: Asked, context: Context) -> tuple[dict, _Compared]:
    """The best candidate, and all of them."""
    candidates = parts.actions
    mask = _allowed(parts, asked, candidates, offered(parts, context))
    mean = jnp.mean(asked.law(candidates).loc, axis=0)
    index = jnp.argmax(jnp.where(mask, mean, -jnp.inf))
    best = {n: a[index] for n, a in candidates.items()}
    first = same_utility(parts.inference, candidates, net=not asked.per_cost)
    distinct, which = np.unique(first, return_inverse=True)
    targets = {n: a[distinct] for n, a in candidates.items()}
    available = jnp.zeros(len(distinct), bool).at[which].max(mask)
    if len(distinct) > MOST_TARGETS:
        chosen = hopeful(asked.law, targets, MOST_TARGETS, available)
        targets, available = {n: a[chosen] for n, a in targets.items()}, available[chosen]
    return best, _Compared(candidates, mask, targets, available)


def _of_space(parts: Decider, asked: Asked, keys: Any) -> tuple[dict, _Compared]:
    """The best action of a searched space, and points all over it."""
    assert parts.space is not None
    best = _searched(parts, asked, keys[0])
    if parts.available is None and parts.constraint is None:
        points = promising(parts.space, keys[1], asked.law)
        every = jnp.ones(len(next(iter(points.values()))), bool)
        return best, _Compared(points, every, points, every)
    # more of them, and of those that are allowed as many as without restrictions
    pool = promising(parts.space, keys[1], asked.law, times=4)
    # the best among them: where it meets the constraint, that is not dropped
    known = {n: jnp.concatenate([a, best[n][None]]) for n, a in pool.items()}
    mask = _allowed(parts, asked, known, asked.offered(known))[:-1]
    count = len(mask) // 8
    chosen = [hopeful(asked.law, pool, count, mask), jnp.argsort(~mask)[:count]]
    pick = jnp.concatenate(chosen)
    points = {n: a[pick] for n, a in pool.items()}
    return best, _Compared(points, mask[pick], points, mask[pick])


def _searched(parts: Decider, asked: Asked, key: Any) -> dict[str, jax.Array]:
    """The allowed action of highest mean; if no action meets the constraint, without it."""
    assert parts.space is not None
    starts = asked.visited()

    def search(score: Any) -> Any:
        return maximise(score, parts.space, key, starts=starts)  # pyright: ignore

    found = search(asked.where_allowed(asked.mean))
    if parts.constraint is not None:
        found = jax.lax.cond(
            jnp.isfinite(found.value),
            lambda: found,
            lambda: search(asked.where_offered(asked.mean)),
        )
    return {n: jnp.asarray(a) for n, a in found.action.items()}


def _allowed(parts: Decider, asked: Asked, actions: Any, mask: Any) -> jax.Array:
    """Which actions are on offer and meet the constraint, [actions]."""
    values = {} if parts.constraint is None else asked.values(asked.worlds, actions)
    met = allowed(parts.constraint, values, mask)
    return jnp.ones(len(next(iter(actions.values()))), bool) if met is None else met


def _column(mask: jax.Array, like: jax.Array) -> jax.Array:
    return mask.reshape(-1, *(1,) * (like.ndim - 1))


def _shortfall(known: Any, key: Any) -> jax.Array:
    """E[max of targets - the last of them], by joint draws."""

    def one(key: Any, mean: jax.Array, covariance: jax.Array) -> jax.Array:
        size = mean.shape[0]
        values, vectors = jnp.linalg.eigh(covariance)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
        draws = mean + jax.random.normal(key, (_DRAWS, size), mean.dtype) @ root.T
        return jnp.mean(jnp.max(draws, axis=1) - draws[:, -1])

    keys = jax.random.split(key, known.mean.shape[0])
    return jnp.mean(jax.vmap(one)(keys, known.mean, known.covariance))


def _by_draws(parts: Decider, asked: Asked, keys: Any, context: Context) -> Recommendation:
    """From draws of all utilities, for engines that have no closed form."""
    if parts.space is None:
        actions, mask = parts.actions, offered(parts, context)
    else:
        draws = jax.random.split(keys[2], len(parts.space))
        laws = zip(draws, parts.space.items(), strict=True)
        best = _searched(parts, asked, keys[0])
        actions = {
            n: jnp.concatenate([jnp.asarray(law.sample(k, (MOST_TARGETS,))), best[n][None]])
            for k, (n, law) in laws
        }
        mask = asked.offered(actions)
    worlds = check_drawn(parts.inference.sample(keys[0], asked.belief, _DRAWS))
    values = asked.values(worlds, actions)
    reward, cost = net_of(values, parts.roles)
    utility = reward if cost is None or asked.per_cost else reward - cost
    mask = allowed(parts.constraint, values, mask)
    if mask is not None:
        utility = jnp.where(mask, utility, -jnp.inf)
    index = jnp.argmax(jnp.mean(utility, axis=0))
    own = utility[:, index]
    action = {n: a[index] for n, a in actions.items()}
    regret = jnp.mean(jnp.max(utility, axis=1) - own)
    return Recommendation(action, jnp.mean(own), jnp.std(own), regret, None)
