"""Two programs for one distribution, and the checks of their parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.core import Tracer


class Twins(NamedTuple):
    """One exchangeable distribution as two NumPyro programs with data site `y`.

    Attributes:
        sequence: `(length)`, or `(covariates [length, ...])`: a `scan` that draws each
            observation from its exact law given those before; returns them, [length].
        latent: the one-round model, `()` or `(covariate)`: latent sites, then one observation.
    """

    sequence: Callable
    latent: Callable


def check_parameters(valid: Callable, expected: str, ndim: int = 0, **values: Any) -> None:
    for name, value in values.items():
        # what is traced has a shape to check, but no values yet
        known = isinstance(value, Tracer) or np.all(valid(np.asarray(value)))
        if np.ndim(value) != ndim or not known:
            kind = ("a number", "an array [n]", "an array [n, d]")[ndim]
            raise ValueError(f"{name}: expected {kind}, {expected}, got {value!r}.")


def positive(ndim: int = 0, **values: Any) -> None:
    """Raise a ValueError for a parameter that is not positive."""
    check_parameters(lambda x: (x > 0) & np.isfinite(x), "positive and finite", ndim, **values)


def finite(ndim: int = 0, **values: Any) -> None:
    """Raise a ValueError for a parameter that is not finite."""
    check_parameters(np.isfinite, "finite", ndim, **values)
