"""Kernels on the simplex, by Hellinger, total variation and Jensen-Shannon distances.

Private; see `decisionppl.kernels`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from decisionppl._acquisition import safe_sqrt
from decisionppl._kernel_base import Kernel
from decisionppl._kernel_features import Block, Layout
from decisionppl._kernel_pytree import (
    Array,
    Inputs,
    Parameter,
    assign,
    float_type,
    join,
    positive,
    pytree,
)


def _roots(x: Inputs) -> Inputs:
    return tuple(safe_sqrt(a.astype(float_type(a))) for a in x)


@pytree
class Hellinger(Kernel):
    r"""A kernel on :math:`\sqrt w` for points w of the simplex.

    Square roots turn the Hellinger distance into the Euclidean one. Exact zeros are allowed; the
    derivative with respect to an entry that is zero, infinite in truth, counts as zero.

    Args:
        kernel: kernel on the square roots, usually stationary.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> w = jnp.array([[1.0, 0.0], [0.36, 0.64]])
        >>> kernels.Hellinger(kernels.Linear())((w,), (w,)).round(3).tolist()[0]
        [1.0, 0.6000000238418579]
    """

    kernel: Kernel

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return self.kernel(_roots(x), _roots(z))

    def _diagonal(self, x: Inputs) -> Array:
        return self.kernel.diagonal(_roots(x))

    def _draw(self, key: Array, layout: Layout) -> Any:
        return self.kernel._draw(key, layout)

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        return self.kernel._atoms(draws, _roots(x))


@pytree
class TotalVariation(Kernel):
    r"""Total variation on the simplex: :math:`k = \exp(-TV(w, w') / 2 s^2)`.

    :math:`TV = \frac12 \sum_i |w_i - w'_i|`. Positive semi-definite, because it is a product of
    Laplace kernels :math:`e^{-|w_i - w'_i| / 4 s^2}`, each the Fourier transform of a Cauchy law;
    its random frequencies are therefore independent Cauchy. The kink at equal entries has
    gradient zero.

    Args:
        scale: s, positive.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> w = jnp.array([[1.0, 0.0], [0.5, 0.5]])
        >>> round(float(kernels.TotalVariation(0.5)((w,), (w,))[0, 1]), 4)
        0.3679

    References:
        Data Mixture Optimization: A Multi-fidelity Multi-scale Bayesian Framework, arXiv
        2503.21023, appendix E.
    """

    scale: Parameter

    def __post_init__(self) -> None:
        assign(self, scale=positive("TotalVariation scale", self.scale))

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        gaps = jnp.abs(join(x)[:, None, :] - join(z)[None, :, :])
        return jnp.exp(-jnp.sum(gaps, axis=-1) / (4 * self.scale**2))

    def _diagonal(self, x: Inputs) -> Array:
        return jnp.ones(len(x[0]), jnp.result_type(join(x), self.scale))

    def _draw(self, key: Array, layout: Layout) -> Array:
        return jax.random.cauchy(key, (sum(layout.widths), layout.num_features), layout.dtype)

    def _atoms(self, draws: Array, x: Inputs) -> tuple[Block, ...]:
        phase = (join(x) / (4 * self.scale**2)) @ draws
        return (Block(jnp.ones((len(phase), 1, 1), phase.dtype), phase),)


def _jensen_shannon(p: Array, q: Array) -> Array:
    """Jensen-Shannon divergence in nats, entry by entry."""
    # a constant zero, so that no gradient reaches log 0
    p, q = jnp.where(p > 0, p, 0.0), jnp.where(q > 0, q, 0.0)
    middle = (p + q) / 2
    inside = middle > 0
    safe = jnp.where(inside, middle, 1.0)
    contrast = (p - q) / (2 * safe)
    near = jnp.abs(contrast) < 0.5
    t = jnp.where(near, contrast, 0.0)
    # The two logarithms of the definition nearly cancel between close points; these do not.
    close = middle * (t * jnp.arctanh(t) + jnp.log1p(-t * t) / 2)
    far = (_xlogratio(p, safe) + _xlogratio(q, safe)) / 2
    return jnp.where(near, close, far)


def _xlogratio(p: Array, middle: Array) -> Array:
    """p log(p / middle), zero with gradient zero where p is zero."""
    present = p > 0
    ratio = jnp.where(present, p, middle) / middle
    return xlogy(jnp.where(present, p, 0.0), ratio)


@pytree
class JensenShannon(Kernel):
    r"""Jensen-Shannon divergence on the simplex: :math:`k = \exp(-JS(w, w') / 2 s^2)`.

    :math:`JS = \frac12 KL(w \| m) + \frac12 KL(w' \| m)`, m the midpoint, natural logarithms.
    Positive semi-definite for every scale: JS is the square of a metric that embeds in a Hilbert
    space, so it is conditionally negative definite, and :math:`e^{-t JS}` is a kernel for all
    t > 0 by Schoenberg's theorem. Exact zeros are allowed; the derivative with respect to an
    entry that is zero counts as zero. There are no random features.

    Args:
        scale: s, positive.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> w = jnp.eye(2)
        >>> kernels.JensenShannon(2**-0.5)((w,), (w,)).round(6).tolist()
        [[1.0, 0.5], [0.5, 1.0]]

    References:
        Endres and Schindelin, A New Metric for Probability Distributions, 2003; Fuglede and
        Topsoe, Jensen-Shannon Divergence and Hilbert Space Embedding, 2004; arXiv 2503.21023,
        appendix E.
    """

    scale: Parameter

    def __post_init__(self) -> None:
        assign(self, scale=positive("JensenShannon scale", self.scale))

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        divergence = _jensen_shannon(join(x)[:, None, :], join(z)[None, :, :])
        return jnp.exp(-jnp.sum(divergence, axis=-1) / (2 * self.scale**2))

    def _diagonal(self, x: Inputs) -> Array:
        return jnp.ones(len(x[0]), jnp.result_type(join(x), self.scale))
