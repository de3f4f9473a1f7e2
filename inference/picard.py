r"""Picard iteration: a sequential simulation whose expensive policy is evaluated in parallel.

A simulation serves units (products, retailers) one step after the other. Step t belongs to unit
:math:`u_t`, and

.. math:: a_t = \pi(g_t, l_t, x_t), \qquad (g_{t+1}, l'_t) = f(g_t, l_t, a_t, x_t)

with a shared state g (capacities of nodes, stock of a warehouse), the unit's own state l, and
inputs x that are drawn beforehand. :math:`\pi` is expensive, f is cheap. Iteration k takes the
actions of iteration k - 1 as they are, where they are still feasible (and a fallback where not),
runs through all steps with f alone, which gives all :math:`g_t`, and then evaluates :math:`\pi` for
many units at a time, each unit's own state following its new actions. When no action changes, the
path is that of the sequential simulation, exactly; after k iterations at least the first k actions
are right.

How many iterations it takes is a matter of how weakly the units are coupled: in fulfilment by fixed
preferences, about as many as there are nodes that run out of capacity. Policies whose results
depend on rounding may decide ties otherwise in a batch than one at a time; `prove` would say so.

References:
    Farias, Gijsbrechts, Khojandi, Peng and Zheng, Speeding up Policy Simulation in Supply Chain RL
    (ICML 2025). Where they give each worker a simulation of its own, the shared path is computed
    once here, and workers are units.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._play import Same

__all__ = ["Picard", "System", "scan", "sequential"]


class System(NamedTuple):
    """A simulation in which steps belong to units.

    Attributes:
        policy: `(shared, own, x) -> action`, expensive.
        update: `(shared, own, action, x) -> (shared, own)` afterwards, cheap.
        feasible: `(shared, own, action, x) -> bool`, cheap. The policy's actions always are.
        fallback: `(shared, own, x) -> action`, cheap and always feasible.
    """

    policy: Callable
    update: Callable
    feasible: Callable
    fallback: Callable


class Picard(NamedTuple):
    """A simulated path.

    Attributes:
        actions: pytree [steps, ...].
        shared: after the last step.
        own: of each unit after the last step, [units, ...].
        iterations: of each chunk, the one that confirms that nothing changes included.
        converged: whether no action changed any more in each chunk.
        equal: whether a sequential run gave the same actions; None unless `prove`.
    """

    actions: Any
    shared: Any
    own: Any
    iterations: np.ndarray
    converged: np.ndarray
    equal: bool | None


def sequential(system: System, shared: Any, own: Any, unit: Any, inputs: Any) -> tuple:
    """The same simulation by a plain scan: what `scan` must agree with.

    Args:
        system, shared, own, unit, inputs: see `scan`.

    Returns:
        (actions [steps, ...], shared, own).
    """
    return _sequential(*_same(system), shared, own, jnp.asarray(unit), inputs)


def scan(
    system: System,
    shared: Any,
    own: Any,
    unit: Any,
    inputs: Any,
    *,
    chunk: int | None = None,
    batch: int = 1024,
    max_iterations: int | None = None,
    prove: bool = False,
) -> Picard:
    """Simulate by Picard iteration, one stretch of time after the other.

    Args:
        system: policy and dynamics.
        shared: shared state before the first step, a pytree.
        own: states of the units, a pytree with leading axis [units].
        unit: whose each step is, int [steps].
        inputs: what else each step is given, a pytree with leading axis [steps].
        chunk: steps that are iterated together; default all. Shorter stretches take fewer
            iterations each, and leave less to do in parallel.
        batch: units whose policy is evaluated at a time.
        max_iterations: of each chunk; default as many as it has steps, and one, which suffices.
        prove: simulate sequentially as well, and compare.

    Returns:
        `Picard`.

    Raises:
        ValueError: sizes that disagree or are below one.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import picard
        >>> system = picard.System(  # two shops draw on one stock of three
        ...     policy=lambda stock, have, x: jnp.where(have + stock >= x, (x > have) * 1, 0),
        ...     update=lambda stock, have, a, x: (stock - a, have + a - 1),
        ...     feasible=lambda stock, have, a, x: a <= stock,
        ...     fallback=lambda stock, have, x: 0)
        >>> run = picard.scan(
        ...     system, jnp.array(3), jnp.array([2, 2]), [0, 1, 0, 1], jnp.array([3, 1, 2, 4]),
        ...     prove=True)
        >>> run.actions.tolist(), run.equal
        ([1, 0, 0, 0], True)
    """
    unit = whose = np.asarray(unit)
    steps = len(unit)
    size = steps if chunk is None else chunk
    for name, x in (("chunk", size), ("batch", batch)):
        if isinstance(x, bool) or not isinstance(x, int | np.integer) or x < 1:
            raise ValueError(f"{name}: expected an int of at least 1, got {x!r}.")
    lengths = {len(x) for x in jax.tree.leaves(inputs)}
    units = {len(x) for x in jax.tree.leaves(own)}
    if lengths - {steps} or steps < 1 or len(units) != 1 or not (unit >= 0).all():
        raise ValueError(
            f"expected inputs with {steps} rows, one per step, and own states of one number of "
            f"units; got inputs of {sorted(lengths)} rows and own states of {sorted(units)} units."
        )
    (count,) = units
    if unit.max() >= count:
        raise ValueError(f"unit: expected numbers from 0 to {count - 1}, got {unit.max()}.")
    size = min(int(size), steps)
    most = size + 1 if max_iterations is None else int(max_iterations)
    unit, ids = _local(unit, size, count)
    plan = _plan(unit, size, batch)
    found = _scan(
        *_same(system),
        most,
        size,
        shared,
        own,
        jnp.asarray(unit, jnp.int32),
        inputs,
        jnp.asarray(plan),
        jnp.asarray(ids),
    )
    actions, shared_end, own_end, iterations, converged = found
    equal = None
    if prove:
        other = sequential(system, shared, own, whose, inputs)[0]
        pairs = zip(jax.tree.leaves(actions), jax.tree.leaves(other), strict=True)
        equal = all(bool((a == b).all()) for a, b in pairs)
    return Picard(
        actions, shared_end, own_end, np.asarray(iterations), np.asarray(converged), equal
    )


def _same(system: System) -> tuple:
    return tuple(Same(f) for f in system)


def _local(unit: np.ndarray, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Units numbered within each chunk [steps], and which they are [chunks, units of a chunk].

    A chunk then works on a table of its own units, which fits in a cache.
    """
    numbers, known = np.empty(len(unit), int), []
    for start in range(0, len(unit), size):
        here, inverse = np.unique(unit[start : start + size], return_inverse=True)
        numbers[start : start + size] = inverse
        known.append(here)
    ids = np.full((len(known), min(size, count)), count)
    for i, here in enumerate(known):
        ids[i, : len(here)] = here
    return numbers, ids


