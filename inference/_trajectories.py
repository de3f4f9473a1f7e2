"""Trajectories of Markov models: the model of a whole one, and many simulated ones."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from decisionppl._play import Same, as_key, example_run, play
from decisionppl._roles import role_of
from decisionppl.inference._rule import Rule


class Trajectories(NamedTuple):
    """Runs of a Markov model, simulated or logged.

    A decision is made at each step, or several at once, one per unit (an action site in a plate).

    Attributes:
        state: pytree [runs, steps + 1, ...]: the state before each step, and after the last.
        arm: which of the arms was taken, int [runs, steps] or [runs, steps, units].
        propensity: the probability of each arm in the law that it was drawn from,
            [runs, steps, arms] or [runs, steps, units, arms].
        reward: rewards less costs, [runs, steps].
        mask: bool [runs, steps], False where a run has no step.
    """

    state: Any
    arm: jax.Array
    propensity: jax.Array
    reward: jax.Array
    mask: jax.Array


def chain(step: Callable, init: Any) -> Callable:
    """The model of a trajectory: the step, again and again.

    Args:
        step: `(state, *args) -> next state`, a model; its sites are drawn anew at every step.
        init: the first state, or a model `(*args) -> state` that draws it.

    Returns:
        A model `(num_steps, *args) -> last state`. Its sites are those of `step`, stacked along a
        leading axis [steps]. `decisionppl.act` and conditioning reach them.

    Raises:
        ValueError: a next state of another structure, shape or kind of number than the state.

    Example:
        >>> import numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> from decisionppl.inference import markov
        >>> def walk(position):
        ...     right = dp.action("right", dist.Bernoulli(0.5), given=position)
        ...     dp.reward("gain", 1.0 * right)
        ...     return dp.state("position", position + 2 * right - 1)
        >>> trace = dp.play(markov.chain(walk, 0), 0, policy=1)(4)
        >>> trace["position"]["value"].tolist()
        [1, 2, 3, 4]
    """

    def model(num_steps: int, *args: Any) -> Any:
        first = init(*args) if callable(init) else init
        first = _like_next(step, first, args)
        return scan(lambda s, _: (step(s, *args), None), first, None, length=num_steps)[0]

    return model


def rollout(
    step: Callable,
    init: Any,
    num_steps: int,
    *,
    key: Any,
    policy: Any = None,
    num_runs: int = 1,
    burn_in: int = 0,
    args: tuple = (),
    world: Mapping[str, Any] | None = None,
) -> Trajectories:
    """Simulate trajectories.

    Every step of every run has a key of its own, which depends on `key` alone: calls that differ
    in the policy share all other random numbers, so that their difference has little noise.

    Args:
        step: `(state, *args) -> next state`, a model with one action site.
        init: the first state, or a model `(*args) -> state` that draws it.
        num_steps: steps of each run.
        key: PRNG key or int seed.
        policy: what decides, see `decisionppl.act`. None keeps the logging law. A function is
            compiled anew for every new object; of a `jax.tree_util.Partial` arrays may change.
        num_runs: how many runs, made together.
        burn_in: steps before the first one that is kept.
        args: further arguments of the step, such as parameters.
        world: values of latent sites that are parameters, one for all steps and runs, see
            `decisionppl.play`. Latent sites that are not named are drawn anew at every step.

    Returns:
        `Trajectories`. Calls with the same step, init and sizes compile once.

    Raises:
        ValueError: no reward, no action site or several, or a next state unlike the state.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.inference import markov
        >>> from decisionppl.testing import reference
        >>> market = reference.rental_marketplace(10)
        >>> runs = markov.rollout(market.model, 10, 1000, key=0, num_runs=4, burn_in=100)
        >>> runs.state.shape, runs.propensity.shape
        ((4, 1001), (4, 1000, 2))
    """
    sizes = (num_steps, num_runs, burn_in)
    return simulate(step, init, sizes, key, policy, args, world, full=True)


def simulate(
    step: Callable, init: Any, sizes: tuple[int, int, int], key: Any, policy: Any, args: tuple,
    world: Mapping[str, Any] | None, *, full: bool,
) -> Any:  # fmt: skip
    """`Trajectories`, or only rewards less costs [runs, steps]; see `rollout`."""
    for name, value, least in zip(("num_steps", "num_runs", "burn_in"), sizes, (1, 1, 0),
                                  strict=True):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an int of at least {least}, got {value!r}.")
    drawn, named = callable(init), None
    if isinstance(policy, Mapping):
        if len(policy) != 1:
            raise ValueError(f"policy: expected one action site, got {sorted(policy)}.")
        ((named, policy),) = policy.items()
    # laws and values are arrays that may change without compiling again, as may those of a rule;
    # what else makes up a rule is a program
    rule = None
    if callable(policy) and not isinstance(policy, dist.Distribution):
        rule = Rule(policy)
        policy = rule.arrays(policy)
    return _rollout(
        Same(step), Same(init) if drawn else None, rule, sizes, full, named, as_key(key),
        None if drawn else init, policy, args, dict(world or {}),
    )  # fmt: skip


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _rollout(
    step: Same, draw: Same | None, rule: Rule | None, sizes: tuple[int, int, int], full: bool,
    named: str | None, key: jax.Array, first: Any, law: Any, args: tuple, world: dict,
) -> Any:  # fmt: skip
    num_steps, num_runs, burn_in = sizes
    policy = law if rule is None else rule.policy(law)

    def run(key: jax.Array) -> Any:
        begin, key = jax.random.split(key)
        init = first if draw is None else handlers.seed(draw.value, begin)(*args)
        state = _like_next(step.value, init, args)
        site, values = decision(step.value, state, args)
        if named not in (None, site):
            raise ValueError(f"policy: names {named!r}, the action site of the step is {site!r}.")

        def forward(state: Any, t: jax.Array) -> tuple:
            now = jax.random.fold_in(key, t)
            after, trace = stepped(step.value, now, policy, world, state, args)
            reward = net_reward(trace)
            if not full:
                return after, reward
            law = trace[site]["fn"]
            arm = _number(trace[site]["value"], values)
            return after, (state, arm, probabilities(law, values), reward)

        state = jax.lax.fori_loop(0, burn_in, lambda t, s: forward(s, t)[0], state)
        last, kept = jax.lax.scan(forward, state, burn_in + jnp.arange(num_steps))
        if not full:
            return kept
        states = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), kept[0], last)
        return Trajectories(states, *kept[1:], mask=jnp.ones(num_steps, bool))

    return jax.vmap(run)(jax.random.split(key, num_runs))


def stepped(
    step: Callable, key: Any, policy: Any, world: dict, state: Any, args: tuple,
    data: Mapping[str, Any] | None = None,
) -> tuple:  # fmt: skip
    """The next state, and the trace of the step."""
    kept = []
    model = lambda *a: kept.append(step(*a))  # noqa: E731
    trace = play(model, key, policy, world, data)(state, *args)
    return kept[0], trace


def net_reward(trace: Any) -> jax.Array:
    """Rewards less costs of a step."""
    total = jnp.zeros(())
    for site in trace.values():
        role = role_of(site)
        if role in ("reward", "cost"):
            total = total + (1 if role == "reward" else -1) * jnp.sum(site["value"])
    return total


def decision(step: Callable, state: Any, args: tuple) -> tuple[str, jax.Array]:
    """The action site, and its values [arms]."""
    trace = example_run(step, (state, *args), at_mean=True, values=False)
    found = [n for n, s in trace.items() if role_of(s) == "action"]
    if len(found) != 1:
        raise ValueError(
            f"trajectories are of steps with one action site, this one has {found}. Make of "
            "several decisions one site, over their combinations or in a plate."
        )
    if not any(role_of(s) == "reward" for s in trace.values()):
        raise ValueError(
            f"the step has no reward site (its sites: {list(trace)}). Declare what is wanted with "
            'dp.reward("name", value).'
        )
    law = trace[found[0]]["fn"]
    if not law.has_enumerate_support or law.event_shape:
        raise ValueError(
            f"action site {found[0]!r}: expected finitely many arms, got {type(law).__name__}."
        )
    with jax.ensure_compile_time_eval():
        support = jnp.asarray(law.enumerate_support(expand=False))
    return found[0], support.reshape(len(support))


def _number(value: jax.Array, values: jax.Array) -> jax.Array:
    """Which arm a value is."""
    return jnp.argmax(value[..., None] == values, axis=-1)


def probabilities(law: dist.Distribution, values: jax.Array) -> jax.Array:
    """Probability of each value, [..., arms], also under laws that `act` has put in place."""
    batch = law.batch_shape
    # in a plate the mask is below the expansion
    while isinstance(law, dist.MaskedDistribution | dist.ExpandedDistribution):
        law = law.base_dist
    found = jnp.exp(law.log_prob(values.reshape(len(values), *(1 for _ in batch))))
    # NumPyro keeps probabilities away from zero by rounding, and estimators divide by them
    found = jnp.where(found <= 4 * jnp.finfo(found.dtype).eps, 0.0, found)
    return jnp.moveaxis(jnp.broadcast_to(found, (len(values), *batch)), 0, -1)


def _like_next(step: Callable, state: Any, args: tuple) -> Any:
    """The state, in the dtypes that the step gives back: loops keep theirs."""

    def after(state: Any) -> Any:
        # whatever handles the trajectory must not see this run
        return handlers.block(handlers.seed(step, jax.random.key(0)))(state, *args)

    state = jax.tree.map(jnp.asarray, state)
    then = jax.eval_shape(after, state)
    if jax.tree.structure(then) != jax.tree.structure(state):
        raise ValueError(
            f"the step returns {jax.tree.structure(then)}, a state is "
            f"{jax.tree.structure(state)}. Return the next state in the form in which the state "
            "comes."
        )

    def one(x: jax.Array, y: Any) -> jax.Array:
        real = jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(y.dtype, jnp.floating)
        if x.shape != y.shape or real:
            raise ValueError(
                f"the step makes a state of {y.dtype}{list(y.shape)} from one of "
                f"{x.dtype}{list(x.shape)}. Give a first state of the shape and the kind of "
                "number that the step returns."
            )
        return x.astype(y.dtype)

    return jax.tree.map(one, state, then)
