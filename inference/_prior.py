"""The prior as a Gaussian in unconstrained coordinates: exact where it is one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from decisionppl.inference._gaussian import Gaussian, Layout
from decisionppl.inference._likelihood import Latents

PRIOR_DRAWS = 4096


class Prior(NamedTuple):
    """A Gaussian prior over the flat unconstrained vector.

    Attributes:
        mean: [n].
        covariance: [n, n].
        exact: whether the prior is this Gaussian (else its moments are matched).
    """

    mean: np.ndarray
    covariance: np.ndarray
    exact: bool


def _groups(coupled: np.ndarray) -> list[np.ndarray]:
    """Connected groups of coordinates."""
    from scipy.sparse.csgraph import connected_components

    count, label = connected_components(coupled, directed=False)
    order = np.argsort(label, kind="stable")
    sizes = np.bincount(label, minlength=count)
    return np.split(order, np.cumsum(sizes)[:-1])


def _draws(latents: Latents) -> np.ndarray:
    keys = jax.random.split(jax.random.key(20), PRIOR_DRAWS)
    return np.asarray(jax.jit(jax.vmap(lambda k: ravel_pytree(latents.draw(k))[0]))(keys))


def gaussian_prior(latents: Latents) -> Prior:
    """Mean and covariance of the prior in unconstrained coordinates.

    Coordinates that the prior density does not couple are treated apart. A group whose log
    density is quadratic is exactly Gaussian; another one gets the moments of prior draws
    (4096, fixed key), so that priors without a mode, such as a scale that governs other
    latents, are represented too.
    """
    flat, unravel = ravel_pytree(latents.prototype)

    def log_prior(z: jax.Array) -> jax.Array:
        return latents.log_prior(unravel(z))

    noise = np.random.default_rng(20).standard_normal((2, flat.size))
    points = jnp.asarray(np.stack([np.asarray(flat), *noise]), flat.dtype)
    at = jax.jit(jax.vmap(lambda z: (jax.grad(log_prior)(z), -jax.hessian(log_prior)(z))))
    slopes, curvature = (np.asarray(x) for x in at(points))
    draws = None
    mean, covariance, exact = np.zeros(flat.size), np.zeros((flat.size,) * 2), True
    for group in _groups(np.any(np.abs(curvature) > 0, axis=0)):
        cell = np.ix_(group, group)
        blocks = [c[cell].astype(float) for c in curvature]
        scale = np.abs(blocks[0]).max()
        constant = all(np.abs(b - blocks[0]).max() <= 1e-4 * scale for b in blocks)
        if constant and scale > 0 and np.linalg.eigvalsh(blocks[0]).min() > 1e-6 * scale:
            covariance[cell] = np.linalg.inv(blocks[0])
            mean[group] = covariance[cell] @ slopes[0][group]
            continue
        exact = False
        draws = _draws(latents) if draws is None else draws
        part = draws[:, group].astype(float)
        if not np.isfinite(part).all():
            raise ValueError(
                f"the prior of latents {list(latents.prototype)} gives infinite unconstrained "
                "values; use a proper prior with support in the interior."
            )
        mean[group] = part.mean(axis=0)
        covariance[cell] = np.atleast_2d(np.cov(part, rowvar=False)) + 1e-8 * np.eye(len(group))
    return Prior(mean, covariance, exact)


def is_block_diagonal(prior: Prior, layout: Layout) -> bool:
    """Whether the prior couples no two blocks of a layout."""
    index = jax.tree.map(
        lambda p: jnp.broadcast_to(
            jnp.arange(p.shape[0]).reshape(-1, *(1,) * (p.ndim - 1)), p.shape
        ),
        layout.prototype,
    )
    block = np.asarray(ravel_pytree(index)[0])
    return not np.any(prior.covariance[block[:, None] != block[None, :]])


def prior_belief(prior: Prior, layout: Layout, latents: Latents) -> Gaussian:
    """The prior as blocks of a layout."""
    flat, unravel = ravel_pytree(latents.prototype)
    position = unravel(jnp.arange(flat.size, dtype=flat.dtype))
    where = np.asarray(layout.pack(position)).astype(int)  # [blocks, dim] -> flat coordinate
    blocks = np.stack([prior.covariance[np.ix_(w, w)] for w in where])
    roots = np.linalg.cholesky(blocks)
    return Gaussian(jnp.asarray(prior.mean[where], flat.dtype), jnp.asarray(roots, flat.dtype))
