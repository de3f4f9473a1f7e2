r"""Effects in a finite Markov model, exactly: Taylor series, asymptotic errors, posteriors."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from decisionppl.inference._kernel import Kernel
from decisionppl.inference._markov_chain import (
    Chain,
    initial_law,
    make_chain,
    mixed,
    policy_table,
    shrinkage,
)
from decisionppl.inference.value import check_horizon, evaluate

Form = Literal["policy", "kernel"]


class Taylor(NamedTuple):
    r"""A Taylor expansion of a treatment effect, and how good it is.

    Attributes:
        estimate: the effect to the order that was asked for.
        by_order: to every order from 0, [order + 1].
        coefficients: terms of the value of each arm, [2, order + 1] (control, treated); their
            cumulative sums are the values of the arms to every order.
        effect: the exact effect, J of the treated arm less J of the control arm.
        bias: `estimate - effect`.
        ratio: what the terms of each arm shrink by in the long run, [2]: the spectral radius of
            the operator of the series (for more than 400 states the rate of its terms); zero for
            a horizon, where the series ends.
        radius: radius of convergence, [2], in steps from the logging law (0) to the arm (1):
            one over `ratio`.
        converges: whether both ratios are below one. If not, higher orders do harm.
        form: "policy" or "kernel".
    """

    estimate: float
    by_order: np.ndarray
    coefficients: np.ndarray
    effect: float
    bias: float
    ratio: np.ndarray
    radius: np.ndarray
    converges: bool
    form: str


def taylor(
    kernel: Kernel,
    order: int = 1,
    *,
    p: Any = None,
    form: Form = "policy",
    discount: float | None = None,
    horizon: int | None = None,
    initial: Any = None,
    arms: tuple[int, int] = (0, 1),
) -> Taylor:
    r"""Effect of treating every step rather than none, expanded about the experiment.

    With :math:`\pi` the law of the experiment and :math:`P, r` its kernel and reward, arm a is
    reached along :math:`\pi_t = (1 - t) \pi + t\,\delta_a`. In the policy form the value is
    expanded in t, to t = 1:

    .. math:: J_a = \rho r + \sum_{k \ge 1} \rho\,[(P_a - P) Z]^{k - 1} (r_a - r + (P_a - P) V).

    If each step is treated with probability p, the difference of the two arms is
    :math:`\sum_k [(1 - p)^k - (-p)^k] J^{(k)}(p) / k!`. Order 0 is zero and order 1 is
    Differences-in-Q, :math:`J'(p)`. At p = 1/2 even orders add nothing: the bias of order 1 is of
    third order in the size of the intervention there, and of second order elsewhere. In the
    kernel form only the kernel is expanded,

    .. math:: J_a = \sum_{k \ge 0} \rho\,[(P_a - P) Z]^k r_a,

    so that order 0 is the naive estimate; its order 1 is Differences-in-Q only at p = 1/2.
    Discounted: :math:`\mu (I - \gamma P)^{-1}` stands for :math:`\rho` and
    :math:`\gamma (I - \gamma P)^{-1}` for Z. With a horizon T, both forms are exact at order T.

    Args:
        kernel: from `markov.kernel`.
        order: of the expansion.
        p: the experiment: None is the logging law; a number is the probability of arm 1 of two;
            an array [arms] or [states, arms].
        form: "policy" or "kernel".
        discount: effect on the total reward discounted by this factor per step; without it and
            without a horizon, on the average reward per step.
        horizon: effect on the total reward of so many steps.
        initial: with a discount or a horizon, the first state: its number, or probabilities
            [states]; default uniform.
        arms: (control, treated), by number.

    Returns:
        `Taylor`, in double precision.

    Raises:
        ValueError: a chain that is periodic or reducible (average reward), a bad setting.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> chain = markov.kernel(reference.two_state_mdp().model, jnp.arange(2))
        >>> first = effects.taylor(chain)
        >>> round(first.estimate, 8), round(first.effect, 8), first.converges
        (1.41666667, 1.55555556, True)
        >>> round(effects.taylor(chain, 0, form="kernel").estimate, 8)
        1.0

    References:
        Farias et al., Markovian Interference in Experiments, arXiv 2206.02371, for order 1.
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 0:
        raise ValueError(f"order: expected a whole number, zero or more, got {order!r}.")
    if form not in ("policy", "kernel"):
        raise ValueError(f'form: expected "policy" or "kernel", got {form!r}.')
    table = policy_table(kernel, p)
    check_arms(arms, kernel.num_arms)
    ends = [np.eye(kernel.num_arms)[a] for a in arms]
    if horizon is None:
        chain = make_chain(kernel, table, discount, initial, "the chain of the experiment")
        names = [f"the chain under arm {a}" for a in arms]
        worth = [
            float(end.weights @ end.reward)
            for end in (
                make_chain(kernel, policy_table(kernel, e), discount, initial, name)
                for e, name in zip(ends, names, strict=True)
            )
        ]
        terms, ratio = zip(*(_series(kernel, chain, e, order, form) for e in ends), strict=True)
    else:
        check_horizon(horizon, discount)
        common = {"horizon": horizon, "initial": initial}
        worth = [evaluate(kernel, e, **common).value for e in ends]
        terms = [_finite(kernel, table, e, order, form, horizon, initial) for e in ends]
        ratio = (0.0, 0.0)
    coefficients = np.array(terms)
    by_order = np.cumsum(coefficients[1] - coefficients[0])
    effect = worth[1] - worth[0]
    ratios = np.array(ratio)
    with np.errstate(divide="ignore"):
        radius = 1 / ratios
    return Taylor(
        float(by_order[-1]), by_order, coefficients, effect, float(by_order[-1]) - effect, ratios,
        radius, bool((ratios < 1).all()), form,
    )  # fmt: skip


