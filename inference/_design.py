"""Designs of experiments: what is randomised, and which units it treats."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from decisionppl._roles import action
from decisionppl.inference._graph import Graph


class Design(NamedTuple):
    """What is randomised, coin by coin, and which units each coin treats.

    Inside a model, `design("treat")` declares the coins as one action site [coins] in a plate and
    returns the treatment of each unit [units]; a unit that hangs on several coins is treated if
    all of them say so.

    Attributes:
        probability: of treatment, by coin [coins].
        coin: int [units, sides], the coins that a unit hangs on: one, or two in two-sided designs.
    """

    probability: Any
    coin: Any

    @property
    def num_coins(self) -> int:
        """Number of coins."""
        return len(self.probability)

    @property
    def num_units(self) -> int:
        """Number of units."""
        return len(self.coin)

    def __call__(self, name: str = "treat", given: Any = None) -> Any:
        """Declare the action site, see `decisionppl.action`; the treatment of units [units]."""
        with numpyro.plate(f"coins of {name}", self.num_coins):
            drawn = action(name, dist.Bernoulli(jnp.asarray(self.probability)), given=given)
        return self.treatment(drawn)

    def treatment(self, drawn: Any) -> Any:
        """Treatment of units [..., units] by what the coins said [..., coins]."""
        return jnp.asarray(drawn)[..., jnp.asarray(self.coin)].prod(-1)


def unit(num_units: int, p: Any = 0.5) -> Design:
    """Every unit has a coin of its own.

    Args:
        num_units: number of units.
        p: probability of treatment, a number or [units].

    Returns:
        `Design`.

    Raises:
        ValueError: a probability that is not strictly between 0 and 1.

    Example:
        >>> from decisionppl.inference import designs
        >>> designs.unit(4, 0.3).num_coins
        4
    """
    count = _count("num_units", num_units)
    return Design(_chances(p, count), np.arange(count, dtype=np.int32)[:, None])


def cluster(labels: Any, p: Any = 0.5) -> Design:
    """All units of a cluster are treated together.

    Args:
        labels: cluster of each unit [units], of any kind.
        p: probability of treatment, a number or [clusters], in the order of the sorted labels.

    Returns:
        `Design`.

    Raises:
        ValueError: labels of another shape, a probability that is not strictly between 0 and 1.

    Example:
        >>> from decisionppl.inference import designs
        >>> design = designs.cluster(["north", "south", "north"])
        >>> design.num_coins, design.treatment([1, 0]).tolist()
        (2, [1, 0, 1])
    """
    names, number = np.unique(_labels("labels", labels), return_inverse=True)
    return Design(_chances(p, len(names)), number.astype(np.int32)[:, None])


def communities(graph: Graph, p: float = 0.5, *, resolution: float = 1.0, seed: int = 0) -> Design:
    """Clusters are communities of the graph, found by the Louvain method.

    Args:
        graph: see `network.graph`; taken as undirected.
        p: probability of treatment of a cluster.
        resolution: larger numbers make smaller clusters.
        seed: of the search.

    Returns:
        `Design`.

    Raises:
        ImportError: without NetworkX, `pip install 'decisionppl[network]'`.

    Example:
        >>> from decisionppl.inference import designs, network
        >>> two_triangles = network.graph([[0, 1], [1, 2], [2, 0], [3, 4], [4, 5], [5, 3], [2, 3]])
        >>> designs.communities(two_triangles).num_coins
        2

    References:
        Blondel, Guillaume, Lambiotte and Lefebvre, arXiv 0803.0476.
    """
    try:
        import networkx as nx
    except ImportError as error:
        raise ImportError(
            "communities: NetworkX finds them, and it is not installed. Run "
            "pip install 'decisionppl[network]', or give labels to designs.cluster."
        ) from error
    found = nx.Graph()
    found.add_nodes_from(range(graph.num_units))
    found.add_edges_from(zip(np.asarray(graph.sender).tolist(), np.asarray(graph.receiver).tolist(),
                             strict=True))  # fmt: skip
    labels = np.zeros(graph.num_units, int)
    for i, members in enumerate(
        nx.community.louvain_communities(found, resolution=resolution, seed=seed)
    ):
        labels[list(members)] = i
    return cluster(labels, p)


def switchback(time: Any, length: float, *, zone: Any = None, p: float = 0.5) -> Design:
    """All units of a stretch of time are treated together, in each zone by a coin of its own.

    Args:
        time: of each unit [units], such as the second of a request.
        length: of a stretch, in the unit of `time`.
        zone: of each unit [units]; None for one zone.
        p: probability of treatment of a stretch.

    Returns:
        `Design`; its coins are the stretches (of each zone) that have units, in their order.

    Raises:
        ValueError: times or zones of another shape, a length that is not positive.

    Example:
        >>> from decisionppl.inference import designs
        >>> designs.switchback([0.0, 50.0, 130.0], 60.0).coin[:, 0].tolist()
        [0, 0, 1]
    """
    stretch = stretches(time, length)
    if zone is None:
        return cluster(stretch, p)
    where = np.unique(_labels("zone", zone, len(stretch)), return_inverse=True)[1]
    return cluster(stretch * (int(where.max()) + 1) + where, p)


def stretches(time: Any, length: float) -> np.ndarray:
    """Number of the stretch of each unit, from its time [units]."""
    values = _labels("time", time)
    if values.dtype.kind not in "iuf" or not np.isfinite(values.astype(float)).all():
        raise ValueError(f"time: expected finite numbers [units], got dtype {values.dtype}.")
    if isinstance(length, bool) or not isinstance(length, int | float) or not length > 0:
        raise ValueError(f"length: expected a positive number, got {length!r}.")
    number = np.floor(values.astype(float) / length).astype(np.int64)
    return number - number.min()


def two_sided(rows: Any, columns: Any, p: tuple[float, float] = (0.5, 0.5)) -> Design:
    """Both sides of a market are randomised; a pair is treated if both its members are.

    Args:
        rows, columns: of each unit [units], who meets whom, such as viewer and creator.
        p: probability of treatment of a row, and of a column.

    Returns:
        `Design`; its coins are those of the rows, then those of the columns, in sorted order.

    Raises:
        ValueError: labels of different lengths, a probability that is not strictly between 0
            and 1.

    Example:
        >>> from decisionppl.inference import designs
        >>> design = designs.two_sided(["ann", "ann", "bob"], ["x", "y", "x"])
        >>> design.num_coins, design.treatment([1, 0, 1, 0]).tolist()
        (4, [1, 0, 0])

    References:
        Johari, Li, Liskovich and Weintraub, arXiv 2002.05670.
    """
    if not isinstance(p, Sequence) or len(p) != 2:
        raise ValueError(f"p: expected two probabilities, of rows and of columns, got {p!r}.")
    sides = [_labels("rows", rows)]
    sides.append(_labels("columns", columns, len(sides[0])))
    found = [np.unique(side, return_inverse=True) for side in sides]
    counts = [len(names) for names, _ in found]
    chances = [_chances(x, n) for x, n in zip(p, counts, strict=True)]
    coin = np.stack([found[0][1], counts[0] + found[1][1]], axis=1)
    return Design(np.concatenate(chances), coin.astype(np.int32))


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}: expected a whole number from 1, got {value!r}.")
    return int(value)


def _labels(name: str, values: Any, count: int | None = None) -> np.ndarray:
    found = np.asarray(values)
    if found.ndim != 1 or not len(found) or count not in (None, len(found)):
        wanted = "units" if count is None else str(count)
        raise ValueError(
            f"{name}: expected one value per unit [{wanted}], got shape {list(found.shape)}."
        )
    return found


def _chances(p: Any, count: int) -> np.ndarray:
    """Probabilities [coins], in double precision: estimators divide by them."""
    values = np.asarray(p, float)
    if values.shape not in ((), (count,)):
        raise ValueError(f"p: expected a number or [{count}], got shape {list(values.shape)}.")
    outside = ~((values > 0) & (values < 1))
    if outside.any():
        wrong = float(values.ravel()[int(np.argmax(outside.ravel()))])
        raise ValueError(
            f"p: got {wrong:g}, expected probabilities strictly between 0 and 1: estimators divide "
            "by them. For all or none treated, see network.total_effect."
        )
    return np.broadcast_to(values, count).copy()
