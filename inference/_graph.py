"""Graphs over units: who is affected by whose treatment."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Graph(NamedTuple):
    """Who affects whom; a unit does not count among its own neighbours.

    Attributes:
        receiver, sender: int [edges], sorted by receiver: the treatment of `sender` may change
            the outcome of `receiver`. An undirected edge stands in both directions.
        degree: int [units], how many affect each unit.
    """

    receiver: Any
    sender: Any
    degree: Any

    @property
    def num_units(self) -> int:
        """Number of units."""
        return len(self.degree)

    def total(self, values: Any) -> jax.Array:
        """Sum of `values` [units] over the neighbours of each unit, [units]."""
        sent = jnp.asarray(values)[self.sender]
        return jax.ops.segment_sum(sent, self.receiver, self.num_units, indices_are_sorted=True)

    def share(self, values: Any) -> jax.Array:
        """Mean of `values` [units] over the neighbours of each unit, 0 where there are none."""
        return self.total(values) / jnp.maximum(self.degree, 1)


def graph(source: Any, num_units: int | None = None, *, directed: bool = False) -> Graph:
    """A graph from NetworkX, a matrix, or a list of edges.

    Args:
        source: a NetworkX graph, whose nodes are numbered in their order; a matrix
            [units, units] of SciPy or NumPy, where entry (i, j) other than zero means that j
            affects i; or edges [edges, 2] of unit numbers, (sender, receiver).
        num_units: for edges; default the largest number and one.
        directed: for edges, whether only the second of each is affected by the first. Graphs of
            NetworkX know it themselves, and matrices are taken as they are.

    Returns:
        `Graph`. Loops are left out, and what stands twice counts once.

    Raises:
        ValueError: a matrix that is not square, edges that are no pairs of unit numbers.

    Example:
        >>> from decisionppl.inference import network
        >>> path = network.graph([[0, 1], [1, 2]])
        >>> path.receiver.tolist(), path.sender.tolist(), path.degree.tolist()
        ([0, 1, 1, 2], [1, 0, 2, 1], [1, 2, 1])
    """
    if hasattr(source, "is_directed") and hasattr(source, "edges"):
        number = {node: i for i, node in enumerate(source.nodes)}
        pairs = np.array([(number[u], number[v]) for u, v in source.edges()], np.int64)
        return _made(pairs.reshape(-1, 2), len(number), bool(source.is_directed()))
    if hasattr(source, "tocoo"):
        _check_square(source.shape)
        entries = source.tocoo()
        kept = np.asarray(entries.data) != 0
        pairs = np.stack([entries.col[kept], entries.row[kept]], axis=1)
        return _made(pairs, source.shape[0], True)
    values = np.asarray(source)
    if values.ndim == 2 and values.shape[1] == 2 and values.dtype.kind in "iu":
        if len(values) == 2 and num_units is None and np.isin(values, (0, 1)).all():
            raise ValueError(
                f"graph: {values.tolist()} may be two edges or a matrix of two units. Give "
                "num_units for edges, or a matrix of bools."
            )
        return _made(values, _count(values, num_units), directed)
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ValueError(
            f"graph: expected a NetworkX graph, a matrix [units, units] or edges [edges, 2] of "
            f"whole numbers, got {type(source).__name__} of shape {list(values.shape)} and dtype "
            f"{values.dtype}."
        )
    _check_square(values.shape)
    receiver, sender = np.nonzero(values)
    return _made(np.stack([sender, receiver], axis=1), len(values), True)


def _check_square(shape: tuple) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"graph: expected a square matrix [units, units], got {list(shape)}.")


def _count(edges: np.ndarray, num_units: int | None) -> int:
    least = int(edges.max()) + 1 if len(edges) else 0
    if num_units is None:
        if not least:
            raise ValueError("graph: no edges. Give num_units.")
        return least
    if isinstance(num_units, bool) or not isinstance(num_units, int) or num_units < max(least, 1):
        raise ValueError(
            f"num_units: expected a whole number of at least {max(least, 1)}, got {num_units!r}."
        )
    return num_units


def _made(edges: np.ndarray, count: int, directed: bool) -> Graph:
    """From edges (sender, receiver)."""
    if len(edges) and edges.min() < 0:
        raise ValueError(f"graph: expected numbers of units from 0, got {int(edges.min())}.")
    edges = edges.astype(np.int64)
    if not directed:
        edges = np.concatenate([edges, edges[:, ::-1]])
    edges = edges[edges[:, 0] != edges[:, 1]]
    receiver, sender = np.divmod(distinct(edges[:, 1] * count + edges[:, 0]), count)
    degree = np.bincount(receiver, minlength=count)
    # NumPy, so that nothing of the size of the graph is on a device before it is needed
    return Graph(*(x.astype(np.int32) for x in (receiver, sender, degree)))


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once: of ten million numbers a hundred times as fast as `np.unique`."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
