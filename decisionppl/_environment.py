"""Where outcomes come from: the model at a drawn world, or any callable."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decisionppl._decision import Context, as_context
from decisionppl._play import example_run, is_latent, play
from decisionppl._roles import role_of
from decisionppl._utility import utility


class Environment(NamedTuple):
    """What an experiment runs against. All functions are pure and traced once.

    Attributes:
        init: `(key) -> state`, per replication (a world, a shuffle of the data).
        context: `(key, state, t) -> Context`, or a tuple of the model's arguments, or a
            dict of context sites; `t` is the index of the decision.
        step: `(key, state, t, context, action) -> outcomes`, dict from site to value; `action`
            is a dict from action site to value.
        value: `(state, t, context, actions) -> [actions]`, the expected utility of every
            candidate, for the regret; None if unknown.
    """

    init: Callable
    context: Callable
    step: Callable
    value: Callable | None = None


def logged_names(model: Callable, context: Context) -> list[str]:
    """Sites whose values an environment returns: random outcomes, rewards and costs."""
    trace = example_run(model, context.args, context.sites, at_mean=True, values=False)
    return [n for n, s in trace.items() if _is_logged(s)]


def _is_logged(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and role_of(site) in ("outcome", "reward", "cost")


def _context_source(contexts: Any) -> Callable:
    """`(key, t) -> Context` from None, a callable, or arrays with a leading axis [decisions]."""
    if contexts is None:
        return lambda key, t: Context()
    if callable(contexts):
        return lambda key, t: as_context(contexts(key, t))
    given = as_context(contexts)
    table = jax.tree.map(jnp.asarray, given)
    return lambda key, t: jax.tree.map(lambda x: x[t], table)


def num_contexts(contexts: Any) -> int | None:
    """How many decisions the given context arrays last for; None without end."""
    if contexts is None or callable(contexts):
        return None
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(as_context(contexts))}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"contexts: expected arrays with one common leading axis [decisions, ...], got "
            f"leading axes {sorted(sizes)}."
        )
    return sizes.pop()[0]


def from_model(
    model: Callable, *, world: Mapping[str, Any] | None = None, contexts: Any = None
) -> Environment:
    """The model itself as the environment, at a world drawn per replication.

    Args:
        model: a one-round model.
        world: a fixed world instead; latents it leaves out are drawn.
        contexts: None, arrays [decisions, ...] (one, or a tuple for several arguments), or
            `(key, t) -> context`. Context sites of the model are drawn from the model.

    Returns:
        An `Environment` that knows expected utilities, so regret is exact.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        ...     dp.reward("click", dist.Bernoulli(p[dp.action("arm", 2)]))
        >>> env = dp.experiment.from_model(model)
        >>> sorted(env.init(jax.random.key(0)))
        ['p']
    """
    source = _context_source(contexts)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        world_key, context_key = jax.random.split(key)
        trace = play(model, world_key, world=world)(*source(context_key, 0).args)
        return {n: s["value"] for n, s in trace.items() if is_latent(s)}

    def context(key: jax.Array, state: Any, t: Any) -> Context:
        args_key, sites_key = jax.random.split(key)
        args = source(args_key, t).args
        trace = play(model, sites_key, world=state)(*args)
        sites = {n: s["value"] for n, s in trace.items()
                 if role_of(s) == "context" and s["type"] == "sample"}  # fmt: skip
        return Context(args, sites)

    def step(
        key: jax.Array, state: Any, t: Any, context: Context, action: Mapping[str, Any]
    ) -> Any:
        trace = play(model, key, policy=action, world=state, data=context.sites)(*context.args)
        return {n: s["value"] for n, s in trace.items() if _is_logged(s)}

    def value(state: Any, t: Any, context: Context, actions: Mapping[str, Any]) -> jax.Array:
        worlds = jax.tree.map(lambda x: x[None], state)
        return utility(model, worlds, actions, key=0, args=context.args, data=context.sites)[0]

    return Environment(init, context, step, value)


def from_callable(model: Callable, function: Callable, contexts: Any) -> Environment:
    """An environment from `(key, context, action) -> outcomes`."""
    source = _context_source(contexts)

    def step(
        key: jax.Array, state: Any, t: Any, context: Context, action: Mapping[str, Any]
    ) -> Any:
        seen = context.args if len(context.args) != 1 else context.args[0]
        seen = {**context.sites} if context.sites else (seen if context.args else None)
        chosen = dict(action) if len(action) > 1 else next(iter(action.values()))
        outcomes = function(key, seen, chosen)
        if isinstance(outcomes, Mapping):
            return dict(outcomes)
        names = logged_names(model, context)
        if len(names) != 1:
            raise TypeError(
                f"environment: the model logs {names}, so it must return a dict with a value "
                f"for each; got {type(outcomes).__name__}."
            )
        return {names[0]: outcomes}

    return Environment(lambda key: (), lambda key, state, t: source(key, t), step)


def as_environment(model: Callable, environment: Any, contexts: Any) -> Environment:
    """An `Environment` from None or the model (a drawn world), a callable, or itself."""
    if isinstance(environment, Environment):
        if contexts is not None:
            raise ValueError("contexts: an Environment brings its own; leave contexts out.")
        return environment
    if environment is None or environment is model:
        return from_model(model, contexts=contexts)
    if callable(environment):
        return from_callable(model, environment, contexts)
    raise TypeError(
        "environment: expected the model, a callable (key, context, action) -> outcomes, or an "
        f"Environment; got {type(environment).__name__}."
    )
