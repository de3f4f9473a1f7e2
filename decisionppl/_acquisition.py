"""Numerics behind `decisionppl.rules`: the laws built on what is known of each action.

Private. Everything here is a pure function of arrays, compiles once per shape, and keeps no loop
over draws or actions.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import erfcx, log_ndtr, ndtr

Array = jax.Array

# log EI of an action that cannot improve: finite, so that differences and gradients stay numbers,
# and below the log EI of every action that can.
LOG_ZERO = -1e30

_REACH = 7.0  # standard deviations beyond which a Gaussian tail, 1e-12, is dropped
_NODES = 512
_NARROWEST = 1e-12  # relative to the widest arm: a narrower arm acts as a point
_AGREED = 1e-10  # probability of any other leader below which the draws count as unanimous
# Below, the series for log_improvement is exact to float64. Also, float32 erfcx(x) fails, returning
# 0, near x = 9.3, which is 13 standard deviations.
_FAR = -12.0
_SERIES = tuple((-1.0) ** n * math.prod(range(1, 2 * n + 2, 2)) for n in range(19))


def safe_sqrt(variance):
    """Square root whose gradient at zero is zero rather than infinite."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def shares(values, mask):
    """The uniform law on the feasible maximisers of each row; values [..., actions]."""
    # Compared with themselves, values must be the same numbers: without the barrier a compiler
    # may compute them twice, rounded differently, and then nothing equals the maximum.
    values = jax.lax.optimization_barrier(jnp.where(mask, values, -jnp.inf))
    top = values.max(-1, keepdims=True)
    first = jnp.arange(values.shape[-1]) == values.argmax(-1, keepdims=True)
    tied = (mask & ((values == top) | first)).astype(values.dtype)
    return tied / jnp.maximum(tied.sum(-1, keepdims=True), 1)


def best_of_normals(loc, scale, mask):
    r"""Probability that each of several independent Gaussian arms is the largest, [actions].

    :math:`P_a = \int f_a(x) \prod_{j \ne a} F_j(x)\,dx`, by one trapezoidal rule shared by all
    arms, `_NODES` x actions evaluations. Let `edge` be the highest of the points `_REACH`
    standard deviations below each mean: the maximum is above it. Every arm reaches down to it, so
    an arm that still varies at distance y above it has a scale of at least y / (2 `_REACH`).
    Nodes spaced in proportion to y beyond the narrowest scale therefore resolve every arm
    whatever the ratio of scales, and on such a smooth integrand, vanishing at both ends, the
    trapezoidal rule converges exponentially.
    """
    still = jax.lax.stop_gradient  # where the nodes lie is no part of the integral's derivative
    top = jnp.where(mask, loc, -jnp.inf).max()
    bottom = jnp.where(mask, loc, jnp.inf).min()
    widest = jnp.where(mask, scale, 0).max()
    spread = jnp.where(top > bottom, top - bottom, 1.0)
    unit = still(jnp.where(widest > 0, widest, spread))
    sd = jnp.where(mask, jnp.maximum(scale / unit, _NARROWEST), 1.0)

    highest = still(jnp.where(mask, loc - _REACH * unit * sd, -jnp.inf)).argmax()
    # Means measured from `edge`; taken from the arm that sets it, they keep the digits it needs.
    above = (loc - still(loc[highest])) / unit + _REACH * still(sd[highest])
    above = jnp.where(mask, above, 0.0)
    end = still(above + _REACH * sd)
    finest = 0.5 * _REACH * jnp.where(mask & (end > 0), still(sd), jnp.inf).min()
    width = jnp.where(mask, end, 0).max()
    stretch = jnp.linspace(0, 1, _NODES, dtype=sd.dtype) * jnp.log1p(width / finest)
    z = (finest * jnp.expm1(stretch)[:, None] - above) / sd  # [nodes, actions]

    log_cdf = jnp.where(mask, log_ndtr(z), 0.0)
    log_density = -0.5 * z**2 - jnp.log(sd) - log_cdf + log_cdf.sum(1, keepdims=True)
    mass = jnp.where(mask, jnp.exp(log_density + stretch[:, None]), 0.0).sum(0)
    return mass / mass.sum()


def top_two_law(best, mean, mask, beta):
    """Law of top-two Thompson sampling from the probabilities of being best; all [actions]."""
    rest = _sum_of_others(best)
    unanimous = mask & (rest < _AGREED)
    odds = jnp.where(unanimous, 0.0, best / jnp.where(unanimous, 1.0, rest))
    law = best * (beta + (1 - beta) * _sum_of_others(odds))
    # A unanimous leader leaves nobody to resample: its challenger is the next best mean.
    others = mask & ~unanimous
    challenger = jnp.where(others.any(), shares(mean, others), unanimous.astype(best.dtype))
    law = law + (1 - beta) * jnp.where(unanimous, best, 0.0).sum() * challenger
    return law / law.sum()


