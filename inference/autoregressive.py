r"""Beliefs by generation: the history is the belief, a completed sequence is a world.

A sequence model gives the law of the next observation from those before,
:math:`p(y_{n+1} \mid x_{n+1}, y_{1:n})`. Drawn one after the other, each draw joining the history
of the next, imagined observations follow their joint law: the uncertainty about any function of
the completed sequence is its variation over such draws. No latent variable, prior or sampler is
needed, and the model may be a closed form or a trained network.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._inference import Inference, Rows
from decisionppl._play import as_key
from decisionppl.inference._program import Program
from decisionppl.inference._steps import Steps, fork, steps_of, where

_BLOCK = 32


class History(NamedTuple):
    """What was seen of a population of `length` units, per arm if there are arms.

    Attributes:
        args: per-round arguments of the sequence model, leaves [length, ...]; those of rounds
            from `count` on are not known yet if `contexts` draws them.
        values: dict from data site to [length, ...] ([length, arms, ...] with arms).
        observed: bool [length] or [length, arms], which cells were seen.
        carry: the sequence model's, after all that was seen.
        count: int32, rounds so far; more than the capacity if some were lost.
    """

    args: tuple
    values: dict[str, jax.Array]
    observed: jax.Array
    carry: Any
    count: jax.Array

    @property
    def capacity(self) -> int:
        """How many rounds there is room for."""
        return self.observed.shape[0]


class Population(NamedTuple):
    """A sequence model with its arguments, taken apart.

    Attributes:
        model: the sequence model.
        args: its arguments.
        per_round: which of them have one entry per round.
        arms: None, or what distinguishes the arms: a tuple of the leading arguments of the
            model, leaves [arms, ...] (empty if they differ in nothing but their data).
        num_arms: number of arms; 1 without.
        length: number of rounds.
        sites: dict from data site to shape and dtype of one observation of one arm.
    """

    model: Callable
    args: tuple
    per_round: tuple[bool, ...]
    arms: tuple | None
    num_arms: int
    length: int
    sites: dict[str, jax.ShapeDtypeStruct]

    def round_args(self) -> tuple:
        """The arguments that have one entry per round."""
        return tuple(a for a, p in zip(self.args, self.per_round, strict=True) if p)

    def steps(self, round_args: tuple, arm: tuple) -> Steps:
        """The steps of one arm's sequence."""
        given = iter(round_args)
        args = [next(given) if p else a for a, p in zip(self.args, self.per_round, strict=True)]
        return steps_of(self.model, *arm, *args)

    def each(self, fn: Callable, *trees: Any) -> Any:
        """`fn(arm arguments, *trees)` for all arms, mapped over axis 0 of the trees."""
        if self.arms is None:
            return fn((), *trees)
        # with arms that differ in nothing there may be no tree to map over
        count = jnp.arange(self.num_arms)
        return jax.vmap(lambda _, arm, *rest: fn(arm, *rest))(count, self.arms, *trees)


def population(model: Callable, args: tuple, arms: Any = None) -> Population:
    """Check a sequence model against its arguments."""
    distinct: tuple | None = None
    num_arms = 1
    if isinstance(arms, bool) or (isinstance(arms, int | np.integer) and arms < 1):
        raise ValueError(f"arms: expected a number of at least 1 or features, got {arms!r}.")
    if isinstance(arms, int | np.integer):
        distinct, num_arms = (), int(arms)
    elif arms is not None:
        distinct = arms if isinstance(arms, tuple) else (arms,)
        distinct = jax.tree.map(jnp.asarray, distinct)
        sizes = {x.shape[:1] for x in jax.tree.leaves(distinct)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                "arms: expected the number of arms, or features with one leading axis [arms, "
                f"...], got leading axes {sorted(sizes)}."
            )
        num_arms = sizes.pop()[0]
    first = jax.tree.map(lambda x: x[0], distinct) or ()
    steps = steps_of(model, *first, *args)
    per_round = tuple(_has_axis(a, steps.length) for a in args)
    return Population(model, args, per_round, distinct, num_arms, steps.length, steps.sites)


