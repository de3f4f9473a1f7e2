"""Training of network parameters: SVI in compiled chunks, with checkpoints that resume exactly."""

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.svi import SVIState

from decisionppl._play import as_key
from decisionppl._storage import from_arrays, read_group, to_arrays, write_groups

_CHUNK = 1024
_SECONDS_PER_CHUNK = 1.0
_SECONDS_PER_CHECKPOINT = 30.0


class Trained(NamedTuple):
    """Parameters, and how they were arrived at.

    Attributes:
        params: dict from param site to value; `handlers.substitute(model, data=params)`.
        losses: [steps], loss of each step before its update.
        held_out: [(step, loss), ...] on held-out data.
        complete: whether all steps were done; False after Ctrl-C.
        seconds: spent on the run, compilation and earlier sessions of a checkpoint included.
    """

    params: dict[str, Any]
    losses: np.ndarray
    held_out: list[tuple[int, float]]
    complete: bool
    seconds: float


def minibatches(arrays: Any, size: int) -> Callable:
    """Batches of stored data, rows drawn with replacement.

    Args:
        arrays: a tuple of arrays [rows, ...], the model's arguments.
        size: rows per batch.

    Returns:
        `(key, step) -> arrays [size, ...]`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> batches = minibatches((jnp.arange(10.0),), 4)
        >>> batches(jax.random.key(0), 0)[0].shape
        (4,)
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}.")
    table = jax.tree.map(jnp.asarray, arrays)
    rows = {len(x) for x in jax.tree.leaves(table)}
    if len(rows) != 1:
        raise ValueError(f"arrays: expected one common leading axis [rows, ...], got {rows}.")
    (count,) = rows

    def batch(key: jax.Array, step: Any) -> Any:
        chosen = jax.random.randint(key, (size,), 0, count)
        return jax.tree.map(lambda x: x[chosen], table)

    return batch


def warmup_cosine(peak: float, num_steps: int) -> optax.Schedule:
    """Linear warm-up over a twentieth of the steps, then a cosine down to a hundredth of `peak`."""
    warmup = max(1, num_steps // 20)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_steps, 2), peak / 100)


def train(
    model: Callable,
    batches: Callable,
    num_steps: int,
    *,
    key: Any,
    learning_rate: float | optax.Schedule = 2e-3,
    optimizer: optax.GradientTransformation | None = None,
    guide: Callable | None = None,
    held_out: tuple | None = None,
    evaluate_every: int | None = None,
    average: float = 0.0,
    progress: bool | None = None,
    checkpoint: Any = None,
) -> Trained:
    """Fit the param sites of a model (network weights) by stochastic gradient steps.

    Steps run in compiled chunks whose number of steps is an input, so there is one compilation.
    The random numbers of a step depend on the key and on the step alone: a run that was
    interrupted and resumed gives the same parameters, bit for bit, as one that was not.

    Args:
        model: a NumPyro model of what `batches` returns, such as `neural.parallel(net)`.
        batches: `(key, step) -> tuple of the model's arguments`, pure: fresh draws from a
            generator, or rows of stored data (`minibatches`).
        num_steps: number of gradient steps.
        key: PRNG key (typed or raw) or an int seed.
        learning_rate: of AdamW: its peak, reached and left by `warmup_cosine`; or a schedule.
        optimizer: an optax transformation in place of AdamW with clipped gradients.
        guide: of the model's latents; default none, which is maximum likelihood.
        held_out: arguments on which the loss is evaluated, with one fixed key.
        evaluate_every: steps between evaluations on `held_out`; default a tenth of the steps.
        average: return the mean of the parameters over this last share of the steps, instead of
            the last parameters.
        progress: show a progress bar; None shows it in a terminal.
        checkpoint: a file, written about every 30 seconds and at the end. If it exists, training
            continues from it.

    Returns:
        `Trained`. Ctrl-C stops after the current chunk and returns what was done.

    Raises:
        ValueError: sizes below one, or a checkpoint of other parameters, another key or
            length.
        FloatingPointError: the loss became NaN or infinite; the step is named.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from decisionppl import inference
        >>> def model(y):
        ...     with numpyro.handlers.scale(scale=1 / y.size), numpyro.plate("row", y.size):
        ...         numpyro.sample("y", dist.Normal(numpyro.param("m", jnp.zeros(())), 1.0), obs=y)
        >>> fit = inference.train(
        ...     model, inference.minibatches((jnp.full(8, 2.0),), 4), 200, key=0, learning_rate=0.1)
        >>> bool(abs(fit.params["m"] - 2.0) < 0.1)
        True
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps: expected an integer of at least 1, got {num_steps!r}.")
    every = max(1, num_steps // 10) if evaluate_every is None else evaluate_every
    if every < 1:
        raise ValueError(f"evaluate_every: expected at least 1, got {evaluate_every!r}.")
    if not 0 <= average <= 1:
        raise ValueError(f"average: expected a share from 0 to 1, got {average!r}.")
    averaged_from = num_steps - round(average * num_steps)
    started = time.perf_counter()
    key = as_key(key)
    init_key, batch_key, step_key, test_key = jax.random.split(key, 4)
    if optimizer is None:
        schedule = learning_rate
        if not callable(schedule):
            schedule = warmup_cosine(schedule, num_steps)
        adam = optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=0.01)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    svi = SVI(model, guide or (lambda *args: None), optimizer, Trace_ELBO())

    def step(i: jax.Array, carry: tuple) -> tuple:
        (state, mean), losses, first = carry
        arguments = batches(jax.random.fold_in(batch_key, i), i)
        state = SVIState(state.optim_state, state.mutable_state, jax.random.fold_in(step_key, i))
        state, loss = svi.update(state, *arguments)
        # the key is made anew at each step, so it is no part of what is carried
        state = SVIState(state.optim_state, state.mutable_state, init_key)
        if average:
            weight = jnp.where(i < averaged_from, 0.0, 1 / (i - averaged_from + 1.0))
            now = svi.get_params(state)
            mean = jax.tree.map(lambda m, x: m + weight.astype(m.dtype) * (x - m), mean, now)
        return (state, mean), losses.at[i - first].set(loss), first

    @jax.jit
    def chunk(state: Any, first: jax.Array, size: jax.Array) -> tuple:
        carry = (state, jnp.zeros(_CHUNK), first)
        return jax.lax.fori_loop(first, first + size, step, carry)[:2]

    @jax.jit
    def evaluate(state: Any, arguments: tuple) -> jax.Array:
        return svi.evaluate(state[0]._replace(rng_key=test_key), *arguments)

    @jax.jit
    def begin(first: jax.Array) -> Any:
        state = svi.init(init_key, *batches(batch_key, first))._replace(rng_key=init_key)
        mean = jax.tree.map(jnp.copy, svi.get_params(state)) if average else ()
        return state, mean

    state = begin(jnp.zeros((), jnp.int32))
    raw = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    identity = {
        "parameters": _signature(svi.get_params(state[0])), "num_steps": num_steps,
        "averaged_from": averaged_from, "evaluate_every": every, "key": np.asarray(raw).tolist(),
    }  # fmt: skip
    losses: list[np.ndarray] = []
    tests: list[tuple[int, float]] = []
    done = 0
    if checkpoint is not None and Path(checkpoint).exists():
        state, losses, tests, earlier = _load(checkpoint, state, identity)
        done = sum(len(x) for x in losses)
        started -= earlier
    done, state = _drive(
        chunk, evaluate, state, done, num_steps, every, held_out, losses, tests, progress,
        None if checkpoint is None else lambda s: _save(
            checkpoint, s, losses, tests, identity, time.perf_counter() - started
        ),
    )  # fmt: skip
    # interrupted before there was anything to average
    whole = average and done > averaged_from
    return Trained(
        state[1] if whole else svi.get_params(state[0]),
        np.concatenate(losses) if losses else np.zeros(0), tests, done == num_steps,
        time.perf_counter() - started,
    )  # fmt: skip


