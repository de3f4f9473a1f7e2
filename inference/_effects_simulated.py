"""Effects by simulating a model under both arms: whole runs, or forks from each step."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers

from decisionppl._play import Same, as_key
from decisionppl.inference._basis import Basis, make_basis
from decisionppl.inference._effect import Effect, check_level
from decisionppl.inference._effects_exact import check_arms
from decisionppl.inference._intervals import (
    Interval,
    Part,
    as_interval,
    batch_means,
    combine,
    influence_effect,
    interval_without_key,
)
from decisionppl.inference._scores import check_data
from decisionppl.inference._trajectories import (
    Trajectories,
    decision,
    net_reward,
    simulate,
    stepped,
)
from decisionppl.inference._value_estimates import check_fit, closing, lstd_sums, solve


def simulated(
    step: Callable,
    init: Any,
    num_steps: int,
    *,
    key: Any,
    num_runs: int = 1,
    burn_in: int = 0,
    args: tuple = (),
    world: Mapping[str, Any] | None = None,
    arms: tuple[int, int] = (0, 1),
    interval: Interval | None = None,
    level: float = 0.95,
) -> Effect:
    """The effect itself, by simulating the model under both arms with the same random numbers.

    Args:
        step: `(state, *args) -> next state`, a model with one action site.
        init: the first state, or a model `(*args) -> state` that draws it.
        num_steps: steps of each run.
        key: PRNG key or int seed.
        num_runs: how many pairs of runs.
        burn_in: steps before the first one that counts.
        args, world: see `markov.rollout`.
        arms: (control, treated), by number.
        interval: default `effects.batch_means()`, over runs if there are so many.
        level: of the interval.

    Returns:
        `Effect` on the average reward per step; diagnostics `control` and `treated`.

    Raises:
        ValueError: see `markov.rollout`.

    Example:
        >>> from decisionppl.inference import effects
        >>> from decisionppl.testing import reference
        >>> chain = reference.two_state_mdp()
        >>> truth = effects.simulated(chain.model, 0, 20_000, key=0, burn_in=20)
        >>> bool(abs(truth.estimate - chain.effect()) < 4 * truth.stderr)
        True
    """
    how = interval_without_key(as_interval(interval, batch_means()))
    if how.method != "batch_means":
        raise ValueError("interval: simulated pairs of runs have batch_means() only.")
    check_level(level)
    values = _arm_values(step, init, args, arms)
    sizes = (num_steps, num_runs, burn_in)
    control, treated = (
        simulate(step, init, sizes, key, value, args, world, full=False) for value in values
    )

    def estimate(weights: jax.Array) -> tuple:
        each = [jnp.sum(weights * x) / jnp.sum(weights) for x in (control, treated)]
        # not the difference of two sums, which would lose digits
        found = jnp.sum(weights * (treated - control)) / jnp.sum(weights)
        return found, {"control": each[0], "treated": each[1]}

    return influence_effect(estimate, jnp.ones_like(control), how, level, None)


def forked(
    step: Callable,
    data: Trajectories,
    features: int | Callable | None = None,
    *,
    key: Any,
    horizon: int = 1,
    exogenous: Mapping[str, Any] | None = None,
    args: tuple = (),
    world: Mapping[str, Any] | None = None,
    arms: tuple[int, int] = (0, 1),
    ridge: float = 0.0,
    interval: Interval | None = None,
    level: float = 0.95,
) -> Effect:
    r"""Differences-in-Q by forks: from every state of an experiment, both arms with the same noise.

    From each state the step is made once under each arm, then `horizon - 1` more steps by the
    logging law, with the same random numbers in both forks; what comes later is worth V, fitted to
    the data by LSTD (see `dq`). The mean of

    .. math:: \sum_{k < H} (R^1_{t+k} - R^0_{t+k}) + V(s^1_{t+H}) - V(s^0_{t+H})

    has far less noise than scores weigh in with, above all where the arms often do the same: those
    steps add nothing. With `horizon=1` it is the paired estimator, which uses what the other arm
    would have done. It needs the model, or logs of what does not depend on decisions.

    Args:
        step: `(state, *args) -> next state`, the model.
        data: the experiment, `Trajectories`; its states are those that the step takes.
        features: see `dq`.
        key: PRNG key or int seed.
        horizon: steps of each fork, H.
        exogenous: dict from site to logged values [runs, steps, ...], replayed in the forks: of
            sites on which decisions have no influence. Other sites are drawn.
        args, world: see `markov.rollout`.
        arms, ridge: see `dq`.
        interval: default `effects.batch_means()`; see `naive`. No bootstrap.
        level: of the interval.

    Returns:
        `Effect`; diagnostics `differs`, the share of steps after which the two forks differ.

    Raises:
        ValueError: features that do not fit the states, a bad setting, exogenous values of
            another shape or of action sites.

    Example:
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> market = reference.rental_marketplace(10)
        >>> runs = markov.rollout(market.model, 8, 20_000, key=0)
        >>> found = effects.forked(market.model, runs, 11, key=1)
        >>> bool(found.stderr < effects.dq(runs, 11).stderr)
        True

    References:
        Farias et al., Correcting for Interference in Experiments, arXiv 2305.02542.
    """
    check_data(data, arms, units=False)
    check_fit(0.0, ridge)
    check_level(level)
    steps = jnp.shape(data.reward)[1]
    if isinstance(horizon, bool) or not isinstance(horizon, int) or not 1 <= horizon <= steps:
        raise ValueError(f"horizon: expected a whole number from 1 to {steps}, got {horizon!r}.")
    how = interval_without_key(as_interval(interval, batch_means()))
    if how.method == "bootstrap":
        raise ValueError("interval: forked has no bootstrap. Use batch_means().")
    basis = make_basis(data.state, features)
    replayed = {n: jnp.asarray(v) for n, v in (exogenous or {}).items()}
    wrong = {n: v.shape for n, v in replayed.items() if v.shape[:2] != jnp.shape(data.reward)}
    if wrong:
        raise ValueError(
            f"exogenous: expected values {list(jnp.shape(data.reward))} and more, got {wrong}."
        )
    first = jax.tree.map(lambda x: x[0, 0], data.state)
    site, _ = decision(step, first, args)
    if site in replayed:
        raise ValueError(
            f"exogenous: {site!r} is the action site, which the forks decide. Leave it out."
        )
    given = Same(features) if callable(features) else features
    asked = (tuple(arms), how, level, horizon, ridge)
    return _forked(Same(step), given, basis.size, asked, data, basis[:2], replayed, as_key(key),
                   args, dict(world or {}))  # fmt: skip


def _arm_values(step: Callable, init: Any, args: tuple, arms: tuple[int, int]) -> list:
    first = handlers.seed(init, jax.random.key(0))(*args) if callable(init) else init
    values = decision(step, first, args)[1]
    check_arms(arms, len(values))
    return [values[a] for a in arms]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _forked(
    step: Same, given: Any, size: int, asked: tuple, data: Trajectories, parts: tuple,
    replayed: dict, key: jax.Array, args: tuple, world: dict,
) -> Effect:  # fmt: skip
    arms, how, level, horizon, ridge = asked
    basis = Basis(parts[0], parts[1], size)
    runs, steps = data.reward.shape
    used = steps - horizon + 1
    _, choices = decision(step.value, jax.tree.map(lambda x: x[0, 0], data.state), args)
    starts = jax.tree.map(lambda x: x[:, :used], data.state)

    def features(state: Any) -> jax.Array:
        return given.value(state) if isinstance(given, Same) else state

    def fork(key: jax.Array, state: Any, run: jax.Array, t: jax.Array, arm: Any) -> tuple:
        def forward(state: Any, k: jax.Array, policy: Any = None) -> tuple:
            logged = {n: v[run, t + k] for n, v in replayed.items()}
            now = jax.random.fold_in(key, k)
            after, trace = stepped(step.value, now, policy, world, state, args, logged)
            return after, net_reward(trace)

        state, reward = forward(state, jnp.asarray(0), arm)
        state, later = jax.lax.scan(forward, state, jnp.arange(1, horizon))
        return reward + later.sum(), state

    def pair(key: jax.Array, state: Any, run: jax.Array, t: jax.Array) -> tuple:
        ends = [fork(key, state, run, t, choices[a]) for a in arms]
        same = [jnp.all(x == y) for x, y in zip(*(jax.tree.leaves(e) for e in ends), strict=True)]
        return ends[1][0] - ends[0][0], features(ends[1][1]), features(ends[0][1]), ~jnp.stack(
            same).all()  # fmt: skip

    keys = jax.random.split(key, (runs, used))
    at = jnp.broadcast_to(jnp.arange(runs)[:, None], (runs, used))
    when = jnp.broadcast_to(jnp.arange(used), (runs, used))
    gain, treated, control, differs = jax.vmap(jax.vmap(pair))(keys, starts, at, when)

    mask = jnp.broadcast_to(data.mask, (runs, steps))
    ones = mask.astype(jnp.result_type(float))
    whole = mask[:, horizon - 1 :]  # forks that end before the run does
    fit = lambda x: jnp.pad(x, ((0, 0), (0, steps - used)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
    share, gain, treated, control, differs = map(fit, (whole, gain, treated, control, differs))
    loop, rewards = closing(basis, data), jnp.where(mask, data.reward, 0.0)

    def moments(part: Part, w: jax.Array) -> dict:
        here, later = (basis.of(x) for x in part.state(basis.values))
        weight = jnp.where(part.step(share), w, 0.0)
        ends = [basis.of(part.step(x)).total(weight) for x in (treated, control)]
        return {
            **lstd_sums(here, later, here, w, part.step(rewards)), "c": ends[0] - ends[1],
            "gain": weight @ part.step(gain), "differs": weight @ part.step(differs),
            "forks": weight.sum(),
        }  # fmt: skip

    def finish(m: dict) -> tuple:
        weights, mean = solve(basis, m, loop, ridge)
        said = {"mean_reward": mean, "differs": m["differs"] / m["forks"]}
        return (m["gain"] + m["c"] @ weights) / m["forks"], said

    return combine(moments, finish, data, ones, None, how, level)
