"""Numerics of rules that plan one step ahead: expected maxima of lines, truncated laws.

Private. Pure functions of arrays; no loop over actions or targets.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, logsumexp

from decisionppl._acquisition import LOG_ZERO, log_improvement

Array = jax.Array

_NODES = 96
_REACH = 8.0  # standard deviations beyond which a normal law is dropped
_SHARPEST = 1e-6  # sqrt(1 - correlation^2): below, an outcome is as good as the utility itself
_POINTS = 256  # quasi-random normal vectors, and as many of opposite sign


def log_expected_rise(mean: Array, change: Array) -> Array:
    r"""Logarithm of :math:`E \max_t (m_t + b_t Z) - \max_t m_t`, Z standard normal; scalar.

    The upper envelope of the lines :math:`m_t + b_t z` is convex: with breakpoints :math:`c_j`
    between its pieces the rise is :math:`\sum_j (b_{j+1} - b_j) h(-|c_j|)`,
    :math:`h(z) = \phi(z) + z \Phi(z)`, all of whose terms are positive, so that nothing cancels and
    it never underflows. A line's piece begins where it overtakes the last of all less steep lines
    and ends where the first steeper line overtakes it, found over all pairs.

    Args:
        mean: [targets].
        change: [targets].

    Returns:
        Log rise, `LOG_ZERO` where no outcome changes which target is best.

    References:
        Frazier, Powell and Dayanik, The Knowledge-Gradient Policy for Correlated Normal Beliefs
        (2009), equation 14.
    """
    scale = jnp.max(jnp.abs(change))
    scale = jnp.where(scale > 0, scale, 1.0)
    height, slope = (mean - jnp.max(mean)) / scale, change / scale
    steeper = slope[:, None] > slope  # [j, i]: j is steeper than i
    gap = jnp.where(steeper, slope[:, None] - slope, 1.0)
    meet = (height - height[:, None]) / gap  # where j overtakes i
    begin = jnp.max(jnp.where(steeper, meet, -jnp.inf), axis=1)
    end = jnp.min(jnp.where(steeper, meet, jnp.inf), axis=0)
    # of parallel lines only the highest counts, and of equal ones the first
    index = jnp.arange(mean.shape[0])
    above = (height[:, None] < height) | ((height[:, None] == height) & (index[:, None] > index))
    hidden = jnp.any((slope[:, None] == slope) & above, axis=1)
    on_top = (begin < end) & ~hidden
    # a piece that begins at minus infinity is the envelope's first, which rises from nothing
    inner = on_top & jnp.isfinite(begin)
    # the piece before: not the line that is overtaken last, of which there may be several at once
    last = jnp.argmax(jnp.where(steeper & on_top, slope, -jnp.inf), axis=1)
    step = jnp.where(inner, slope - slope[last], 1.0)
    at = jnp.where(inner, -jnp.abs(begin), -1.0)
    terms = jnp.where(inner, jnp.log(step) + log_improvement(jnp.maximum(at, -1e15)), LOG_ZERO)
    return jnp.maximum(logsumexp(terms) + jnp.log(scale), LOG_ZERO)


def log_pairwise_rise(mean: Array, change: Array) -> Array:
    """A lower bound of `log_rise` that costs little: the best target against one other.

    The expected maximum of all is at least that of any two. Where one rival counts, as when the
    rise is small, the bound is tight.

    Args:
        mean: [targets].
        change: [outcomes, targets], independent coordinates.

    Returns:
        Log of the largest rise of any pair, scalar.
    """
    best = jnp.argmax(mean)
    apart = jnp.linalg.norm(change - change[:, best, None], axis=0)
    random = apart > 0
    scale = jnp.where(random, apart, 1.0)
    rises = jnp.log(scale) + log_improvement(jnp.maximum((mean - mean[best]) / scale, -1e15))
    return jnp.max(jnp.where(random, rises, LOG_ZERO))


def normal_nodes(count: int, dimension: int) -> np.ndarray:
    """Standard normal vectors [count, dimension], evenly spread: quantiles if there is one."""
    if dimension == 1:
        return _quantiles((np.arange(count) + 0.5)[:, None] / count)
    half = _quasi_normal(dimension, -(-count // 2))
    return np.concatenate([half, -half])[:count]


@functools.cache
def _normal_points(dimension: int) -> np.ndarray:
    """Quasi-random standard normal vectors [2 * points, dimension], symmetric about zero."""
    normal = _quasi_normal(dimension, _POINTS)
    return np.concatenate([normal, -normal])


def _quantiles(shares: np.ndarray) -> np.ndarray:
    from statistics import NormalDist

    return np.vectorize(NormalDist().inv_cdf)(np.clip(shares, 1e-9, 1 - 1e-9))


def _quasi_normal(dimension: int, count: int) -> np.ndarray:
    # the additive recurrence with the root of x^(d+1) = x + 1, well spread in any dimension
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (dimension + 1))
    steps = (1 / root) ** np.arange(1, dimension + 1)
    return _quantiles((0.5 + np.arange(1, count + 1)[:, None] * steps) % 1)


def log_rise(mean: Array, change: Array) -> Array:
    """The same for outcomes of several coordinates.

    With one it is exact. With more, the outcome is replaced by quasi-random points, for each of
    which the best target is found.

    Args:
        mean: [targets].
        change: [outcomes, targets], independent coordinates.

    Returns:
        Log rise, scalar.
    """
    if change.shape[0] == 1:
        return log_expected_rise(mean, change[0])
    points = jnp.asarray(_normal_points(change.shape[0]), mean.dtype)
    raised = jnp.max(mean + points @ change, axis=1) - jnp.max(mean)
    rise = jnp.mean(raised)
    return jnp.where(rise > 0, jnp.log(jnp.where(rise > 0, rise, 1.0)), LOG_ZERO)


def truncation_information(gamma: Array, correlation: Array) -> Array:
    r"""By how much knowing that X <= gamma lowers the entropy of an outcome Y, in nats.

    X and Y are standard normal with the given correlation :math:`\rho`. The law of Y given the
    event has density :math:`\phi(y) r(y)` with :math:`r(y) = \Phi((\gamma - \rho y) /
    \sqrt{1 - \rho^2}) / \Phi(\gamma)`, and its entropy is lower than that of Y by
    :math:`E_\phi[r \log r] + \rho^2 \gamma \phi(\gamma) / (2 \Phi(\gamma))`. As the
    correlation goes to one r becomes a step at :math:`\gamma`; the trapezoidal rule is therefore
    taken in u with :math:`y = c + \sqrt{1 - \rho^2} \sinh u`, dense around the step c, where it
    converges exponentially at any correlation.

    Args:
        gamma: [...].
        correlation: [...].

    Returns:
        [...], not negative.

    References:
        Takeno et al., Multi-fidelity Bayesian Optimization with Max-value Entropy Search, arXiv
        1901.08275; Wang and Jegelka, arXiv 1703.01968, equation 6.
    """
    rho = jnp.clip(jnp.abs(correlation), 0.0, 1.0)
    sharp = jnp.maximum(jnp.sqrt((1 - rho) * (1 + rho)), _SHARPEST)
    steep = jnp.where(rho > 0, rho, 1.0)
    centre = jnp.clip(jnp.where(rho > 0, gamma / steep, 0.0), -_REACH, _REACH)
    first, last = (jnp.arcsinh((e - centre) / sharp) for e in (-_REACH, _REACH))
    u = first[..., None] + (last - first)[..., None] * jnp.linspace(0, 1, _NODES, dtype=rho.dtype)
    y = centre[..., None] + sharp[..., None] * jnp.sinh(u)
    density = jnp.exp(-0.5 * y**2) / math.sqrt(2 * math.pi) * sharp[..., None] * jnp.cosh(u)
    density = density * ((last - first) / (_NODES - 1))[..., None]
    log_r = log_ndtr((gamma[..., None] - rho[..., None] * y) / sharp[..., None])
    log_r = log_r - log_ndtr(gamma)[..., None]
    weighted = jnp.where(log_r > -100, jnp.exp(log_r) * log_r, 0.0)
    divergence = jnp.sum(density * weighted, axis=-1)
    mills = jnp.exp(-0.5 * gamma**2 - 0.5 * math.log(2 * math.pi) - log_ndtr(gamma))
    return jnp.maximum(divergence + 0.5 * rho**2 * gamma * mills, 0.0)