def _plan(unit: np.ndarray, size: int, batch: int) -> np.ndarray:
    """Steps of each chunk in batches of different units, in the order of each unit's steps.

    int [chunks, batches, batch], numbers within the chunk, `size` where there is none.
    """
    chunks = []
    for start in range(0, len(unit), size):
        here = unit[start : start + size]
        order = np.argsort(here, kind="stable")
        ordered = here[order]
        first = np.searchsorted(ordered, ordered)
        wave = np.empty(len(here), int)
        wave[order] = np.arange(len(here)) - first  # the how manieth step of its unit
        rows = []
        by_wave = np.argsort(wave, kind="stable")
        bounds = np.searchsorted(wave[by_wave], np.arange(wave.max() + 2))
        for low, high in itertools.pairwise(bounds):
            for at in range(low, high, batch):
                row = np.full(batch, size)
                part = by_wave[at : min(at + batch, high)]
                row[: len(part)] = part
                rows.append(row)
        chunks.append(rows)
    longest = max(len(rows) for rows in chunks)
    # few sizes, so that problems of about one size are one program
    coarse = 2 ** max(longest.bit_length() - 3, 0)
    longest = -(-longest // coarse) * coarse
    plan = np.full((len(chunks), longest, batch), size)
    for i, rows in enumerate(chunks):
        plan[i, : len(rows)] = rows
    return plan


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sequential(
    policy: Same, update: Same, feasible: Same, fallback: Same, shared: Any, own: Any, unit: Any,
    inputs: Any,
) -> tuple:  # fmt: skip
    def forward(carry: tuple, given: tuple) -> tuple:
        shared, own = carry
        u, x = given
        mine = _at(own, u)
        action = policy.value(shared, mine, x)
        shared, mine = update.value(shared, mine, action, x)
        return (shared, _put(own, u, mine)), action

    (shared, own), actions = jax.lax.scan(forward, (shared, own), (unit, inputs))
    return actions, shared, own


def _at(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda x: x[i], tree)


def _put(tree: Any, i: Any, value: Any) -> Any:
    return jax.tree.map(lambda x, v: x.at[i].set(v, mode="drop"), tree, value)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _scan(
    policy: Same, update: Same, feasible: Same, fallback: Same, most: int, size: int, shared: Any,
    own: Any, unit: Any, inputs: Any, plan: Any, ids: Any,
) -> tuple:  # fmt: skip
    chunks, _, _ = plan.shape
    steps = len(unit)
    # all chunks but the last have one size; what is missing of the last one belongs to no unit
    count = ids.shape[1]  # units of a chunk at most
    whole = chunks * size
    units = jnp.concatenate([unit, jnp.full(whole - steps, count, unit.dtype)])
    padded = jax.tree.map(
        lambda x: jnp.concatenate([x, jnp.broadcast_to(x[:1], (whole - steps, *x.shape[1:]))]),
        inputs,
    )
    split = jax.tree.map(lambda x: x.reshape(chunks, size, *x.shape[1:]), (units, padded))

    def advance(carry: tuple, given: tuple) -> tuple:
        """One step with what is known, which is checked again."""
        shared, own = carry
        u, x, known = given
        mine = _at(own, jnp.minimum(u, count - 1))
        fine = feasible.value(shared, mine, known, x)
        other = fallback.value(shared, mine, x)
        action = jax.tree.map(lambda a, b: jnp.where(fine, a, b).astype(a.dtype), known, other)
        after, mine = update.value(shared, mine, action, x)
        after = jax.tree.map(lambda a, b: jnp.where(u < count, a, b).astype(b.dtype), after, shared)
        return (after, _put(own, u, mine)), shared

    def stretch(carry: tuple, given: tuple) -> tuple:
        shared, everyone = carry
        (u, x), rows, here = given
        own = _at(everyone, jnp.minimum(here, len(jax.tree.leaves(everyone)[0]) - 1))

        def decide(states: Any, carry: tuple, row: Any) -> tuple:
            mine_all, actions = carry
            at = jnp.minimum(row, size - 1)
            whose = jnp.where(row < size, u[at], count)
            g, known = _at(states, at), _at(x, at)
            mine = _at(mine_all, jnp.minimum(whose, count - 1))
            chosen = jax.vmap(policy.value)(g, mine, known)
            _, later = jax.vmap(update.value)(g, mine, chosen, known)
            return (_put(mine_all, whose, later), _put(actions, row, chosen)), None

        def begin() -> Any:
            first = _at(x, 0)
            mine = _at(own, 0)
            like = jax.eval_shape(policy.value, shared, mine, first)
            default = jax.vmap(lambda v: fallback.value(shared, mine, v))(x)
            return jax.tree.map(lambda d, a: jnp.asarray(d).astype(a.dtype), default, like)

        def iterate(carry: tuple) -> tuple:
            actions, _, count_of = carry
            _, states = jax.lax.scan(advance, (shared, own), (u, x, actions))
            (_, new), _ = jax.lax.scan(partial(decide, states), (own, actions), rows)
            changed = jnp.any(jnp.stack([
                jnp.any(a != b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(actions),
                                                strict=True)
            ]))  # fmt: skip
            return new, changed, count_of + 1

        going = lambda c: c[1] & (c[2] < most)  # noqa: E731
        actions, changed, used = jax.lax.while_loop(
            going, iterate, (begin(), jnp.array(True), jnp.array(0))
        )
        (shared, own), _ = jax.lax.scan(advance, (shared, own), (u, x, actions))
        return (shared, _put(everyone, here, own)), (actions, used, ~changed)

    (shared, own), (actions, used, done) = jax.lax.scan(stretch, (shared, own), (split, plan, ids))
    actions = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:])[:steps], actions)
    return actions, shared, own, used, done
