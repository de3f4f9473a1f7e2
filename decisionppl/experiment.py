"""Sequential experiments: decide, observe, learn, in one compiled loop or by hand."""

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._ask import Ask, Experiment
from decisionppl._belief_path import BeliefPath, belief_path
from decisionppl._decide import decider
from decisionppl._decision import Context, as_context, rule_name
from decisionppl._environment import Environment, as_environment, from_model, num_contexts
from decisionppl._inference import Inference
from decisionppl._loop import Carry, Delay, Loop, Program, compile_loop
from decisionppl._play import as_key
from decisionppl._profile import Profile, profile
from decisionppl._recommend import Recommendation
from decisionppl._result import Result, Source
from decisionppl._storage import from_arrays, function_hash, to_arrays

__all__ = [
    "Ask",
    "BeliefPath",
    "Context",
    "Delay",
    "Environment",
    "Experiment",
    "Profile",
    "Recommendation",
    "Result",
    "belief_path",
    "from_model",
    "profile",
    "run",
]

_FIRST_CHUNK = 256
_SECONDS_PER_CHUNK = 0.25
_SECONDS_PER_CHECKPOINT = 30.0
_KEPT_PROGRAMS = 16
_programs: OrderedDict[Any, tuple[Program, Any]] = OrderedDict()


class _Plan(NamedTuple):
    loop: Loop
    source: Source
    replications: int
    horizon: int
    key: jax.Array
    attrs: dict[str, Any]
    identity: Any
    contexts: Any


def run(
    model: Callable,
    inference: Inference,
    rule: Callable,
    environment: Any = None,
    horizon: int | None = None,
    *,
    key: Any,
    replications: int = 1,
    contexts: Any = None,
    actions: Any = None,
    draws: int | None = None,
    batch: int = 1,
    delay: int | Delay = 0,
    constraint: Callable | None = None,
    regret: bool = True,
    propensities: bool = True,
    progress: bool | None = None,
    checkpoint: Any = None,
    resume: Any = None,
) -> Result:
    """Run a sequential experiment: the loop is compiled once and run in chunks.

    Each round sees a context, decides by the rule from the belief, observes the outcomes
    that have arrived and updates the belief. Replications are independent, mapped over one
    axis and spread over the devices there are. The same key gives the same numbers.

    Args:
        model: a one-round model.
        inference: the belief engine, built from the model.
        rule: a rule from `decisionppl.rules` (`functools.partial` sets its options), or any
            callable of that form; `rules.per_cost(rule)` maximises per unit of cost.
        environment: None or the model (at a world drawn per replication), a callable
            `(key, context, action) -> outcomes`, or an `Environment`. A callable gets the
            single argument or context and the single action as they are, several ones as a
            tuple or dict; it returns a dict from site to value, or the one value.
        horizon: number of rounds.
        key: PRNG key (typed or raw) or an int seed.
        replications: independent repetitions.
        contexts: the model's arguments: arrays [horizon * batch, ...] (a tuple for several
            arguments, a dict for context sites) or `(key, t) -> context`.
        actions: candidate actions, as in `decisionppl.utility`; None enumerates a finite space
            and searches any other (`log_ei`, `ucb`, `thompson`, `knowledge_gradient`, ...), in
            which case there are no propensities and no regret.
        draws: worlds drawn per decision where the utility has no Gaussian closed form; None
            is 1 for Thompson sampling, which needs no more, else 128. Propensities are exact
            given those draws, so take a few hundred if importance weights are wanted.
        batch: decisions per round, made with the same belief.
        delay: rounds until outcomes arrive: an int, or a `Delay` for random ones.
        constraint: function of `decisionppl.expectations` (dict site -> [draws, actions])
            giving the mask of allowed actions, see `rules.feasible`. A round in which nothing
            would be allowed is decided without it.
        regret: whether to record regret, where the environment knows expected utilities.
        propensities: whether to record the probability of each choice. Where Thompson
            sampling has a closed form this integral costs more than all else in a round.
        progress: show a progress bar with the time left; None shows it in a terminal.
        checkpoint: a file, written about every 30 seconds and at the end. If it exists, the
            run continues from it.
        resume: a `Result`, or the path of one, to continue up to `horizon`; `run(2n)` equals
            `run(n)` continued to 2n, bit for bit.

    Returns:
        A `Result`. Ctrl-C stops after the current chunk and returns what was done, with
        `complete` False; pass it as `resume` to go on.

    Raises:
        ValueError: sizes that do not fit (horizon, contexts, capacity of the belief), a
            resumed file of another experiment, or a model without action or reward.
        TypeError: an argument of the wrong kind.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     p = numpyro.sample("p", dist.Beta(1, 1).expand([3]).to_event(1))
        ...     dp.reward("click", dist.Bernoulli(p[dp.action("arm", 3)]))
        >>> engine = dp.inference.conjugate(model)
        >>> result = dp.experiment.run(
        ...     model, engine, dp.rules.thompson, horizon=50, key=0, replications=4)
        >>> dict(result.data.sizes), sorted(result.data.data_vars)
        ({'replication': 4, 'round': 50}, ['action_index', 'arm', 'click', 'propensity', 'regret'])
    """
    plan = _plan(
        model, inference, rule, environment, horizon, key, replications, contexts, actions,
        draws, batch, delay, constraint, regret, propensities,
    )  # fmt: skip
    if checkpoint is not None and resume is None and Path(checkpoint).exists():
        resume = checkpoint
    program, seconds = _program(plan)
    carry, done = _start(plan, program, resume)
    return _drive(plan, program, seconds, carry, done, progress, checkpoint)


