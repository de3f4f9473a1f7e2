"""Factors of a table of series: loadings by singular values, factors by their posterior."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist


def leading(series: jax.Array, rank: int) -> jax.Array:
    r"""Loadings of the best approximation of low rank.

    The leading eigenvectors of :math:`Y^T Y`: the right singular vectors of Y, at the cost of the
    number of series rather than of periods. Signs are fixed, so that equal tables give equal
    loadings however they are compiled.

    Args:
        series: Y, [periods, series]; rows of zeros count for nothing.
        rank: number of factors, at most the number of series.

    Returns:
        [series, rank], orthonormal columns, the strongest factor first.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference._factors import leading
        >>> [round(float(x), 3) for x in leading(jnp.array([[3.0, 4.0], [6.0, 8.0]]), 1)[:, 0]]
        [0.6, 0.8]
    """
    # relative to its size, so that float32 neither overflows nor underflows when squared
    scale = jnp.max(jnp.abs(series), initial=0.0)
    unit = series / jnp.where(scale > 0, scale, 1.0)
    vectors = jnp.linalg.eigh(unit.T @ unit)[1][:, ::-1][:, :rank]
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), 0)[None], 0)
    return vectors * jnp.where(largest < 0, -1.0, 1.0)


class FactorPrior(NamedTuple):
    """A Gaussian law over periods, the same for every factor, with mean zero.

    Attributes:
        precision: [periods, periods].
        is_chain: whether each period bears on its neighbours alone (a random walk, AR(1)).
    """

    precision: np.ndarray
    is_chain: bool


def factor_prior(name: str, law: dist.Distribution) -> FactorPrior:
    """The prior of the factors, read off the law of their site [rank, periods].

    Raises:
        TypeError: a law that is not Gaussian with mean zero, or not the same for every factor and
            independent between them.
    """
    rank, periods = law.shape()
    slope = jax.jit(jax.grad(lambda z: jnp.sum(law.log_prob(z))))
    zero = jnp.zeros((rank, periods))
    elsewhere = jnp.asarray(np.random.default_rng(0).standard_normal((rank, periods)), zero.dtype)

    @jax.jit
    def curvature(i: jax.Array, at: jax.Array) -> jax.Array:
        """Second derivatives along one factor, in all of them."""
        return -jax.jacfwd(lambda row: slope(at.at[i].set(row)))(at[i])

    def along(i: int, at: jax.Array) -> np.ndarray:
        return np.asarray(curvature(jnp.asarray(i), at), float)

    first, last = along(0, zero), along(rank - 1, zero)
    precision, size = first[0], np.abs(first[0]).max()
    tied = [np.abs(np.delete(x, i, 0)).max(initial=0.0) for x, i in ((first, 0), (last, -1))]
    problem = None
    if not np.abs(along(0, elsewhere) - first).max() <= 1e-5 * size:
        problem = "their law is not Gaussian"
    elif not np.abs(slope(zero)).max() <= 1e-6 * size:
        problem = "their mean is not zero"
    elif max(tied) > 1e-6 * size or np.abs(precision - last[-1]).max() > 1e-5 * size:
        problem = "they are dependent, or differ in their laws"
    if problem is not None:
        raise TypeError(
            f"latent site {name!r}: {problem}. Factors are only known up to rotation, so their law "
            "must be Gaussian with mean zero, independent and equal for all of them: for instance "
            "dist.GaussianRandomWalk(scale, periods).expand([rank]).to_event(1)."
        )
    far = np.abs(np.arange(periods)[:, None] - np.arange(periods)) > 1
    is_chain = not (np.abs(precision[far]).max(initial=0.0) > 1e-6 * size)
    return FactorPrior(precision, is_chain)


def posterior(
    prior: FactorPrior, observed: jax.Array, noise: float, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Posterior of factors that were observed with noise in some periods.

    :math:`N(\Lambda^{-1} M z / v, \Lambda^{-1})` with :math:`\Lambda = K^{-1} + M / v`.

    Args:
        prior: :math:`K^{-1}`.
        observed: z, [periods, rank].
        noise: v, the variance of z about the factors.
        mask: M, bool [periods], which periods were observed.

    Returns:
        (mean [periods, rank], variance [periods]).
    """
    seen = mask / noise
    evidence = observed * seen[:, None]
    diagonal = jnp.asarray(np.diag(prior.precision), observed.dtype) + seen
    if not prior.is_chain:
        whole = jnp.asarray(prior.precision, observed.dtype) + jnp.diag(seen)
        inverse = jnp.linalg.inv(whole)
        return inverse @ evidence, jnp.diag(inverse)
    beside = jnp.asarray(np.append(np.diag(prior.precision, 1), 0.0), observed.dtype)

    def eliminate(carry: tuple, now: tuple) -> tuple:
        pivot, value, link = carry
        own, given, after = now
        pivot, value = own - link**2 / pivot, given - link / pivot * value
        return (pivot, value, after), (pivot, value)

    start = (jnp.ones((), observed.dtype), jnp.zeros_like(evidence[0]), beside[-1])
    forward = jax.lax.scan(eliminate, start, (diagonal, evidence, beside))[1]
    before = jnp.roll(beside, 1)
    backward = jax.lax.scan(eliminate, start, (diagonal, evidence, before), reverse=True)[1]
    # both messages count what the period itself brings
    precision = forward[0] + backward[0] - diagonal
    total = forward[1] + backward[1] - evidence
    return total / precision[:, None], 1 / precision
