"""Logistic regressions that share their covariates, fitted side by side by Newton's method."""

import jax
import jax.numpy as jnp

# On the intercept, at the mean of the covariates: without it a column of zeros or ones has none.
INTERCEPT_RIDGE = 1e-4
# A full step that moves no logit further than this lowers the loss, see `_step_length`.
_SURE = 1.5
# Up to here elimination is written out, and all outer products of a row are kept.
_SMALL = 16


@jax.jit(static_argnames=("intercept", "num_steps"))
def logistic_regressions(
    x: jax.Array, y: jax.Array, l2: float, intercept: bool, num_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Penalised maximum likelihood for every column of y.

    Covariates are centred (with an intercept) and scaled first, and the penalty with them, which
    changes the conditioning and not the answer.

    Args:
        x: covariates [rows, dim].
        y: outcomes [rows, columns] in [0, 1].
        l2: weight of the penalty.
        intercept: whether there is one; it bears only `INTERCEPT_RIDGE`.
        num_steps: Newton steps.

    Returns:
        weight [columns, dim], offset [columns], centre [dim]: logits are
        `weight @ (x - centre) + offset`.
    """
    rows, dim = x.shape
    centre = jnp.mean(x, axis=0) if intercept else jnp.zeros(dim, x.dtype)
    z = x - centre
    scale = jnp.sqrt(jnp.mean(z**2, axis=0))
    # what a constant covariate keeps after centring is rounding
    spread = scale > 8 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=0)
    scale = jnp.where(spread, scale, 1.0)
    z, penalty = z / scale, l2 / scale**2
    outcomes = y.T
    start = jnp.zeros((outcomes.shape[0], dim), x.dtype)
    if intercept:
        z = jnp.concatenate([z, jnp.ones((rows, 1), x.dtype)], axis=1)
        penalty = jnp.append(penalty, INTERCEPT_RIDGE).astype(x.dtype)
        start = jnp.concatenate([start, _log_odds(outcomes)[:, None]], axis=1)
    w = _newton(z, outcomes, penalty, start, num_steps)
    offset = w[:, dim] if intercept else jnp.zeros(len(w), x.dtype)
    return w[:, :dim] / scale, offset, centre


def _log_odds(outcomes: jax.Array) -> jax.Array:
    """Intercepts [columns] without covariates, a fixed point of the score equation."""
    rows = outcomes.shape[1]
    ones, zeros = jnp.mean(outcomes, axis=1), jnp.mean(1 - outcomes, axis=1)
    rarer = jnp.minimum(ones, zeros)  # precise where the other share rounds to one
    size = jnp.full_like(rarer, 10.0)
    for _ in range(4):
        share = jnp.minimum(rarer + INTERCEPT_RIDGE * size / rows, 0.5)
        size = jnp.log((1 - share) / share)
    return jnp.where(ones < zeros, -size, size)


def _newton(
    z: jax.Array, outcomes: jax.Array, penalty: jax.Array, start: jax.Array, num_steps: int
) -> jax.Array:
    """Minimise the penalised losses [columns] over w [columns, dim]."""
    rows, dim = z.shape
    transposed = z.T
    # one matrix product gives the weighted Gram matrices of all columns
    outer = (z[:, :, None] * z[:, None, :]).reshape(rows, -1) if dim <= _SMALL else None

    def hessian(weight: jax.Array) -> jax.Array:
        if outer is not None:
            gram = (weight @ outer).reshape(-1, dim, dim)
        else:
            gram = jnp.einsum("ki,ia,ib->kab", weight, z, z)
        return gram + jnp.diag(penalty)

    def loss(logit: jax.Array, w: jax.Array) -> jax.Array:
        rise = jnp.maximum(logit, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(logit)))
        return jnp.sum(rise - outcomes * logit, axis=1) + 0.5 * jnp.sum(penalty * w**2, axis=1)

    def advance(_: int, w: jax.Array) -> jax.Array:
        logit = w @ transposed
        # both tails from one exponential, so that neither loses its digits next to one
        small = jnp.exp(-jnp.abs(logit))
        near, far = 1 / (1 + small), small / (1 + small)
        one, zero = jnp.where(logit > 0, near, far), jnp.where(logit > 0, far, near)
        residual = outcomes * zero - (1 - outcomes) * one
        step = _solve(hessian(one * zero), residual @ z - penalty * w)
        change = step @ transposed
        sure = _step_length(change)
        full_is_better = loss(logit + change, w + step) <= loss(
            logit + sure[:, None] * change, w + sure[:, None] * step
        )
        return w + jnp.where(full_is_better, 1.0, sure)[:, None] * step

    return jax.lax.fori_loop(0, num_steps, advance, start)


def _step_length(change: jax.Array) -> jax.Array:
    """Lengths [columns] of a Newton step that lower the loss, whatever the data.

    A change of a logit by at most r changes the curvature of its loss by at most a factor e^r
    (Bach, arXiv 0910.4627), so the loss falls at least by the squared Newton decrement
    times t - (e^(rt) - rt - 1) / r^2: largest at t = log(1 + r) / r, positive at t = 1 up to
    r = 1.79. No loss is evaluated, whose rounding would hide the last steps.
    """
    largest = jnp.max(jnp.abs(change), axis=1)
    return jnp.where(largest < _SURE, 1.0, jnp.log1p(largest) / jnp.maximum(largest, _SURE))


def _solve(a: jax.Array, b: jax.Array) -> jax.Array:
    """Solutions [n, dim] of positive definite systems a [n, dim, dim].

    Elimination runs over all systems at once; library factorisations take them one by one.
    """
    dim = b.shape[-1]
    if dim > _SMALL:
        factor = jax.scipy.linalg.cho_factor(a, lower=True)
        return jax.scipy.linalg.cho_solve(factor, b[..., None])[..., 0]
    rest = jnp.concatenate([a, b[..., None]], axis=-1)
    pivots = []
    for _ in range(dim):
        pivot = rest[..., 0, 1:] / rest[..., 0, :1]
        rest = rest[..., 1:, 1:] - rest[..., 1:, :1] * pivot[..., None, :]
        pivots.append(pivot)
    solution = jnp.zeros((*b.shape[:-1], 0), b.dtype)
    for pivot in reversed(pivots):
        known = jnp.sum(pivot[..., :-1] * solution, axis=-1)
        solution = jnp.concatenate([(pivot[..., -1] - known)[..., None], solution], axis=-1)
    return solution
