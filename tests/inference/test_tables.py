"""Trajectories from tables: round trips, validation, and what each make of table needs."""

import re
import time

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st

import decisionppl as dp
from decisionppl.inference import markov

LOG = {
    "driver": np.array(["b", "a", "a", "a", "b"]),
    "hour": np.array([1, 2, 1, 3, 2]),
    "price": np.array(["high", "low", "high", "low", "low"]),
    "trips": np.array([3.0, 2.0, 1.0, 4.0, 0.0]),
    "queue": np.array([5, 1, 0, 2, 7]),
    "rain": np.array([True, False, False, True, False]),
    "chance": np.array([0.5, 0.25, 0.75, 0.5, 1.0]),
}
NAMES = dict(unit="driver", time="hour", action="price", reward="trips")


def build(table=None, **settings):
    settings = {**NAMES, "state": ["queue", "rain"], "design": 0.5, **settings}
    if "propensity" in settings and settings["design"] == 0.5:
        del settings["design"]
    return markov.from_table(LOG if table is None else table, **settings)


def same(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(a.shape == b.shape and np.array_equal(a, b) for a, b in pairs)


# --- what is built ----------------------------------------------------------------------------


def test_rows_are_sorted_and_padded():
    runs = build()
    assert runs.state.tolist() == [[[0, 0], [1, 0], [2, 1]], [[5, 1], [7, 0], [0, 0]]]
    assert runs.arm.tolist() == [[0, 1], [0, 0]]  # high, low: sorted
    assert runs.reward.tolist() == [[1, 2], [3, 0]]
    assert runs.mask.tolist() == [[True, True], [True, False]]
    assert runs.propensity.shape == (2, 2, 2)
    assert (np.asarray(runs.propensity) == 0.5).all()
    assert np.issubdtype(runs.arm.dtype, np.integer)


def test_the_last_row_of_a_terminal_run_is_a_step():
    runs = build(terminal=True)
    assert runs.state.tolist() == [
        [[0, 0], [1, 0], [2, 1], [0, 0]], [[5, 1], [7, 0], [0, 0], [0, 0]],
    ]  # fmt: skip
    assert runs.reward.tolist() == [[1, 2, 4], [3, 0, 0]]
    assert runs.mask.tolist() == [[True, True, True], [True, True, False]]


def test_without_states_every_row_is_a_step():
    runs = build(state=())
    assert runs.state.shape == (2, 4, 0)
    assert runs.reward.tolist() == [[1, 2, 4], [3, 0, 0]]
    assert runs.mask.tolist() == [[True, True, True], [True, True, False]]


def test_without_units_and_times_the_table_is_one_run_in_order():
    runs = build(unit=None, time=None, state="queue")
    assert runs.state.tolist() == [[5, 1, 0, 2, 7]]  # one column by name: states are numbers
    assert np.issubdtype(runs.state.dtype, np.integer)
    assert runs.reward.tolist() == [[3, 2, 1, 4]]
    units = build(time=None, state="queue")  # in the order of the rows of a unit
    assert units.state[0].tolist() == [1, 0, 2]


def test_arms_are_in_the_order_given():
    runs = build(arms=["low", "high", "free"], design=[0.5, 0.3, 0.2])
    assert runs.arm.tolist() == [[1, 0], [1, 0]]
    assert np.allclose(runs.propensity[0, 0], [0.5, 0.3, 0.2])
    for actions, arms in [([0, 1, 0, 2, 1], None), ([0.0, 1.0, 0.0, 2.0, 1.0], (0, 1, 2))]:
        numbers = build({**LOG, "price": actions}, arms=arms, design=[0.2, 0.3, 0.5])
        assert numbers.arm.tolist() == [[0, 1], [0, 0]]
    flags = build({**LOG, "price": [True, False, True, True, False]}, design=0.2)
    assert flags.arm.tolist() == [[1, 0], [1, 0]]
    assert np.allclose(flags.propensity[0, 0], [0.8, 0.2])


def test_the_propensity_of_the_action_taken_fills_both_arms():
    runs = build(propensity="chance")
    assert np.allclose(runs.propensity[0], [[0.75, 0.25], [0.75, 0.25]])  # high, then low
    assert np.allclose(runs.propensity[1], [[0.5, 0.5], [0.5, 0.5]])  # high, then padding


def test_propensities_of_all_arms():
    both = {"high": [0.5, 0.75, 0.75, 0.2, 0.1], "low": [0.5, 0.25, 0.25, 0.8, 0.899]}
    runs = build({**LOG, **both}, propensity=["high", "low"], terminal=True)
    assert np.allclose(runs.propensity[0], [[0.75, 0.25], [0.75, 0.25], [0.2, 0.8]])
    assert np.allclose(runs.propensity[1, 1], np.array([0.1, 0.899]) / 0.999)


def test_a_design_may_be_a_function_of_the_state():
    def law(x):
        assert x.shape == (5, 2)
        p = 0.1 + 0.1 * x[:, 0]
        return np.stack([1 - p, p], 1)

    runs = build(design=law)
    assert np.allclose(runs.propensity[0, :, 1], [0.1, 0.2])
    assert np.allclose(runs.propensity[1, 0, 1], 0.6)


# --- makes of tables --------------------------------------------------------------------------


def structured():
    out = np.zeros(5, [(n, v.dtype) for n, v in LOG.items()])
    for n, v in LOG.items():
        out[n] = v
    return out


def test_a_dict_of_lists_and_a_structured_array():
    assert same(build({n: v.tolist() for n, v in LOG.items()}), build())
    assert same(build(structured()), build())


@pytest.mark.parametrize("make", ["pandas.DataFrame", "polars.DataFrame", "pyarrow.table"])
def test_data_frames(make):
    module, name = make.split(".")
    frame = getattr(pytest.importorskip(module), name)(dict(LOG))
    assert same(build(frame), build())
    with pytest.raises(ValueError, match="no column 'prize'"):
        build(frame, action="prize")


def test_pandas_types_of_its_own():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(LOG, index=[9, 4, 4, 2, 0])
    frame["queue"] = frame["queue"].astype("Int64")
    frame["driver"] = frame["driver"].astype("category")
    frame["hour"] = pandas.to_datetime(frame["hour"], unit="D")
    assert same(build(frame), build())
    for name, column in [("queue", "Int64"), ("price", "string")]:
        missing = frame.astype({name: column})
        missing.loc[2, name] = pandas.NA
        with pytest.raises(ValueError, match=f"column '{name}': got .* in row 3"):
            build(missing)
    frame.loc[9, "hour"] = pandas.NaT
    with pytest.raises(ValueError, match="column 'hour': got NaT in row 0"):
        build(frame)


def walk(position):
    law = dist.Bernoulli(0.3 + 0.4 * (position > 0))
    right = dp.action("right", law, given=position)
    dp.reward("gain", 1.0 * right - 0.1 * position)
    return dp.state("position", position + 2 * right - 1)


RUNS = markov.rollout(walk, 0, 12, key=0, num_runs=4)


def as_table(runs, order):
    """One row per run and time, the last with an action and a reward that do not matter."""
    num_runs, num_steps = runs.arm.shape
    run, step = (i.ravel()[order] for i in np.indices((num_runs, num_steps + 1)))
    at = np.minimum(step, num_steps - 1)
    taken = np.asarray(runs.arm)[run, at]
    return {
        "run": run,
        "step": step,
        "arm": taken,
        "gain": np.asarray(runs.reward)[run, at],
        "position": np.asarray(runs.state)[run, step],
        "share": np.asarray(runs.propensity)[run, at, taken],
    }


@given(st.permutations(range(4 * 13)))
def test_simulated_trajectories_come_back(order):
    table = as_table(RUNS, np.array(order))
    found = markov.from_table(
        table, unit="run", time="step", action="arm", reward="gain", state=["position"],
        propensity="share",
    )  # fmt: skip
    assert np.array_equal(found.state[..., 0], RUNS.state)
    assert np.array_equal(found.arm, RUNS.arm)
    assert np.array_equal(found.reward, RUNS.reward)
    assert np.allclose(found.propensity, RUNS.propensity, atol=1e-6)
    assert np.asarray(found.mask).all()


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.booleans())
def test_every_step_is_kept_once(unit, terminal):
    n = len(unit)
    unit = np.array(unit)
    table = {"u": unit, "a": np.arange(n) % 2, "r": np.arange(n, dtype=float), "s": np.arange(n)}
    kept = [np.flatnonzero(unit == u) for u in np.unique(unit)]
    kept = kept if terminal else [k[:-1] for k in kept]

    def call():
        return markov.from_table(
            table, unit="u", action="a", reward="r", state=["s"], design=0.5, terminal=terminal
        )

    if any(len(k) == 0 for k in kept):
        with pytest.raises(ValueError, match="has a single row"):
            call()
        return
    runs = call()
    assert np.asarray(runs.mask).sum(1).tolist() == [len(k) for k in kept]
    rewards = np.asarray(runs.reward)[np.asarray(runs.mask)]
    assert rewards.tolist() == np.concatenate(kept).tolist()
    assert (np.asarray(runs.reward)[~np.asarray(runs.mask)] == 0).all()
    before = np.asarray(runs.state)[:, :-1, 0][np.asarray(runs.mask)]
    assert before.tolist() == rewards.tolist()