def check_arms(arms: Any, count: int) -> None:
    """Two different arms, by number."""
    whole = len(arms) == 2 and all(isinstance(a, int) and 0 <= a < count for a in arms)
    if not whole or arms[0] == arms[1]:
        raise ValueError(
            f"arms: expected (control, treated), two different numbers below {count}, got {arms!r}."
        )


def terms(
    weights: Any, resolve: Callable, change: Callable, reward: Any, arm_reward: Any, order: int,
    form: str,
) -> list:  # fmt: skip
    """Coefficients of a series, order by order, whatever the arrays are made of.

    Args:
        weights: of the criterion, [states].
        resolve: Z or N, a function of [states].
        change: difference of the kernels, a function of [states].
        reward: of the experiment, [states].
        arm_reward: of the arm, [states].
        order: of the last one.
        form: "policy" or "kernel".
    """
    if form == "policy":
        found, now = [weights @ reward], arm_reward - reward + change(resolve(reward))
        steps = order
    else:
        found, now = [], arm_reward
        steps = order + 1
    for k in range(steps):
        now = now if k == 0 else change(resolve(now))
        found.append(weights @ now)
    return found


def _series(
    kernel: Kernel, chain: Chain, end: np.ndarray, order: int, form: str
) -> tuple[list, float]:
    """Terms of the value of one arm, and what they shrink by."""
    transition, reward = mixed(kernel, policy_table(kernel, end))
    change = sparse.csr_array(transition - chain.transition)
    found = terms(
        chain.weights, chain.resolve, lambda v: change @ v, chain.reward, reward, order, form
    )
    start = (
        reward if form == "kernel" else reward - chain.reward + change @ chain.resolve(chain.reward)
    )
    apply = lambda v: change @ chain.resolve(v)  # noqa: E731
    return found, shrinkage(apply, start, chain.weights)


def _finite(
    kernel: Kernel, table: np.ndarray, end: np.ndarray, order: int, form: str, horizon: int,
    initial: Any,
) -> np.ndarray:  # fmt: skip
    """Terms of the total reward of one arm over a horizon, [order + 1]."""
    base, reward = mixed(kernel, table)
    transition, arm_reward = mixed(kernel, policy_table(kernel, end))
    change = sparse.csr_array(transition - base)
    gain = np.zeros((len(reward), order + 1))
    gain[:, 0] = reward if form == "policy" else arm_reward
    if form == "policy" and order:
        gain[:, 1] = arm_reward - reward
    to_go = np.zeros_like(gain)
    for _ in range(horizon):
        lower = np.zeros_like(gain)
        lower[:, 1:] = to_go[:, :-1]
        to_go = gain + base @ to_go + change @ lower
    return initial_law(kernel, initial) @ to_go


