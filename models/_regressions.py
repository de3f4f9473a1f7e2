"""Exchangeable sequences with covariates: a Gaussian process, and piecewise constant means."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.core import Tracer
from jax.typing import ArrayLike
from numpyro.contrib.control_flow import scan

import decisionppl as dp
from decisionppl.models._twins import Twins, finite, positive


def gaussian_process(
    design: ArrayLike,
    length_scale: ArrayLike = 1.0,
    variance: ArrayLike = 1.0,
    noise_variance: ArrayLike = 0.1,
) -> Twins:
    r"""Noisy observations of a Gaussian process at points of a finite design.

    :math:`f \sim GP(0, k)` with :math:`k(x, x') = v \exp(-\|x - x'\|^2 / 2\ell^2)`,
    :math:`y \sim N(f(x), \sigma^2)`. The carry is the mean and covariance of f at the whole
    design; an observation costs a rank-one update, O(m^2). The covariance depends on which
    points were observed but not on what was seen there, so paths generated under `vmap` share it.

    Args:
        design: all points that can be observed, [m, d].
        length_scale: :math:`\ell`.
        variance: v.
        noise_variance: :math:`\sigma^2`; a variance, not a standard deviation. On a dense
            design, one below about 1e-5 times `variance` is lost in the rounding of float32.

    Returns:
        `Twins`: `sequence(rows)` with rows of the design, int [length] (default all m in
        order), and `latent(row)` with site `f` [m]. For its Cholesky factor the covariance of
        `f` has `variance` times a few roundings added to its diagonal; `sequence` needs none.

    Raises:
        ValueError: `design` is not an array [m, d], or another parameter not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> gp = sequences.gaussian_process(jnp.linspace(-2, 2, 9)[:, None])
        >>> rows = jnp.array([4, 4, 0])
        >>> law = dp.play(gp.sequence, 0)(rows)["y"]["fn"]
        >>> [round(float(v), 3) for v in law.variance]
        [1.1, 0.191, 1.083]

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapter 2.
    """
    finite(2, design=design)
    positive(length_scale=length_scale, variance=variance, noise_variance=noise_variance)
    size = np.shape(design)[0]

    def covariance() -> jax.Array:
        points = jnp.asarray(design, float) / length_scale
        squares = jnp.sum((points[:, None] - points[None]) ** 2, axis=-1)
        return jnp.multiply(variance, jnp.exp(-0.5 * squares))

    def step(carry: tuple, row: Any) -> tuple:
        mean, cov = carry
        spread = cov[row, row] + noise_variance
        y = dp.outcome("y", dist.Normal(mean[row], jnp.sqrt(spread)))
        gain = cov[row] / spread
        return (mean + gain * (y - mean[row]), cov - jnp.outer(gain, cov[row])), y

    def sequence(rows: ArrayLike | None = None) -> jax.Array:
        rows = jnp.arange(size) if rows is None else jnp.asarray(rows)
        return scan(step, (jnp.zeros(size), covariance()), rows)[1]

    def latent(row: Any) -> None:
        cov = covariance()
        jitter = 4 * size * jnp.finfo(cov.dtype).eps * variance
        law = dist.MultivariateNormal(jnp.zeros(size), cov + jitter * jnp.eye(size))
        f = numpyro.sample("f", law)
        dp.outcome("y", dist.Normal(f[row], jnp.sqrt(noise_variance)))

    return Twins(sequence, latent)


def regions(scales: ArrayLike, noises: ArrayLike, low: float = -5.0, high: float = 5.0) -> Twins:
    r"""A step function with unknown levels: R equal bins, each with signal and noise of its own.

    :math:`\theta_r \sim N(0, s_r^2)`, and :math:`y \sim N(\theta_r, n_r^2)` for x in bin r of
    [low, high]. A covariate outside counts for the nearest bin.

    Args:
        scales: s, standard deviations of the levels, [R].
        noises: n, standard deviations of the observations, [R].
        low, high: range of the covariate.

    Returns:
        `Twins`: `sequence(x)` with x [length], `latent(x)` with site `theta` [R].

    Raises:
        ValueError: `scales` or `noises` are not positive arrays [R] of one length, or `high` is
            not above `low`.

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> twins = sequences.regions([2.0, 1.0], [1.0, 1.0])
        >>> law = dp.play(twins.sequence, 0)(jnp.array([-3.0, 3.0, -1.0]))["y"]["fn"]
        >>> [round(float(v), 3) for v in law.variance]
        [5.0, 2.0, 1.8]

    References:
        arXiv 2503.01215, the active-learning experiments.
    """
    positive(1, scales=scales, noises=noises)
    if np.shape(scales) != np.shape(noises):
        raise ValueError(f"noises: expected shape {np.shape(scales)}, that of scales, got "
                         f"{np.shape(noises)}.")  # fmt: skip
    finite(low=low, high=high)
    if not isinstance(low, Tracer) and not isinstance(high, Tracer) and not low < high:
        raise ValueError(f"high: expected a number above low = {low!r}, got {high!r}.")
    s, sd = jnp.asarray(scales, float), jnp.asarray(noises, float)
    num = s.shape[0]

    def bin_of(x: Any) -> jax.Array:
        position = jnp.floor((x - low) / (high - low) * num)
        return jnp.clip(position, 0, num - 1).astype(int)

    def step(carry: tuple, x: Any) -> tuple:
        count, total = carry  # of the observations in each bin
        r = bin_of(x)
        weight = (sd[r] / s[r]) ** 2 + count[r]
        y = dp.outcome("y", dist.Normal(total[r] / weight, sd[r] * jnp.sqrt(1 + 1 / weight)))
        return (count.at[r].add(1), total.at[r].add(y)), y

    def sequence(x: ArrayLike) -> jax.Array:
        return scan(step, (jnp.zeros(num), jnp.zeros(num)), jnp.asarray(x, float))[1]

    def latent(x: Any) -> None:
        theta = numpyro.sample("theta", dist.Normal(0, s).to_event(1))
        r = bin_of(x)
        dp.outcome("y", dist.Normal(theta[r], sd[r]))

    return Twins(sequence, latent)


def al_regions_v2_50() -> Twins:
    """`regions` with 50 bins: 25 with signal .9 and noise .1, 25 with signal .5 and noise .7.

    Returns:
        `Twins`, x between -5 and 5.

    Example:
        >>> from decisionppl.models import sequences
        >>> import decisionppl as dp
        >>> dp.play(sequences.al_regions_v2_50().latent, 0)(1.0)["theta"]["value"].shape
        (50,)

    References:
        arXiv 2503.01215.
    """
    return regions(np.repeat([0.9, 0.5], 25), np.repeat([0.1, 0.7], 25))


def al_hregions() -> Twins:
    """`regions` whose noise is largest where there is least to learn.

    Signal .05 under noise 1.55 in the first half of the range, signal .95 under noise .05 in the
    second. What is most uncertain to predict is then not what is most worth observing. The
    settings of the two halves are published; 25 bins in each half is our reading.

    Returns:
        `Twins`, x between -5 and 5.

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> law = dp.play(sequences.al_hregions().sequence, 0)(jnp.array([-4.0, 4.0]))["y"]["fn"]
        >>> [round(float(v), 3) for v in law.variance]
        [2.405, 0.905]

    References:
        arXiv 2503.01215.
    """
    return regions(np.repeat([0.05, 0.95], 25), np.repeat([1.55, 0.05], 25))
