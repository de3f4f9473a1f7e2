"""Findings about a model as a program: compiled once, pure, keys used once."""

import traceback
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from decisionppl._play import play
from decisionppl.testing._model_case import Case, is_users, line_of, of_error, values_of


def compiles(case: Case) -> Iterator[str]:
    """The model can be traced without the values of its arrays."""
    try:
        jax.make_jaxpr(values_of(case))(case.key)
    except Exception as error:
        yield of_error(error, "the model cannot be compiled")


def traced_once(case: Case) -> Iterator[str]:
    """One trace serves every key."""
    count = [0]

    def counted(*args: Any) -> Any:
        count[0] += 1
        return case.model(*args)

    program = jax.jit(values_of(case, counted))
    for key in jax.random.split(case.key, 3):
        program(key)
    if count[0] != 1:
        yield f"compiled once, it ran {count[0]} times in Python for three keys; 1 was expected."


def leaks(case: Case) -> Iterator[str]:
    """No traced value survives the trace."""
    kept: list[str] = []

    def values(key: jax.Array) -> dict[str, Any]:
        trace = play(case.model, key)(*case.args)
        for name, site in trace.items():
            leaves = jax.tree.leaves(site.get("infer") or {})
            kept.extend(name for x in leaves if isinstance(x, Tracer))
        return {n: s["value"] for n, s in trace.items() if s["type"] == "sample"}

    try:
        with jax.checking_leaks():
            jax.jit(values).lower(case.key)
    except Exception as error:
        if "leak" not in str(error).lower():
            raise
        yield (
            "a traced value is kept after the model has run: do not store arrays outside of the "
            "model (global variables, lists, attributes, infer=)."
        )
    for name in kept:
        yield f"site {name!r}: infer= holds a traced value; put strings and numbers there only."


def keys(case: Case) -> Iterator[str]:
    """No random key is used twice."""
    try:
        with jax.debug_key_reuse(True):
            jax.jit(lambda key: values_of(case)(key))(_typed(case.key))
    except jax.errors.KeyReuseError as error:
        where = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
        yield (
            f"a random key is used twice{line_of(where)}, so what it draws is not independent. "
            "Draw through numpyro.sample, or split the key: key, used = jax.random.split(key)."
        )


def _typed(key: jax.Array) -> jax.Array:
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def repeatable(case: Case) -> Iterator[str]:
    """The same key gives the same trace."""
    again = values_of(case)(case.key)
    for name, site in case.trace.items():
        if site["type"] not in ("sample", "deterministic"):
            continue  # a plate draws nothing
        if name not in again:
            yield f"site {name!r}: present in one run and absent in the next, with the same key."
        elif not callable(site["value"]) and not _same(site["value"], again[name]):
            yield (
                f"site {name!r}: two runs with the same key differ. Draw everything random "
                "through numpyro.sample; NumPy's and Python's generators ignore the key."
            )


def _same(a: Any, b: Any) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in leaves)
