"""A model under examination, and errors of the user's code as sentences."""

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from decisionppl._play import Trace, play


class Case(NamedTuple):
    model: Callable
    args: tuple
    key: jax.Array
    trace: Trace
    num_draws: int


def values_of(case: Case, model: Callable | None = None) -> Callable:
    def values(key: jax.Array) -> dict[str, Any]:
        trace = play(model or case.model, key)(*case.args)
        return {n: s["value"] for n, s in trace.items() if s["type"] in ("sample", "deterministic")}

    return values


def of_error(error: Exception, what: str) -> str:
    """An error as one sentence, with the line of the user's code and a remedy."""
    concrete = (
        jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError, jax.errors.NonConcreteBooleanIndexError,
    )  # fmt: skip
    lines = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    where = line_of(lines)
    if isinstance(error, concrete):
        return (
            f"{what}: it needs the value of an array while it is compiled{where}. Replace Python's "
            "if, for, int() and NumPy functions on arrays by jnp.where, lax.cond, lax.scan and jnp."
        )
    text = " ".join(str(error).split())[:400]
    if isinstance(error, TypeError) and "missing" in text and "argument" in text:
        text += ". Give example arguments after the model (in the shell: --args)."
    return f"{what}: {type(error).__name__}: {text}{where}"


def line_of(frames: list) -> str:
    """The last line of the user's code, as " (file.py:3: text)"."""
    if not frames:
        return ""
    last = frames[-1]
    return f" ({last.filename.rsplit('/', 1)[-1]}:{last.lineno}: {last.line})"


def is_users(filename: str) -> bool:
    libraries = ("site-packages", "decisionppl/testing", "decisionppl/_", "importlib", "<frozen")
    return not any(part in filename.replace("\\", "/") for part in libraries)
