"""A sequence model as the static argument of a compiled function."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from decisionppl.inference._steps import Steps, steps_of


class Program:
    """A sequence model, and what among its arguments is not an array; models by identity.

    Args:
        model: the sequence model.
        args: its arguments, a tuple.
        site: the data site, where the caller named it.
    """

    def __init__(self, model: Callable, args: Any, site: str | None = None) -> None:
        if not isinstance(args, tuple):
            raise TypeError(
                f"args: expected the model's arguments as a tuple, got {type(args).__name__}; "
                "write (x,) for a single one."
            )
        leaves, self.structure = jax.tree.flatten(args)
        self.model = model
        self.site = site
        # an int and a float that are equal are different arguments
        self.fixed = tuple(None if is_array(x) else (type(x), x) for x in leaves)

    def _identity(self) -> tuple:
        return id(self.model), self.site, self.structure, self.fixed

    def __hash__(self) -> int:
        return hash(self._identity())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self._identity() == other._identity()

    def arrays(self, args: tuple) -> list:
        """The arrays among the arguments, which are not compiled for."""
        return [x for x in jax.tree.leaves(args) if is_array(x)]

    def args(self, arrays: list) -> tuple:
        """The arguments again."""
        given = iter(arrays)
        leaves = [next(given) if x is None else x[1] for x in self.fixed]
        return jax.tree.unflatten(self.structure, leaves)

    def steps(self, arrays: list) -> Steps:
        """The steps of the model at its arguments."""
        return steps_of(self.model, *self.args(arrays))


def is_array(x: Any) -> bool:
    """Whether a value is an array, so that another one may take its place."""
    return isinstance(x, jax.Array | np.ndarray)
