"""The compiled loop of a sequential experiment: one program, run in chunks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from decisionppl._decide import Decider, decide
from decisionppl._decision import NUM_KEYS, Context, as_context
from decisionppl._environment import Environment
from decisionppl._hoist import split
from decisionppl._inference import Rows
from decisionppl._play import _cast, play
from decisionppl._structure import flatten

# outputs of one chunk hold at most this many decisions
_CHUNK_DECISIONS = 1 << 20
_LONGEST_CHUNK = 1 << 14
# what is computed ahead for a block of rounds
_BLOCK_BYTES = 1 << 26
_LONGEST_BLOCK = 64
# beliefs of replications that run side by side on a CPU
_GROUP_BYTES = 1 << 17
_SMALLEST_GROUP = 16


class Delay(NamedTuple):
    """Outcomes that arrive late.

    Attributes:
        rounds: `(key, context, action) -> int`, how many rounds after its own an outcome
            arrives (0: at once).
        maximum: the longest possible delay; longer ones are clipped to it.
    """

    rounds: Callable
    maximum: int


class Carry(NamedTuple):
    """State of one replication between rounds.

    Attributes:
        key: the replication's key; round t uses `fold_in(key, t)`.
        belief: what is known.
        state: the environment's state.
        pending: Rows [slots, batch, ...] still to arrive.
        due: int32 [slots, batch], the round at whose end each arrives (-1: empty).
    """

    key: jax.Array
    belief: Any
    state: Any
    pending: Rows
    due: jax.Array


class Loop(NamedTuple):
    """Everything a round needs; static under compilation."""

    decider: Decider
    environment: Environment
    batch: int
    delay: int | Delay
    regret: bool
    propensities: bool

    @property
    def slots(self) -> int:
        """Rounds of outcomes that can be under way at once."""
        return (self.delay.maximum if isinstance(self.delay, Delay) else self.delay) + 1


_KEYS_PER_DECISION = 3 + NUM_KEYS


def _one_decision(loop: Loop, keys: jax.Array, belief: Any, state: Any, t: jax.Array) -> tuple:
    """Context, decision and outcomes of decision `t` (pure; one unit)."""
    context_key, step_key, delay_key, decide_keys = keys[0], keys[1], keys[2], keys[3:]
    context = as_context(loop.environment.context(context_key, state, t))
    decision = decide(loop.decider, decide_keys, belief, context)
    outcomes = loop.environment.step(step_key, state, t, context, decision.action)
    sites = typed_sites(loop, context, {**context.sites, **decision.action, **outcomes})
    wait = jnp.asarray(0 if isinstance(loop.delay, Delay) else loop.delay, jnp.int32)
    if isinstance(loop.delay, Delay):
        wait = jnp.asarray(loop.delay.rounds(delay_key, context, decision.action), jnp.int32)
        wait = jnp.clip(wait, 0, loop.delay.maximum)
    record = {"index": decision.index}
    searched = loop.decider.space is not None  # there is no list of actions to index or compare
    if loop.propensities and not searched:
        record["propensity"] = decision.propensity
    if loop.regret and loop.environment.value is not None and not searched:
        values = loop.environment.value(state, t, context, loop.decider.actions)
        record["regret"] = jnp.max(values) - values[decision.index]
    logged = [*outcomes, *(decision.action if searched else ())]
    return (context.args, sites), wait, {**record, **{f"site:{n}": sites[n] for n in logged}}


def typed_sites(loop: Loop, context: Context, sites: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Logged values in the dtypes and shapes of the model's sites."""
    trace = play(loop.decider.model, jax.random.key(0), data=sites)(*context.args)
    typed = {}
    for name, value in sites.items():
        fn = trace[name]["fn"]
        value = jnp.asarray(value)
        if value.shape != fn.shape():
            raise ValueError(
                f"site {name!r}: the environment gave shape {value.shape}, the model draws "
                f"{fn.shape()}."
            )
        typed[name] = _cast(value, fn)
    return typed


