"""Absorb logged rounds into a Gaussian belief: a damped Newton search and its curvature."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decisionppl.inference._gaussian import Gaussian, shrink, shrink_dense

MAX_STEPS = 30
# step lengths tried along a Newton direction; the best is taken
_LENGTHS = (1.0, 0.5, 0.2, 0.05, 0.005)


class Terms(NamedTuple):
    """One row's log likelihood as a function of its block's values `v` [dim].

    Attributes:
        value: `(v, row) -> scalar`.
        curvature: `(v, row) -> F` [dim, rank] with `F F.T` the negative Hessian, restricted
            to the span of the outcome's parameters and to its positive part.
        quadratic: True if `value` is proven quadratic: one Newton step is exact.
    """

    value: Callable
    curvature: Callable
    quadratic: bool


def curvature_of(value: Callable, parameters: Callable, num_parameters: int, dim: int) -> Callable:
    """Curvature factor of a row, see `Terms`.

    For likelihoods whose parameters are functions of linear predictors (all generalised
    linear models, under any parametrisation) the restriction is exact.

    Second derivatives are averages over two points close by on either side: log densities
    written with `abs` or `max` (Bernoulli and Binomial of logits) report no curvature at all
    where their logit is exactly zero, which is where every search starts.
    """

    def along(v: jax.Array, row: tuple, basis: jax.Array) -> jax.Array:
        """Negative Hessian times each column of the basis."""
        gradient = jax.grad(lambda x: value(x, row))
        return -jax.vmap(lambda q: jax.jvp(gradient, (v,), (q,))[1], 1, 1)(basis)

    def single(v: jax.Array, row: tuple) -> jax.Array:
        direction = jax.grad(lambda x: parameters(x, row)[0])(v)
        norm = jnp.sqrt(jnp.sum(direction**2))
        unit = direction / jnp.where(norm > 0, norm, 1.0)
        slope = lambda t: jax.jvp(  # noqa: E731
            lambda s: value(v + s * unit, row), (t,), (jnp.ones_like(t),)
        )[1]
        near = _nearby(v.dtype) / jnp.where(norm > 0, norm, 1.0) * jnp.array([-1.0, 1.0], v.dtype)
        second = jax.vmap(lambda t: jax.jvp(slope, (t,), (jnp.ones_like(t),))[1])(near).mean()
        return (unit * jnp.sqrt(jnp.maximum(-second, 0.0)))[:, None]

    def several(v: jax.Array, row: tuple) -> jax.Array:
        jacobian = jax.jacrev(lambda x: parameters(x, row))(v)
        full = num_parameters >= dim
        basis = jnp.eye(dim, dtype=v.dtype) if full else jnp.linalg.qr(jacobian.T)[0]
        size = jnp.sqrt(jnp.sum(jacobian**2))
        near = _nearby(v.dtype) / jnp.where(size > 0, size, 1.0) * jnp.sum(basis, axis=1)
        matrix = 0.5 * basis.T @ (along(v + near, row, basis) + along(v - near, row, basis))
        values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
        return basis @ (vectors * jnp.sqrt(jnp.maximum(values, 0.0)))

    return single if num_parameters == 1 else several


def _nearby(dtype: Any) -> float:
    """How far a parameter moves between the two points of a second derivative."""
    return 0.1 * float(jnp.finfo(dtype).eps) ** 0.25


def _best_length(at: jax.Array, step: jax.Array, objective: Callable) -> tuple:
    """Step along a direction; objective values [blocks] choose a length per block."""
    lengths = jnp.asarray(_LENGTHS, step.dtype)
    tried = jax.vmap(lambda t: objective(at + t * step))(lengths)
    tried = jnp.where(jnp.isnan(tried), jnp.inf, tried)
    now = objective(at)
    # sums over many rows carry rounding noise; near the mode a full step must not lose to it
    noise = 32 * jnp.finfo(step.dtype).eps * jnp.abs(now)
    best = jnp.argmax(tried <= jnp.min(tried, axis=0) + noise, axis=0)
    improved = jnp.min(tried, axis=0) <= now + noise
    length = jnp.where(improved, lengths[best], 0.0)
    return at + length[:, None] * step, length


def _search(objective: Callable, direction: Callable, start: jax.Array, quadratic: bool):
    """Minimise over whitened coordinates [blocks, dim]."""
    if quadratic:
        return start + direction(start)
    # Log densities of logits written with `clip` and `abs` have a wrong gradient where the
    # logit is exactly zero, which is where symmetric priors would start the search.
    start = start + 1e-3 * jnp.cos(1.0 + jnp.arange(start.size, dtype=start.dtype)).reshape(
        start.shape
    )
    tolerance = jnp.finfo(start.dtype).eps ** 0.6

    def go_on(state: tuple) -> jax.Array:
        i, _, moved = state
        return (i < MAX_STEPS) & (moved > tolerance)

    def advance(state: tuple) -> tuple:
        i, u, _ = state
        new, _ = _best_length(u, direction(u), objective)
        return i + 1, new, jnp.max(jnp.abs(new - u))

    first = (0, start, jnp.asarray(jnp.inf, start.dtype))
    return jax.lax.while_loop(go_on, advance, first)[1]


def absorb_row(belief: Gaussian, terms: Terms, row: tuple, block: jax.Array, mask: jax.Array):
    """Update by one row that reads one block; returns (belief, whitened step [dim], mode [dim]).

    Costs O(dim^2) per Newton step for a scalar outcome, no factorisation.
    """
    mean, root = (_read(x, block) for x in belief)
    keep = lambda x: jnp.where(mask, x, 0.0)  # noqa: E731

    def objective(u: jax.Array) -> jax.Array:
        value = terms.value(mean + root @ u[0], row)
        return (0.5 * u[0] @ u[0] - keep(value))[None]

    def direction(u: jax.Array) -> jax.Array:
        v = mean + root @ u[0]
        gradient = keep(jax.grad(terms.value)(v, row))
        g = root.T @ keep(terms.curvature(v, row))
        residual = root.T @ gradient - u[0]
        return (residual - g @ _small_solve(g, g.T @ residual))[None]

    u = _search(objective, direction, jnp.zeros((1, mean.size), mean.dtype), terms.quadratic)[0]
    u = keep(u)
    mode = mean + root @ u
    whitened = root.T @ keep(terms.curvature(mode, row))
    updated = Gaussian(
        _write(belief.mean, mode, block), _write(belief.root, shrink(root, whitened), block)
    )
    return updated, u, mode


# Mapped over replications, a gather or scatter runs row by row on a CPU, where passing over
# all blocks vectorises; that is cheaper while they are small.
_SMALL = 1 << 13


def _read(x: jax.Array, block: jax.Array) -> jax.Array:
    if x.size > _SMALL or x.shape[0] == 1:
        return jax.lax.dynamic_index_in_dim(x, block, 0, keepdims=False)
    return jnp.sum(jnp.where(_chosen(x, block), x, 0.0), axis=0)


def _write(x: jax.Array, value: jax.Array, block: jax.Array) -> jax.Array:
    if x.size > _SMALL or x.shape[0] == 1:
        return jax.lax.dynamic_update_index_in_dim(x, value, block, 0)
    return jnp.where(_chosen(x, block), value, x)


def _chosen(x: jax.Array, block: jax.Array) -> jax.Array:
    return (jnp.arange(x.shape[0]) == block).reshape(-1, *(1,) * (x.ndim - 1))


def _small_solve(g: jax.Array, b: jax.Array) -> jax.Array:
    """`(I + g.T g)^-1 b` for a thin `g` [dim, rank]."""
    if g.shape[1] == 1:
        return b / (1.0 + g[:, 0] @ g[:, 0])
    return jnp.linalg.solve(jnp.eye(g.shape[1], dtype=g.dtype) + g.T @ g, b)


def absorb_rows(belief: Gaussian, terms: Terms, rows: tuple, blocks: jax.Array, mask: jax.Array):
    """Update jointly by many rows; returns (belief, whitened steps, modes) [blocks, dim].

    The order of rows does not matter.
    """
    num_blocks, dim = belief.mean.shape
    eye = jnp.eye(dim, dtype=belief.mean.dtype)

    def place(u: jax.Array) -> jax.Array:
        return belief.mean + jnp.einsum("bij,bj->bi", belief.root, u)

    def per_block(x: jax.Array) -> jax.Array:
        # `where` on what each row gives, so that NaN in padded rows cannot spread
        x = jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0)
        return jax.ops.segment_sum(x, blocks, num_blocks)

    def objective(u: jax.Array) -> jax.Array:
        values = jax.vmap(terms.value)(place(u)[blocks], rows)
        return 0.5 * jnp.sum(u**2, axis=1) - per_block(values)

    def precision(v: jax.Array) -> jax.Array:
        factors = jax.vmap(terms.curvature)(v[blocks], rows)
        if num_blocks == 1:
            factors = jnp.where(mask[:, None, None], factors, 0.0)
            hessian = jnp.einsum("rik,rjk->ij", factors, factors)[None]
        else:
            hessian = per_block(jnp.einsum("rik,rjk->rij", factors, factors))
        return jnp.einsum("bji,bjk,bkl->bil", belief.root, hessian, belief.root)

    def direction(u: jax.Array) -> jax.Array:
        v = place(u)
        gradient = per_block(jax.vmap(jax.grad(terms.value))(v[blocks], rows))
        residual = jnp.einsum("bji,bj->bi", belief.root, gradient) - u
        return jax.vmap(lambda a, b: jax.scipy.linalg.solve(eye + a, b, assume_a="pos"))(
            precision(v), residual
        )

    u = _search(objective, direction, jnp.zeros_like(belief.mean), terms.quadratic)
    mode = place(u)
    roots = jax.vmap(shrink_dense)(belief.root, precision(mode))
    touched = jax.ops.segment_max(mask.astype(int), blocks, num_blocks) > 0
    roots = jnp.where(touched[:, None, None], roots, belief.root)
    mode = jnp.where(touched[:, None], mode, belief.mean)
    return Gaussian(mode, roots), u, mode
