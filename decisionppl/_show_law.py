"""Laws and supports in a few words."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

_FEW = 4  # numbers of a parameter that are written out

_WORDS = {
    "_Real": "real", "_RealVector": "real", "_RealMatrix": "real", "_Boolean": "0 or 1",
    "_Positive": "positive", "_Nonnegative": "0 or more", "_SoftplusPositive": "positive",
    "_UnitInterval": "0 to 1", "_Simplex": "simplex", "_IntegerNonnegative": "integers from 0",
    "_IntegerPositive": "integers from 1", "_PositiveDefinite": "positive definite",
    "_LowerCholesky": "lower triangular", "_CorrCholesky": "Cholesky factor of correlations",
    "_CorrMatrix": "correlations", "_OrderedVector": "increasing", "_Sphere": "sphere",
    "_Circular": "angle", "_SubsetConstraint": "subsets", "_Complex": "complex",
}  # fmt: skip


def law_in_words(name: str, laws: Sequence[Any], fixed: bool) -> str:
    """The name of a law; with its parameters where they depend on nothing and are few."""
    if not fixed or not laws or laws[0] is None:
        return name
    law = laws[0]
    while isinstance(law, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        law = law.base_dist
    if not law.arg_constraints:
        return name
    parts = [_number(getattr(law, n, None)) for n in law.arg_constraints]
    if name == "Categorical":
        parts = [_categories(law)]
    if any(p is None for p in parts):
        return name
    return f"{name}({', '.join(str(p) for p in parts)})"


def _categories(law: Any) -> str | None:
    chances = np.asarray(law.probs)
    count = chances.shape[-1]
    if np.allclose(chances, 1 / count):
        return f"{count} equal"
    return _number(chances)


def _number(value: Any) -> str | None:
    if value is None or not _known(value):
        return None
    array = np.asarray(value)
    if array.size and (array == array.flat[0]).all():
        return f"{array.flat[0]:.4g}"
    if 0 < array.size <= _FEW and array.ndim == 1:
        return "[" + ", ".join(f"{x:.4g}" for x in array) + "]"
    return None


def _known(value: Any) -> bool:
    return isinstance(value, int | float | np.ndarray | np.generic | jax.Array)


def support_in_words(laws: Sequence[Any]) -> str:
    """The values that a law can give at the example arguments; "..." for a bound that varies."""
    if not laws or laws[0] is None:
        return ""
    try:
        supports = [law.support for law in laws]
    except NotImplementedError:
        return ""
    for i, support in enumerate(supports):
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        supports[i] = support
    name, law = type(supports[0]).__name__, laws[0]
    if name == "_SubsetConstraint":
        return f"subsets, {law.k} of {law.size}" if hasattr(law, "k") else "subsets"
    if name in _WORDS:
        return _WORDS[name]
    low, high = (_bound(supports, f"{side}_bound") for side in ("lower", "upper"))
    whole = "integers " if "Integer" in name else ""
    if low and high:
        return f"{whole}{low} to {high}"
    if low:
        return f"{whole}{'from' if 'Eq' in name or whole else 'above'} {low}"
    if high:
        return f"{whole}{'up to' if 'Eq' in name or whole else 'below'} {high}"
    return name.strip("_").removesuffix("Constraint").lower() or "?"


def _bound(supports: Sequence[Any], name: str) -> str:
    if not hasattr(supports[0], name):
        return ""
    first, second = (_number(getattr(s, name)) for s in supports)
    return "..." if first is None or first != second else first
