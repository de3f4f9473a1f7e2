"""Many independent repetitions as one compiled program: in chunks, resumable."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from decisionppl._storage import atomic_path, to_arrays

_CHUNKS = 20
_WIDTH = 64  # repetitions side by side on a CPU: beyond it, arrays leave the cache


def repeat(
    function: Callable,
    key: jax.Array,
    count: int,
    operands: tuple = (),
    *,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: Any = None,
    identity: str = "",
) -> Any:
    """`function(key_i, *operands)` for i = 0, ..., count - 1, stacked, as NumPy arrays.

    Repetition i depends on the key and on i alone. Compiled once; repetitions are spread over
    the local devices, and each device runs `batch_size` of them side by side.

    Args:
        function: `(key, *operands) -> pytree of arrays`, pure.
        key: PRNG key.
        count: how many repetitions.
        operands: what all repetitions share.
        batch_size: repetitions side by side on each device; None chooses.
        progress: whether to show a bar.
        checkpoint: path of a file that keeps what was done and lets a second call go on.
        identity: what a checkpoint must agree on.

    Returns:
        pytree of arrays [count, ...]; fewer if interrupted after the first chunk.

    Raises:
        ValueError: a checkpoint of other repetitions.
    """
    from tqdm import tqdm

    devices = jax.local_devices()[: max(1, min(len(jax.local_devices()), count))]
    width = batch_size or (_WIDTH if devices[0].platform == "cpu" else 1024)
    width = max(1, min(width, -(-count // len(devices))))
    chunk = width * len(devices) * max(1, count // (width * len(devices) * _CHUNKS))

    def some(indices: jax.Array, key: jax.Array, operands: tuple) -> Any:
        one = lambda i: function(jax.random.fold_in(key, i), *operands)  # noqa: E731
        return jax.lax.map(one, indices, batch_size=width)

    program = some
    if len(devices) > 1:
        split, same = PartitionSpec("repetition"), PartitionSpec()
        program = jax.shard_map(
            some,
            mesh=Mesh(np.asarray(devices), ("repetition",)),
            in_specs=(split, same, same),
            out_specs=split,
            check_vma=False,
        )
    program = jax.jit(program)
    identity = json.dumps([identity, [int(x) for x in to_arrays(key)[0].ravel()]])
    done = _load(checkpoint, identity)
    structure = jax.tree.structure(jax.eval_shape(function, key, *operands))
    first = len(done[0][0]) if done else 0
    bar = tqdm(total=count, initial=min(first, count), disable=not progress, leave=False)
    try:
        while first < count:
            indices = jnp.arange(first, first + chunk, dtype=jnp.int32)
            out = jax.device_get(program(indices, key, operands))
            done.append([np.asarray(x) for x in jax.tree.leaves(out)])
            bar.update(min(chunk, count - first))
            first += chunk
            _save(checkpoint, identity, done)
    except KeyboardInterrupt:
        if not done:
            raise
        warnings.warn(f"interrupted after {first} of {count} repetitions.", stacklevel=3)
    finally:
        bar.close()
    joined = [np.concatenate(leaf)[:count] for leaf in zip(*done, strict=True)]
    return jax.tree.unflatten(structure, joined)


def _load(path: Any, identity: str) -> list[list[np.ndarray]]:
    if path is None or not Path(path).exists():
        return []
    with np.load(path, allow_pickle=False) as file:
        if str(file["identity"]) != identity:
            raise ValueError(
                f"checkpoint {path} holds repetitions of another model, setting or key. Give "
                "another file, or delete it."
            )
        return [[file[f"leaf{i}"] for i in range(len(file.files) - 1)]]


def _save(path: Any, identity: str, done: list[list[np.ndarray]]) -> None:
    if path is None:
        return
    joined = {f"leaf{i}": np.concatenate(leaf) for i, leaf in enumerate(zip(*done, strict=True))}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, identity=np.asarray(identity), **joined)