def _has_axis(arg: Any, length: int) -> bool:
    leaves = jax.tree.leaves(arg)
    return bool(leaves) and all(np.ndim(x) and np.shape(x)[0] == length for x in leaves)


def autoregressive(
    model: Callable,
    *args: Any,
    arms: Any = None,
    contexts: Callable | None = None,
    one_step: bool = False,
    arm_site: str = "arm",
) -> Inference:
    r"""Beliefs of a sequence model about a finite population, by generation.

    The population has T units, T being the length of the sequence that `args` describe. Each
    row of data is the next of them. A world is the population completed: cells that were seen
    keep their values, all others are drawn one after the other, each given the seen and the
    drawn before it. As everything is seen in the end, so is the truth: the variance of the
    population mean given n observations goes to zero as n goes to T.

    Args:
        model: a NumPyro model with one `scan`, which draws each observation from its law given
            the past, such as `models.sequences` has, or `neural.sequence(net)` under
            `handlers.substitute(..., data=params)`.
        *args: its arguments for the whole population: the length, or covariates [T, ...].
        arms: None for one sequence; the number of arms, or their features (a tuple of several),
            leaves [arms, ...], which are the model's leading arguments. Arms are sequences of
            the same model, independent of each other; each round reveals one arm's outcome.
        contexts: `(key, t) -> covariates of round t`, from which those of rounds to come are
            drawn in each world. Without it the covariates in `args` are those of the population.
        one_step: draw every missing cell from its law given the seen cells alone. For
            comparison: it confounds noise with ignorance, and its worlds do not hang together.
        arm_site: name of the action site whose logged value is the arm.

    Returns:
        `Inference`. A belief is a `History`; `update` takes Rows with args (the row's
        covariates), sites (the data sites, and `arm_site` with arms), so that the history grows
        without recompilation; a world is a dict from data site to [worlds, T, ...]
        ([worlds, T, arms, ...] with arms). `predict` is None.

    Raises:
        ValueError: a model that is not a sequence model, see the message.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> urn = sequences.polya_urn(1.0, 1.0).sequence
        >>> engine = dp.inference.autoregressive(urn, 20)      # a population of 20
        >>> key = jax.random.key(0)
        >>> seen = dp.Rows((), {"y": jnp.asarray([1, 1, 0])}, jnp.ones(3, bool))
        >>> belief = engine.update(key, engine.init(key), seen)
        >>> worlds = engine.sample(key, belief, 100)["y"]
        >>> worlds.shape, bool((worlds[:, :3] == seen.sites["y"]).all())
        ((100, 20), True)

    References:
        arXiv 2405.19466 (posterior sampling by autoregressive generation); arXiv 2503.01215
        (one-step against multi-step); arXiv 2502.07064, Algorithm 1 (missing outcomes).
    """
    whole = population(model, args, arms)
    if contexts is not None and not any(whole.per_round):
        raise ValueError("contexts: the model has no argument with one entry per round.")

    def init(key: Any) -> History:
        return _nothing(whole)

    @jax.jit
    def update(key: Any, belief: History, rows: Rows) -> History:
        _check_rows(whole, rows, arm_site)

        def one(belief: History, row: tuple) -> tuple[History, None]:
            args, sites, counts = row
            after = _next(whole, belief, args, sites, sites.get(arm_site))
            return where(counts, after, belief), None

        mask = jnp.asarray(rows.mask)
        if mask.shape[0] == 1:  # a loop of one costs more than it does
            first = jax.tree.map(lambda x: jnp.asarray(x)[0], (rows.args, rows.sites, mask))
            return one(belief, first)[0]
        sites = {n: jnp.asarray(v) for n, v in rows.sites.items()}
        return jax.lax.scan(one, belief, (rows.args, sites, mask))[0]

    @functools.partial(jax.jit, static_argnums=2)
    def sample(key: Any, belief: History, num_worlds: int) -> dict[str, jax.Array]:
        return worlds_of(whole, key, belief, num_worlds, contexts, one_step)[1]

    return Inference(init, update, sample)