def _sum_of_others(values):
    # Two running sums: subtracting from the total would cancel when one value dominates.
    zero = jnp.zeros(1, values.dtype)
    before = jnp.concatenate([zero, jnp.cumsum(values)[:-1]])
    after = jnp.concatenate([jnp.cumsum(values[::-1])[-2::-1], zero])
    return before + after


def regret_and_gain(draws, mask):
    """Expected regret, and variance of the mean utility given which action is best; [actions]."""
    best = jnp.where(mask, draws, -jnp.inf).max(1, keepdims=True)
    regret = jnp.maximum((best - draws).mean(0), 0.0)
    centred = draws - draws.mean(0)
    law = shares(draws, mask) / len(draws)  # [draws, actions], joint law of draw and best action
    weight = law.sum(0)[:, None]
    total = jnp.matmul(law.T, centred, precision="highest")
    told = total / jnp.where(weight > 0, weight, 1.0)  # [best action, action]
    gain = (weight * told**2).sum(0)
    rounding = (10 * jnp.finfo(draws.dtype).eps * jnp.abs(centred).max(0)) ** 2
    return regret, jnp.where(gain > rounding, gain, 0.0)


def two_point_law(regret, gain, mask):
    r"""Law minimising :math:`(\pi^T\Delta)^2 / \pi^T g`, [actions]; ties are shared.

    The ratio is convex and an optimum has at most two actions (Russo and Van Roy, Proposition
    6), so either it is a single action or it is the stationary point inside one pair, at
    :math:`q = \Delta_j / (\Delta_i - \Delta_j) - 2 g_j / (g_i - g_j)` on the first of the two.
    """
    apart, richer = regret[:, None] - regret, gain[:, None] - gain
    pair = mask[:, None] & mask & (apart != 0) & (richer != 0)
    q = regret / jnp.where(pair, apart, 1.0) - 2 * gain / jnp.where(pair, richer, 1.0)
    pair &= (q > 0) & (q < 1)
    q = jnp.where(pair, q, 0.5)
    mixed = information_ratio(
        q * regret[:, None] + (1 - q) * regret, q * gain[:, None] + (1 - q) * gain
    )
    single = jnp.diag(mask)
    value = jnp.where(pair, mixed, jnp.inf)
    value = jnp.where(single, information_ratio(regret, gain), value)
    # Equal optima differ by the rounding of their sums.
    slack = 1 + 64 * jnp.finfo(regret.dtype).eps
    optimal = (value <= value.min() * slack) & (pair | single)
    weight = optimal.astype(regret.dtype) / jnp.maximum(optimal.sum(), 1)
    q = jnp.where(single, 1.0, q)
    law = (weight * q).sum(1) + (weight * (1 - q)).sum(0)
    return jnp.where(jnp.isinf(value.min()), shares(-regret, mask), law)


def information_ratio(regret, gain):
    """Squared regret per unit of gain: 0 where there is no regret, inf where only no gain."""
    known = gain > 0
    ratio = regret**2 / jnp.where(known, gain, 1.0)
    return jnp.where(known, ratio, jnp.where(regret > 0, jnp.inf, 0.0))


def log_improvement(z):
    r"""Logarithm of :math:`h(z) = \phi(z) + z\Phi(z)`, accurate at every z, with its gradient.

    Above -1 the definition; down to `_FAR` the scaled complementary error function; below, the
    asymptotic series of :math:`z^2 h(z) / \phi(z)`, where Ament et al. lose digits to
    cancellation.
    """
    is_near, is_far = z > -1.0, z <= _FAR
    near, far = jnp.where(is_near, z, 0.0), jnp.where(is_far, z, _FAR)
    middle = jnp.where(is_near | is_far, -2.0, z)  # each branch differentiable where not taken
    log_near = jnp.log(_phi(near) + near * ndtr(near))
    constant = 0.5 * math.log(2 * math.pi)
    mills = -middle * math.sqrt(math.pi / 2) * erfcx(-middle / math.sqrt(2))
    log_middle = -0.5 * middle**2 - constant + jnp.log1p(-mills)
    series = functools.reduce(lambda total, term: total * far**-2 + term, _SERIES[::-1])
    log_far = -0.5 * far**2 - constant - 2 * jnp.log(-far) + jnp.log(series)
    return jnp.where(is_near, log_near, jnp.where(is_far, log_far, log_middle))


def _phi(z):
    return jnp.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def log_gaussian_ei(mean, sd, best):
    """Logarithm of E max(U - best, 0) for U ~ Normal(mean, sd); `LOG_ZERO` where that is zero."""
    gap = mean - best
    random = sd > 0
    spread = jnp.where(random, sd, 1.0)
    # The bound keeps z squared in range; beyond it an action is below any that can improve.
    z = jnp.maximum(jnp.where(random, gap, 0.0) / spread, -1e15)
    improves = ~random & (gap > 0)
    certain = jnp.where(improves, jnp.log(jnp.where(improves, gap, 1.0)), LOG_ZERO)
    return jnp.where(random, jnp.log(spread) + log_improvement(z), certain)
