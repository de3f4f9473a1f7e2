"""What to settle for: the best action by what is known, and what more knowledge could bring."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decisionppl._decide import Decider, distinct
from decisionppl._decision import MOST_TARGETS, Context, hopeful, net_of, one_row, unwrapped
from decisionppl._maximise import maximise
from decisionppl._preposterior import log_knowledge_gradient
from decisionppl._propose import promising
from decisionppl._utility import expectations

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
    if parts.inference.surrogate is None:
        return _by_draws(parts, keys, belief, context)
    surrogate, args, data = parts.inference.surrogate, context.args, dict(context.sites)
    per_cost = unwrapped(parts.rule)[1]
    view = surrogate.view(belief)

    def law(actions: Any) -> Any:
        return surrogate.utility(view, actions, args, data, not per_cost)

    if parts.space is None:
        candidates = parts.actions
        index = jnp.argmax(jnp.mean(law(candidates).loc, axis=0))
        best = {n: a[index] for n, a in candidates.items()}
        targets = {
            n: a[distinct(parts.inference, candidates, net=not per_cost)]
            for n, a in candidates.items()
        }
        count = len(next(iter(targets.values())))
        if count > MOST_TARGETS:
            chosen = hopeful(law, targets, MOST_TARGETS)
            targets = {n: a[chosen] for n, a in targets.items()}
    else:
        mean = lambda a: jnp.mean(law(one_row(a)).loc)  # noqa: E731
        starts = surrogate.visited(belief)[0]
        best = maximise(mean, parts.space, keys[0], starts=starts).action
        targets = candidates = promising(parts.space, keys[1], law)
    targets = {n: jnp.concatenate([a, jnp.asarray(best[n])[None]]) for n, a in targets.items()}
    known = surrogate.preposterior(view, candidates, targets, args, data, not per_cost)
    gain = log_knowledge_gradient(known)
    if per_cost:
        worlds = parts.inference.sample(keys[0], belief, parts.draws)
        values = expectations(parts.model, worlds, candidates, key=keys[1], args=args, data=data)
        gain = gain - jnp.log(jnp.mean(net_of(values, parts.roles)[1], axis=0))  # pyright: ignore
    loc, scale = law(one_row(best)).loc[:, 0], law(one_row(best)).scale[:, 0]
    spread = jnp.mean(scale**2) + jnp.var(loc)
    return Recommendation(
        best, jnp.mean(loc), jnp.sqrt(spread), _shortfall(known, keys[2]), jnp.exp(jnp.max(gain))
    )


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


def _by_draws(parts: Decider, keys: Any, belief: Any, context: Context) -> Recommendation:
    if parts.space is not None:
        raise ValueError(
            "recommend: the action space is not finite and the engine has no surrogate; give "
            "candidates through actions=."
        )
    worlds = parts.inference.sample(keys[0], belief, _DRAWS)
    values = expectations(
        parts.model, worlds, parts.actions, key=keys[1], args=context.args,
        data=dict(context.sites),
    )  # fmt: skip
    reward, cost = net_of(values, parts.roles)
    draws = reward if cost is None else reward - cost
    index = jnp.argmax(jnp.mean(draws, axis=0))
    own = draws[:, index]
    action = {n: a[index] for n, a in parts.actions.items()}
    regret = jnp.mean(jnp.max(draws, axis=1) - own)
    return Recommendation(action, jnp.mean(own), jnp.std(own), regret, None)
