r"""What labels would teach about a functional, under a Gaussian belief, in closed form.

With :math:`\mu, \Sigma` the belief about the means m at the targets, W = diag(w) and
:math:`h = b + 2 W (\mu - \psi)` the functional's slope at :math:`\mu`,

.. math:: \mathrm{Var}\, g = h^T \Sigma h + 2\, \mathrm{tr}(W \Sigma W \Sigma).

Labels of a batch, standardised to independent coordinates Z, move the mean to
:math:`\mu + C^T Z`, C [batch, targets]; what they explain, whatever comes out, is

.. math:: \mathrm{Var}\, E[g | \text{labels}] = |C h|^2 + 2\, \|C W C^T\|_F^2,

and the expected next variance is the present one less this. One more label, with change c given
those before, explains :math:`(c^T h)^2 + 2 (c^T W c)^2 + 4 \sum_l (c_l^T W c)^2` more, so choosing
one after another costs one product of matrices per label.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from decisionppl._functional import Functional

Array = jax.Array


class Joint(NamedTuple):
    """A Gaussian belief about candidates' labels and the means at targets.

    Every array has a leading axis [draws] of hyperparameter values (one, if there is one).

    Attributes:
        mean: [draws, targets], means at the targets.
        covariance: [draws, targets, targets].
        cross: [draws, candidates, targets], covariance of the candidates' means and the targets'.
        label_mean: [draws, candidates].
        label_covariance: [draws, candidates, candidates], of the means, without noise.
        noise: [draws, candidates], standard deviations of the labels' noise.
    """

    mean: Array
    covariance: Array
    cross: Array
    label_mean: Array
    label_covariance: Array
    noise: Array


class Picks(NamedTuple):
    """Candidates in the order in which they were chosen.

    Attributes:
        chosen: int [k]; -1 where no candidate was left.
        gains: [k], the score of each when it was chosen.
        change: [draws, k, targets], see `Preposterior.change`; of the batch, whitened.
    """

    chosen: Array
    gains: Array
    change: Array


def functional_mean(joint: Joint, goal: Functional) -> Array:
    """Expected value of the functional, averaged over hyperparameter draws; a scalar."""
    spread = jnp.diagonal(joint.covariance, axis1=-2, axis2=-1)
    return jnp.mean(goal(joint.mean) + spread @ goal.weights)


def functional_variance(joint: Joint, goal: Functional) -> Array:
    """Variance of the functional, within and between hyperparameter draws; a scalar."""
    slope = goal.gradient(joint.mean)
    weighted = goal.weights[:, None] * joint.covariance
    linear = jnp.einsum("dt,dtu,du->d", slope, joint.covariance, slope)
    within = linear + 2 * jnp.einsum("dtu,dut->d", weighted, weighted)
    spread = jnp.diagonal(joint.covariance, axis1=-2, axis2=-1)
    return jnp.mean(within) + jnp.var(goal(joint.mean) + spread @ goal.weights)


def explained(change: Array, slope: Array, weights: Array) -> Array:
    """Variance that labels explain, from whitened changes [..., k, targets]; [...]."""
    linear = jnp.einsum("...kt,...t->...k", change, slope)
    quadratic = jnp.einsum("...kt,t,...lt->...kl", change, weights, change)
    return jnp.sum(linear**2, axis=-1) + 2 * jnp.sum(quadratic**2, axis=(-2, -1))


def subset_change(joint: Joint, chosen: Array) -> Array:
    """Whitened change [draws, k, targets] of the labels of distinct candidates [k].

    An index of -1 stands for no label and changes nothing.
    """
    real = chosen >= 0
    block = joint.label_covariance[:, chosen][:, :, chosen]
    block = jnp.where(real[:, None] & real[None], block, 0.0)
    noise = jnp.where(real, joint.noise[:, chosen] ** 2, 1.0)
    block = block + jax.vmap(jnp.diag)(noise)
    cross = jnp.where(real[:, None], joint.cross[:, chosen], 0.0)
    solve = lambda r, c: jax.scipy.linalg.solve_triangular(r, c, lower=True)  # noqa: E731
    return jax.vmap(solve)(jnp.linalg.cholesky(block), cross)


def subset_explained(joint: Joint, goal: Functional, chosen: Array) -> Array:
    """Variance explained by the labels of candidates [k]; a scalar."""
    change = subset_change(joint, chosen)
    return jnp.mean(explained(change, goal.gradient(joint.mean), goal.weights))


def soft_explained(joint: Joint, goal: Functional, share: Array) -> Array:
    r"""The same for a soft subset: shares a of the candidates, [candidates].

    :math:`\tilde K_{ij} = a_i a_j K_{ij}` off the diagonal and :math:`a_i k(x_i, x_*)` across,
    while the diagonal stays :math:`K_{ii} + \sigma_i^2`: at a = 1 a label as usual, at a = 0 one
    that says nothing, and differentiable in between. K is the posterior covariance. Where a share
    exceeds one, its diagonal grows with it, so that the matrix stays positive definite.

    References:
        arXiv 2502.06076, section 4 (with the prior's K, and shares clipped at one).
    """
    diagonal = jnp.diagonal(joint.label_covariance, axis1=-2, axis2=-1)
    own = jnp.maximum(share**2, 1.0) * diagonal + joint.noise**2
    matrix = share[:, None] * share * joint.label_covariance
    index = jnp.arange(share.shape[0])
    matrix = matrix.at[:, index, index].set(own)
    cross = share[:, None] * joint.cross
    root = jnp.linalg.cholesky(matrix)
    half = jax.vmap(lambda r, c: jax.scipy.linalg.solve_triangular(r, c, lower=True))(root, cross)
    slope = goal.gradient(joint.mean)
    linear = jnp.sum(jnp.einsum("dnt,dt->dn", half, slope) ** 2, axis=-1)
    if half.shape[1] <= half.shape[2]:  # the smaller of two matrices with the same traces
        inner = jnp.einsum("dnt,t,dmt->dnm", half, goal.weights, half)
        return jnp.mean(linear + 2 * jnp.sum(inner**2, axis=(-2, -1)))
    weighted = goal.weights[:, None] * jnp.einsum("dnt,dnu->dtu", half, half)
    return jnp.mean(linear + 2 * jnp.einsum("dtu,dut->d", weighted, weighted))


def pick(joint: Joint, k: int, score: Callable, available: Array) -> Picks:
    """Choose candidates one after another, each conditioned on the labels of those before.

    Rank-one updates: each step costs O(candidates * targets), and no label is needed.

    Args:
        joint: the belief.
        k: how many.
        score: `(change [draws, candidates, targets], variance [draws, candidates],
            picked [draws, k, targets]) -> [candidates]`: the whitened change that each candidate's
            label would bring now, the variance of that label, and the changes of those picked
            (zeros where none are yet).
        available: bool [candidates].

    Returns:
        Picks.
    """
    draws, count, targets = joint.cross.shape
    total = jnp.diagonal(joint.label_covariance, axis1=-2, axis2=-1) + joint.noise**2

    def step(state: tuple, i: Array) -> tuple:
        cross, variance, columns, picked, free = state
        deviation = jnp.sqrt(variance)
        scores = jnp.where(free, score(cross / deviation[..., None], variance, picked), -jnp.inf)
        best = jnp.argmax(scores)
        some = free[best]
        sd = deviation[:, best, None]
        # column of the conditional covariance of labels with the one picked
        column = joint.label_covariance[:, :, best]
        column = (column - jnp.einsum("dnk,dk->dn", columns, columns[:, best])) / sd
        change = cross[:, best] / sd
        column, change = jnp.where(some, column, 0.0), jnp.where(some, change, 0.0)
        cross = cross - column[..., None] * change[:, None]
        # what is left of a label's variance is its noise at least
        variance = jnp.maximum(variance - column**2, joint.noise**2)
        columns = columns.at[:, :, i].set(column)
        picked = picked.at[:, i].set(change)
        chosen = jnp.where(some, best, -1).astype(jnp.int32)
        gain = jnp.where(some, scores[best], 0.0)
        return (cross, variance, columns, picked, free.at[best].set(False)), (chosen, gain)

    start = (
        joint.cross, total, jnp.zeros((draws, count, k)), jnp.zeros((draws, k, targets)),
        available,
    )  # fmt: skip
    (_, _, _, picked, _), (chosen, gains) = jax.lax.scan(step, start, jnp.arange(k))
    return Picks(chosen, gains, picked)


def by_variance(joint: Joint, goal: Functional) -> Callable:
    """Score of `pick`: how much more of the functional's variance a label explains."""
    slope = goal.gradient(joint.mean)

    def score(change: Array, variance: Array, picked: Array) -> Array:
        weighted = change * goal.weights
        linear = jnp.einsum("dnt,dt->dn", change, slope) ** 2
        own = 2 * jnp.sum(weighted * change, axis=-1) ** 2
        others = 4 * jnp.sum(jnp.einsum("dnt,dkt->dnk", weighted, picked) ** 2, axis=-1)
        return jnp.mean(linear + own + others, axis=0)

    return score


def by_uncertainty(change: Array, variance: Array, picked: Array) -> Array:
    """Score of `pick`: the variance of the label itself."""
    return jnp.mean(variance, axis=0)


def by_average(change: Array, variance: Array, picked: Array) -> Array:
    """Score of `pick`: how much a label reduces the variances of the targets' means, in total."""
    return jnp.mean(jnp.sum(change**2, axis=-1), axis=0)