def _nothing(whole: Population) -> History:
    round_args = jax.tree.map(jnp.asarray, whole.round_args())
    shape = (whole.length,) if whole.arms is None else (whole.length, whole.num_arms)
    values = {n: jnp.zeros((*shape, *s.shape), s.dtype) for n, s in whole.sites.items()}
    carry = whole.each(lambda arm: whole.steps(round_args, arm).init)
    return History(round_args, values, jnp.zeros(shape, bool), carry, jnp.zeros((), jnp.int32))


def _next(whole: Population, belief: History, args: tuple, sites: Any, arm: Any) -> History:
    """The history after the outcome of one more round."""
    t = belief.count
    table = jax.tree.map(
        lambda b, x: jax.lax.dynamic_update_index_in_dim(b, jnp.asarray(x, b.dtype), t, 0),
        belief.args, args,
    )  # fmt: skip
    values = {n: jnp.asarray(sites[n], s.dtype) for n, s in whole.sites.items()}
    if whole.arms is None:
        steps = whole.steps(table, ())
        carry, _ = steps.absorb(belief.carry, _at(steps.xs, t), values)
        cell: Any = t
    else:
        mine = jax.tree.map(lambda x: x[arm], whole.arms)
        steps = whole.steps(table, mine)
        before = jax.tree.map(lambda c: c[arm], belief.carry)
        after, _ = steps.absorb(before, _at(steps.xs, t), values)
        carry = jax.tree.map(lambda c, x: c.at[arm].set(x), belief.carry, after)
        cell = (t, arm)
    return History(
        table, {n: v.at[cell].set(values[n], mode="drop") for n, v in belief.values.items()},
        belief.observed.at[cell].set(True, mode="drop"), carry, t + 1,
    )  # fmt: skip


def _at(xs: Any, t: Any) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, 0, keepdims=False), xs)


def _check_rows(whole: Population, rows: Rows, arm_site: str) -> None:
    needed = [*whole.sites, *([] if whole.arms is None else [arm_site])]
    missing = [n for n in needed if n not in rows.sites]
    if missing:
        raise ValueError(
            f"rows have no {missing}: each round of this population is logged by {needed}."
        )
    if len(rows.args) != sum(whole.per_round):
        raise ValueError(
            f"rows have {len(rows.args)} arguments; the sequence model has "
            f"{sum(whole.per_round)} with one entry per round."
        )


def worlds_of(
    whole: Population,
    key: Any,
    belief: History,
    num_worlds: int,
    contexts: Callable | None = None,
    one_step: bool = False,
) -> tuple[tuple, dict[str, jax.Array]]:
    """Per-round arguments and completed tables, each with a leading axis [worlds]."""
    seen = belief.count
    lost = seen > belief.capacity

    def world(key: Any) -> tuple[tuple, dict[str, jax.Array]]:
        context_key, cell_key = jax.random.split(key)
        table = belief.args
        if contexts is not None:
            keys = jax.random.split(context_key, whole.length)
            drawn = jax.vmap(contexts)(keys, jnp.arange(whole.length))
            drawn = drawn if isinstance(drawn, tuple) else (drawn,)
            past = jnp.arange(whole.length) < seen
            table = jax.tree.map(
                lambda b, x: jnp.where(past.reshape(-1, *(1,) * (b.ndim - 1)), b, x),
                belief.args, drawn,
            )  # fmt: skip
        keys = jax.random.split(cell_key, whole.num_arms)
        keys = keys[0] if whole.arms is None else keys
        axis = 0 if whole.arms is None else 1
        cells = {n: jnp.moveaxis(v, axis, 0) for n, v in belief.values.items()} if axis else (
            belief.values)  # fmt: skip
        observed = belief.observed.T if axis else belief.observed

        def complete(arm: tuple, key: Any, carry: Any, values: Any, observed: Any) -> Any:
            steps = whole.steps(table, arm)
            fill = independently if one_step else generate
            return fill(steps, key, carry, values, observed)

        full = whole.each(complete, keys, belief.carry, cells, observed)
        full = {n: jnp.moveaxis(v, 0, axis) if axis else v for n, v in full.items()}
        full = {n: _spoiled(v, lost) for n, v in full.items()}
        return table, full

    return jax.vmap(world)(jax.random.split(key, num_worlds))