def policy_value(
    kernel: Kernel,
    *,
    discount: float | None = None,
    horizon: int | None = None,
    initial: Any = None,
    around: float | None = None,
    newton: int = 0,
) -> Callable[[Any], jax.Array]:
    r"""The value J(theta) of treating each step with probability theta, for JAX to differentiate.

    `jax.jvp` of it is Differences-in-Q, and its Taylor polynomial about p the series of
    `taylor(form="policy")`. Dense: for some thousands of states at most. Evaluate it and its
    derivatives under `jax.enable_x64(True)` for double precision.

    Args:
        kernel: from `markov.kernel`, with two arms.
        discount, horizon, initial: see `taylor`.
        around: None solves a linear system, of which `jax.experimental.jet` knows no
            derivatives. With a number p, the inverse at p is frozen and `newton` steps of
            iterative refinement replace the solve: each gains one order of the Taylor expansion
            about p, so that with K of them the derivatives up to K are exact, by `jet` too.
        newton: see there.

    Returns:
        A function of one number.

    Raises:
        ValueError: a chain that is periodic or reducible (average reward), a bad setting.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> chain = markov.kernel(reference.two_state_mdp().model, jnp.arange(2))
        >>> J = effects.policy_value(chain)
        >>> with jax.enable_x64(True):
        ...     round(float(jax.jvp(J, (0.5,), (1.0,))[1]), 8)
        1.41666667
    """
    half = policy_table(kernel, 0.5)
    make_chain(kernel, half, discount, initial) if horizon is None else None
    check_horizon(1 if horizon is None else horizon, discount if horizon is not None else None)
    law = initial_law(kernel, initial)
    size = kernel.num_states
    if around is not None and not (0 <= around <= 1 and newton >= 0):
        raise ValueError(f"around: expected a probability and newton >= 0, got {around}, {newton}.")
    probability, reward = kernel.dense(), kernel.reward

    def system(theta: Any) -> tuple:
        mix = lambda x: x[0] + theta * (x[1] - x[0])  # noqa: E731
        transition, gain = mix(jnp.asarray(probability)), mix(jnp.asarray(reward))
        if discount is None:
            # u (I - P + 1 u)^-1 is the stationary law, for any weights u
            left = jnp.full(size, 1 / size, transition.dtype)
            return jnp.eye(size) - transition + left, left, gain
        return jnp.eye(size) - discount * transition, jnp.asarray(law), gain

    if horizon is not None:

        def total(theta: Any) -> jax.Array:
            mix = lambda x: x[0] + theta * (x[1] - x[0])  # noqa: E731
            transition, gain = mix(jnp.asarray(probability)), mix(jnp.asarray(reward))
            back = lambda v, _: (gain + transition @ v, None)  # noqa: E731
            start = jnp.zeros_like(gain)
            return jnp.asarray(law) @ jax.lax.scan(back, start, None, horizon)[0]

        return total

    if around is None:

        def solved(theta: Any) -> jax.Array:
            matrix, left, gain = system(theta)
            return left @ jnp.linalg.solve(matrix, gain)

        return solved

    with jax.enable_x64(True):
        inverse = np.linalg.inv(np.asarray(system(float(around))[0]))

    def refined(theta: Any) -> jax.Array:
        matrix, left, gain = system(theta)
        frozen = jnp.asarray(inverse, gain.dtype)
        found = frozen @ gain
        for _ in range(newton):
            found = found + frozen @ (gain - matrix @ found)
        return left @ found

    return refined


class Asymptotics(NamedTuple):
    """What an estimator tends to, and how fast.

    Attributes:
        estimand: the limit of the estimates.
        bias: estimand less effect.
        sd: standard deviation of the estimate from T steps, times the root of T.
    """

    estimand: float
    bias: float
    sd: float


