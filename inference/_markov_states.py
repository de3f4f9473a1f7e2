"""States of a finite chain by number."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def told(states: Any, source: int, values: Mapping[str, Any], i: int) -> str:
    """A transition in words."""
    given = {n: np.asarray(v[i]).tolist() for n, v in values.items()}
    return f"from {jax.tree.map(lambda x: np.asarray(x[source]).tolist(), states)} with {given}"


class Index:
    """Numbers of states, by value."""

    def __init__(self, states: Any) -> None:
        leaves = jax.tree.leaves(states)
        counts = {len(x) for x in leaves if np.ndim(x)}
        if len(counts) != 1 or not all(np.ndim(x) for x in leaves):
            raise ValueError(
                "states: expected all states, with one leading axis [states] for every part of a "
                f"state; got shapes {[np.shape(x) for x in leaves]}."
            )
        self.structure = jax.tree.structure(states)
        self.count = counts.pop()
        self.table = self._rows(states)
        self.order = np.lexsort(self.table.T[::-1])
        ordered = self.table[self.order]
        twice = np.nonzero((ordered[1:] == ordered[:-1]).all(1))[0]
        if len(twice):
            raise ValueError(f"states: {ordered[twice[0]].tolist()} is listed twice.")

    def _rows(self, states: Any) -> np.ndarray:
        parts = [np.asarray(x, float).reshape(len(x), -1) for x in jax.tree.leaves(states)]
        return np.concatenate(parts, axis=1)

    def find(self, states: Any, told: Callable[[int], str]) -> np.ndarray:
        """The number of each state, [rows]."""
        if jax.tree.structure(states) != self.structure:
            raise ValueError(
                f"the step returns {jax.tree.structure(states)}, a state is {self.structure}. "
                "Return the next state in the form in which the state comes."
            )
        rows = self._rows(states)
        both = np.concatenate([self.table, rows])
        _, number = np.unique(both, axis=0, return_inverse=True)
        number = number.reshape(-1)
        place = np.full(number.max() + 1, -1)
        place[number[: self.count]] = np.arange(self.count)
        found = place[number[self.count :]]
        missing = np.nonzero(found < 0)[0]
        if len(missing):
            i = int(missing[0])
            raise ValueError(
                f"the step leads to state {rows[i].tolist()}, which is not listed: {told(i)}. "
                "List every state that can be reached."
            )
        return found
