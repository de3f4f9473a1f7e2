"""Files: netCDF through h5netcdf, written atomically, never half a file."""

import contextlib
import hashlib
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def atomic_path(path: Any) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block succeeds."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(name, _mode(target))
        os.replace(name, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _mode(target: Path) -> int:
    """Permissions of the file that is replaced, or those of a new file: others may read it."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_groups(path: Any, groups: Mapping[str, Any]) -> None:
    """Write xarray Datasets as groups of one netCDF file, atomically."""
    with atomic_path(path) as temporary:
        mode = "w"
        for name, dataset in groups.items():
            dataset.to_netcdf(temporary, engine="h5netcdf", group=name, mode=mode)
            mode = "a"


def read_group(path: Any, name: str) -> Any:
    """One group of a netCDF file as an in-memory xarray Dataset."""
    import xarray as xr

    with xr.open_dataset(path, engine="h5netcdf", group=name) as dataset:
        return dataset.load()


def to_arrays(tree: Any) -> list[np.ndarray]:
    """Leaves of a pytree as plain arrays; PRNG keys as their data."""

    def plain(x: Any) -> np.ndarray:
        if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x)

    return [plain(x) for x in jax.tree.leaves(tree)]


def from_arrays(arrays: list[np.ndarray], like: Any, *, may_grow: bool = False) -> Any:
    """The inverse of `to_arrays`.

    Args:
        arrays: from `to_arrays`.
        like: a pytree of the same structure, shapes and dtypes.
        may_grow: whether axes may be a power of two times longer, as those of a history that
            has grown.

    Raises:
        ValueError: another number of arrays, or other shapes.
    """
    leaves, structure = jax.tree.flatten(like)
    if len(leaves) != len(arrays):
        raise ValueError(
            f"the file holds {len(arrays)} arrays of state, this experiment has {len(leaves)}: "
            "it was saved with another model, engine or environment."
        )

    def restore(array: np.ndarray, leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            value = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
        else:
            value = jnp.asarray(array, leaf.dtype)
        if value.shape != leaf.shape and not (may_grow and _grew(leaf.shape, value.shape)):
            raise ValueError(
                f"the file holds state of shape {value.shape}, this experiment has "
                f"{leaf.shape}: it was saved with another model, engine or number of replications."
            )
        return value

    return jax.tree.unflatten(structure, [restore(a, x) for a, x in zip(arrays, leaves)])  # noqa: B905


def _grew(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether every axis is as long as it was, or a power of two times longer."""

    def fits(old: int, new: int) -> bool:
        times = new // old if old else 0
        return new == old or (times * old == new and times.bit_count() == 1)

    return len(before) == len(after) and all(map(fits, before, after))


def function_hash(function: Callable) -> str:
    """A short hash of a function's source (of its code where there is no source)."""
    inner = getattr(function, "func", function)  # functools.partial
    try:
        text = inspect.getsource(inner)
    except (OSError, TypeError):
        code = getattr(inner, "__code__", None)
        text = repr((code.co_code, code.co_consts)) if code else type(inner).__qualname__
    return hashlib.sha256(text.encode()).hexdigest()[:16]
