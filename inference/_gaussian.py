"""Gaussian beliefs in square-root form, in independent blocks.

A covariance is carried as `root @ root.T`: it stays positive definite by construction,
float32 suffices for long streams, and drawing a world needs no factorisation.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import constraints

Values = Mapping[str, Any]


class Gaussian(NamedTuple):
    """Independent Gaussian blocks.

    Attributes:
        mean: [blocks, dim].
        root: [blocks, dim, dim], with covariance `root @ root.T` per block.
    """

    mean: jax.Array
    root: jax.Array


class Layout(NamedTuple):
    """How latents are laid out in blocks of a flat vector.

    Attributes:
        prototype: dict site -> unconstrained value.
        blocked: True if every leaf's leading axis indexes independent blocks.
    """

    prototype: dict[str, jax.Array]
    blocked: bool

    @property
    def num_blocks(self) -> int:
        """Number of blocks (1 if not blocked)."""
        return next(iter(self.prototype.values())).shape[0] if self.blocked else 1

    def _one(self) -> dict[str, jax.Array]:
        return {n: p[0] for n, p in self.prototype.items()} if self.blocked else self.prototype

    @property
    def dim(self) -> int:
        """Dimension of one block."""
        return ravel_pytree(self._one())[0].size

    def pack(self, z: Values) -> jax.Array:
        """Dict of unconstrained values -> [blocks, dim]."""
        z = {n: z[n] for n in self.prototype}
        if self.blocked:
            return jax.vmap(lambda one: ravel_pytree(one)[0])(z)
        return ravel_pytree(z)[0][None]

    def unpack(self, blocks: jax.Array) -> dict[str, jax.Array]:
        """[blocks, dim] -> dict of unconstrained values."""
        unravel = ravel_pytree(self._one())[1]
        return jax.vmap(unravel)(blocks) if self.blocked else unravel(blocks[0])

    def one(self, block: jax.Array) -> dict[str, jax.Array]:
        """One block [dim] -> its values, without the leading axis."""
        return ravel_pytree(self._one())[1](block)

    def spread(self, block: jax.Array) -> dict[str, jax.Array]:
        """One block [dim] -> values in which every block equals it.

        A program that reads a single row of its latents gives the same result on these as
        on the full values, and never needs the others.
        """
        one = self.one(block)
        if not self.blocked:
            return one
        return {n: jnp.broadcast_to(one[n], p.shape) for n, p in self.prototype.items()}


def draw(key: jax.Array, belief: Gaussian, num: int) -> jax.Array:
    """Draws [num, blocks, dim]."""
    noise = jax.random.normal(key, (num, *belief.mean.shape), belief.mean.dtype)
    return belief.mean + jnp.einsum("bij,nbj->nbi", belief.root, noise)


def shrink(root: jax.Array, whitened: jax.Array) -> jax.Array:
    """Root of the covariance after evidence of precision `F @ F.T`; one block.

    `root' root'.T = (Sigma^-1 + F F.T)^-1` for `Sigma = root root.T`, by rank-one updates
    (Potter, 1963): no factorisation, O(dim^2) per column.

    Args:
        root: [dim, dim].
        whitened: `root.T @ F`, [dim, rank].

    Returns:
        array [dim, dim].
    """
    if whitened.shape[1] == 1:
        return _shrink_one(root, whitened[:, 0])

    def column(state: tuple, j: jax.Array) -> tuple:
        root, rest = state
        g = rest[:, j]
        s = jnp.sqrt(1.0 + g @ g)
        # the remaining columns are whitened again by the root just found
        rest = rest - jnp.outer(g, g @ rest) / (s * (s + 1.0))
        return (_shrink_one(root, g), rest), None

    (root, _), _ = jax.lax.scan(column, (root, whitened), jnp.arange(whitened.shape[1]))
    return root


def _shrink_one(root: jax.Array, g: jax.Array) -> jax.Array:
    s = jnp.sqrt(1.0 + g @ g)
    return root - jnp.outer(root @ g, g) / (s * (s + 1.0))


def shrink_dense(root: jax.Array, precision: jax.Array) -> jax.Array:
    """As `shrink`, from whitened evidence `root.T @ H @ root` [dim, dim], by Cholesky."""
    lower = jnp.linalg.cholesky(jnp.eye(root.shape[0], dtype=root.dtype) + precision)
    return solve_triangular(lower, root.T, lower=True).T


class JointNormal(dist.Distribution):
    """Jointly Gaussian utilities `loc + factor @ eps`, possibly of low rank.

    Args:
        loc: [actions].
        factor: [actions, rank]; the covariance is `factor @ factor.T`.
    """

    arg_constraints = {"loc": constraints.real_vector, "factor": constraints.real}  # noqa: RUF012
    support = constraints.real_vector  # pyright: ignore

    def __init__(self, loc: Any, factor: Any, *, validate_args: bool | None = None) -> None:
        self.loc, self.factor = loc, factor
        super().__init__((), jnp.shape(loc), validate_args=validate_args)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, shape `sample_shape + [actions]`."""
        shape = (*sample_shape, self.factor.shape[-1])
        noise = jax.random.normal(key, shape, self.loc.dtype)  # pyright: ignore
        return self.loc + noise @ self.factor.T

    @property
    def mean(self) -> jax.Array:
        """[actions]."""
        return self.loc

    @property
    def variance(self) -> jax.Array:
        """[actions]."""
        return jnp.sum(self.factor**2, axis=-1)

    @property
    def covariance_matrix(self) -> jax.Array:
        """[actions, actions]."""
        return self.factor @ self.factor.T
