"""Effects from trajectories of an experiment, simulated or logged."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from decisionppl.inference._basis import Basis, make_basis
from decisionppl.inference._effect import Effect, check_level
from decisionppl.inference._intervals import (
    Interval,
    Part,
    as_interval,
    batch_means,
    combine,
    influence_effect,
    interval_without_key,
    martingale,
)
from decisionppl.inference._scores import check_data, read_steps
from decisionppl.inference._trajectories import Trajectories
from decisionppl.inference._value_estimates import (
    bordered_system,
    check_fit,
    check_window,
    closing,
    lstd_sums,
    solve,
    traced,
    traces,
    window_sums,
)


def naive(
    data: Trajectories, *, arms: tuple[int, int] = (0, 1), interval: Interval | None = None,
    level: float = 0.95,
) -> Effect:  # fmt: skip
    r"""Mean of rewards, weighted by one over the probability of what was done.

    .. math:: \frac1T \sum_t \eta_t R_t, \quad \eta_t = 1\{a_t = 1\} / \pi(1 | s_t) -
        1\{a_t = 0\} / \pi(0 | s_t).

    It sees what a step earns, not what it leaves to later steps, so it is biased by interference.

    Args:
        data: `Trajectories`.
        arms: (control, treated), by number.
        interval: `effects.batch_means()` (default), `regeneration(state)`, `bootstrap(key)` or
            `martingale()`.
        level: of the interval.

    Returns:
        `Effect`.

    Raises:
        ValueError: a probability of zero, a bad setting.

    Example:
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> chain = reference.two_state_mdp()
        >>> runs = markov.rollout(chain.model, 0, 20_000, key=0)
        >>> found = effects.naive(runs)
        >>> bool(abs(found.estimate - chain.naive()) < 4 * found.stderr)
        True
    """
    check_data(data, arms)
    how, key = _setting(data, interval, batch_means(), level)
    return _linear(data, key, (arms, how, level), "naive")


def difference_in_means(
    data: Trajectories, *, arms: tuple[int, int] = (0, 1), interval: Interval | None = None,
    level: float = 0.95,
) -> Effect:  # fmt: skip
    """Weighted mean reward of treated less that of control decisions.

    The same limit as `naive` with less noise; see there for arguments.
    """
    check_data(data, arms)
    how, key = _setting(data, interval, batch_means(), level)
    return _linear(data, key, (arms, how, level), "difference")


def dq(
    data: Trajectories, features: int | Callable | None = None, *,
    arms: tuple[int, int] = (0, 1), value_trace: float = 0.0, score_trace: float = 0.0,
    ridge: float = 0.0, interval: Interval | None = None, level: float = 0.95,
) -> Effect:  # fmt: skip
    r"""Differences-in-Q: what a treated step is worth more than a control step, later included.

    .. math:: \frac1T \sum_t \eta_t (R_t + V(s_{t+1}) - V(s_t) - \bar R)

    with :math:`\eta` as in `naive` and V the differential value under the experiment's law, fitted
    by LSTD: :math:`\theta` solves :math:`\sum_t z_t (\phi_t - \phi_{t+1})^T \theta = \sum_t z_t
    (R_t - \bar R)` with :math:`z_t = \phi_t + \lambda z_{t-1}`. The loop is closed: a transition
    from the last state to the first is counted, without which a state that was left once and not
    returned to makes the system all but singular.

    Args:
        data: `Trajectories`.
        features: what V is linear in: n for states that are numbers from 0 to n - 1 (tabular); a
            function from a state to a vector; None for states that are vectors. A constant need
            not be among them.
        arms: (control, treated), by number.
        value_trace: :math:`\lambda` of LSTD, in [0, 1).
        score_trace: weight with which scores of earlier steps count, in [0, 1): trades the bias of
            a poor V for variance (DQ(lambda), generalised advantage estimation).
        ridge: added to the diagonal of the system per step, in units of squared features of
            scale one.
        interval: default `martingale()` for tabular features without traces, else
            `batch_means()`; see `naive`.
        level: of the interval.

    Returns:
        `Effect`; diagnostics `mean_reward` (under the experiment) and with the bootstrap its
        `replicates`.

    Raises:
        ValueError: a probability of zero, features that do not fit the states, a bad setting.

    Example:
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> chain = reference.two_state_mdp()
        >>> found = effects.dq(markov.rollout(chain.model, 0, 20_000, key=0), 2)
        >>> bool(abs(found.estimate - chain.dq()) < 4 * found.stderr)
        True

    References:
        Farias et al., arXiv 2206.02371 (Differences-in-Q); Farias et al., arXiv 2305.02542.
    """
    check_data(data, arms)
    check_fit(value_trace, ridge, "value_trace")
    check_fit(score_trace, ridge, "score_trace")
    basis = make_basis(data.state, features)
    if value_trace and basis.is_table:
        raise ValueError(
            "value_trace: expected features that are vectors. Use features=value.one_hot(n)."
        )
    default = martingale() if basis.is_table and not score_trace else batch_means()
    how, key = _setting(data, interval, default, level)
    options = (value_trace, score_trace, ridge)
    return _dq(data, basis[:2], key, (arms, how, level), basis.size, options)


def dq_monte_carlo(
    data: Trajectories, window: int, *, arms: tuple[int, int] = (0, 1),
    interval: Interval | None = None, level: float = 0.95,
) -> Effect:  # fmt: skip
    r"""Differences-in-Q without a value function: rewards of the next steps stand for it.

    .. math:: \frac1T \sum_t \eta_t \sum_{k=0}^{L} (R_{t+k} - \bar R)

    Its bias is what a decision does after more than L steps; its variance grows with L. The mean
    reward is subtracted, without which the variance would be far larger still.

    Args:
        data: `Trajectories`.
        window: L; 0 gives the naive estimate, centred.
        arms, interval, level: see `naive`. Blocks should be much longer than the window.

    Returns:
        `Effect`.

    Raises:
        ValueError: a probability of zero, a bad setting.

    Example:
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> runs = markov.rollout(reference.two_state_mdp().model, 0, 20_000, key=0)
        >>> found = effects.dq_monte_carlo(runs, 10)
        >>> bool(abs(found.estimate - 1.4167) < 4 * found.stderr)
        True

    References:
        Johari, Peng and Xing, arXiv 2506.05308 (truncated policy gradient).
    """
    check_data(data, arms)
    check_window(data, window)
    how, key = _setting(data, interval, batch_means(), level)
    return _linear(data, key, (arms, how, level), window)


def off_policy_lstd(
    data: Trajectories, features: int | Callable | None = None, *,
    arms: tuple[int, int] = (0, 1), doubly_robust: bool = False, ridge: float = 0.0,
    interval: Interval | None = None, level: float = 0.95,
) -> Effect:  # fmt: skip
    r"""Off-policy evaluation: the average reward of each arm, from the steps on which it was taken.

    LSTD on the steps of arm a finds :math:`J_a` and :math:`V_a` together; the effect is
    :math:`J_1 - J_0`. Tabular, half a step is counted in every state as the experiment went on
    from it, since a state from which an arm was never seen to lead away would trap the chain.
    Without bias where features span the values, with a variance that may be exponentially larger
    than that of `dq`.

    Args:
        data: `Trajectories`, one unit a step.
        features, arms, ridge: see `dq`.
        doubly_robust: correct :math:`J_a` by the weighted mean of :math:`\omega_a(s) 1\{a_t = a\}
            (R + V_a(s') - V_a(s) - J_a) / \pi(a | s)`, with the ratio :math:`\omega_a` of
            stationary laws fitted in the same features. With weights one and the experiment's V
            this correction is Differences-in-Q.
        interval: default `martingale()` for tabular features, else `batch_means()`; no bootstrap.
        level: of the interval.

    Returns:
        `Effect`; diagnostics `control` and `treated`, the two average rewards, and
        `control_effective_steps` and `treated_effective_steps`: as how many steps the weighted
        ones count. Where they are few, the states that an arm would lead to were hardly seen, and
        the interval is too narrow.

    Raises:
        ValueError: a probability of zero, several units a step, a bad setting.

    Example:
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> chain = reference.two_state_mdp()
        >>> found = effects.off_policy_lstd(markov.rollout(chain.model, 0, 20_000, key=0), 2)
        >>> bool(abs(found.estimate - chain.effect()) < 4 * found.stderr)
        True
    """
    check_data(data, arms, units=False)
    basis = make_basis(data.state, features)
    how, _ = _setting(data, interval, martingale() if basis.is_table else batch_means(), level)
    if how.method == "bootstrap":
        raise ValueError("interval: off_policy_lstd has no bootstrap. Use batch_means().")
    return _off_policy(data, basis[:2], (arms, how, level), basis.size, doubly_robust, ridge)


def _setting(
    data: Trajectories, interval: Any, default: Interval, level: float
) -> tuple[Interval, Any]:
    """How intervals are made, without the key; and the key."""
    how = as_interval(interval, default)
    check_level(level)
    if how.method == "regeneration":
        _check_visits(data, how.state)
    return interval_without_key(how), how.key


def _check_visits(data: Trajectories, number: Any) -> None:
    """Refuse a state that the runs do not return to: there would be no two sums to compare."""
    state = jax.tree.leaves(data.state)[0]
    if jnp.ndim(state) != 2:
        raise ValueError(
            "interval: regeneration needs states that are numbers, got "
            f"{state.dtype}{list(state.shape)}. Use batch_means()."
        )
    if isinstance(state, Tracer):
        return
    visits = int(((state[:, :-1] == number) & data.mask).sum())
    if visits < 2:
        raise ValueError(
            f"interval: regeneration({number}) needs a state that is often visited, and the runs "
            f"are in that state {visits} times. Give another, or use batch_means()."
        )


Asked = tuple[tuple[int, int], Interval, float]  # arms, interval, level


@partial(jax.jit, static_argnums=(2, 3))
def _linear(data: Trajectories, key: Any, asked: Asked, which: str | int) -> Effect:
    """Estimates that need no value function."""
    arms, how, level = asked
    steps = read_steps(data, arms)
    score = steps.score if isinstance(which, str) else window_sums(steps.score, which)
    inverse = [x if x.ndim == 2 else x.mean(-1) for x in steps.inverse]

    def moments(part: Part, w: jax.Array) -> dict:
        reward = part.step(steps.reward)
        found = {"n": w.sum(), "reward": w @ reward}
        if which == "difference":
            for name, x in zip(("control", "treated"), inverse, strict=True):
                weight = w * part.step(x)
                found |= {name: weight.sum(), f"{name} reward": weight @ reward}
            return found
        weight = w * part.step(score)
        return found | {"score": weight.sum(), "both": weight @ reward}

    def finish(m: dict) -> tuple:
        mean = m["reward"] / m["n"]
        said = {"mean_reward": mean}
        if which == "difference":
            each = [m[f"{n} reward"] / m[n] for n in ("control", "treated")]
            return each[1] - each[0], said
        centre = 0.0 if which == "naive" else mean
        return (m["both"] - centre * m["score"]) / m["n"], said

    return combine(moments, finish, data, steps.ones, key, how, level)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _dq(
    data: Trajectories, parts: tuple, key: Any, asked: Asked, size: int,
    options: tuple[float, float, float],
) -> Effect:  # fmt: skip
    arms, how, level = asked
    basis, steps = Basis(parts[0], parts[1], size), read_steps(data, arms)
    value_trace, score_trace, ridge = options
    score = traced(steps.score, score_trace)
    loop, held = closing(basis, data), traces(basis, value_trace)
    if how.method == "martingale" and not value_trace:
        run = partial(_dq_at_stationarity, basis, score, steps.reward, loop, ridge)
        return influence_effect(run, steps.ones, how, level, data.state)

    def moments(part: Part, w: jax.Array) -> dict:
        here, later = (basis.of(x) for x in part.state(basis.values))
        reward, weight = part.step(steps.reward), w * part.step(score)
        trace = here if held is None else basis.of(*map(part.step, held))
        return {
            **lstd_sums(here, later, trace, w, reward), "c": later.total(weight) -
            here.total(weight), "both": weight @ reward, "score": weight.sum(),
        }  # fmt: skip

    def finish(m: dict) -> tuple:
        weights, mean = solve(basis, m, loop, ridge)
        total = m["both"] - mean * m["score"] + m["c"] @ weights
        return total / m["n"], {"mean_reward": m["reward"] / m["n"]}

    return combine(moments, finish, data, steps.ones, key, how, level)


def _dq_at_stationarity(
    basis: Basis, score: jax.Array, reward: jax.Array, loop: jax.Array, ridge: float,
    ones: jax.Array,
) -> tuple[jax.Array, dict]:  # fmt: skip
    """Differences-in-Q under the stationary law of the fitted chain, as a function of weights.

    That law is the share of steps in each state, since the loop is closed: the estimate is the
    same. Its derivative is not. Steps in one direction only, in and out of a state, move the
    stationary law, and with it the influences of steps become martingale differences.
    """
    here, later = basis.of(basis.values[:, :-1]), basis.of(basis.values[:, 1:])
    weight, score, reward = ones.ravel(), score.ravel(), reward.ravel()
    sums = lstd_sums(here, later, here, weight, reward)
    bordered, gauge = bordered_system(here, sums, loop, ridge)
    found = jnp.linalg.solve(bordered, sums["b"])
    weights, mean = found.at[gauge].set(0.0), found[gauge]
    start = jnp.zeros(here.size, found.dtype).at[gauge].set(sums["n"])
    ratio = here.at(jnp.linalg.solve(bordered.T, start))
    level = jax.lax.stop_gradient(ratio)
    ratio = ratio / jnp.where(level != 0, level, 1.0)  # one, but for its derivative
    error = reward - mean + later.at(weights) - here.at(weights)
    return weight @ (ratio * score * error) / sums["n"], {"mean_reward": mean}


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _off_policy(
    data: Trajectories, parts: tuple, asked: Asked, size: int, doubly_robust: bool, ridge: float
) -> Effect:
    arms, how, level = asked
    basis, steps = Basis(parts[0], parts[1], size), read_steps(data, arms)
    loop = closing(basis, data)

    def moments(part: Part, w: jax.Array) -> dict:
        here, later = (basis.of(x) for x in part.state(basis.values))
        reward = part.step(steps.reward)
        control, treated = (w * part.step(x) for x in steps.inverse)
        weights = {"pooled": w, "control": control, "treated": treated}
        return {n: lstd_sums(here, later, here, v, reward) for n, v in weights.items()}

    def finish(m: dict) -> tuple:
        each, pooled = {}, m["pooled"]
        half = 0.5 / jnp.maximum(pooled["seen"], 1.0)
        for name in ("control", "treated"):
            sums = m[name]
            if basis.is_table:  # half a step by the law of the experiment from every state seen
                scaled = {"A": half[:, None], "f": half, "b": half, "seen": half}
                sums = sums | {n: sums[n] + x * pooled[n] for n, x in scaled.items()}
            # the loop is closed for each arm, as the chain would have gone on under either
            bordered, gauge = bordered_system(basis, sums, loop, ridge)
            found = jnp.linalg.solve(bordered, sums["b"])
            weights, mean = found.at[gauge].set(0.0), found[gauge]
            start = jnp.zeros(basis.size, found.dtype).at[gauge].set(sums["n"])
            ratio = jnp.linalg.solve(bordered.T, start)
            if doubly_robust:
                error = m[name]["b"] - m[name]["A"] @ weights - m[name]["f"] * mean
                mean = mean + ratio @ error / sums["n"]
            each |= {name: mean, f"{name}_ratio": ratio}
        return each["treated"] - each["control"], each

    found = combine(moments, finish, data, steps.ones, None, how, level)
    said, everywhere = dict(found.diagnostics), basis._replace(values=basis.values[:, :-1])
    for name, inverse in zip(("control", "treated"), steps.inverse, strict=True):
        weight = everywhere.at(said.pop(f"{name}_ratio")) * inverse * steps.ones
        said[f"{name}_effective_steps"] = weight.sum() ** 2 / jnp.sum(weight**2)
    return found._replace(diagnostics=said)