def test_a_million_rows():
    rng = np.random.default_rng(0)
    n = 1_000_000
    table = {
        "u": rng.integers(0, 10_000, n), "t": rng.permutation(n), "a": rng.integers(0, 2, n),
        "r": rng.random(n), "s": rng.random(n),
    }  # fmt: skip
    began = time.process_time()
    runs = markov.from_table(
        table, unit="u", time="t", action="a", reward="r", state=["s"], design=0.5
    )
    assert time.process_time() - began < 5  # 0.6 s, but this machine may be another
    assert int(runs.mask.sum()) == n - 10_000


# --- errors -----------------------------------------------------------------------------------


def changed(name, row, value):
    column = np.array(LOG[name], dtype=object if isinstance(value, str) else float)
    column[row] = value
    return {**LOG, name: column}


WRONG = [
    ({}, dict(action="prise"), "no column 'prise'; the table has ['driver', 'hour', 'price', "
     "'trips', 'queue', 'rain', 'chance']. Did you mean 'price'?"),
    ({}, dict(state=["queue", "driver"]), "column 'driver': expected numbers, got <U1 such as"),
    (changed("trips", 3, np.nan), {}, "column 'trips': got nan in row 3 (1 rows in all)"),
    (changed("queue", 1, np.inf), {}, "column 'queue': got inf in row 1"),
    ({**LOG, "price": ["low", None, "low", "high", "low"]}, {}, "'price': got None in row 1"),
    ({**LOG, "price": [0.5, 1, 0, 1, 0]}, {}, "'price': got 0.5 in row 0 (1 rows in all), exp"),
    ({**LOG, "queue": [[1, 2]] * 5}, {}, "'queue': expected one value per row, got shape [5, 2]"),
    ({**LOG, "trips": [1.0] * 4}, {}, "has 4 rows, those before it have 5"),
    (changed("chance", 2, 0.0), dict(propensity="chance"), "'chance': got 0.0 in row 2 (1 rows"),
    (changed("chance", 4, 1.5), dict(propensity="chance"), "action taken, in (0, 1]"),
    (changed("chance", 1, -0.1), dict(propensity="chance"), "'chance': got -0.1 in row 1"),
    (changed("hour", 3, 1), {}, "'driver' is a and 'hour' is 1.0 in rows 2 and 3 (1 repetitions"),
    ({}, dict(unit=None), "column 'hour': 'hour' is 1 in rows 0 and 2"),
    ({}, dict(arms=["low", "free"]), "'price': got high in row 0 (2 rows in all), expected one of"),
    ({}, dict(arms=[0, 1]), "arms: got [0, 1], but column 'price' holds values such as"),
    ({}, dict(arms=["low", "low"]), "arms: expected different values"),
    ({**LOG, "price": ["low"] * 5}, {}, "expected at least two arms, got ['low']. Give all arms"),
    (changed("driver", 0, "c"), {}, "column 'driver': the unit of row 4 has a single row (2 such"),
    ({n: v[:1] for n, v in LOG.items()}, dict(unit=None, arms=["low", "high"]), "the table has a"),
    ({}, dict(design=None), "neither is given. Give propensity="),
    ({}, dict(design=0.2, propensity="chance"), "both are given"),
    ({}, dict(design=0.0), "design: got [1.0, 0.0] in row 1, where arm 1 was taken (3 rows"),
    ({}, dict(design=1.5), "expected probabilities in [0, 1]"),
    ({}, dict(design=[0.5, 0.3]), "expected a sum of 1 within 1%"),
    ({}, dict(design=[0.5, 0.3, 0.2]), "probabilities of the arms ['high', 'low'], shape [2]"),
    ({}, dict(design=lambda x: np.full(2, 0.5)), "shape [5, 2], got shape [2]"),
    ({}, dict(design=lambda x: np.full((5, 2), np.nan)), "design: got [nan, nan] in row 0"),
    ({}, dict(design=0.5, arms=["low", "high", "free"]), "expected [3] probabilities"),
    ({}, dict(propensity="chance", arms=["low", "high", "free"]), "says enough about two arms"),
    ({}, dict(propensity=["chance"]), "expected a column for each arm of ['high', 'low'], got"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "settings", "message"), WRONG)
def test_what_is_wrong_is_named(table, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(table or None, **settings)


def test_what_is_no_table_is_refused():
    for table in (np.zeros((3, 2)), [1, 2], "trips"):
        with pytest.raises(TypeError, match="expected a DataFrame, a dict of arrays or"):
            build(table)
