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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.contrib.control_flow import scan

import decisionppl as dp
from decisionppl.models._regressions import (
    al_hregions,
    al_regions_v2_50,
    gaussian_process,
    regions,
)
from decisionppl.models._twins import Twins, check_parameters, finite, positive

__all__ = [
    "Twins",
    "al_hregions",
    "al_regions_v2_50",
    "beta_mixture",
    "dirichlet_multinomial",
    "gaussian_process",
    "normal_inverse_gamma",
    "normal_normal",
    "polya_urn",
    "regions",
]


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
    positive(alpha=alpha, beta=beta)

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
    positive(1, concentration=concentration)
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
    check_parameters(lambda x: (x >= 0) & (x <= 1), "entries between 0 and 1", 1, z=z)
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
    finite(prior_mean=prior_mean)
    positive(prior_scale=prior_scale, noise=noise)

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
    finite(loc=loc)
    positive(precision=precision, concentration=concentration, rate=rate)

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