def complete(
    whole: Population, key: Any, contexts: Callable | None = None
) -> tuple[tuple, dict[str, jax.Array]]:
    """One table drawn from the model, nothing having been seen."""
    drawn = worlds_of(whole, key, _nothing(whole), 1, contexts)
    return jax.tree.map(lambda x: x[0], drawn)


def _spoiled(x: jax.Array, lost: jax.Array) -> jax.Array:
    """NaN (or the least integer) where rounds beyond the population were given, so it shows."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    bad = jnp.nan if floating else (0 if x.dtype == bool else jnp.iinfo(x.dtype).min)
    return jnp.where(lost, jnp.asarray(bad, x.dtype), x)


def generate(
    steps: Steps, key: Any, carry: Any, values: dict[str, jax.Array], observed: jax.Array
) -> dict[str, jax.Array]:
    """Complete a sequence: cells that were not observed, drawn one after the other.

    Args:
        steps: of the sequence model.
        key: PRNG key.
        carry: after all observed cells.
        values: dict from data site to [length, ...].
        observed: bool [length].

    Returns:
        dict from data site to [length, ...]; observed cells keep their values.
    """
    length = observed.shape[0]
    size = min(_BLOCK, length)
    blocks = -(-length // size)
    room = blocks * size
    missing = ~observed
    rank = jnp.cumsum(missing) - 1  # which of the missing cells each one is
    carry = fork(carry, room)
    # missing cells first, in their order: the loop ends with the last of them
    alike = all(x.size == 0 for x in jax.tree.leaves(steps.xs))
    if alike:
        ordered = jax.tree.map(lambda x: jnp.zeros((room, *x.shape[1:]), x.dtype), steps.xs)
    else:
        cells = jnp.zeros(room, int).at[jnp.where(missing, rank, room)].set(
            jnp.arange(length), mode="drop"
        )  # fmt: skip
        ordered = jax.tree.map(lambda x: x[cells], steps.xs)
    keys = jax.random.split(key, room)
    empty = {n: jnp.zeros((room, *v.shape[1:]), v.dtype) for n, v in values.items()}

    def block(b: jax.Array, state: tuple) -> tuple:
        carry, drawn = state
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, b * size, size)  # noqa: E731

        def step(carry: Any, inputs: tuple) -> tuple:
            key, x = inputs
            return steps.draw(key, carry, x)

        carry, new = jax.lax.scan(step, carry, (cut(keys), jax.tree.map(cut, ordered)))
        drawn = {
            n: jax.lax.dynamic_update_slice_in_dim(d, new[n].astype(d.dtype), b * size, 0)
            for n, d in drawn.items()
        }
        return carry, drawn

    needed = (jnp.sum(missing) + size - 1) // size
    _, drawn = jax.lax.fori_loop(jnp.zeros((), needed.dtype), needed, block, (carry, empty))
    return {n: _merged(observed, values[n], drawn[n][rank]) for n in values}


def independently(
    steps: Steps, key: Any, carry: Any, values: dict[str, jax.Array], observed: jax.Array
) -> dict[str, jax.Array]:
    """One-step inference: each missing cell drawn from its law given the observed cells alone."""
    keys = jax.random.split(key, observed.shape[0])
    carry = fork(carry, 1)
    drawn = jax.vmap(lambda k, x: steps.draw(k, carry, x)[1])(keys, steps.xs)
    return {n: _merged(observed, values[n], drawn[n]) for n in values}


def _merged(observed: jax.Array, values: jax.Array, drawn: jax.Array) -> jax.Array:
    keep = observed.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(keep, values, drawn.astype(values.dtype))


def absorb(
    steps: Steps, carry: Any, values: dict[str, jax.Array], observed: jax.Array
) -> tuple[Any, jax.Array]:
    """The carry after the observed cells of a sequence, and the log-probability of each."""

    def step(carry: Any, inputs: tuple) -> tuple:
        x, given, counts = inputs
        after, log_prob = steps.absorb(carry, x, given)
        return where(counts, after, carry), jnp.where(counts, log_prob, 0.0)

    return jax.lax.scan(step, carry, (steps.xs, values, observed))


def impute(
    model: Callable,
    args: tuple,
    values: Any,
    *,
    key: Any,
    num_worlds: int,
    observed: Any = None,
    arms: Any = None,
    one_step: bool = False,
) -> dict[str, jax.Array]:
    """Draws of a table with missing cells, completed.

    Args:
        model: a sequence model, as for `autoregressive`.
        args: its arguments for the whole table.
        values: dict from data site to [length, ...] ([length, arms, ...] with arms), or the
            array if there is one site; what missing cells hold does not matter.
        key: PRNG key (typed or raw) or an int seed.
        num_worlds: number of draws.
        observed: bool [length] or [length, arms]; default where `values` are not NaN.
        arms: as for `autoregressive`.
        one_step: as for `autoregressive`.

    Returns:
        dict from data site to [worlds, length, ...]; observed cells are as given, to the bit.

    Raises:
        ValueError: shapes that do not fit, or an unknown site.

    Example:
        >>> import numpy as np
        >>> from decisionppl import inference
        >>> from decisionppl.models import sequences
        >>> model = sequences.normal_normal(noise=0.5).sequence
        >>> table = np.array([0.3, np.nan, 0.1, np.nan, np.nan])
        >>> full = inference.impute(model, (5,), table, key=0, num_worlds=10)["y"]
        >>> full.shape, bool((full[:, 2] == np.float32(0.1)).all())
        ((10, 5), True)
    """
    whole = population(model, args, arms)
    given = values if isinstance(values, dict) else {next(iter(whole.sites)): values}
    if set(given) != set(whole.sites):
        raise ValueError(f"values: expected the data sites {list(whole.sites)}, got {list(given)}.")
    shape = (whole.length,) if whole.arms is None else (whole.length, whole.num_arms)
    arrays = {n: np.asarray(v) for n, v in given.items()}
    for name, array in arrays.items():
        expected = (*shape, *whole.sites[name].shape)
        if array.shape != expected:
            raise ValueError(f"site {name!r}: expected shape {expected}, got {array.shape}.")
    if observed is None:
        nan = [np.isnan(a.astype(float)).reshape(*shape, -1).any(-1) for a in arrays.values()]
        observed = ~np.any(nan, axis=0)
    observed = np.asarray(observed, bool)
    if observed.shape != shape:
        raise ValueError(f"observed: expected shape {shape}, got {observed.shape}.")
    cells = {n: jnp.asarray(np.nan_to_num(a), whole.sites[n].dtype) for n, a in arrays.items()}
    program = Program(model, (args, arms))
    return _impute(
        program, num_worlds, bool(one_step), program.arrays((args, arms)), as_key(key), cells,
        jnp.asarray(observed),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _impute(
    program: Program, num_worlds: int, one_step: bool, arrays: list, key: Any, cells: dict,
    observed: Any,
) -> dict[str, jax.Array]:  # fmt: skip
    whole = population(program.model, *program.args(arrays))
    start = _nothing(whole)

    def learn(arm: tuple, carry: Any, values: Any, seen: Any) -> Any:
        return absorb(whole.steps(start.args, arm), carry, values, seen)[0]

    by_arm = (cells, observed)
    if whole.arms is not None:
        by_arm = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), by_arm)
    carry = whole.each(learn, start.carry, *by_arm)
    belief = History(start.args, cells, observed, carry, jnp.zeros((), jnp.int32))
    return worlds_of(whole, key, belief, num_worlds, None, one_step)[1]