def _round_keys(loop: Loop, key: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys of round `t`: for the decisions [batch, keys], for the update."""
    keys = jax.random.split(jax.random.fold_in(key, t), loop.batch * _KEYS_PER_DECISION + 1)
    return keys[1:].reshape(loop.batch, _KEYS_PER_DECISION, *keys.shape[1:]), keys[0]


def _round(loop: Loop, carry: Carry, t: jax.Array, keys: tuple) -> tuple[Carry, dict]:
    """One round of one replication: decide for the batch, observe, learn what has arrived."""
    decision_keys, update_key = keys

    def unit(keys: jax.Array, i: jax.Array) -> tuple:
        return _one_decision(loop, keys, carry.belief, carry.state, t * loop.batch + i)

    if loop.batch == 1:
        (args, sites), wait, record = jax.tree.map(
            lambda x: x[None], unit(decision_keys[0], jnp.zeros((), t.dtype))
        )
    else:
        units = jnp.arange(loop.batch, dtype=t.dtype)
        (args, sites), wait, record = jax.vmap(unit)(decision_keys, units)
    if loop.slots == 1:
        rows, pending, due = Rows(args, sites, jnp.ones(loop.batch, bool)), carry.pending, carry.due
    else:
        slot = t % loop.slots
        new = Rows(args, sites, jnp.ones(loop.batch, bool))
        pending = jax.tree.map(lambda b, x: b.at[slot].set(x), carry.pending, new)
        due = carry.due.at[slot].set(t.astype(jnp.int32) + wait)
        rows = _arrived(loop, pending, due, t)
    belief = loop.decider.inference.update(update_key, carry.belief, rows)
    belief = jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype) if hasattr(y, "dtype") else x,
                          belief, carry.belief)  # fmt: skip
    if loop.batch == 1:
        record = jax.tree.map(lambda x: x[0], record)
    return Carry(carry.key, belief, carry.state, pending, due), record


def _arrived(loop: Loop, pending: Rows, due: jax.Array, t: jax.Array) -> Rows:
    """What arrives at the end of round `t`; with a fixed delay it sits in one slot."""
    if isinstance(loop.delay, Delay):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pending)
        return flat._replace(mask=(due == t).ravel())
    slot = (t + 1) % loop.slots  # the oldest
    rows = jax.tree.map(lambda x: x[slot], pending)
    return rows._replace(mask=due[slot] == t)


def initial_carry(loop: Loop, key: jax.Array) -> Carry:
    """State of one replication before round 0."""
    init_key, environment_key, run_key = jax.random.split(key, 3)
    belief = loop.decider.inference.init(init_key)
    state = loop.environment.init(environment_key)
    if loop.slots == 1:
        nothing = Rows((), {}, jnp.zeros((), bool))
        return Carry(run_key, belief, state, nothing, jnp.zeros((), jnp.int32))
    (args, sites), _, _ = jax.eval_shape(
        lambda: _one_decision(
            loop,
            _round_keys(loop, run_key, jnp.zeros((), jnp.int32))[0][0],
            belief,
            state,
            jnp.zeros((), jnp.int32),
        )
    )
    shape = (loop.slots, loop.batch)
    empty = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), (args, sites))
    pending = Rows(empty[0], empty[1], jnp.zeros(shape, bool))
    return Carry(run_key, belief, state, pending, jnp.full(shape, -1, jnp.int32))


def _add_axis(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)


class Program(NamedTuple):
    """The compiled loop.

    Attributes:
        start: `keys [replications] -> Carry` with a leading axis [replications].
        chunk: `(carry, t0, n) -> (carry, records)`; records are [chunk, replications, ...],
            of which the first n rounds are filled in.
        length: rounds that a chunk can hold.
    """

    start: Callable
    chunk: Callable
    length: int


def _mesh(replications: int) -> Mesh | None:
    """Devices that share the replications out evenly, on one axis named "batch"."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if replications % n == 0)
    return Mesh(np.asarray(devices[:count]), ("batch",)) if count > 1 else None


def _group_size(carry: Carry) -> int:
    """Replications that run side by side: on a CPU, as many as stay in its cache."""
    total = carry.key.shape[0]
    if jax.default_backend() != "cpu":
        return total
    leaves = jax.tree.leaves((carry.belief, carry.pending))
    each = max(1, sum(x.size * x.dtype.itemsize for x in leaves) // total)
    fitting = max(_SMALLEST_GROUP, _GROUP_BYTES // each)
    size = max(n for n in range(1, total + 1) if total % n == 0 and n <= fitting)
    # a number of replications without a fitting divisor is not worth running one by one
    return size if size >= _SMALLEST_GROUP else total


def compile_loop(loop: Loop, replications: int) -> Program:
    """One program for any number of rounds: a chunk's number of rounds is an input."""
    length = _CHUNK_DECISIONS // (replications * loop.batch)
    length = max(16, min(_LONGEST_CHUNK, 1 << max(length.bit_length() - 1, 0)))

    def chunk(carry: Carry, t0: jax.Array, n: jax.Array) -> tuple[Carry, Any]:
        def one(carry: Carry, t: jax.Array) -> tuple:
            return _round(loop, carry, t, _round_keys(loop, carry.key, t))

        rounds = jax.vmap(one, in_axes=(0, None))
        if carry.key.shape[0] == 1:  # unmapped, updates stay in place
            rounds = lambda c, t: _add_axis(one(jax.tree.map(lambda x: x[0], c), t))  # noqa: E731
        shapes: list[Any] = []

        def body(*inputs: Any) -> Any:
            out = rounds(*inputs)
            shapes.append(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), out))
            return out

        # Keys, contexts and noise do not depend on what is learned: a block of rounds gets
        # them at once, which changes no number and saves most of the time.
        early = {"key", "state"}
        known = [n in early for n in Carry._fields for _ in jax.tree.leaves(getattr(carry, n))]
        parts = split(flatten(body, carry, t0), [*known, True])
        block = _BLOCK_BYTES // max(parts.kept_bytes, 1)
        block = max(1, min(_LONGEST_BLOCK, length, 1 << max(block.bit_length() - 1, 0)))
        structure = jax.tree.structure(shapes[0])
        empty = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes[0][1])
        fixed = [x for x, k in zip(jax.tree.leaves(carry), known, strict=True) if k]

        take, put = jax.lax.dynamic_index_in_dim, jax.lax.dynamic_update_index_in_dim

        def rounds_of_block(b: jax.Array, state: tuple) -> tuple:
            start = b * block
            times = t0 + start + jnp.arange(block, dtype=t0.dtype)
            kept = jax.vmap(lambda t: parts.early(*fixed, t))(times)

            def advance(i: jax.Array, state: tuple) -> tuple:
                carry, records = state
                now = jax.tree.map(lambda x: take(x, i, 0, keepdims=False), kept)
                out = parts.late(now, *jax.tree.leaves((carry, times[i])))
                carry, record = jax.tree.unflatten(structure, out)
                return carry, jax.tree.map(lambda r, x: put(r, x, start + i, 0), records, record)

            last = jnp.minimum(n - start, block)
            return jax.lax.fori_loop(jnp.zeros((), t0.dtype), last, advance, state)

        blocks = (n + block - 1) // block
        return jax.lax.fori_loop(jnp.zeros((), t0.dtype), blocks, rounds_of_block, (carry, empty))

    def grouped(carry: Carry, t0: jax.Array, n: jax.Array) -> tuple[Carry, Any]:
        total = carry.key.shape[0]
        size = _group_size(carry)
        if size == total:
            return chunk(carry, t0, n)
        groups = jax.tree.map(lambda x: x.reshape(total // size, size, *x.shape[1:]), carry)
        carry, records = jax.lax.map(lambda c: chunk(c, t0, n), groups)
        carry = jax.tree.map(lambda x: x.reshape(total, *x.shape[2:]), carry)
        records = jax.tree.map(
            lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], total, *x.shape[3:]), records
        )
        return carry, records

    mesh = _mesh(replications)
    program = grouped
    if mesh is not None:
        across, along = PartitionSpec("batch"), PartitionSpec(None, "batch")
        program = jax.shard_map(
            grouped,
            mesh=mesh,
            in_specs=(across, PartitionSpec(), PartitionSpec()),
            out_specs=(across, along),
            check_vma=False,
        )
    start = jax.jit(jax.vmap(lambda key: initial_carry(loop, key)))
    shape = jax.eval_shape(start, jax.random.split(jax.random.key(0), replications))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = jax.jit(program, donate_argnums=0).lower(shape, number, number).compile()
    return Program(start, compiled, length)
