"""Bayesian linear regression with unknown noise: normal-inverse-gamma, derived."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from decisionppl._inference import Inference, Rows
from decisionppl._play import example_run, play
from decisionppl._roles import role_of
from decisionppl.inference import laplace as _laplace
from decisionppl.inference._counts import base
from decisionppl.inference._gaussian import Gaussian
from decisionppl.inference._likelihood import fix, logged_sites


class NormalInverseGamma(NamedTuple):
    """Belief about weights and noise variance, in independent blocks.

    Attributes:
        weights: the Gaussian of the weights at unit variance.
        shape: [blocks], of the InverseGamma law of the variance.
        rate: [blocks].
    """

    weights: Gaussian
    shape: jax.Array
    rate: jax.Array


def _not_conjugate(name: str, why: str) -> TypeError:
    return TypeError(
        f"latent site {name!r} (InverseGamma): {why}. Normal-inverse-gamma conjugacy needs noise "
        "and prior scales of the weights proportional to its square root. Use "
        "inference.laplace or inference.nuts."
    )


def normal_inverse_gamma(model: Callable, args: tuple, variance: str) -> Inference:
    """Engine for weights ~ N(m, s2 V), outcomes ~ N(affine(weights), s2 c^2), s2 ~ IG(a, b).

    With s2 = 1 the model is linear-Gaussian and that posterior has the right mean and the
    right V; what is added is the law of s2: `a += n/2`, `b += misfit/2`, where the misfit
    is the residual sum of squares plus the squared move of the weights, both in their units.
    """
    unit = fix(model, {variance: 1.0})
    parts = _laplace.analyse(unit, args)
    terms = parts.terms(frozenset(parts.latents.sites))
    if not (parts.prior_exact and terms.quadratic):
        raise _not_conjugate(variance, "at a fixed variance the model is not linear-Gaussian")
    trace = example_run(model, args)
    prior = trace[variance]["fn"]
    size = jnp.shape(trace[variance]["value"])
    blocks = parts.layout.num_blocks
    if size not in ((), (1,)) and not (parts.layout.blocked and size == (blocks,)):
        raise _not_conjugate(variance, f"it has shape {size}, the weights have {blocks} blocks")
    if size == () and parts.layout.blocked:
        # one variance for all arms couples them: keep the weights as one block
        parts = _merged(parts)
        blocks = 1
    _check_scaling(model, args, variance, parts)
    law = base(prior)
    first = NormalInverseGamma(
        parts.prior,
        jnp.broadcast_to(jnp.asarray(law.concentration, float), (blocks,)),
        jnp.broadcast_to(jnp.asarray(law.rate, float), (blocks,)),
    )

    def misfit(block: jax.Array, args: tuple, sites: Mapping[str, Any]) -> tuple:
        """Squared standardised residuals and number of observations of one row."""
        world = parts.latents.constrain(parts.layout.spread(block))
        run = play(unit, jax.random.key(0), world=world, data=sites)(*args)
        found = [(s["value"] - s["fn"].mean) ** 2 / s["fn"].variance
                 for s in logged_sites(run, sites).values()]  # fmt: skip
        return sum(jnp.sum(r) for r in found), float(sum(r.size for r in found))

    def init(key: Any) -> NormalInverseGamma:
        return first

    def update(key: Any, belief: NormalInverseGamma, rows: Rows) -> NormalInverseGamma:
        weights, moved, mode = _laplace.absorb(parts, belief.weights, rows)
        sites = {n: v for n, v in rows.sites.items() if n in parts.latents.sites}
        block = jax.vmap(parts.block_of)(rows.args, sites)
        modes = jnp.broadcast_to(mode, belief.weights.mean.shape)
        squares, count = jax.vmap(misfit, in_axes=(0, 0, 0))(modes[block], rows.args, sites)
        squares = jnp.where(rows.mask, squares, 0.0)
        count = jnp.where(rows.mask, count, 0.0)
        sums = jax.ops.segment_sum(jnp.stack([squares, count], 1), block, blocks)
        moves = jnp.sum(moved**2, axis=-1)
        if moved.ndim == 1:  # a single row: the move belongs to its block
            moves = jnp.zeros(blocks).at[block[0]].set(moves)
        return NormalInverseGamma(
            weights, belief.shape + 0.5 * sums[:, 1], belief.rate + 0.5 * (sums[:, 0] + moves)
        )

    def sample(key: Any, belief: NormalInverseGamma, num_worlds: int) -> dict[str, jax.Array]:
        first_key, second_key = jax.random.split(key)
        s2 = dist.InverseGamma(belief.shape, belief.rate).sample(first_key, (num_worlds,))
        mean, root = belief.weights
        noise = jax.random.normal(second_key, (num_worlds, *mean.shape), mean.dtype)
        drawn = mean + jnp.sqrt(s2)[..., None] * jnp.einsum("bij,nbj->nbi", root, noise)
        worlds = jax.vmap(lambda b: parts.latents.constrain(parts.layout.unpack(b)))(drawn)
        return {**worlds, variance: s2.reshape(num_worlds, *size)}

    return Inference(init, jax.jit(update), jax.jit(sample, static_argnums=2))


def _merged(parts: _laplace.Parts) -> _laplace.Parts:
    """The same parts with all latents in one block."""
    return _laplace.analyse(parts.latents.model, parts.latents.args, blocked=False)


def _check_scaling(model: Callable, args: tuple, variance: str, parts: _laplace.Parts) -> None:
    def scales(value: float) -> list[np.ndarray]:
        fixed = fix(model, {variance: value})
        run = play(fixed, 0)(*args)
        found = [np.asarray(run[n]["fn"].variance) for n in parts.latents.prototype]
        logged = {n: s for n, s in run.items() if role_of(s) in ("outcome", "reward", "cost")}
        return found + [np.asarray(s["fn"].variance) for s in logged.values()
                        if s["type"] == "sample"]  # fmt: skip

    for value in (0.25, 4.0):
        for at, one in zip(scales(value), scales(1.0), strict=True):
            if not np.allclose(at, value * one, rtol=1e-4):
                raise _not_conjugate(variance, "a scale is not proportional to its square root")