def _plan(
    model: Callable,
    inference: Inference,
    rule: Callable,
    environment: Any,
    horizon: int | None,
    key: Any,
    replications: int,
    contexts: Any,
    actions: Any,
    draws: int | None,
    batch: int,
    delay: int | Delay,
    constraint: Callable | None,
    regret: bool,
    propensities: bool,
) -> _Plan:
    if not callable(model):
        raise TypeError(f"model: expected a function with NumPyro sites, got {model!r}.")
    for name, value, least in (
        ("horizon", horizon, 1), ("replications", replications, 1), ("batch", batch, 1),
        ("delay", delay.maximum if isinstance(delay, Delay) else delay, 0),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}.")
    assert horizon is not None
    available = num_contexts(contexts)
    if available is not None and available < horizon * batch:
        raise ValueError(
            f"contexts: {available} given, but horizon {horizon} with {batch} decisions per "
            f"round needs {horizon * batch}. Give more contexts or a callable (key, t) -> context."
        )
    key = as_key(key)
    source = as_environment(model, environment, contexts)
    example = as_context(_first_context(source, key))
    parts = decider(
        model, inference, rule, example, actions=actions, draws=draws, constraint=constraint
    )
    _check_capacity(inference, horizon * batch)
    loop = Loop(parts, source, batch, delay, regret, propensities)
    attrs = _attributes(model, rule, key, loop, replications)
    given = (
        model, inference, rule, environment, parts.draws, constraint, batch, delay, regret,
        propensities, int(replications),
    )  # fmt: skip
    identity = _identity(given, parts.actions, contexts)
    return _Plan(
        loop,
        Source(model, example.args),
        int(replications),
        int(horizon),
        key,
        attrs,
        identity,
        contexts,
    )


def _first_context(source: Environment, key: jax.Array) -> Any:
    def first(key: jax.Array) -> Any:
        init_key, context_key = jax.random.split(key)
        return source.context(context_key, source.init(init_key), jnp.zeros((), jnp.int32))

    shape = jax.eval_shape(first, key)
    # the environment is a new object in every run, and would be compiled in every run
    return jax.jit(first)(key) if jax.tree.leaves(shape) else shape


def _check_capacity(inference: Inference, rows: int) -> None:
    """Engines that keep the history keep it in a buffer of fixed capacity."""
    belief = jax.eval_shape(inference.init, jax.random.key(0))
    is_buffer = lambda x: hasattr(x, "capacity") and hasattr(x, "count")  # noqa: E731
    for leaf in jax.tree.leaves(belief, is_leaf=is_buffer):
        if is_buffer(leaf) and leaf.capacity < rows:
            raise ValueError(
                f"the belief holds {leaf.capacity} rows, this experiment gives it {rows}. Build "
                f"the engine with capacity={rows} or more (autoregressive: arguments of a "
                f"population of {rows} or more)."
            )


def _attributes(
    model: Callable, rule: Callable, key: jax.Array, loop: Loop, replications: int
) -> dict[str, Any]:
    import numpyro

    from decisionppl import __version__

    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    device = jax.devices()[0]
    delay = loop.delay
    return {
        "decisionppl": __version__,
        "numpyro": numpyro.__version__,
        "jax": jax.__version__,
        "model": getattr(model, "__name__", type(model).__name__),
        "model_hash": function_hash(model),
        # in quotes, as files written before have it: they resume
        "rule": repr(rule_name(rule)),
        "key": [int(x) for x in np.asarray(data).ravel()],
        "replications": replications,
        "batch": loop.batch,
        "delay": delay.maximum if isinstance(delay, Delay) else delay,
        "draws": loop.decider.draws,
        "device": f"{device.platform}:{device.device_kind} x{jax.device_count()}",
        "dtype": str(jnp.zeros(()).dtype),
    }


# what must agree for a run to be the continuation of another
_IDENTITY = ("model", "model_hash", "rule", "key", "replications", "batch", "delay", "draws")


def _identity(given: tuple, actions: dict[str, jax.Array], contexts: Any) -> Any:
    """What a compiled program depends on, hashable; None if something is not."""
    arrays = tuple((n, a.shape, str(a.dtype), np.asarray(a).tobytes()) for n, a in actions.items())
    table = contexts
    if contexts is not None and not callable(contexts):
        table = tuple(id(x) for x in jax.tree.leaves(contexts))
    name = (*given, arrays, table, str(jnp.zeros(()).dtype), jax.device_count())
    try:
        hash(name)
    except TypeError:
        return None
    return name


