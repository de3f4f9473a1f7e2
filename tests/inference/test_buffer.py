"""Padded histories: what they keep, what they refuse, and how often they compile."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import decisionppl as dp
from decisionppl.inference import _buffer
from decisionppl.inference._buffer import Buffer, append, bucket, empty, filled, grown, updater
from decisionppl.inference._likelihood import latents_of

CAPACITY, BATCH = 16, 5


def rows_of(values: Any, mask: Any = None) -> dp.Rows:
    values = np.asarray(values, np.float32)
    mask = np.ones(len(values), bool) if mask is None else np.asarray(mask, bool)
    return dp.Rows((10 * values,), {"y": values}, mask)


def fresh(capacity: int = CAPACITY) -> Buffer:
    return empty((0.0,), {"y": 0.0}, capacity)


appended = jax.jit(append)
batches = st.lists(
    st.tuples(
        hnp.arrays(np.float32, BATCH, elements=st.floats(-9, 9, width=32)),
        hnp.arrays(bool, BATCH),
    ),
    max_size=6,
)


@given(batches)
@settings(max_examples=60, deadline=None)
def test_append_is_a_list(batches: list) -> None:
    buffer, expected = fresh(), []
    for values, mask in batches:
        values = np.where(mask, values, np.nan)
        buffer = appended(buffer, rows_of(values, mask))
        expected += list(values[mask])
    count = min(len(expected), CAPACITY)
    assert int(buffer.count) == len(expected)
    np.testing.assert_array_equal(buffer.rows.mask, np.arange(CAPACITY) < count)
    np.testing.assert_array_equal(buffer.rows.sites["y"][:count], expected[:count])
    np.testing.assert_array_equal(buffer.rows.args[0][:count], 10 * np.float32(expected[:count]))
    assert np.isfinite(buffer.rows.sites["y"]).all()
    assert np.isfinite(filled(buffer).args[0]).all()


def test_bucket_is_the_next_power_of_two() -> None:
    assert [bucket(n) for n in (0, 1, 16, 17, 32, 33, 1000)] == [16, 16, 16, 32, 32, 64, 1024]


def test_append_in_scan_and_vmap_agrees_with_a_loop() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    mask = np.random.default_rng(1).random((3, 4, 2)) < 0.5
    many = jax.vmap(rows_of_traced)(values, mask)

    def one(rows: dp.Rows) -> Buffer:
        return jax.lax.scan(lambda b, r: (append(b, r), None), fresh(), rows)[0]

    scanned = jax.vmap(one)(many)
    for i in range(3):
        buffer = fresh()
        for j in range(4):
            buffer = append(buffer, rows_of(values[i, j], mask[i, j]))
        jax.tree.map(
            np.testing.assert_array_equal, buffer, jax.tree.map(lambda x, i=i: x[i], scanned)
        )


def rows_of_traced(values: jax.Array, mask: jax.Array) -> dp.Rows:
    return dp.Rows((10 * values,), {"y": values}, mask)


def test_grown_keeps_rows_and_what_follows() -> None:
    small = append(fresh(), rows_of(np.arange(14.0)))
    large = append(grown(small, 32), rows_of([50.0, 60.0, 70.0]))
    assert large.capacity == 32
    assert int(large.count) == 17
    np.testing.assert_array_equal(large.rows.sites["y"][:17], [*range(14), 50, 60, 70])
    assert large.rows.mask.sum() == 17


def test_padding_is_filled_with_the_first_row() -> None:
    rows = filled(append(empty((np.nan,), {"y": np.nan}, 4), rows_of([3.0, 4.0])))
    assert rows.sites["y"].tolist() == [3.0, 4.0, 3.0, 3.0]
    assert rows.mask.tolist() == [True, True, False, False]


# ---- update: the part of an engine that every refitting engine shares --------------------


class Belief(NamedTuple):
    buffer: Buffer
    total: Any


def refit(key: jax.Array, belief: Belief) -> Belief:
    rows = belief.buffer.rows
    return belief._replace(total=jnp.sum(jnp.where(rows.mask, rows.sites["y"], 0.0)))


def engine_update(capacity: int | None) -> Any:
    @jax.jit
    def eager(key: jax.Array, belief: Belief, rows: dp.Rows) -> Belief:
        return refit(key, belief._replace(buffer=append(belief.buffer, rows)))

    return updater(refit, capacity, eager)


def start(capacity: int = CAPACITY) -> Belief:
    return Belief(fresh(capacity), jnp.zeros(()))


def test_refits_compile_once_per_bucket(compilations: Callable[[], int]) -> None:
    update, belief, key = engine_update(None), start(), jax.random.key(0)
    rng, counts, total = np.random.default_rng(0), [], 0.0
    for n in (3, 5, 1, 7, 1, 13, 2):  # 3, 8, 9, 16 | 17, 30, 32 rows
        values, before = rng.normal(size=n), compilations()
        mask = np.ones(n + 2, bool)
        mask[[0, n]] = False
        belief = update(key, belief, rows_of([np.nan, *values[:-1], np.nan, values[-1]], mask))
        counts.append(compilations() - before)
        total += values.sum()
        np.testing.assert_allclose(belief.total, total, atol=1e-5)
    assert counts == [1, 0, 0, 0, 1, 0, 0]
    assert belief.buffer.capacity == 32


def test_no_valid_row_changes_nothing() -> None:
    update, key = engine_update(CAPACITY), jax.random.key(0)
    belief = update(key, start(), rows_of([1.0, 2.0]))._replace(total=jnp.full((), 7.0))
    nothing = rows_of([np.nan, 5.0], [False, False])
    for new in (update(key, belief, nothing), jax.jit(update)(key, belief, nothing)):
        jax.tree.map(np.testing.assert_array_equal, belief, new)


def test_a_full_history_is_an_error() -> None:
    key = jax.random.key(0)
    fixed = engine_update(CAPACITY)
    belief = fixed(key, start(), rows_of(np.arange(16.0)))
    with pytest.raises(ValueError, match=r"17 rows do not fit.*capacity=32"):
        fixed(key, belief, rows_of([1.0]))
    with pytest.raises(ValueError, match="17 rows do not fit"):
        jax.jit(fixed)(key, start(), rows_of(np.arange(17.0)))
    with pytest.raises(ValueError, match=r"cannot grow inside jit.*capacity="):
        jax.jit(engine_update(None))(key, start(), rows_of([1.0]))


def test_rows_lost_under_jit_are_reported_later() -> None:
    key = jax.random.key(0)
    fixed = engine_update(CAPACITY)
    belief = jax.jit(fixed)(key, fixed(key, start(), rows_of(np.arange(15.0))), rows_of([1.0, 2]))
    assert int(belief.buffer.count) == 17
    with pytest.raises(ValueError, match="17 rows do not fit"):
        _buffer.check_room(belief.buffer)
    with pytest.raises(ValueError, match="17 rows do not fit"):
        fixed(key, belief, rows_of([1.0]))
    assert np.isnan(_buffer.poisoned(belief.buffer, jnp.ones(3))).all()
    assert (_buffer.poisoned(fresh(), jnp.ones(3)) == 1).all()


# ---- rows that do not fit the engine -----------------------------------------------------


def test_rows_must_match_what_the_engine_was_built_for() -> None:
    buffer, ones = fresh(), np.ones(2, np.float32)
    mask = np.ones(2, bool)
    for args, sites, message in (
        ((ones,), {}, r"lack site 'y'.*sites="),
        ((ones,), {"y": ones, "z": ones}, r"hold site 'z'.*sites="),
        ((), {"y": ones}, "0 arguments"),
        ((np.ones((2, 3)),), {"y": ones}, r"args\[0\].*expected shape"),
        ((ones,), {"y": np.ones((2, 3))}, "site 'y'.*expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            _buffer.matched(buffer, dp.Rows(args, sites, mask))
    integer = empty((0,), {"y": 0.0}, CAPACITY)
    with pytest.raises(ValueError, match=r"args\[0\].*float32.*int32.*cut off"):
        _buffer.matched(integer, dp.Rows((ones,), {"y": ones}, mask))


def model(x: Any) -> None:
    w = numpyro.sample("w", dist.Normal(0, 1))
    a = dp.action("arm", 2)
    mediator = dp.outcome("m", dist.Normal(w * a, 1.0))
    dp.outcome("late", dist.Normal(w, 1.0))
    dp.reward("y", dist.Normal(mediator, 1.0))


def test_declared_sites() -> None:
    latents = latents_of(model, (0.0,))
    assert sorted(_buffer.declared_sites(latents, None)) == ["arm", "late", "m", "y"]
    kept = _buffer.declared_sites(latents, ["arm", "m", "y"])
    assert sorted(kept) == ["arm", "m", "y"]
    with pytest.raises(ValueError, match="'nope'"):
        _buffer.declared_sites(latents, ["nope"])
    with pytest.raises(ValueError, match=r"not logged, one of.*'m'"):
        _buffer.declared_sites(latents, ["arm", "y"])  # y given m needs m


@pytest.mark.parametrize("capacity", [0, -1, True, 2.5])
def test_a_capacity_is_a_positive_int(capacity: Any) -> None:
    with pytest.raises(ValueError, match="capacity: expected a positive int"):
        _buffer.check_capacity(capacity)
