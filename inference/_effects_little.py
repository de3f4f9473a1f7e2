"""Differences-in-Q with the cost counted per step, per job, and both at once by Little's law."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from scipy import stats

from decisionppl.inference._basis import Basis, make_basis
from decisionppl.inference._effect import Effect, check_level, normal_interval
from decisionppl.inference._effects_logged import _dq_at_stationarity
from decisionppl.inference._intervals import (
    Interval,
    as_interval,
    batch_means,
    in_blocks,
    interval_without_key,
    martingale,
)
from decisionppl.inference._scores import check_data, read_steps
from decisionppl.inference._trajectories import Trajectories
from decisionppl.inference._value_estimates import check_fit, closing


def dq_little(
    data: Trajectories,
    arrivals: Any,
    features: int | Callable | None = None,
    *,
    arrival_effect: float = 0.0,
    arms: tuple[int, int] = (0, 1),
    ridge: float = 0.0,
    interval: Interval | None = None,
    level: float = 0.95,
) -> Effect:
    r"""Differences-in-Q of a queue, by the number of jobs and by their response times together.

    With the average J of the reward per step (minus the jobs in the system, say) and the average N
    of arrivals per step, Little's law says that a job is charged :math:`W = J / N` on average. The
    derivative in the probability of treatment is the same in both accounts,

    .. math:: J' = N W' + W N', \qquad W' = (J' - W N') / N,

    so that two estimates of it are Differences-in-Q of the reward per step, :math:`\hat J'`, and
    :math:`\hat N \hat W' + \hat W N'`, with the effect on arrivals :math:`N'` that is known by
    design in place of its estimate. Both tend to J'. They differ by :math:`\hat W (\hat N' - N')`,
    whose limit is zero; the estimate is the mixture :math:`\hat J' - w \hat W (\hat N' - N')` whose
    variance, estimated from the joint influence of steps on both, is the least.

    It is valid where arrivals are not treated (the effect on them is zero: speed of service,
    priorities), and under treatments of arrivals whose effect on their rate is known by design (a
    known share is turned away or called in). Where that effect is not known there is nothing to be
    gained: with an estimate in its place the two accounts are the same number. Jobs that are lost
    to a full buffer are no arrivals.

    Args:
        data: `Trajectories`, whose reward is proportional to the jobs in the system.
        arrivals: jobs that came in each step, [runs, steps].
        features: see `dq`; they should also span the expected number of arrivals to come.
        arrival_effect: N', arrivals per step of treated less those of control steps.
        arms, ridge: see `dq`.
        interval: default `martingale()` for tabular features, else `batch_means()`.
        level: of the interval.

    Returns:
        `Effect` on the reward per step; diagnostics `by_length` and `by_response`, the two
        estimates, their standard errors `by_length_stderr` and `by_response_stderr`, `weight` (w,
        of the response times), and `variance_ratio`: variance by length over that of the mixture.

    Raises:
        ValueError: arrivals of another shape, a probability of zero, a bad setting.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.models import queue_experiment
        >>> model = queue_experiment.queue_experiment(service=(1.0, 1.6), buffer=30)
        >>> runs = markov.rollout(model.step, 3, 20_000, key=0, num_runs=4, burn_in=200)
        >>> came = jnp.diff(runs.state, axis=1) == 1
        >>> found = effects.dq_little(runs, came, 31)
        >>> bool(found.stderr < effects.dq(runs, 31).stderr)
        True

    References:
        Jia, Johari, Si and Zheng, arXiv 2605.29641, propose to mix the two costs by Little's law;
        the estimator here was derived anew from the law.
    """
    check_data(data, arms)
    check_fit(0.0, ridge)
    check_level(level)
    came = jnp.asarray(arrivals).astype(jnp.result_type(float))
    if came.shape != jnp.shape(data.reward):
        raise ValueError(
            f"arrivals: expected [runs, steps], {list(jnp.shape(data.reward))}, got "
            f"{list(came.shape)}."
        )
    basis = make_basis(data.state, features)
    how = as_interval(interval, martingale() if basis.is_table else batch_means())
    if how.method not in ("martingale", "batch_means"):
        raise ValueError("interval: dq_little has martingale() and batch_means() only.")
    asked = (tuple(arms), interval_without_key(how), level)
    return _dq_little(data, came, basis[:2], arrival_effect, asked, basis.size, ridge)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _dq_little(
    data: Trajectories, came: jax.Array, parts: tuple, arrival_effect: Any, asked: tuple,
    size: int, ridge: float,
) -> Effect:  # fmt: skip
    arms, how, level = asked
    basis, steps = Basis(parts[0], parts[1], size), read_steps(data, arms)
    loop, mask = closing(basis, data), steps.ones > 0

    def slope(reward: jax.Array, weights: jax.Array) -> tuple:
        return _dq_at_stationarity(basis, steps.score, reward, loop, ridge, weights)

    def both(weights: jax.Array) -> jax.Array:
        by_length, said = slope(steps.reward, weights)
        more, coming = slope(jnp.where(mask, came, 0.0), weights)
        charge = said["mean_reward"] / coming["mean_reward"]
        return jnp.stack([by_length, by_length - charge * (more - arrival_effect)])

    found, back = jax.vjp(both, steps.ones)
    psi = jnp.stack([back(row)[0] for row in jnp.eye(2)]) * mask
    if how.method == "martingale":
        sums, freedom = psi.reshape(2, -1), None
        cov = sums @ sums.T
    else:
        sums = jnp.stack([in_blocks(x, how.num_blocks).sum(1) for x in psi])
        blocks = sums.shape[1]
        sums, freedom = sums - sums.mean(1, keepdims=True), blocks - 2
        cov = sums @ sums.T * blocks / freedom
    apart = cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]
    weight = jnp.where(apart > 0, (cov[0, 0] - cov[0, 1]) / jnp.where(apart > 0, apart, 1.0), 0.0)
    estimate = found[0] + weight * (found[1] - found[0])
    variance = cov[0, 0] - weight * (cov[0, 0] - cov[0, 1])
    stderr = jnp.sqrt(variance)
    ends = normal_interval(estimate, stderr, level)
    if freedom is not None:
        half = float(stats.t.ppf((1 + level) / 2, freedom)) * stderr
        ends = (estimate - half, estimate + half)
    errors = jnp.sqrt(jnp.diag(cov))
    return Effect(estimate, stderr, ends, {
        "by_length": found[0], "by_length_stderr": errors[0], "by_response": found[1],
        "by_response_stderr": errors[1], "weight": weight, "variance_ratio": cov[0, 0] / variance,
    })  # fmt: skip
