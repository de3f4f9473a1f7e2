"""Trajectories from a table of logged decisions, one row per unit and time."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from decisionppl.inference._columns import Columns
from decisionppl.inference._trajectories import Trajectories

_ROUNDING = 0.01  # by which probabilities of all arms may miss one in total


class _Order(NamedTuple):
    """Rows sorted by unit and time, and where each goes.

    Attributes:
        rows: number of each row in the table, [rows].
        run, place: which run it belongs to, and which row of it it is, [rows].
        lengths: rows of each run, [runs].
    """

    rows: np.ndarray
    run: np.ndarray
    place: np.ndarray
    lengths: np.ndarray


def from_table(
    table: Any,
    *,
    unit: str | None = None,
    time: str | None = None,
    action: str,
    reward: str,
    state: str | Sequence[str] = (),
    propensity: str | Sequence[str] | None = None,
    design: float | np.ndarray | Callable | None = None,
    arms: Sequence[Any] | None = None,
    terminal: bool = False,
) -> Trajectories:
    """Trajectories from logged data, one row per unit and time.

    Each unit is one run; runs are in the order of the sorted units, padded to the longest. A row
    holds the state before a decision, the decision and its reward. The state after it is that of
    the unit's next row, so a unit's last row gives its last state alone, and its action and reward
    are not used. With `terminal=True` the last row is a step too, and the state after it is zero;
    without columns of state no next state is needed, and every row is a step.

    Args:
        table: a DataFrame of pandas or polars, a table of pyarrow, a dict of arrays, or a
            structured array of NumPy.
        unit: column of the unit (person, market, episode); None if all rows are one run.
        time: column to order a unit's rows by; None if they are in order.
        action: column of the arm taken, ints, bools or strings.
        reward: column of the reward, costs taken off.
        state: numeric columns, the features of the state; or the name of one column, for states
            that are numbers (whole ones where the column is of whole numbers, as `effects.dq`
            and `markov.dirichlet_kernel` take them).
        propensity: column of the probability of the arm that was taken, where there are two arms;
            or one column for each arm, in the order of `arms`.
        design: in place of `propensity`: the probability of the second arm, those of all arms
            [arms], or a function `(states [rows, features]) -> [rows, arms]`.
        arms: the arms, control first; default the sorted values of the action column.
        terminal: whether a unit's last row is a step, after which nothing follows.

    Returns:
        `Trajectories`: state [runs, steps + 1, features], or [runs, steps + 1] of one column (zero
        where a run has ended), arm, reward and mask [runs, steps], propensity [runs, steps, arms].

    Raises:
        ValueError: a column that is missing, not numeric, or holds NaN or infinity; probabilities
            that are none; a time that a unit has twice; an action that is no arm; a unit without
            a step; neither or both of `propensity` and `design`.

    Example:
        >>> from decisionppl.inference import markov
        >>> log = {
        ...     "driver": ["b", "a", "a", "a", "b"],
        ...     "hour": [1, 2, 1, 3, 2],
        ...     "price": ["high", "low", "high", "low", "low"],
        ...     "trips": [3.0, 2.0, 1.0, 4.0, 0.0],
        ...     "queue": [5, 1, 0, 2, 7],
        ... }
        >>> runs = markov.from_table(log, unit="driver", time="hour", action="price",
        ...     reward="trips", state=["queue"], design=0.5, arms=["low", "high"])
        >>> runs.state[..., 0].tolist(), runs.arm.tolist(), runs.mask.tolist()
        ([[0.0, 1.0, 2.0], [5.0, 7.0, 0.0]], [[1, 0], [1, 0]], [[True, True], [True, False]])
    """
    if (propensity is None) == (design is None):
        what = "both are given" if design is not None else "neither is given"
        raise ValueError(
            f"propensity and design: {what}. Give propensity=, the column with the probability of "
            "the action taken, or design=, such as 0.5 for a fair coin."
        )
    columns = Columns(table)
    features = [state] if isinstance(state, str) else list(state)
    x = [columns.numbers(name) for name in features]
    rewards = columns.numbers(reward)
    names, arm = _arms(columns, action, arms)
    order = _order(columns, unit, time)
    steps = order.lengths if terminal or not features else order.lengths - 1
    _check_steps(steps, order, unit)
    states = np.stack(x, 1) if x else np.zeros((columns.rows, 0))
    if design is None:
        shares = _logged(columns, propensity, names, arm)
    else:
        shares = _designed(design, states, names, arm)

    def padded(values: np.ndarray, length: int, fill: float, upto: np.ndarray) -> np.ndarray:
        out = np.full((len(order.lengths), length, *values.shape[1:]), fill, values.dtype)
        kept = order.place < upto[order.run]
        out[order.run[kept], order.place[kept]] = values[order.rows[kept]]
        return out

    longest = int(steps.max())
    if isinstance(state, str):
        whole = columns(state).dtype.kind in "biu"
        states = states[:, 0].astype(int) if whole else states[:, 0]
    return Trajectories(
        jnp.asarray(padded(states, longest + 1, 0, order.lengths)),
        jnp.asarray(padded(arm, longest, 0, steps)),
        # not zero, so that what is masked later can be divided by it
        jnp.asarray(padded(shares, longest, 1 / len(names), steps)),
        jnp.asarray(padded(rewards, longest, 0, steps)),
        jnp.asarray(np.arange(longest) < steps[:, None]),
    )


def _arms(columns: Columns, name: str, arms: Sequence[Any] | None) -> tuple[list, np.ndarray]:
    """The arms, and which of them each row took."""
    values = columns(name)
    if values.dtype.kind == "f":
        whole = np.mod(values, 1) == 0
        columns.refuse(name, values, ~whole, "an arm", "Actions are ints, bools or strings.")
        values = values.astype(int)
    if arms is None:
        found, arm = np.unique(values, return_inverse=True)
    else:
        found = np.asarray(list(arms))
        if found.ndim != 1 or len(np.unique(found)) != len(found):
            raise ValueError(f"arms: expected different values, got {list(arms)}.")
        numeric = [np.asarray(x).dtype.kind in "biuf" for x in (found, values)]
        if numeric[0] != numeric[1]:
            raise ValueError(
                f"arms: got {list(arms)}, but column {name!r} holds values such as {values[0]!r}."
            )
        by_value = np.argsort(found)
        at = np.searchsorted(found[by_value], values)
        arm = by_value[np.minimum(at, len(found) - 1)]
        bad = found[arm] != values
        columns.refuse(name, values, bad, f"one of {found.tolist()}", "Add it to arms=.")
    if len(found) < 2:
        raise ValueError(
            f"column {name!r}: expected at least two arms, got {found.tolist()}. Give all arms, "
            "taken or not, in arms=(control, treatment)."
        )
    return found.tolist(), arm.astype(int)


def _order(columns: Columns, unit: str | None, time: str | None) -> _Order:
    units = np.zeros(columns.rows, int) if unit is None else columns(unit)
    times = np.arange(columns.rows) if time is None else columns(time)
    rows = np.lexsort((times, units))
    units, times = units[rows], times[rows]
    new = np.append(True, units[1:] != units[:-1])
    twice = ~new[1:] & (times[1:] == times[:-1])
    if twice.any():
        i = int(np.argmax(twice))
        where = "" if unit is None else f"{unit!r} is {units[i]!s} and "
        raise ValueError(
            f"column {time!r}: {where}{time!r} is {times[i]!s} in rows {rows[i]} and {rows[i + 1]} "
            f"({int(twice.sum())} repetitions in all), expected one row per time of a unit. Drop "
            "or aggregate repeated rows, or name the column of units in unit=."
        )
    starts = np.flatnonzero(new)
    lengths = np.diff(np.append(starts, len(rows)))
    run = np.repeat(np.arange(len(starts)), lengths)
    return _Order(rows, run, np.arange(len(rows)) - starts[run], lengths)


def _check_steps(steps: np.ndarray, order: _Order, unit: str | None) -> None:
    if (steps < 1).any():
        run = int(np.argmax(steps < 1))
        row = int(order.rows[np.argmax(order.run == run)])
        what = "the table" if unit is None else f"column {unit!r}: the unit of row {row}"
        raise ValueError(
            f"{what} has a single row ({int((steps < 1).sum())} such units in all), expected at "
            "least two: a row's next state is that of the following one. Drop those units, or give "
            "terminal=True if nothing follows a unit's last row."
        )


def _logged(columns: Columns, propensity: Any, names: list, arm: np.ndarray) -> np.ndarray:
    """Probabilities of all arms [rows, arms], from one column or from one per arm."""
    count = len(names)
    if isinstance(propensity, str):
        if count != 2:
            raise ValueError(
                f"propensity: one column says enough about two arms, got {count} arms {names}. "
                "Give a list of columns, the probability of each arm in this order."
            )
        values = columns.numbers(propensity)
        bad = ~((values > 0) & (values <= 1))
        columns.refuse(
            propensity, values, bad, "the probability of the action taken, in (0, 1]",
            "Drop those rows, or correct them.",
        )  # fmt: skip
        first = np.where(arm == 0, values, 1 - values)
        return np.stack([first, 1 - first], 1)
    listed = list(propensity)
    if len(listed) != count:
        raise ValueError(f"propensity: expected a column for each arm of {names}, got {listed}.")
    shares = np.stack([columns.numbers(name) for name in listed], 1)
    return _shares(shares, arm, f"columns {listed}")


def _designed(design: Any, states: np.ndarray, names: list, arm: np.ndarray) -> np.ndarray:
    """Probabilities of all arms [rows, arms], by the design of the experiment."""
    count = len(names)
    given = design(states) if callable(design) else design
    shares = np.asarray(given, float)
    if shares.ndim == 0 and not callable(design):
        if count != 2:
            raise ValueError(f"design: expected [{count}] probabilities of {names}, got {design}.")
        shares = np.array([1 - shares, shares])
    expected = (len(arm), count) if callable(design) else (count,)
    if shares.shape != expected:
        raise ValueError(
            f"design: expected probabilities of the arms {names}, shape {list(expected)}, got "
            f"shape {list(shares.shape)}."
        )
    return _shares(np.broadcast_to(shares, (len(arm), count)), arm, "design")


def _shares(shares: np.ndarray, arm: np.ndarray, what: str) -> np.ndarray:
    """Probabilities divided by their sum, which may miss one by rounding."""
    total = shares.sum(1)
    taken = np.take_along_axis(shares, arm[:, None], 1)[:, 0]
    checks = {
        "probabilities in [0, 1]": ((shares >= 0) & (shares <= 1)).all(1),
        f"a sum of 1 within {_ROUNDING:.0%}": np.abs(total - 1) <= _ROUNDING + 1e-9,
        "a positive probability of the action taken": taken > 0,
    }
    for expected, good in checks.items():
        if not good.all():
            i = int(np.argmin(good))
            raise ValueError(
                f"{what}: got {shares[i].tolist()} in row {i}, where arm {arm[i]} was taken "
                f"({int((~good).sum())} rows in all), expected {expected}. Drop or correct them."
            )
    return shares / total[:, None]
