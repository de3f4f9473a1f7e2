"""Exact long-run costs of small queueing networks, by relative value iteration."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from decisionppl.models._arguments import check_count, check_number
from decisionppl.models._queue_chain import clock_rate
from decisionppl.models._queue_network import Network

_MOST_CLASSES, _MOST_STATES = 3, 3_000_000


class Solved(NamedTuple):
    """An average-cost problem, solved on a grid of lengths of queues.

    Attributes:
        cost: per unit of time.
        error: the cost lies within this of `cost`, on the grid (bounds by the span).
        value: relative value of each state, [most_0 + 1, ...].
        choice: class that each server works on, n for none, int [most_0 + 1, ..., m].
        policy: it as a policy; outside the grid, of the nearest state on it.
        iterations: how many.
    """

    cost: float
    error: float
    value: np.ndarray
    choice: np.ndarray
    policy: Partial
    iterations: int


def relative_value_iteration(
    network: Network,
    most: Any,
    *,
    policy: Any = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1_000_000,
) -> Solved:
    r"""The best policy of a network of at most three classes, or the cost of a given one.

    .. math:: (T v)(x) = \frac{h \cdot x}{\Lambda} + v(x) + \sum_j \frac{\lambda_j}{\Lambda}
        [v(x + e_j) - v(x)] + \sum_i \min_j \frac{\mu_{ij}}{\Lambda} [v(x - e_j + e_{r(j)}) - v(x)]

    with jobs that leave where r(j) is the way out. Arrivals from outside to a full queue are lost.
    A class that feeds a full queue is not served: if its jobs were lost, the solution would make
    use of that.

    Args:
        network: exponential, with single servers and no buffers.
        most: jobs that each class holds at most, one number or [n]. The cost converges as it
            grows; compare two sizes.
        policy: a policy of this module that names classes, whose cost is wanted. None is the best.
        tolerance: on the cost, on the grid.
        max_iterations: give up after so many.

    Returns:
        `Solved`, in double precision.

    Raises:
        ValueError: a network of another kind, or too many states.
        RuntimeError: no convergence within `max_iterations`.

    Example:
        >>> from decisionppl.models import queueing
        >>> solved = queueing.relative_value_iteration(queueing.mm1(0.5), 40)
        >>> round(solved.cost, 4)
        1.0

    References:
        Puterman, Markov Decision Processes (1994), section 8.5.
    """
    n = network.num_classes
    if n > _MOST_CLASSES or not network.exponential or max(network.pools) > 1 or network.limited:
        raise ValueError(
            f"expected an exponential network of at most {_MOST_CLASSES} classes, with single "
            f"servers and no buffers; this one has {n} classes and pools {network.pools}."
        )
    check_number("tolerance", tolerance, above=0)
    check_count("max_iterations", max_iterations)
    sizes = tuple(int(s) for s in np.broadcast_to(np.asarray(most, int), (n,)))
    for size in sizes:
        check_count("most", size)
    states = int(np.prod(np.array(sizes) + 1.0))
    if states > _MOST_STATES:
        raise ValueError(f"most: {sizes} are {states} states, more than {_MOST_STATES}.")
    fixed = None
    if policy is not None:
        grid = jnp.stack(jnp.meshgrid(*(jnp.arange(s + 1.0) for s in sizes), indexing="ij"), -1)
        decide = jax.vmap(lambda x: policy(x, None))
        fixed = np.asarray(decide(grid.reshape(-1, n))).reshape(*grid.shape[:-1], -1)
    with jax.enable_x64(True):
        arrays = tuple(
            jnp.asarray(np.asarray(x, float))
            for x in (network.arrival, network.service, network.holding, network.routing)
        )
        rate = float(clock_rate(network))
        found = _iterate(sizes, network.served, arrays, rate, fixed, tolerance, max_iterations)
        value, choice, low, high, count = (np.asarray(x) for x in found)
    cost, error = float(low + high) / 2, float(high - low) / 2
    if error > tolerance:
        raise RuntimeError(
            f"relative value iteration: after {int(count)} iterations the cost is known to "
            f"{error:.3g}, not to {tolerance:g}. Raise max_iterations or tolerance."
        )
    table = jnp.asarray(choice.astype(np.int32))
    return Solved(cost, error, value, choice, Partial(_look_up, table), int(count))


def _look_up(table: Any, length: Any, space: Any = None) -> jax.Array:
    place = jnp.clip(length.astype(int), 0, jnp.asarray(table.shape[:-1]) - 1)
    return table[tuple(place)]


def _shifted(value: Any, steps: Any) -> Any:
    """Value at x + steps, at the face of the grid where that lies outside."""
    for axis, by in enumerate(steps):
        if by:
            size = value.shape[axis]
            places = jnp.clip(jnp.arange(size) + by, 0, size - 1)
            value = jnp.take(value, places, axis=axis)
    return value


@partial(jax.jit, static_argnums=(0, 1, 6))
def _iterate(
    sizes: tuple, served: tuple, arrays: tuple, rate: float, fixed: Any, tolerance: float,
    max_iterations: int,
) -> tuple:  # fmt: skip
    arrival, service, holding, routing = arrays
    n = len(sizes)
    unit = np.eye(n, dtype=int)
    grid = jnp.meshgrid(*(jnp.arange(s + 1.0) for s in sizes), indexing="ij")
    cost = sum(h * x for h, x in zip(holding, grid, strict=True))
    full = [g >= s for g, s in zip(grid, sizes, strict=True)]
    blocked = [
        jnp.any(jnp.stack([full[k] & (routing[j, k] > 0) for k in range(n) if k != j]
                          or [jnp.zeros_like(full[0])]), axis=0)
        for j in range(n)
    ]  # fmt: skip

    def gains(value: Any) -> tuple:
        """What is gained by each server's choice, [m] of [grid], and the choices."""
        after = []
        for j in range(n):
            moved = sum(routing[j, k] * _shifted(value, unit[k] - unit[j]) for k in range(n))
            after.append(moved + (1 - routing[j].sum()) * _shifted(value, -unit[j]) - value)
        total, chosen = 0.0, []
        for i, classes in enumerate(served):
            can = [(grid[j] > 0) & ~blocked[j] for j in classes]
            each = [jnp.where(c, service[i, j] * after[j], jnp.inf)
                    for c, j in zip(can, classes, strict=True)]  # fmt: skip
            options = jnp.stack([*each, jnp.zeros_like(value)])
            names = jnp.asarray([*classes, n])
            if fixed is None:
                best = jnp.argmin(options, axis=0)
            else:
                best = jnp.argmax(fixed[..., i] == names[:, *(None for _ in sizes)], axis=0)
                picked = jnp.take_along_axis(options, best[None], axis=0)[0]
                best = jnp.where(jnp.isfinite(picked), best, len(classes))
            total = total + jnp.take_along_axis(options, best[None], axis=0)[0]
            chosen.append(names[best])
        return total, jnp.stack(chosen, axis=-1)

    def change(value: Any) -> Any:
        rise = sum(arrival[j] * (_shifted(value, unit[j]) - value) for j in range(n))
        return (cost + rise + gains(value)[0]) / rate

    def forward(carry: tuple) -> tuple:
        value, _, _, count = carry
        moved = change(value)
        value = value + moved
        return value - value.ravel()[0], moved.min() * rate, moved.max() * rate, count + 1

    def going(carry: tuple) -> Any:
        _, low, high, count = carry
        return ((high - low) / 2 > tolerance) & (count < max_iterations)

    begin = (jnp.zeros_like(cost), -jnp.inf, jnp.inf, 0)
    value, low, high, count = jax.lax.while_loop(going, forward, begin)
    return value, gains(value)[1], low, high, count
