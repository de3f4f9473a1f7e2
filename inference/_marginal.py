"""Cholesky factors that do not fail, Gaussian likelihoods with closed-form gradients, appends."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

_TRIES = 4
_STEP = 30.0
_SMALL = 64  # up to this size matrices are inverted column by column


def jitter_of(size: int, dtype: Any) -> float:
    """What rounding calls for on the diagonal, relative to each of its entries."""
    return 2 * size * float(jnp.finfo(dtype).eps)


def cholesky(covariance: jax.Array) -> jax.Array:
    """Lower Cholesky factor of a covariance, its diagonal raised by a relative jitter.

    The jitter grows thirtyfold up to three times if the factor fails; after that it is NaN.

    Args:
        covariance: [n, n].

    Returns:
        [n, n].
    """
    return _factor(covariance)[1]


def differentiable_cholesky(covariance: jax.Array) -> jax.Array:
    """The same with derivatives, for twice the price: how much jitter is a constant to them."""
    jitter, _ = _factor(jax.lax.stop_gradient(covariance))
    return jnp.linalg.cholesky(covariance + jitter * jnp.diag(jnp.diagonal(covariance)))


def _factor(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The jitter that was needed, and the factor with it."""
    diagonal = jnp.diag(jnp.diagonal(covariance))
    first = jnp.asarray(jitter_of(covariance.shape[-1], covariance.dtype), covariance.dtype)

    def factor(jitter: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jitter, jnp.linalg.cholesky(covariance + jitter * diagonal)

    def go_on(state: tuple) -> jax.Array:
        i, (_, root) = state
        return (i < _TRIES) & ~jnp.isfinite(root[-1, -1])

    def again(state: tuple) -> tuple:
        i, _ = state
        return i + 1, factor(first * _STEP**i)

    return jax.lax.while_loop(go_on, again, (jnp.ones((), int), factor(first)))[1]


@jax.custom_vjp
def log_density(covariance: jax.Array, residual: jax.Array) -> jax.Array:
    r"""Log density of N(0, covariance) at the residual, with its gradient in closed form.

    :math:`\partial/\partial S = \tfrac12 (S^{-1} r r^T S^{-1} - S^{-1})` saves the reverse pass
    through the factorisation.

    Args:
        covariance: [n, n].
        residual: [n].

    Returns:
        Scalar.
    """
    return _forward(covariance, residual)[0]


def _forward(covariance: jax.Array, residual: jax.Array) -> tuple:
    root = cholesky(covariance)
    half = solve_triangular(root, residual, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root)))
    value = -0.5 * half @ half - log_det - 0.5 * residual.shape[0] * math.log(2 * math.pi)
    return value, (root, half)


def _backward(kept: tuple, cotangent: jax.Array) -> tuple:
    root, half = kept
    weights = solve_triangular(root, half, lower=True, trans=1)
    slope = 0.5 * (jnp.outer(weights, weights) - _own_product(triangular_inverse(root)))
    return cotangent * slope, -cotangent * weights


log_density.defvjp(_forward, _backward)


def triangular_inverse(root: jax.Array) -> jax.Array:
    """Inverse [n, n] of a lower triangular matrix, mostly by products of halves.

    They run several times faster than the substitution of n columns.
    """
    n = root.shape[0]
    if n <= _SMALL:
        return solve_triangular(root, jnp.eye(n, dtype=root.dtype), lower=True)
    h = n // 2
    upper, lower = triangular_inverse(root[:h, :h]), triangular_inverse(root[h:, h:])
    corner = -lower @ (root[h:, :h] @ upper)
    return jnp.block([[upper, jnp.zeros((h, n - h), root.dtype)], [corner, lower]])


def _own_product(lower: jax.Array) -> jax.Array:
    """The transpose of a lower triangular matrix times the matrix, without its zeros."""
    n = lower.shape[0]
    if n <= _SMALL:
        return lower.T @ lower
    h = n // 2
    corner, last = lower[h:, :h], lower[h:, h:]
    cross = last.T @ corner
    first = _own_product(lower[:h, :h]) + corner.T @ corner
    return jnp.block([[first, cross.T], [cross, _own_product(last)]])


def solve(root: jax.Array, residual: jax.Array) -> jax.Array:
    """Inverse covariance times residual, from the Cholesky factor."""
    return cho_solve((root, True), residual)


def append(root: jax.Array, cross: jax.Array, block: jax.Array, where: jax.Array) -> jax.Array:
    """The Cholesky factor of a covariance of which some padding became data.

    Padding has unit rows and columns, so the factor of what was there stays. Costs n^2 per row
    rather than n^3.

    Args:
        root: [n, n], padding included.
        cross: [n, k], covariance of old and new; zero where a row is still padding or new.
        block: [k, k], covariance of the new, noise included.
        where: int [k], consecutive positions of the new rows, after all old ones; those out of
            range are dropped.

    Returns:
        [n, n].
    """
    half = solve_triangular(root, cross, lower=True)  # zero beyond the old rows
    rounding = jitter_of(root.shape[-1], root.dtype) * jnp.diag(jnp.diagonal(block))
    corner = cholesky(block + rounding - half.T @ half)
    root = root.at[where].set(half.T, mode="drop")
    return root.at[where[:, None], where[None, :]].set(corner, mode="drop")
