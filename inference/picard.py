r"""Picard iteration: a sequential simulation whose expensive policy is evaluated in parallel.

A simulation serves units (products, retailers) one step after the other. Step t belongs to unit
:math:`u_t`, and

.. math:: a_t = \pi(g_t, l_t, x_t), \qquad (g_{t+1}, l'_t) = f(g_t, l_t, a_t, x_t)

with a shared state g (capacities of nodes, stock of a warehouse), the unit's own state l, and
inputs x that are drawn beforehand. :math:`\pi` is expensive, f is cheap. The first iteration
evaluates :math:`\pi` as if g did not change. Each later one takes the actions of the one before as
they are, where they are still feasible (and a fallback where not), runs through the steps with f
alone, which gives all :math:`g_t`, and then evaluates :math:`\pi` for many units at a time, each
unit's own state following its new actions. All actions up to the first that changes are those of
the sequential simulation, and that one as well, since what it was decided on is right. So the next
iteration begins there, and when no action changes, the whole path is right; after k iterations at
least the first k actions are.

How many iterations it takes is a matter of how weakly the units are coupled. A policy that reads
of g only which resources are used up, with a fallback that uses none, takes about as many as there
are resources that run out, and two (tests: at most, in fulfilment by fixed preferences). Policies
that read g itself, as most networks do, take more. Policies whose results depend on rounding may
decide ties otherwise in a batch than one at a time; `prove` would say so.

References:
    Farias, Gijsbrechts, Khojandi, Peng and Zheng, Speeding up Policy Simulation in Supply Chain RL
    (ICML 2025). Where they give each worker a simulation of its own, the shared path is computed
    once here, and workers are units.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._play import Same
from decisionppl.inference._picard_plan import Plan, make_plan

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
    unit = np.asarray(unit)
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
    plan = make_plan(unit, count, size, batch)
    plan = jax.tree.map(jnp.asarray, plan)
    found = _scan(*_same(system), (most, size, steps), shared, own, inputs, plan)
    actions, shared_end, own_end, iterations, converged = found
    equal = None
    if prove:
        other = sequential(system, shared, own, unit, inputs)[0]
        pairs = zip(jax.tree.leaves(actions), jax.tree.leaves(other), strict=True)
        equal = all(bool((a == b).all()) for a, b in pairs)
    return Picard(
        actions, shared_end, own_end, np.asarray(iterations), np.asarray(converged), equal
    )


def _same(system: System) -> tuple:
    return tuple(Same(f) for f in system)


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


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _scan(
    policy: Same, update: Same, feasible: Same, fallback: Same, sizes: tuple[int, int, int],
    shared: Any, own: Any, inputs: Any, plan: Plan,
) -> tuple:  # fmt: skip
    most, size, steps = sizes
    chunks = len(plan.unit)
    whole = chunks * size

    def split(x: Any) -> Any:
        missing = jnp.broadcast_to(x[:1], (whole - steps, *x.shape[1:]))
        return jnp.concatenate([x, missing]).reshape(chunks, size, *x.shape[1:])

    def checked(g: Any, mine: Any, known: Any, x: Any) -> Any:
        """An action that is known, or the fallback where it cannot be taken."""
        fine = feasible.value(g, mine, known, x)
        other = fallback.value(g, mine, x)
        return jax.tree.map(lambda a, b: jnp.where(fine, a, b).astype(a.dtype), known, other)

    def stretch(carry: tuple, given: tuple) -> tuple:
        shared, everyone = carry
        x, plan = given
        own = _at(everyone, plan.unit)  # of each step's unit, before the chunk

        def mine_of(after: Any, at: Any) -> Any:
            before = plan.before[at]
            return jax.tree.map(
                lambda first, later: jnp.where(
                    _like(before >= 0, first[at]), later[jnp.maximum(before, 0)], first[at]
                ),
                own, after,
            )  # fmt: skip

        def run(since: Any, g: Any, states: Any, actions: Any, mine: Any) -> tuple:
            """Shared states before each step and at the end, from a step on."""

            def forward(t: Any, carry: tuple) -> tuple:
                g, states = carry
                states = _put(states, t, g)
                m, now = _at(mine, t), _at(x, t)
                after, _ = update.value(g, m, checked(g, m, _at(actions, t), now), now)
                return jax.tree.map(lambda a, b: a.astype(b.dtype), after, g), states

            begun = jnp.minimum(since, size - 1)
            g = jax.tree.map(lambda s, e: jnp.where(since < plan.valid, s[begun], e), states, g)
            return jax.lax.fori_loop(since, plan.valid, forward, (g, states))

        def decide(since: Any, states: Any, actions: Any, mine: Any, after: Any) -> tuple:
            """Actions of all steps from one on, in batches."""

            def forward(i: Any, carry: tuple) -> tuple:
                actions, mine, after = carry
                row = plan.rows[i]
                at = jnp.minimum(row, size - 1)
                g, now, m = _at(states, at), _at(x, at), mine_of(after, at)
                chosen = jax.vmap(policy.value)(g, m, now)
                _, later = jax.vmap(update.value)(g, m, chosen, now)
                return _put(actions, row, chosen), _put(mine, row, m), _put(after, row, later)

            needed = plan.highest >= since
            first = jnp.argmax(needed)
            end = jnp.where(needed, jnp.arange(len(needed)) + 1, 0).max()
            return jax.lax.fori_loop(first, end, forward, (actions, mine, after))

        def iterate(carry: tuple) -> tuple:
            g, states, actions, mine, after, since, right, used = carry
            g, states = run(since, g, states, actions, mine)
            new, own_new, after = decide(right, states, actions, mine, after)
            # a unit's own state may change although no action did, since f reads g too
            changed = _differs((new, own_new), (actions, mine))
            # shared states are a guess at first, which nothing confirms
            changed = changed | (used == 0)
            since = jnp.where(changed.any(), jnp.argmax(changed), plan.valid)
            right = jnp.minimum(since + 1, plan.valid)
            return g, states, new, own_new, after, since, right, used + 1

        def end(carry: tuple) -> tuple:
            g, states, actions, mine, after, since, _, _ = carry
            return run(since, g, states, actions, mine)[0], actions, after

        def stop(carry: tuple) -> tuple:
            """What is known, checked once more, where it is not yet the path."""

            def forward(carry: tuple, t: Any) -> tuple:
                g, after = carry
                m, now = mine_of(after, t), _at(x, t)
                action = checked(g, m, _at(actions, t), now)
                later, m = update.value(g, m, action, now)
                later = jax.tree.map(
                    lambda a, b: jnp.where(t < plan.valid, a, b).astype(b.dtype), later, g
                )
                return (later, _put(after, t, m)), action

            actions = carry[2]
            (g, after), actions = jax.lax.scan(forward, (shared, own), jnp.arange(size))
            return g, actions, after

        like = jax.eval_shape(policy.value, shared, _at(own, 0), _at(x, 0))
        actions = jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), like)
        states = jax.tree.map(lambda g: jnp.broadcast_to(g, (size, *jnp.shape(g))), shared)
        carry = (shared, states, actions, own, own, plan.valid, jnp.zeros_like(plan.valid), 0)
        carry = jax.lax.while_loop(
            lambda c: (c[-2] < plan.valid) & (c[-1] < most), iterate, carry
        )  # fmt: skip
        right, used = carry[-2:]
        shared, actions, after = jax.lax.cond(right >= plan.valid, end, stop, carry)
        everyone = _put(everyone, plan.target, after)
        return (shared, everyone), (actions, used, right >= plan.valid)

    (shared, own), (actions, used, done) = jax.lax.scan(
        stretch, (shared, own), (jax.tree.map(split, inputs), plan)
    )
    actions = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:])[:steps], actions)
    return actions, shared, own, used, done


def _like(mask: Any, x: Any) -> Any:
    return mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))


def _differs(new: Any, old: Any) -> Any:
    """In which rows two trees differ, bool [rows]; what is not a number equals itself."""
    found = [
        ((a != b) & ((a == a) | (b == b))).reshape(len(a), -1).any(1)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    ]
    return jnp.any(jnp.stack(found), axis=0)
