"""Values that must not change by accident."""

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._storage import atomic_path
from decisionppl.testing._check import Statistic, verdict

REGENERATE = "DECISIONPPL_REGENERATE"


class Golden(NamedTuple):
    """Values beside those that were stored.

    Attributes:
        passed: whether all agree.
        message: the verdict.
        statistics: per leaf, largest deviation in units of what is tolerated.
        path: the file.
        regenerated: whether the file was written by this call.
    """

    passed: bool
    message: str
    statistics: tuple[Statistic, ...]
    path: Path
    regenerated: bool


def golden(
    name: str,
    tree: Any,
    *,
    folder: Any = None,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    regenerate: bool | None = None,
) -> Golden:
    """Compare values with those stored under a name.

    The file `NAME.json` is text, so that a change shows in a diff; commit it. A file that is
    missing is a failure, never written silently: set `regenerate=True`, or the environment
    variable `DECISIONPPL_REGENERATE=1`, to write it from the values at hand.

    Args:
        name: of the file; letters, digits, and `._-`.
        tree: pytree of arrays, numbers and PRNG keys.
        folder: where the files lie; default the folder `golden` beside the calling file.
        rtol, atol: tolerated deviation of floats, `atol + rtol * abs(stored)`; everything
            else must be equal.
        regenerate: whether to write the file.

    Returns:
        `Golden`.

    Raises:
        ValueError: a name that is no plain file name.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from decisionppl import testing
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = testing.golden("mean", jnp.arange(3.0), folder=folder, regenerate=True)
        ...     same = testing.golden("mean", jnp.arange(3.0), folder=folder)
        ...     other = testing.golden("mean", jnp.ones(3), folder=folder)
        >>> same.passed, other.passed
        (True, False)
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name: expected letters, digits and ._-, got {name!r}.")
    folder = _beside_caller() if folder is None else Path(folder)
    path = folder / f"{name}.json"
    if regenerate is None:
        regenerate = os.environ.get(REGENERATE, "").lower() in ("1", "true", "yes")
    values = {_path_name(p): _plain(x) for p, x in jax.tree.leaves_with_path(tree)}
    if regenerate:
        with atomic_path(path) as temporary:
            temporary.write_text(_encode(values), encoding="utf-8")
        return Golden(True, f"wrote {len(values)} leaves to {path.name}.", (), path, True)
    if not path.exists():
        message = f"there is no {path.name} in {folder}. Write it with {REGENERATE}=1."
        return Golden(False, message, (Statistic("missing file", 1.0, 0.0),), path, False)
    stored = _decode(path.read_text(encoding="utf-8"))
    statistics = [Statistic(f"{n}: not stored", 1.0, 0.0) for n in sorted(values.keys() - stored)]
    statistics += [Statistic(f"{n}: only stored", 1.0, 0.0) for n in sorted(stored.keys() - values)]
    for leaf in sorted(stored.keys() & values.keys()):
        statistics.append(_compare(leaf, values[leaf], stored[leaf], rtol, atol))
    good = f"{len(values)} leaves equal those in {path.name}."
    passed, message = verdict(statistics, good, f"values differ from those in {path.name}:")
    if not passed:
        message += f" If that is meant, regenerate with {REGENERATE}=1."
    return Golden(passed, message, tuple(statistics), path, False)


def _beside_caller() -> Path:
    """The folder `golden` beside the file of the first caller outside of this package."""
    here = Path(__file__).parent
    for frame in inspect.stack():
        file = Path(frame.filename)
        if file.parent != here and file.exists():
            return file.parent / "golden"
    return Path("golden")


def _path_name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "value"


def _plain(leaf: Any) -> np.ndarray:
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _encode(values: dict[str, np.ndarray]) -> str:
    # Python's shortest text of a float reads back as the same float, NaN and infinity too
    leaves = {
        n: {"dtype": str(x.dtype), "shape": list(x.shape), "values": x.ravel().tolist()}
        for n, x in sorted(values.items())
    }
    return json.dumps(leaves, indent=1) + "\n"


def _decode(text: str) -> dict[str, np.ndarray]:
    return {
        n: np.asarray(x["values"], x["dtype"]).reshape(x["shape"])
        for n, x in json.loads(text).items()
    }


def _compare(
    name: str, value: np.ndarray, stored: np.ndarray, rtol: float, atol: float
) -> Statistic:
    if value.shape != stored.shape:
        return Statistic(f"{name}: shape {value.shape}, stored {stored.shape}", 1.0, 0.0)
    if value.dtype.kind != stored.dtype.kind:
        return Statistic(f"{name}: {value.dtype}, stored {stored.dtype}", 1.0, 0.0)
    if value.dtype.kind not in "fc":
        return Statistic(f"{name}: unequal entries", float(np.sum(value != stored)), 0.0)
    a, b = value.astype(np.result_type(value, float)), stored.astype(np.result_type(stored, float))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(same, 0.0, np.abs(a - b) / (atol + rtol * np.abs(b)))
    worst = float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0))
    return Statistic(f"{name}: deviation over tolerance", worst, 1.0)
