"""Which coins of a design reach which units."""

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from decisionppl.inference._design import Design, stretches
from decisionppl.inference._graph import Graph, distinct

_MOST_OVERLAPS = 30_000_000  # pairs of dependent blocks that are listed


class Interference(NamedTuple):
    """Which coins reach which units: their own, and those of their neighbours.

    Attributes:
        own: int [units, sides], the coins that a unit hangs on.
        unit, coin: int [pairs], sorted by unit, each pair once: `coin`, not one of its own,
            reaches `unit`.
        block: int [units]: units of one block hang on the same coins.
        first, second: int [overlaps]: pairs of different blocks that one coin reaches, each once;
            None where there are too many to list.
    """

    own: Any
    unit: Any
    coin: Any
    block: Any
    first: Any
    second: Any


def interference(
    design: Design,
    graph: Graph | None = None,
    *,
    between: Graph | None = None,
    pairs: tuple[Any, Any] | None = None,
    overlaps: bool | None = None,
    size: int | None = None,
) -> Interference:
    """Which coins of a design reach which units, beyond their own.

    Give one of three descriptions, or none where nothing spills over.

    Args:
        design: see `designs`.
        graph: over units: a unit is reached by the distinct coins of its neighbours.
        between: over coins, such as zones that touch: a unit is reached by the neighbours of its
            coins.
        pairs: (unit [pairs], coin [pairs]), as they are, such as those of `recent`.
        overlaps: whether to list pairs of units that one coin reaches, of which standard errors
            are made; default where there are at most 30 million.
        size: pad the pairs to this many, so that estimators compile once for experiments of the
            same units and coins that differ in who is reached; overlaps are then not listed.

    Returns:
        `Interference`.

    Raises:
        ValueError: a graph over another number of units or coins, pairs that name none, several
            descriptions, a size that is too small.

    Example:
        >>> from decisionppl.inference import designs, network
        >>> path = network.graph([[0, 1], [1, 2], [2, 3]])
        >>> halves = designs.cluster([0, 0, 1, 1])
        >>> reach = network.interference(halves, path)
        >>> reach.unit.tolist(), reach.coin.tolist()          # the two units in the middle
        ([1, 2], [1, 0])
    """
    given = [n for n, x in (("graph", graph), ("between", between), ("pairs", pairs))
             if x is not None]  # fmt: skip
    if len(given) > 1:
        raise ValueError(f"interference: got {given}, expected one of them at most.")
    own = np.asarray(design.coin)
    count, coins = len(own), design.num_coins
    if graph is not None:
        _check_size("graph", graph, count, "units")
        unit, coin = _neighbours(graph, own)
    elif between is not None:
        _check_size("between", between, coins, "coins of the design")
        unit, coin = _beside(between, own)
    elif pairs is not None:
        unit, coin = (np.asarray(x) for x in pairs)
        _check_pairs(unit, coin, count, coins)
    else:
        unit = coin = np.zeros(0, np.int64)
    direct = graph is not None and own.shape[1] == 1 and np.array_equal(own[:, 0], np.arange(count))
    if not direct:  # units with coins of their own: neighbours are distinct already
        unit, coin = _distinct(unit, coin, own, coins)
    block = np.unique(own, axis=0, return_inverse=True)[1] if own.shape[1] > 1 else own[:, 0]
    reach = (own, unit, coin, block.reshape(-1))
    listed = overlaps is not False and size is None
    first, second = _overlaps(*reach, coins) if listed else (None, None)
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or size < len(unit):
            raise ValueError(
                f"size: expected at least {len(unit)}, the number of pairs, got {size!r}."
            )
        # indices out of range, which sums over segments leave out
        more = size - len(unit)
        unit = np.append(unit, np.full(more, count))
        coin = np.append(coin, np.full(more, coins))
        reach = (own, unit, coin, block.reshape(-1))
    if overlaps and first is None:
        raise ValueError(
            f"overlaps: there are more than {_MOST_OVERLAPS} pairs of units that one coin reaches, "
            "or a size is given. Leave it out; standard errors are then made of scores of coins."
        )
    small = (None if x is None else x.astype(np.int32) for x in (*reach, first, second))
    return Interference(*small)


