"""Values of states from trajectories: LSTD, truncated returns, traces of errors."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decisionppl.inference._basis import Basis, make_basis
from decisionppl.inference._trajectories import Trajectories


class LinearValue(NamedTuple):
    """A value function that is linear in features of the state.

    Attributes:
        values: V of the states of the trajectories that it was fitted to, [runs, steps + 1].
        of: `(state) -> V`, of one state in the form in which the model has it.
        mean_reward: average reward per step under the law of the data.
    """

    values: jax.Array
    of: Callable
    mean_reward: jax.Array


def one_hot(num_states: int) -> Callable:
    """Features of states that are numbers: an indicator of each.

    Args:
        num_states: how many.

    Returns:
        `(state) -> [num_states]`.

    Example:
        >>> from decisionppl.inference import value
        >>> value.one_hot(3)(1).tolist()
        [0.0, 1.0, 0.0]
    """
    return partial(_indicators, num_states)


def _indicators(num_states: int, state: Any) -> jax.Array:
    return jax.nn.one_hot(state, num_states)


def lstd(
    data: Trajectories,
    features: int | Callable | None = None,
    *,
    trace: float = 0.0,
    ridge: float = 0.0,
    discount: float | None = None,
) -> LinearValue:
    r"""Value of the law that the data were made under, by least-squares temporal differences.

    :math:`\theta` solves :math:`\sum_t z_t (\phi_t - \gamma \phi_{t+1})^T \theta = \sum_t z_t
    (R_t - \bar R)` with :math:`z_t = \phi_t + \gamma \lambda z_{t-1}`. Without a discount, that
    is with :math:`\gamma = 1`, V is the differential value, known up to a constant, and the loop
    is closed: transitions from the end of each run to the start of the next are counted. With a
    discount :math:`\bar R` is left out.

    Args:
        data: `Trajectories`.
        features: n for states that are numbers from 0 to n - 1 (tabular); a function from a state
            to a vector; None for states that are vectors. A constant need not be among them.
        trace: :math:`\lambda`, in [0, 1).
        ridge: added to the diagonal of the system per step, in units of squared features of
            scale one.
        discount: :math:`\gamma`, in (0, 1), or None.

    Returns:
        `LinearValue`.

    Raises:
        ValueError: features that do not fit the states, a bad setting.

    Example:
        >>> from decisionppl.inference import markov, value
        >>> from decisionppl.testing import reference
        >>> runs = markov.rollout(reference.two_state_mdp().model, 0, 20_000, key=0)
        >>> fitted = value.lstd(runs, 2)
        >>> bool(5 < fitted.of(1) - fitted.of(0) < 10)  # 8.33 exactly
        True

    References:
        Boyan, Technical update: least-squares temporal difference learning (2002); Tsitsiklis and
        Van Roy, Average cost temporal-difference learning (1999).
    """
    check_fit(trace, ridge)
    if discount is not None and not 0 < discount < 1:
        raise ValueError(f"discount: expected a number between 0 and 1 or None, got {discount!r}.")
    basis, scale = make_basis(data.state, features)
    if trace and basis.is_table:
        basis, scale = make_basis(data.state, one_hot(basis.size))
        features = one_hot(features)  # pyright: ignore[reportArgumentType]
    names = (basis.size, basis.gauge)
    weights, mean = _fit(data, basis.values, names, (trace, ridge, discount))

    def of(state: Any) -> jax.Array:
        if basis.is_table:
            return weights[state]
        found = features(state) if callable(features) else state
        return jnp.append(jnp.asarray(found, float) / scale, 1.0) @ weights

    return LinearValue(basis.at(weights), of, mean)


def check_fit(trace: float, ridge: float, name: str = "trace") -> None:
    """Refuse settings of LSTD that make no sense."""
    if not 0 <= trace < 1:
        raise ValueError(f"{name}: expected a number from 0 to below 1, got {trace!r}.")
    if not ridge >= 0:
        raise ValueError(f"ridge: expected a number from zero, got {ridge!r}.")


@partial(jax.jit, static_argnums=(2, 3))
def _fit(
    data: Trajectories, values: jax.Array, names: tuple, options: tuple[float, float, float | None]
) -> tuple[jax.Array, jax.Array]:
    basis, (trace, ridge, discount) = Basis(values, *names), options
    gamma = 1.0 if discount is None else discount
    ones = jnp.broadcast_to(data.mask, data.reward.shape).astype(jnp.result_type(float))
    reward = jnp.where(ones > 0, data.reward, 0.0).ravel()
    held = traced(values[:, :-1], gamma * trace)
    flat = partial(basis.take, (reward.size,))
    here, later = flat(values[:, :-1]), flat(values[:, 1:])
    sums = lstd_sums(here, later, flat(held), ones.ravel(), reward, gamma)
    mean = sums["reward"] / sums["n"]
    if discount is None:
        return solve(basis, sums, closing(basis, data, held), ridge)
    seen = jnp.diag(jnp.where(sums["seen"] != 0, ridge * sums["n"], 1.0))
    return jnp.linalg.solve(sums["A"] + seen, sums["b"]), mean


def returns(data: Trajectories, window: int) -> jax.Array:
    r"""Truncated Monte Carlo: :math:`\sum_{k=0}^{L} (R_{t+k} - \bar R)`, shorter at the end.

    Args:
        data: `Trajectories`.
        window: L, how many later steps count.

    Returns:
        [runs, steps].

    Raises:
        ValueError: a window that is no number of steps.

    Example:
        >>> from decisionppl.inference import markov, value
        >>> from decisionppl.testing import reference
        >>> runs = markov.rollout(reference.two_state_mdp().model, 0, 100, key=0)
        >>> value.returns(runs, 10).shape
        (1, 100)
    """
    check_window(data, window)
    return jnp.flip(window_sums(jnp.flip(centred(data), 1), window), 1)


def advantages(data: Trajectories, values: jax.Array, trace: float = 0.0) -> jax.Array:
    r"""Generalised advantage estimates :math:`\sum_k \lambda^k \delta_{t+k}`.

    With :math:`\delta_t = R_t - \bar R + V(s_{t+1}) - V(s_t)`.

    Args:
        data: `Trajectories`.
        values: V of the states, [runs, steps + 1], as `lstd` gives them.
        trace: :math:`\lambda`, in [0, 1).

    Returns:
        [runs, steps].

    Raises:
        ValueError: values of another shape, a bad trace.

    Example:
        >>> from decisionppl.inference import markov, value
        >>> from decisionppl.testing import reference
        >>> runs = markov.rollout(reference.two_state_mdp().model, 0, 100, key=0)
        >>> value.advantages(runs, value.lstd(runs, 2).values, 0.9).shape
        (1, 100)

    References:
        Schulman et al., arXiv 1506.02438, equation 16.
    """
    check_fit(trace, 0.0)
    runs, steps = jnp.shape(data.reward)
    if jnp.shape(values) != (runs, steps + 1):
        raise ValueError(
            f"values: expected V of every state, [{runs}, {steps + 1}], got "
            f"{list(jnp.shape(values))}."
        )
    error = centred(data) + jnp.where(data.mask, values[:, 1:] - values[:, :-1], 0.0)
    return jnp.flip(traced(jnp.flip(error, 1), trace), 1)


def check_window(data: Trajectories, window: Any) -> None:
    """Refuse what is no number of later steps."""
    steps = jnp.shape(data.reward)[1]
    if isinstance(window, bool) or not isinstance(window, int) or not 0 <= window < steps:
        raise ValueError(f"window: expected a whole number from 0 to {steps - 1}, got {window!r}.")


def centred(data: Trajectories) -> jax.Array:
    """Rewards less their mean, zero where there is no step, [runs, steps]."""
    mask = jnp.broadcast_to(data.mask, jnp.shape(data.reward))
    mean = jnp.sum(jnp.where(mask, data.reward, 0.0)) / jnp.sum(mask)
    return jnp.where(mask, data.reward - mean, 0.0)


def window_sums(x: jax.Array, window: int) -> jax.Array:
    """Sums over this step and `window` steps before, [runs, steps]."""
    total = jnp.cumsum(x, axis=1)
    return total - jnp.pad(total, ((0, 0), (window + 1, 0)))[:, : x.shape[1]]


def traced(x: jax.Array, decay: float) -> jax.Array:
    """Running sums [runs, steps, ...] in which earlier steps fade."""
    if not decay:
        return x

    def forward(carry: jax.Array, now: jax.Array) -> tuple:
        carry = decay * carry + now
        return carry, carry

    steps_first = jnp.moveaxis(x, 1, 0)
    return jnp.moveaxis(jax.lax.scan(forward, jnp.zeros_like(steps_first[0]), steps_first)[1], 0, 1)


def lstd_sums(
    here: Basis, later: Basis, held: Basis, weight: jax.Array, reward: jax.Array,
    discount: float = 1.0,
) -> dict[str, jax.Array]:  # fmt: skip
    """What LSTD is made of, summed over steps with weights.

    Args:
        here, later: features before and after the step.
        held: traces of features.
        weight: [steps].
        reward: [steps].
        discount: of what comes later.
    """
    if here.is_table:
        matrix = held.cross(weight, here) - discount * held.cross(weight, later)
    else:  # features that change little from step to step would drown in rounding otherwise
        change = here.values - discount * later.values
        matrix = held.cross(weight, here._replace(values=change))
    return {
        "A": matrix,
        "f": held.total(weight), "b": held.total(weight * reward), "seen": here.total(weight),
        "n": weight.sum(), "reward": weight @ reward,
    }  # fmt: skip


def _ends(data: Trajectories) -> tuple[jax.Array, jax.Array]:
    """Positions (run, step) of the last states of the runs."""
    runs = jnp.arange(data.reward.shape[0])
    mask = jnp.broadcast_to(data.mask, data.reward.shape)
    return runs, mask.sum(1)


def closing(basis: Basis, data: Trajectories, trace: jax.Array) -> jax.Array:
    """The transitions that close the loop: from the end of each run to the start of the next."""
    runs, last = _ends(data)
    end, begin = basis.values[runs, last], jnp.roll(basis.values[:, 0], -1, axis=0)
    weight = jnp.ones(len(runs), trace.dtype if not basis.is_table else float)
    held = basis._replace(values=end)
    return held.cross(weight, held) - held.cross(weight, basis._replace(values=begin))


def solve(basis: Basis, sums: dict, loop: jax.Array, ridge: float) -> tuple[jax.Array, jax.Array]:
    """Weights of the value function, and the average reward J, of `A theta + f J = b`."""
    bordered, gauge = bordered_system(basis, sums, loop, ridge)
    found = jnp.linalg.solve(bordered, sums["b"])
    return found.at[gauge].set(0.0), found[gauge]


def bordered_system(
    basis: Basis, sums: dict, loop: jax.Array, ridge: float
) -> tuple[jax.Array, Any]:
    """The system with the average reward in the place of the value that is set to zero."""
    matrix, count = sums["A"] + loop, sums["n"]
    if basis.is_table:
        gauge = jnp.argmax(sums["seen"])
        extra = jnp.where(sums["seen"] > 0, ridge * count, 1.0)  # never seen: value zero
    else:
        gauge = basis.gauge
        # features that depend linearly on each other must not stop the solution
        small = 100 * jnp.finfo(matrix.dtype).eps
        extra = count * (ridge + small) * jnp.ones(basis.size)
    extra = jnp.asarray(extra).at[gauge].set(0.0)
    return (matrix + jnp.diag(extra)).at[:, gauge].set(sums["f"]), gauge