def _program(plan: _Plan) -> tuple[Program, float]:
    """Compiled program (kept for equal parts) and seconds spent compiling it now."""
    name = plan.identity
    if name is not None and name in _programs:
        _programs.move_to_end(name)
        return _programs[name][0], 0.0
    started = time.perf_counter()
    program = compile_loop(plan.loop, plan.replications)
    seconds = time.perf_counter() - started
    if name is not None:
        # the contexts are kept alive, so that their identity in the name stays theirs
        _programs[name] = (program, plan.contexts)
        if len(_programs) > _KEPT_PROGRAMS:
            _programs.popitem(last=False)
    return program, seconds


def _start(plan: _Plan, program: Program, resume: Any) -> tuple[Carry, Result | None]:
    indices = jnp.arange(plan.replications)
    keys = jax.vmap(lambda i: jax.random.fold_in(plan.key, i))(indices)
    carry = jax.block_until_ready(program.start(keys))
    if resume is None:
        return carry, None
    done = resume if isinstance(resume, Result) else Result.load(resume)
    for name in _IDENTITY:
        if done.attrs.get(name) != plan.attrs[name]:
            raise ValueError(
                f"resume: {name} was {done.attrs.get(name)!r}, now it is {plan.attrs[name]!r}. "
                "An experiment continues only with what it was begun with; start a new one "
                "(another file) instead."
            )
    return from_arrays(done.state, carry), done


def _drive(
    plan: _Plan,
    program: Program,
    compile_seconds: float,
    carry: Carry,
    done: Result | None,
    progress: bool | None,
    checkpoint: Any,
) -> Result:
    from tqdm import tqdm

    first = 0 if done is None else done.rounds
    records: list[dict[str, np.ndarray]] = []
    started = saved = time.perf_counter()
    t, size = first, _FIRST_CHUNK
    quiet = None if progress is None else not progress
    bar = tqdm(total=plan.horizon, initial=first, unit="round", disable=quiet, leave=False)
    try:
        while t < plan.horizon:
            n = min(size, program.length, plan.horizon - t)
            begun = time.perf_counter()
            carry, out = program.chunk(carry, np.int32(t), np.int32(n))
            records.append({k: np.asarray(v)[:n].copy() for k, v in out.items()})
            lasted = time.perf_counter() - begun
            t += n
            bar.update(n)
            # the number of rounds is an input of the program: longer chunks cost no compilation
            if lasted < 0.5 * _SECONDS_PER_CHUNK:
                size = min(8 * n, program.length)
            elif lasted > 2 * _SECONDS_PER_CHUNK:
                size = max(n // 2, 1)
            if checkpoint is not None and begun - saved > _SECONDS_PER_CHECKPOINT:
                _result(plan, carry, records, done, compile_seconds, begun - started).save(
                    checkpoint
                )
                saved = time.perf_counter()
    except KeyboardInterrupt:
        if len(records) == 0 and done is None:
            raise
        t = first + sum(len(r["index"]) for r in records)
        warnings.warn(
            f"interrupted after round {t} of {plan.horizon}; pass the result as resume= to go on.",
            stacklevel=3,
        )
    finally:
        bar.close()
    spent = time.perf_counter() - started
    result = _result(plan, carry, records, done, compile_seconds, spent)
    if checkpoint is not None:
        result.save(checkpoint)
    return result


def _result(
    plan: _Plan,
    carry: Carry,
    records: list[dict[str, np.ndarray]],
    done: Result | None,
    compile_seconds: float,
    run_seconds: float,
) -> Result:
    import xarray as xr

    data = None if done is None else done.data
    if records:
        joined = {k: np.concatenate([r[k] for r in records]) for k in records[0]}
        new = _dataset(plan.loop, joined, 0 if done is None else done.rounds)
        data = new if data is None else xr.concat([data, new], "round", data_vars="all")
    assert data is not None
    attrs = {
        **plan.attrs,
        "horizon": plan.horizon,
        "complete": int(data.sizes["round"]) >= plan.horizon,
        "compile_seconds": compile_seconds,
        "run_seconds": run_seconds,
    }
    engine = plan.loop.decider.inference
    return Result(data, attrs, to_arrays(carry), carry.belief, engine, plan.source)


def _dataset(loop: Loop, records: dict[str, np.ndarray], first: int) -> Any:
    import xarray as xr

    axes = ["replication", "round"] + (["unit"] if loop.batch > 1 else [])
    variables: dict[str, Any] = {}

    def add(name: str, value: np.ndarray) -> None:
        value = np.moveaxis(value, 0, 1)  # records are [round, replication, ...]
        extra = [f"{name}_dim_{i}" for i in range(value.ndim - len(axes))]
        variables[name] = ([*axes, *extra], value)

    for name, candidates in loop.decider.actions.items():
        add(name, np.asarray(candidates)[records["index"]])
    if loop.decider.space is None:
        add("action_index", records["index"])
    for name, value in records.items():
        if name != "index":
            add(name.removeprefix("site:"), value)
    rounds = next(iter(variables.values()))[1].shape[1]
    coords = {"round": np.arange(first, first + rounds)}
    return xr.Dataset(variables, coords)
