r"""Exact exchangeable sequences, each written twice: by its predictive laws, and by its latents.

A sequence is exchangeable if its joint probability does not depend on its order. By de Finetti's
theorem it can then be written in two ways, and each factory here returns both as `Twins`: draw
the observations one after another, each from its law given those before (`sequence`), or draw
what is unknown once and the observations independently given it (`latent`). Both give the data
site `y` the same distribution, so what is found with one checks what is found with the other:
imagined futures against posteriors, a learned sequence model against the exact one.

Notation: observation y, its covariate x (if any), n observations so far.

References:
    de Finetti (1937); Fong, Holmes and Walker, Martingale posterior distributions, arXiv
    2103.15671; Architectural and Inferential Inductive Biases for Exchangeable Sequence
    Modeling, arXiv 2503.01215; Active Exploration via Autoregressive Generation of Missing
    Data, arXiv 2405.19466; Gelman et al., Bayesian Data Analysis, 3rd edition, chapters 2, 3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.core import Tracer
from jax.typing import ArrayLike
from numpyro.contrib.control_flow import scan

import decisionppl as dp


class Twins(NamedTuple):
    """One exchangeable distribution as two NumPyro programs with data site `y`.

    Attributes:
        sequence: `(length)`, or `(covariates [length, ...])`: a `scan` that draws each
            observation from its exact law given those before; returns them, [length].
        latent: the one-round model, `()` or `(covariate)`: latent sites, then one observation.
    """

    sequence: Callable
    latent: Callable


def _check(valid: Callable, expected: str, ndim: int = 0, **values: Any) -> None:
    for name, value in values.items():
        # what is traced has a shape to check, but no values yet
        known = isinstance(value, Tracer) or np.all(valid(np.asarray(value)))
        if np.ndim(value) != ndim or not known:
            kind = ("a number", "an array [n]", "an array [n, d]")[ndim]
            raise ValueError(f"{name}: expected {kind}, {expected}, got {value!r}.")


def _positive(ndim: int = 0, **values: Any) -> None:
    _check(lambda x: (x > 0) & np.isfinite(x), "positive and finite", ndim, **values)


def _finite(ndim: int = 0, **values: Any) -> None:
    _check(np.isfinite, "finite", ndim, **values)


def _identical(step: Callable, start: Callable, latent: Callable) -> Twins:
    """Twins without covariates; `start` makes the carry when called, in the dtype of the day."""

    def sequence(length: int) -> jax.Array:
        if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
            raise ValueError(f"length: expected an int of at least 1, got {length!r}.")
        return scan(step, start(), None, length=int(length))[1]

    return Twins(sequence, latent)


def polya_urn(alpha: ArrayLike = 1.0, beta: ArrayLike = 1.0) -> Twins:
    r"""Polya's urn: :math:`P(y=1 \mid \text{past}) = (\alpha + s) / (\alpha + \beta + n)`.

    s of the n observations were 1. The latent twin is :math:`p \sim \mathrm{Beta}(\alpha,
    \beta)`, :math:`y \sim \mathrm{Bernoulli}(p)`; the number of ones is Beta-Binomial.

    Args:
        alpha, beta: balls of either colour at the start, positive.

    Returns:
        `Twins`: `sequence(length)`, `latent()` with site `p`.

    Raises:
        ValueError: a parameter that is not a positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> urn = sequences.polya_urn()
        >>> run = dp.play(urn.sequence, 0, data={"y": jnp.array([1, 1, 0])})(3)
        >>> [round(float(p), 3) for p in run["y"]["fn"].probs]
        [0.5, 0.667, 0.75]
    """
    _positive(alpha=alpha, beta=beta)

    def step(counts: tuple, _: Any) -> tuple:
        ones, total = counts
        y = dp.outcome("y", dist.Bernoulli((alpha + ones) / (alpha + beta + total)))
        return (ones + y, total + 1), y

    def latent() -> None:
        p = numpyro.sample("p", dist.Beta(alpha, beta))
        dp.outcome("y", dist.Bernoulli(p))

    return _identical(step, lambda: (jnp.zeros(()), jnp.zeros(())), latent)


def dirichlet_multinomial(concentration: ArrayLike) -> Twins:
    r"""Urn of K colours: :math:`P(y=k \mid \text{past}) \propto \alpha_k + n_k`.

    The latent twin is :math:`p \sim \mathrm{Dirichlet}(\alpha)`,
    :math:`y \sim \mathrm{Categorical}(p)`.

    Args:
        concentration: :math:`\alpha`, [K], positive.

    Returns:
        `Twins`: `sequence(length)`, `latent()` with site `p` [K].

    Raises:
        ValueError: `concentration` is not an array [K] of positive numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> twins = sequences.dirichlet_multinomial(jnp.ones(3))
        >>> run = dp.play(twins.sequence, 0, data={"y": jnp.array([2, 2])})(2)
        >>> run["y"]["fn"].probs[1].tolist()
        [0.25, 0.25, 0.5]
    """
    _positive(1, concentration=concentration)
    alpha = jnp.asarray(concentration, float)

    def step(counts: jax.Array, _: Any) -> tuple:
        weights = alpha + counts
        y = dp.outcome("y", dist.CategoricalProbs(weights / jnp.sum(weights)))
        return counts + jax.nn.one_hot(y, len(alpha), dtype=counts.dtype), y

    def latent() -> None:
        p = numpyro.sample("p", dist.Dirichlet(alpha))
        dp.outcome("y", dist.CategoricalProbs(p))

    return _identical(step, lambda: jnp.zeros(alpha.shape), latent)


def beta_mixture(z: ArrayLike) -> Twins:
    r"""Click rate of an article that is either bad or good, from two features of it.

    :math:`m_1 = z_1/4`, :math:`m_2 = (3 + z_2)/4`, and p is drawn from
    :math:`\mathrm{Beta}(25 m_i + 1, 26 - 25 m_i)` for i = 1 or 2 with probability 1/2 each;
    :math:`y \sim \mathrm{Bernoulli}(p)`. The predictive law mixes those of the two
    components by their posterior odds, which are kept in logarithms.

    The posterior of p can have two modes, between which gradient-based samplers rarely move.

    Args:
        z: features of the article, [2], in the unit square.

    Returns:
        `Twins`: `sequence(length)`, `latent()` with site `p`, a mixture of Beta laws.

    Raises:
        ValueError: `z` is not an array [2] with entries between 0 and 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> article = sequences.beta_mixture(jnp.array([0.0, 1.0]))
        >>> run = dp.play(article.sequence, 0, data={"y": jnp.array([1, 1, 1])})(3)
        >>> [round(float(p), 3) for p in run["y"]["fn"].probs]
        [0.5, 0.931, 0.963]

    References:
        arXiv 2405.19466, the synthetic bimodal articles.
    """
    _check(lambda x: (x >= 0) & (x <= 1), "entries between 0 and 1", 1, z=z)
    if np.shape(z) != (2,):
        raise ValueError(f"z: expected two features, shape (2,), got shape {np.shape(z)}.")
    means = (jnp.array([0.0, 3.0]) + jnp.asarray(z, float)) / 4
    ones0, zeros0 = 25 * means + 1, 26 - 25 * means

    def step(carry: tuple, _: Any) -> tuple:
        # odds of the bad component are updated, not recomputed: differences of log beta
        # functions of large counts would lose three digits
        ones, total, log_odds = carry
        a, b = ones0 + ones, zeros0 + total - ones
        bad = jax.nn.sigmoid(log_odds)
        y = dp.outcome("y", dist.Bernoulli((bad * a[0] + (1 - bad) * a[1]) / (27 + total)))
        gain = y * jnp.log(a[0] / a[1]) + (1 - y) * jnp.log(b[0] / b[1])
        return (ones + y, total + 1, log_odds + gain), y

    def latent() -> None:
        halves = dist.CategoricalProbs(jnp.full(2, 0.5))
        p = numpyro.sample("p", dist.MixtureSameFamily(halves, dist.Beta(ones0, zeros0)))
        dp.outcome("y", dist.Bernoulli(p))

    return _identical(step, lambda: (jnp.zeros(()),) * 3, latent)


def normal_normal(
    prior_mean: ArrayLike = 0.0, prior_scale: ArrayLike = 1.0, noise: ArrayLike = 1.0
) -> Twins:
    r"""Normal observations with unknown mean and known noise.

    The latent twin is :math:`\mu \sim N(m, s^2)`, :math:`y \sim N(\mu, \sigma^2)`. The prior
    counts for :math:`w = \sigma^2/s^2` observations of value m: given n observations,
    :math:`y \sim N(\bar m, \sigma^2 (1 + 1/(w + n)))` with :math:`\bar m` the mean of all.

    Args:
        prior_mean: m.
        prior_scale: s, a standard deviation.
        noise: :math:`\sigma`, a standard deviation.

    Returns:
        `Twins`: `sequence(length)`, `latent()` with site `mean`.

    Raises:
        ValueError: a parameter that is not a number, or a scale that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> twins = sequences.normal_normal()
        >>> data = {"y": jnp.array([3.0, 3.0, 0.0])}
        >>> law = dp.play(twins.sequence, 0, data=data)(3)["y"]["fn"]
        >>> law.mean.tolist(), [round(float(v), 3) for v in law.variance]
        ([0.0, 1.5, 2.0], [2.0, 1.5, 1.333])
    """
    _finite(prior_mean=prior_mean)
    _positive(prior_scale=prior_scale, noise=noise)

    def step(carry: tuple, _: Any) -> tuple:
        # deviations from the prior mean are summed: a sum of the observations would lose
        # digits far from zero, and a running mean stops moving once its steps are too small
        count, deviation = carry
        weight = (noise / prior_scale) ** 2 + count
        mean = prior_mean + deviation / weight
        y = dp.outcome("y", dist.Normal(mean, noise * jnp.sqrt(1 + 1 / weight)))
        return (count + 1, deviation + (y - prior_mean)), y

    def latent() -> None:
        mean = numpyro.sample("mean", dist.Normal(prior_mean, prior_scale))
        dp.outcome("y", dist.Normal(mean, noise))

    return _identical(step, lambda: (jnp.zeros(()), jnp.zeros(())), latent)


def normal_inverse_gamma(
    loc: ArrayLike = 0.0,
    precision: ArrayLike = 1.0,
    concentration: ArrayLike = 2.0,
    rate: ArrayLike = 1.0,
) -> Twins:
    r"""Normal observations with unknown mean and unknown variance; Student-t predictive laws.

    The latent twin is :math:`\sigma^2 \sim \mathrm{InverseGamma}(a, b)`,
    :math:`\mu \sim N(m, \sigma^2/k)`, :math:`y \sim N(\mu, \sigma^2)`. The next observation is
    Student-t with 2a degrees of freedom, location m and squared scale
    :math:`(b/a)(1 + 1/k)`, all four updated by the observations so far.

    Args:
        loc: m.
        precision: k, how many observations the prior mean counts for.
        concentration, rate: a and b.

    Returns:
        `Twins`: `sequence(length)`, `latent()` with sites `variance`, `mean`.

    Raises:
        ValueError: a parameter that is not a number, or (but `loc`) not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> import decisionppl as dp
        >>> from decisionppl.models import sequences
        >>> twins = sequences.normal_inverse_gamma()
        >>> law = dp.play(twins.sequence, 0, data={"y": jnp.array([2.0, 0.0])})(2)["y"]["fn"]
        >>> law.df.tolist(), law.loc.tolist()
        ([4.0, 5.0], [0.0, 1.0])

    References:
        Gelman et al., Bayesian Data Analysis, 3rd edition, section 3.3.
    """
    _finite(loc=loc)
    _positive(precision=precision, concentration=concentration, rate=rate)

    def step(carry: tuple, _: Any) -> tuple:
        count, deviation, b = carry  # deviations from `loc`, as in `normal_normal`
        k, a = precision + count, concentration + count / 2
        m = loc + deviation / k
        y = dp.outcome("y", dist.StudentT(2 * a, m, jnp.sqrt(b / a * (1 + 1 / k))))
        b += 0.5 * (y - m) ** 2 * k / (k + 1)
        return (count + 1, deviation + (y - loc), b), y

    def start() -> tuple:
        return jnp.zeros(()), jnp.zeros(()), jnp.asarray(rate, float)

    def latent() -> None:
        variance = numpyro.sample("variance", dist.InverseGamma(concentration, rate))
        mean = numpyro.sample("mean", dist.Normal(loc, jnp.sqrt(variance / precision)))
        dp.outcome("y", dist.Normal(mean, jnp.sqrt(variance)))

    return _identical(step, start, latent)


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
    _finite(2, design=design)
    _positive(length_scale=length_scale, variance=variance, noise_variance=noise_variance)
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
    _positive(1, scales=scales, noises=noises)
    if np.shape(scales) != np.shape(noises):
        raise ValueError(f"noises: expected shape {np.shape(scales)}, that of scales, got "
                         f"{np.shape(noises)}.")  # fmt: skip
    _finite(low=low, high=high)
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