def _signature(params: Any) -> str:
    """Names, shapes and dtypes of the parameters, shortened: what a checkpoint must agree in."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = [f"{jax.tree_util.keystr(path)}{x.dtype}{x.shape}" for path, x in leaves]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]


def _drive(
    chunk: Callable,
    evaluate: Callable,
    state: Any,
    done: int,
    num_steps: int,
    every: int,
    held_out: tuple | None,
    losses: list[np.ndarray],
    tests: list[tuple[int, float]],
    progress: bool | None,
    save: Callable | None,
) -> tuple[int, Any]:
    from tqdm import tqdm

    size, first = 1, done
    saved = time.perf_counter()
    quiet = None if progress is None else not progress
    bar = tqdm(total=num_steps, initial=done, unit="step", disable=quiet, leave=False)
    try:
        while done < num_steps:
            n = min(size, _CHUNK, num_steps - done, every - done % every)
            begun = time.perf_counter()
            state, out = chunk(state, np.int32(done), np.int32(n))
            out = np.asarray(out)[:n].copy()
            if not np.isfinite(out).all():
                bad = done + int(np.argmin(np.isfinite(out)))
                raise FloatingPointError(
                    f"the loss is {out[bad - done]} at step {bad}. Lower the learning rate, or "
                    "look for data outside the support of the model's law."
                )
            lasted = time.perf_counter() - begun
            losses.append(out)
            done += n
            bar.update(n)
            bar.set_postfix(loss=f"{out[-1]:.4g}", refresh=False)
            if held_out is not None and (done % every == 0 or done == num_steps):
                tests.append((done, float(evaluate(state, held_out))))
            if lasted < 0.5 * _SECONDS_PER_CHUNK:
                size = min(2 * n, _CHUNK) if n == size else size
            elif lasted > 2 * _SECONDS_PER_CHUNK:
                size = max(n // 2, 1)
            if save is not None and time.perf_counter() - saved > _SECONDS_PER_CHECKPOINT:
                save(state)
                saved = time.perf_counter()
    except KeyboardInterrupt:
        warnings.warn(
            f"interrupted after step {done} of {num_steps}; a checkpoint continues from there.",
            stacklevel=3,
        )
    finally:
        bar.close()
    if save is not None and losses and done > first:
        save(state)
    return done, state


def _save(
    path: Any, state: Any, losses: list[np.ndarray], tests: list[tuple[int, float]],
    identity: Mapping[str, Any], seconds: float,
) -> None:  # fmt: skip
    import numpyro
    import xarray as xr

    from decisionppl import __version__

    arrays = {f"leaf_{i}": x for i, x in enumerate(to_arrays(state))}
    variables = {n: ([f"{n}_{k}" for k in range(x.ndim)], x) for n, x in arrays.items()}
    attrs = {
        **identity, "decisionppl": __version__, "numpyro": numpyro.__version__,
        "jax": jax.__version__, "device": str(jax.devices()[0]), "dtype": str(jnp.zeros(()).dtype),
        "seconds": seconds,
    }  # fmt: skip
    history = xr.Dataset(
        {
            "loss": ("step", np.concatenate(losses) if losses else np.zeros(0)),
            "held_out_step": ("evaluation", np.asarray([t for t, _ in tests], int)),
            "held_out_loss": ("evaluation", np.asarray([x for _, x in tests], float)),
        }
    )
    write_groups(path, {"state": xr.Dataset(variables, attrs=attrs), "history": history})


def _load(path: Any, like: Any, identity: Mapping[str, Any]) -> tuple:
    stored = read_group(path, "state")
    for name, value in identity.items():
        found = np.asarray(stored.attrs.get(name)).tolist()
        if np.asarray(value).tolist() != found:
            raise ValueError(
                f"checkpoint {str(path)!r}: {name} was {found!r}, now it is {value!r}. Training "
                "continues only as it was begun; start a new file instead."
            )
    arrays = [stored[f"leaf_{i}"].values for i in range(len(stored.data_vars))]
    history = read_group(path, "history")
    tests = list(
        zip(history.held_out_step.values.tolist(), history.held_out_loss.values.tolist(),
            strict=True)
    )  # fmt: skip
    seconds = float(stored.attrs.get("seconds", 0.0))
    return from_arrays(arrays, like), [history.loss.values], tests, seconds