def asymptotics(
    kernel: Kernel, *, p: Any = None, arms: tuple[int, int] = (0, 1)
) -> dict[str, Asymptotics]:
    r"""Limits and asymptotic standard deviations of estimators from one long experiment.

    With :math:`\eta = 1\{a = 1\} / \pi(1|s) - 1\{a = 0\} / \pi(0|s)` and
    :math:`\delta = R + V(s') - V(s) - J`, each estimate is asymptotically a mean of martingale
    differences:

    - "naive": :math:`\eta R + h(s') - h(s)` with h solving Poisson's equation for the reward
      :math:`r_1 - r_0`; "difference in means": the same with the mean reward of the arm
      taken off R;
    - "dq": :math:`(\eta + \dot\omega(s)) \delta + \dot V(s') - \dot V(s)`, with
      :math:`\dot\omega = \rho (P_1 - P_0) Z / \rho` and :math:`\dot V = Z (A - \rho A)`, the
      derivatives of the stationary law and of V;
    - "off-policy": the efficient unbiased estimator, which knows no more than that the chain is
      Markov: :math:`\omega_1 1\{a = 1\} \delta_1 / \pi(1|s) - \omega_0 1\{a = 0\} \delta_0 /
      \pi(0|s)` with :math:`\omega_a = \rho_a / \rho`.

    Args:
        kernel: from `markov.kernel`.
        p: the experiment, see `taylor`.
        arms: (control, treated), by number.

    Returns:
        dict from estimator to `Asymptotics`.

    Raises:
        ValueError: a chain that is periodic or reducible; an arm with probability zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import effects, markov
        >>> from decisionppl.testing import reference
        >>> market = markov.kernel(reference.rental_marketplace(10).model, jnp.arange(11))
        >>> {name: round(found.sd, 4) for name, found in effects.asymptotics(market).items()}
        {'naive': 0.6562, 'difference in means': 0.6198, 'dq': 0.5092, 'off-policy': 0.5095}

    References:
        Farias et al., arXiv 2206.02371, for the comparison of the two estimators.
    """
    table = policy_table(kernel, p)
    check_arms(arms, kernel.num_arms)
    if not (table[:, list(arms)] > 0).all():
        state = int(np.argmin(table[:, list(arms)].min(1)))
        raise ValueError(
            f"p: an arm has probability zero in state number {state}, and estimators divide by it: "
            f"{table[state].tolist()}. Give every arm a positive probability."
        )
    chain = make_chain(kernel, table, name="the chain of the experiment")
    ends = [
        make_chain(kernel, policy_table(kernel, np.eye(kernel.num_arms)[a]), name=f"arm {a}")
        for a in arms
    ]
    law, level = chain.weights, chain.weights @ chain.reward
    effect = float(ends[1].weights @ ends[1].reward - ends[0].weights @ ends[0].reward)
    control, treated = (kernel.reward[a] for a in arms)
    change = ends[1].transition - ends[0].transition
    entry = (kernel.arm, kernel.source, kernel.target)
    share = law[kernel.source] * table[kernel.source, kernel.arm] * kernel.probability
    inverse = [(kernel.arm == a) / table[kernel.source, a] for a in arms]
    eta = inverse[1] - inverse[0]

    def sd(scale: np.ndarray, shift: np.ndarray) -> float:
        """Of `scale * reward + shift`, per step."""
        mean = scale * kernel.gain + shift
        return float(np.sqrt(share @ (mean**2 + scale**2 * kernel.gain_variance)))

    def found(estimand: float, scale: np.ndarray, shift: np.ndarray) -> Asymptotics:
        return Asymptotics(float(estimand), float(estimand) - effect, sd(scale, shift))

    def moved(v: np.ndarray) -> np.ndarray:
        return v[entry[2]] - v[entry[1]]

    worth = chain.resolve(chain.reward - level)
    advantage = treated - control + change @ worth
    naive, dq = law @ (treated - control), law @ advantage
    later = chain.resolve(treated - control - naive)
    centre = inverse[0] * (law @ control) - inverse[1] * (law @ treated)
    with np.errstate(divide="ignore", invalid="ignore"):
        reweighted = [np.where(law > 0, x / law, 0.0) for x in (
            chain.resolve_row(law @ change), ends[0].weights, ends[1].weights)]  # fmt: skip
    bent = chain.resolve(advantage - dq)
    scale = eta + reweighted[0][kernel.source]
    out = {
        "naive": found(naive, eta, moved(later) - naive),
        "difference in means": found(naive, eta, centre + moved(later)),
        "dq": found(dq, scale, scale * (moved(worth) - level) + moved(bent) - dq),
    }
    scales, shifts = [], []
    for end, ratio, weight in zip(ends, reweighted[1:], inverse, strict=True):
        mean = end.weights @ end.reward
        scales.append(ratio[kernel.source] * weight)
        shifts.append(scales[-1] * (moved(end.resolve(end.reward - mean)) - mean))
    out["off-policy"] = found(effect, scales[1] - scales[0], shifts[1] - shifts[0])
    return out
