"""Proofs about programs: what they claim must hold, and what they cannot prove they must refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisionppl._hoist import split
from decisionppl._structure import (
    dependent_outputs,
    depends,
    flatten,
    is_affine,
    is_quadratic,
    is_selection,
    selected_row,
)

X = jnp.arange(1.0, 4.0)
W = jnp.arange(12.0).reshape(4, 3)
I = jnp.int32(2)  # noqa: E741


def test_depends():
    assert depends(lambda a, b: a + b, 1, X, X)
    assert not depends(lambda a, b: a + 0 * jnp.size(b), 1, X, X)
    # a product with zero is not proven to vanish
    assert depends(lambda a, b: a + 0 * b, 1, X, X)


@pytest.mark.parametrize(
    ("function", "affine", "quadratic"),
    [
        (lambda w: w @ X + 1.0, True, True),
        (lambda w: jnp.where(X > 2, w, 0.0).sum(), True, True),
        (lambda w: (w @ X) ** 2, False, True),
        (lambda w: jax.jit(lambda v: v @ X)(w) * 2, True, True),
        (lambda w: jnp.exp(w @ X), False, False),
        (lambda w: jnp.where(w > 0, w, 0.0).sum(), False, False),
        (lambda w: w[0] * w[1] * w[2], False, False),
        (lambda w: jnp.floor(w).sum(), False, False),
        (lambda w: (w > 0).astype(float).sum(), False, False),
        (lambda w: jnp.abs(w).sum(), False, False),
        (lambda w: w.max(), False, False),
        (lambda w: X[jnp.argmax(w)], False, False),
        (lambda w: jax.lax.stop_gradient(w).sum() ** 3, False, False),
        (lambda w: X[w.astype(int)].sum(), False, False),
    ],
)
def test_affine_and_quadratic(function, affine, quadratic):
    assert is_affine(function, X) is affine
    assert is_quadratic(function, X) is quadratic


READ = {
    "index": lambda z, i, x: z["w"][i] @ x,
    "take": lambda z, i, x: jnp.take(z["w"], i, axis=0) @ x,
    "two leaves": lambda z, i, x: z["w"][i] @ x + z["b"][i],
    "computed index": lambda z, i, x: z["w"][(i + 1) % 4] @ x,
    "index from data": lambda z, i, x: z["w"][jnp.argmax(x)] @ x,
    "elementwise first": lambda z, i, x: jnp.exp(z["w"])[i] @ x,
    "inside jit": lambda z, i, x: jax.jit(lambda w, j: w[j])(z["w"], i) @ x,
    "static": lambda z, i, x: jax.lax.dynamic_index_in_dim(z["w"], 1, 0, False) @ x,
}
NOT_READ = {
    "sum of all": lambda z, i, x: z["w"].sum(),
    "two rows": lambda z, i, x: z["w"][i] @ x + z["w"][(i + 1) % 4] @ x,
    "different rows of two leaves": lambda z, i, x: z["w"][i] @ x + z["b"][0],
    "index depends on it": lambda z, i, x: z["w"][jnp.argmax(z["b"])] @ x,
    "mixed before reading": lambda z, i, x: jnp.cumsum(z["w"], 0)[i] @ x,
    "column": lambda z, i, x: z["w"][:, i].sum(),
    "nothing": lambda z, i, x: x.sum() * i,
}
Z = {"w": W, "b": jnp.arange(4.0)}


@pytest.mark.parametrize("name", READ)
def test_one_row_is_recognised_and_read(name):
    fn = READ[name]
    rows = selected_row(fn, Z, I, X)
    assert rows is not None
    for i in range(3):
        x = jnp.roll(X, i)
        index = int(rows.index(jnp.int32(i), x))
        row = jax.tree.map(lambda leaf, k=index: leaf[k], Z)
        np.testing.assert_allclose(rows.local(row, jnp.int32(i), x)[0], fn(Z, i, x), rtol=1e-6)
        # other rows can be anything
        other = jax.tree.map(lambda leaf, k=index: jnp.full_like(leaf, 7.0).at[k].set(leaf[k]), Z)
        np.testing.assert_allclose(fn(other, i, x), fn(Z, i, x), rtol=1e-6)


@pytest.mark.parametrize("name", NOT_READ)
def test_several_rows_are_refused(name):
    assert selected_row(NOT_READ[name], Z, I, X) is None


@pytest.mark.parametrize(
    ("function", "selects"),
    [
        (lambda p, i: p[i], True),
        (lambda p, i: p[i].reshape(1, 3), True),
        (lambda p, i: p[jnp.array([0, 2])], True),
        (lambda p, i: 0.5 * p[i], False),
        (lambda p, i: p[i] + p[0], False),
        (lambda p, i: 1 - p[i], False),
        (lambda p, i: p[i] ** 1.5, False),
        (lambda p, i: jnp.ones(3), False),
    ],
)
def test_selection(function, selects):
    assert is_selection(function, W, I) is selects


def body(carry, key, t):
    """A loop body whose noise does not depend on the carry."""
    noise = jax.random.normal(jax.random.fold_in(key, t), (3,))
    constant = jnp.linspace(0.0, 1.0, 3)
    scaled = noise * (1.0 + t) + constant
    return carry * 0.5 + scaled + jnp.tanh(carry) * noise.sum(), scaled[0]


@given(t=st.integers(0, 1000), value=st.floats(-3, 3, width=32))
def test_split_changes_no_number(t, value):
    carry, key, t = jnp.full(3, value), jax.random.key(1), jnp.int32(t)
    parts = split(flatten(body, carry, key, t), [False, True, True])
    kept = parts.early(key, t)
    early_late = parts.late(kept, carry, key, t)
    for got, expected in zip(early_late, body(carry, key, t), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_split_computes_noise_early_and_little_else():
    parts = split(flatten(body, X, jax.random.key(1), jnp.int32(3)), [False, True, True])
    late = str(jax.make_jaxpr(parts.late)(parts.early(jax.random.key(1), jnp.int32(3)), X,
                                          jax.random.key(1), jnp.int32(3)))  # fmt: skip
    assert "random" not in late
    assert parts.kept_bytes <= 4 * 8


# Inside loops and branches.


def _loop(x, y):
    def body(carry, t):
        a, b, c = carry
        return (a + x, b + y, c * a), (t * y, t)

    return jax.lax.scan(body, (0.0, 0.0, 1.0), jnp.arange(3.0))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [(0, [True, False, True, False, False]), (1, [False, True, False, True, False])],
)
def test_dependence_follows_each_carry_of_a_scan(argument, expected):
    # carries (a, b, c), where c is moved through a, then what is stacked
    assert dependent_outputs(_loop, argument, 1.0, 2.0) == expected


def test_dependence_follows_the_branches_of_a_cond():
    def f(p, x, y):
        return jax.lax.cond(p, lambda: (x + 1, x * 2, y), lambda: (x, y, y * 3))

    assert dependent_outputs(f, 0, True, 1.0, 2.0) == [True, True, True]
    assert dependent_outputs(f, 1, True, 1.0, 2.0) == [True, True, False]
    assert dependent_outputs(f, 2, True, 1.0, 2.0) == [False, True, True]
