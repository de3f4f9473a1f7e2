r"""Two states whose transition probabilities wander: the truncated policy gradient benchmark.

The state is the time t and :math:`s_t \in \{0, 1\}`, uniform at first. A step earns
:math:`r_t \sim N(r(s_t, a_t), \sigma_r^2)` with r = [[0, 1], [5, 6]] (states by arms), and moves to
1 with probability :math:`q_t(a_t, s_t)`. The control's law wanders about
:math:`\bar q(s) = 1/2 - \gamma/2, 1/2 + \gamma/2` for s = 0, 1, whose distance in total variation
is the mixing coefficient :math:`\gamma`: the closer to one, the longer a state lasts. For each
state s, the pair x = (probability of 0, probability of 1) follows

.. math::

    x_t &= N[\phi x_{t-1} + (1 - \phi) \bar x + \sigma \epsilon_t], \quad
        \epsilon_t \sim N(0, I_2), \quad x_{-1} = \bar x = (1 - \bar q(s), \bar q(s)), \\
    q_t(0, s) &= x_t[1], \qquad q_t(1, s) = N[x_t + (-\beta, \beta)][1],

where N clips each entry to [.01, .99] and divides by the sum, :math:`\phi` is the smoothness,
:math:`\sigma` the noise and :math:`\beta` the treatment bias. The path q is drawn once and is part
of the model: all runs, under all policies, share it.

The benchmark's paper describes this in words; the display is the definition that the authors' own
experiment follows, and the noise is drawn in the same order from the same generator, so that the
default seed is their path. One thing is our choice: they draw by a coin, once for each seed,
whether states last or alternate; here states always last, as in all their published runs.

References:
    Johari, Peng and Xing, Estimation of Treatment Effects Under Nonstationarity via the Truncated
    Policy Gradient Estimator, arXiv 2506.05308, two-state experiment.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.models._arguments import (
    check_count,
    check_number,
    check_probability,
    check_treatment,
)
from decisionppl.models._markov import MarkovModel

_LEAST, _MOST = 0.01, 0.99
_PUBLISHED_SEED = 42


class State(NamedTuple):
    """State of the benchmark.

    Attributes:
        time: number of steps before this one; it stays at the last of the path.
        state: 0 or 1.
    """

    time: Any
    state: Any


def nonstationary_two_state(
    mixing: float,
    *,
    num_steps: int = 5000,
    treatment_bias: float = 0.1,
    smoothness: float = 0.5,
    noise: float = 0.1,
    reward_noise: float = 0.1,
    seed: int = _PUBLISHED_SEED,
    p: float = 0.5,
) -> MarkovModel:
    """The benchmark at one mixing coefficient.

    The published ones are linspace(.01, .99, 20), rounded to two decimals.

    Args:
        mixing: distance in total variation of the two states' laws, from 0 to 1.
        num_steps: length of the path and of a run.
        treatment_bias: how much the treatment adds to the probability of state 1.
        smoothness: how much of its deviation the law keeps from step to step, from 0 to below 1.
        noise: standard deviation of the law's own noise.
        reward_noise: standard deviation of a reward.
        seed: of the path, see `path`.
        p: probability of treatment under the logging policy.

    Returns:
        `MarkovModel`; sites `treat`, `reward`, `state` and the computed `time`. `states` is None,
        since no pair of time and state occurs twice in a run; the features are indicators of the
        two states. `init` draws the first state (site `first`).

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from decisionppl.inference import markov
        >>> from decisionppl.models import nonstationary_two_state as benchmark
        >>> model = benchmark.nonstationary_two_state(0.3, num_steps=100)
        >>> runs = markov.rollout(model.step, model.init, 100, key=0, num_runs=8)
        >>> runs.reward.shape, runs.state.time[0, :3].tolist()
        ((8, 100), [0, 1, 2])
        >>> round(benchmark.truth(0.3), 4)
        1.7386
    """
    law = path(
        mixing, num_steps=num_steps, treatment_bias=treatment_bias, smoothness=smoothness,
        noise=noise, seed=seed,
    )  # fmt: skip
    check_number("reward_noise", reward_noise, above=0)
    check_treatment(p)
    mean = _rewards()

    def init() -> State:
        return State(jnp.asarray(0), numpyro.sample("first", dist.Bernoulli(0.5)))

    def step(state: State) -> State:
        treat = dp.action("treat", dist.Bernoulli(p), given=state)
        dp.reward("reward", dist.Normal(jnp.asarray(mean)[state.state, treat], reward_noise))
        one = jnp.asarray(law)[state.time, treat, state.state]
        after = dp.state("state", dist.Bernoulli(one))
        return State(dp.state("time", jnp.minimum(state.time + 1, len(law) - 1)), after)

    def features(state: State) -> jax.Array:
        return jax.nn.one_hot(state.state, 2)

    return MarkovModel(step, init, None, features)


def path(
    mixing: float,
    *,
    num_steps: int = 5000,
    treatment_bias: float = 0.1,
    smoothness: float = 0.5,
    noise: float = 0.1,
    seed: int = _PUBLISHED_SEED,
) -> np.ndarray:
    """Probability of moving to state 1 at each time, from the module's recursion.

    Args:
        mixing, num_steps, treatment_bias, smoothness, noise: as in `nonstationary_two_state`.
        seed: of NumPy's legacy generator, whose stream never changes between versions.

    Returns:
        float64 [num_steps, arms, states].

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from decisionppl.models import nonstationary_two_state as benchmark
        >>> benchmark.path(0.3, num_steps=1, noise=0.0)[0].round(2).tolist()
        [[0.35, 0.65], [0.45, 0.75]]
    """
    check_probability("mixing", mixing)
    count = check_count("num_steps", num_steps)
    check_number("treatment_bias", treatment_bias)
    check_number("noise", noise, least=0)
    check_count("seed", seed, 0)
    if check_probability("smoothness", smoothness) == 1:
        raise ValueError("smoothness: expected less than 1, got 1: the law would drift away.")
    # the published path spends one uniform on the coin between lasting and alternating states
    random = np.random.RandomState(seed)
    random.random_sample()
    shocks = noise * random.standard_normal((count, 2, 2))
    half = mixing / 2
    mean = np.array([[0.5 + half, 0.5 - half], [0.5 - half, 0.5 + half]])  # [states, next states]
    control, now = np.empty((count, 2, 2)), mean
    for t in range(count):
        now = _normalised(smoothness * now + (1 - smoothness) * mean + shocks[t])
        control[t] = now
    treated = _normalised(control + np.array([-treatment_bias, treatment_bias]))
    return np.stack([control[..., 1], treated[..., 1]], axis=1)


def value(theta: float, mixing: float, **settings: Any) -> float:
    r"""Average reward over the horizon, exactly, when each step is treated with one probability.

    The probability :math:`\pi_t` of state 1 follows
    :math:`\pi_{t+1} = (1 - \pi_t) q_t(\theta, 0) + \pi_t q_t(\theta, 1)`, from 1/2.

    Args:
        theta: probability of treatment, from 0 to 1.
        mixing: as in `nonstationary_two_state`.
        **settings: those of `path`.

    Returns:
        The average in double precision.

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from decisionppl.models import nonstationary_two_state as benchmark
        >>> benchmark.value(0.0, 0.5, num_steps=1)
        2.5
    """
    law = np.array([1 - check_probability("theta", theta), theta])
    moves = np.einsum("tas,a->ts", path(mixing, **settings), law)
    low, high = _rewards() @ law
    one, total = 0.5, 0.0
    for from_low, from_high in moves.tolist():
        total += (1 - one) * low + one * high
        one = (1 - one) * from_low + one * from_high
    return float(total / len(moves))


def truth(mixing: float, **settings: Any) -> float:
    """The treatment effect: average reward over the horizon, all treated less none, exactly.

    Args:
        mixing: as in `nonstationary_two_state`.
        **settings: those of `path`.

    Returns:
        The effect in double precision.

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from decisionppl.models import nonstationary_two_state as benchmark
        >>> benchmark.truth(0.5, num_steps=1)  # a single step has no later ones
        1.0
    """
    return value(1.0, mixing, **settings) - value(0.0, mixing, **settings)


def _rewards() -> np.ndarray:
    """Mean rewards [states, arms]."""
    return np.array([[0.0, 1.0], [5.0, 6.0]])


def _normalised(x: np.ndarray) -> np.ndarray:
    """Entries clipped away from 0 and 1, then divided by their sum."""
    x = np.clip(x, _LEAST, _MOST)
    return x / x.sum(-1, keepdims=True)