def recent(
    design: Design, time: Any, length: float, *, window: float, zone: Any = None, near: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Stretches of time, here and near by, that were not long over when a unit came.

    Args:
        design: `designs.switchback(time, length, zone=zone)`.
        time, length, zone: as given to it; zones are whole numbers from 0.
        window: how long a stretch is felt after its end, in the unit of `time`.
        near: bool [zones, zones], which zones feel each other; default only themselves.

    Returns:
        (unit [pairs], coin [pairs]), for `interference(design, pairs=...)`.

    Raises:
        ValueError: a window that is negative, zones that `near` does not have, a design of
            another number of units.

    Example:
        >>> from decisionppl.inference import designs, network
        >>> time = [10.0, 70.0, 110.0]
        >>> design = designs.switchback(time, 60.0)
        >>> unit, coin = network.recent(design, time, 60.0, window=30.0)
        >>> unit.tolist(), coin.tolist()      # the second came 10 after the first stretch's end
        ([1], [0])
    """
    times = np.asarray(time, float)
    if isinstance(window, bool) or not isinstance(window, int | float) or not window >= 0:
        raise ValueError(f"window: expected a number from 0, got {window!r}.")
    stretch = stretches(time, length)
    where = np.zeros(len(times), int) if zone is None else np.asarray(zone)
    if where.dtype.kind not in "iu" or where.shape != times.shape or where.min() < 0:
        raise ValueError(
            f"zone: expected whole numbers from 0 [{len(times)}], got {where.dtype}"
            f"{list(where.shape)}."
        )
    zones = int(where.max()) + 1
    beside = np.eye(zones, dtype=bool) if near is None else np.asarray(near, bool)
    if beside.ndim != 2 or beside.shape[0] != beside.shape[1] or len(beside) < zones:
        raise ValueError(
            f"near: expected bools [{zones}, {zones}] at least, got shape {list(beside.shape)}."
        )
    if design.num_units != len(times) or np.shape(design.coin)[1] != 1:
        raise ValueError(
            f"design: expected one coin for each of {len(times)} units, got "
            f"{list(np.shape(design.coin))}. Give designs.switchback(time, length, zone=zone)."
        )
    # the coin of (stretch, zone); -1 where no unit came
    coins = np.full((int(stretch.max()) + 1, len(beside)), -1)
    coins[stretch, where] = np.asarray(design.coin)[:, 0]
    begin = np.floor(times / length).min() * length
    last = int(np.ceil(window / length)) if window else 0
    units, found = [], []
    for back in range(last + 1):
        before = stretch - back
        since = times - begin - (before + 1) * length  # negative: not over yet
        felt = (before >= 0) & ((since < window) | (back == 0))
        at = coins[np.maximum(before, 0)]
        unit, _ = pair = np.nonzero(felt[:, None] & beside[where] & (at >= 0))
        units.append(unit)
        found.append(at[pair])
    unit, coin = np.concatenate(units), np.concatenate(found)
    other = coin != np.asarray(design.coin)[unit, 0]
    order = np.lexsort((coin[other], unit[other]))
    return unit[other][order], coin[other][order]


def _check_size(name: str, graph: Any, count: int, what: str) -> None:
    if not isinstance(graph, Graph):
        raise TypeError(f"{name}: expected network.graph(...), got {type(graph).__name__}.")
    if graph.num_units != count:
        raise ValueError(f"{name}: has {graph.num_units} units, the design has {count} {what}.")


def _check_pairs(unit: np.ndarray, coin: np.ndarray, count: int, coins: int) -> None:
    for name, x, most in (("unit", unit, count), ("coin", coin, coins)):
        if x.ndim != 1 or x.shape != unit.shape or x.dtype.kind not in "iu":
            raise ValueError(
                f"pairs: expected whole numbers [pairs], twice, got {name} of {x.dtype}"
                f"{list(x.shape)}."
            )
        if len(x) and not (x.min() >= 0 and x.max() < most):
            raise ValueError(
                f"pairs: expected {name} from 0 to {most - 1}, got {int(x.min())} to "
                f"{int(x.max())}."
            )


def _neighbours(graph: Graph, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coins of each unit's neighbours."""
    sides = own.shape[1]
    unit = np.repeat(np.asarray(graph.receiver), sides)
    return unit, own[np.asarray(graph.sender)].ravel()


def _beside(between: Graph, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours of each unit's coins."""
    degree, sender = np.asarray(between.degree), np.asarray(between.sender)
    start = np.concatenate([[0], np.cumsum(degree)])
    coin = own.ravel()
    many = degree[coin]
    unit = np.repeat(np.repeat(np.arange(len(own)), own.shape[1]), many)
    place = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    return unit, sender[np.repeat(start[coin], many) + place]


def _distinct(
    unit: np.ndarray, coin: np.ndarray, own: np.ndarray, coins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs sorted by unit, each once, without a unit's own coins."""
    kept = (own[unit] != coin[:, None]).all(1) if len(unit) else np.zeros(0, bool)
    key = distinct(unit[kept].astype(np.int64) * coins + coin[kept])
    unit, coin = np.divmod(key, coins)
    return unit, coin


def _overlaps(
    own: np.ndarray, unit: np.ndarray, coin: np.ndarray, block: np.ndarray, coins: int
) -> tuple[Any, Any]:
    """Pairs of different blocks that one coin reaches; None where there are too many."""
    sides = own.shape[1]
    rows = np.concatenate([np.repeat(block, sides), block[unit]])
    columns = np.concatenate([own.ravel(), coin])
    blocks = int(block.max()) + 1
    reached = sparse.csr_array((np.ones(len(rows), np.int8), (rows, columns)), (blocks, coins))
    reached.data[:] = 1
    if (
        np.bincount(reached.indices, minlength=coins).astype(float) ** 2
    ).sum() > 2 * _MOST_OVERLAPS:
        return None, None
    counts = reached.astype(np.int32)
    both = sparse.triu(counts @ counts.T, k=1).tocoo()
    return both.row, both.col
