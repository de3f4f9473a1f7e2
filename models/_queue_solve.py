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
        RuntimeError: no convergence within `max_iterations`; there is none where full queues feed
            each other in a circle, since then none of them is served.

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


_SWEEPS = 16  # between looks at what has converged: a look costs as much as a sweep


@partial(jax.jit, static_argnums=(0, 1, 6))
def _iterate(
    sizes: tuple, served: tuple, arrays: tuple, rate: float, fixed: Any, tolerance: float,
    max_iterations: int,
) -> tuple:  # fmt: skip
    arrival, service, holding, routing = arrays
    n = len(sizes)
    unit = np.eye(n, dtype=int)
    # numbers of jobs of each class along an axis of its own, so that a sweep reads little
    jobs = jnp.ogrid[tuple(slice(0, s + 1) for s in sizes)]
    cost = sum(h * x for h, x in zip(holding, jobs, strict=True))
    full = [x >= s for x, s in zip(jobs, sizes, strict=True)]

    def possible(j: int) -> Any:
        """Where class j has jobs, and none of the queues that it feeds is full."""
        found = jobs[j] > 0
        for k in range(n):
            if k != j:
                found = found & ~(full[k] & (routing[j, k] > 0))
        return found

    def looking(value: Any) -> Any:
        """Value at x + steps; where that lies outside of the grid, at its face."""
        wide = jax.lax.optimization_barrier(jnp.pad(value, 1, mode="edge"))
        return lambda steps: wide[tuple(slice(1 + int(b), 1 + int(b) + s + 1)
                                        for b, s in zip(steps, sizes, strict=True))]  # fmt: skip

    def gains(value: Any, at: Any) -> list:
        """What each server gains by each of its classes; above all where it cannot."""
        after = []
        for j in range(n):
            moved = sum(routing[j, k] * at(unit[k] - unit[j]) for k in range(n))
            after.append(moved + (1 - routing[j].sum()) * at(-unit[j]) - value)
        return [
            [jnp.where(possible(j), service[i, j] * after[j], jnp.inf) for j in classes]
            for i, classes in enumerate(served)
        ]

    def change(value: Any) -> Any:
        at = looking(value)
        total = cost + sum(arrival[j] * (at(unit[j]) - value) for j in range(n))
        for i, each in enumerate(gains(value, at)):
            if fixed is None:
                total = total + sum_least(each)
            else:
                for j, gain in zip(served[i], each, strict=True):
                    total = total + jnp.where((fixed[..., i] == j) & possible(j), gain, 0.0)
        return total / rate

    def sum_least(each: list) -> Any:
        least = jnp.zeros(())  # of doing nothing
        for gain in each:
            least = jnp.minimum(least, gain)
        return least

    def forward(carry: tuple) -> tuple:
        value, _, _, count = carry
        value = jax.lax.fori_loop(0, _SWEEPS - 1, lambda _, v: v + change(v), value)
        moved = change(value)
        value = value + moved
        value = value - value.ravel()[0]
        return value, moved.min() * rate, moved.max() * rate, count + _SWEEPS

    def going(carry: tuple) -> Any:
        _, low, high, count = carry
        return ((high - low) / 2 > tolerance) & (count < max_iterations)

    begin = (jnp.zeros([s + 1 for s in sizes]), -jnp.inf, jnp.inf, 0)
    value, low, high, count = jax.lax.while_loop(going, forward, begin)
    chosen = []
    for i, each in enumerate(gains(value, looking(value))):
        options = jnp.stack([*each, jnp.zeros_like(value)])
        if fixed is None:
            best = jnp.asarray([*served[i], n])[jnp.argmin(options, axis=0)]
        else:
            best = jnp.full(value.shape, n)
            for j in served[i]:
                best = jnp.where((fixed[..., i] == j) & possible(j), j, best)
        chosen.append(best)
    return value, jnp.stack(chosen, axis=-1), low, high, count
