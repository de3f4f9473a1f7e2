"""Exchangeable models whose posteriors have closed forms."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import linalg, special

import decisionppl as dp
from decisionppl.testing._check import check_positive

_LOG_TAIL = math.log(1e-18)  # mass that quadrature may leave out


def _seen(rows: dp.Rows, *names: str) -> list[np.ndarray]:
    """Values of logged sites in float64, rows that the mask leaves out removed."""
    missing = [n for n in names if n not in rows.sites]
    if missing:
        raise ValueError(
            f"rows: expected values of site {missing[0]!r}, got sites {sorted(rows.sites)}. Make "
            "the rows with dp.observe from this model."
        )
    mask = np.asarray(rows.mask, bool)
    return [np.asarray(rows.sites[n], float)[mask] for n in names]


class BetaBernoulliReference(NamedTuple):
    """Beta-Bernoulli bandit and its truths; made by `beta_bernoulli`.

    Attributes:
        model: one-round model; sites `probability` [arms], `arm`, `reward`.
        args: its example arguments, ().
        num_arms: number of arms.
        alpha, beta: of the Beta prior of every arm.
    """

    model: Callable
    args: tuple
    num_arms: int
    alpha: float
    beta: float

    def posterior(self, rows: dp.Rows) -> tuple[np.ndarray, np.ndarray]:
        """Parameters (alpha, beta), each [arms], of the independent Beta posteriors.

        Args:
            rows: logged `arm` and `reward`.
        """
        arm, reward = _seen(rows, "arm", "reward")
        arm = arm.astype(int)
        successes = np.bincount(arm, reward, minlength=self.num_arms)
        failures = np.bincount(arm, 1 - reward, minlength=self.num_arms)
        return self.alpha + successes, self.beta + failures

    def log_marginal(self, rows: dp.Rows) -> float:
        """Joint log probability of the rewards given the arms: one Polya urn per arm.

        Args:
            rows: logged `arm` and `reward`.
        """
        a, b = self.posterior(rows)
        return float(np.sum(special.betaln(a, b) - special.betaln(self.alpha, self.beta)))

    def predictive(self, rows: dp.Rows) -> np.ndarray:
        """Probability [arms] that the next reward of each arm is one.

        Args:
            rows: logged `arm` and `reward`.
        """
        a, b = self.posterior(rows)
        return a / (a + b)

    def best_probability(self, rows: dp.Rows) -> np.ndarray:
        """Probability [arms] that each arm is the best, by quadrature.

        Accurate to about 1e-10 for Beta parameters from 0.05 to 10,000.

        Args:
            rows: logged `arm` and `reward`.
        """
        return _best_probability(*self.posterior(rows))


def _best_probability(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # On the logit scale densities are smooth and fall off exponentially on both sides, so
    # equal steps converge exponentially once they resolve the narrowest arm.
    width = np.sqrt(special.polygamma(1, a) + special.polygamma(1, b))
    step = min(0.25, float(width.min()) / 6)
    log_norm = special.betaln(a, b)
    low = float(np.min((_LOG_TAIL + np.log(a) + log_norm) / a))
    high = float(np.max(-(_LOG_TAIL + np.log(b) + log_norm) / b))
    z = np.arange(low, high + step, step)
    a, b, log_norm = a[:, None], b[:, None], log_norm[:, None]
    density = np.exp(a * special.log_expit(z) + b * special.log_expit(-z) - log_norm)
    # near one the complement keeps the digits that 1 - x has lost
    below = special.betainc(a, b, special.expit(z))
    above = special.betainc(b, a, special.expit(-z))
    cdf = np.where(z < 0, below, 1 - above)
    others = [np.prod(np.delete(cdf, k, axis=0), axis=0) for k in range(len(a))]
    return step * np.sum(density * np.stack(others), axis=1)


def beta_bernoulli(
    num_arms: int = 3, alpha: float = 1.0, beta: float = 1.0
) -> BetaBernoulliReference:
    r"""Bandit with :math:`p_a \sim \mathrm{Beta}(\alpha, \beta)` and Bernoulli rewards.

    Args:
        num_arms: number of arms.
        alpha, beta: of the Beta prior.

    Returns:
        A `BetaBernoulliReference`: posterior, marginal likelihood, predictive probabilities and
        the probability that an arm is best.

    Raises:
        ValueError: a parameter that is not positive.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.testing import reference
        >>> truth = reference.beta_bernoulli(2)
        >>> rows = dp.observe(truth.model, sites={"arm": [0], "reward": [1]})
        >>> truth.best_probability(rows).round(6).tolist()
        [0.666667, 0.333333]

    References:
        Thompson (1933), Biometrika 25.
    """
    check_positive(num_arms=num_arms, alpha=alpha, beta=beta)

    def model() -> None:
        prior = dist.Beta(alpha, beta).expand([num_arms]).to_event(1)
        p = numpyro.sample("probability", prior)
        dp.reward("reward", dist.Bernoulli(p[dp.action("arm", num_arms)]))

    return BetaBernoulliReference(model, (), num_arms, alpha, beta)


class NormalReference(NamedTuple):
    """Normal mean with known noise and its truths; made by `normal_normal`.

    Attributes:
        model: one-round model; sites `mean`, `y`.
        args: its example arguments, ().
        prior_mean, prior_scale: of the unknown mean.
        noise: standard deviation of `y`.
    """

    model: Callable
    args: tuple
    prior_mean: float
    prior_scale: float
    noise: float

    def posterior(self, rows: dp.Rows) -> tuple[float, float]:
        """Mean and standard deviation of the unknown mean.

        Args:
            rows: logged `y`.
        """
        (y,) = _seen(rows, "y")
        precision = 1 / self.prior_scale**2 + len(y) / self.noise**2
        shift = self.prior_mean / self.prior_scale**2 + y.sum() / self.noise**2
        return float(shift / precision), precision**-0.5

    def log_marginal(self, rows: dp.Rows) -> float:
        r"""Log density of all `y`, :math:`N(m 1, \sigma^2 I + \tau^2 1 1^T)`.

        Args:
            rows: logged `y`.
        """
        (y,) = _seen(rows, "y")
        if len(y) == 0:
            return 0.0
        # eigenvalues of the covariance: one along the mean of y, n - 1 equal ones across it
        across, along = self.noise**2, self.noise**2 + len(y) * self.prior_scale**2
        spread = np.sum((y - y.mean()) ** 2) / across
        offset = len(y) * (y.mean() - self.prior_mean) ** 2 / along
        log_det = (len(y) - 1) * math.log(across) + math.log(along)
        return float(-0.5 * (len(y) * math.log(2 * math.pi) + log_det + spread + offset))

    def predictive(self, rows: dp.Rows) -> tuple[float, float]:
        """Mean and standard deviation of the next `y`.

        Args:
            rows: logged `y`.
        """
        mean, scale = self.posterior(rows)
        return mean, math.hypot(scale, self.noise)


def normal_normal(
    prior_mean: float = 0.0, prior_scale: float = 1.0, noise: float = 1.0
) -> NormalReference:
    r"""Outcome :math:`y \sim N(\mu, \sigma^2)` with :math:`\mu \sim N(m, \tau^2)`.

    Args:
        prior_mean, prior_scale: mean m and standard deviation :math:`\tau` of the prior.
        noise: standard deviation :math:`\sigma` of an outcome.

    Returns:
        A `NormalReference`: posterior, marginal likelihood and predictive law.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.testing import reference
        >>> truth = reference.normal_normal()
        >>> rows = dp.observe(truth.model, sites={"y": [1.0, 2.0, 3.0]})
        >>> truth.posterior(rows)
        (1.5, 0.5)
    """
    check_positive(prior_scale=prior_scale, noise=noise)

    def model() -> None:
        mean = numpyro.sample("mean", dist.Normal(prior_mean, prior_scale))
        dp.outcome("y", dist.Normal(mean, noise))

    return NormalReference(model, (), prior_mean, prior_scale, noise)


class LinearGaussianReference(NamedTuple):
    """Bayesian linear regression and its truths; made by `linear_gaussian`.

    Attributes:
        model: one-round model of x [dim]; sites `w` [dim], `y`.
        args: its example arguments, one x.
        dim: number of features.
        prior_scale: standard deviation of a weight.
        noise: standard deviation of `y` given x.
    """

    model: Callable
    args: tuple
    dim: int
    prior_scale: float
    noise: float

    def posterior(self, rows: dp.Rows) -> tuple[np.ndarray, np.ndarray]:
        """Mean [dim] and covariance [dim, dim] of the weights.

        Args:
            rows: logged `y`, with x [rows, dim] as their argument.
        """
        x, y = self._data(rows)
        factor = linalg.cho_factor(self._precision(x))
        covariance = linalg.cho_solve(factor, np.eye(self.dim))
        return linalg.cho_solve(factor, x.T @ y / self.noise**2), covariance

    def log_marginal(self, rows: dp.Rows) -> float:
        r"""Log density of all `y`, :math:`N(0, \sigma^2 I + s^2 X X^T)`.

        Args:
            rows: logged `y`, with x [rows, dim] as their argument.
        """
        x, y = self._data(rows)
        mean, _ = self.posterior(rows)
        misfit = np.sum((y - x @ mean) ** 2) / self.noise**2
        misfit += np.sum(mean**2) / self.prior_scale**2
        log_det = np.linalg.slogdet(self.prior_scale**2 * self._precision(x))[1]
        log_det += len(y) * math.log(2 * math.pi * self.noise**2)
        return float(-0.5 * (log_det + misfit))

    def predictive(self, rows: dp.Rows, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the next `y` at x, each of shape [...].

        Args:
            rows: logged `y`, with x [rows, dim] as their argument.
            x: where to predict, [..., dim].
        """
        mean, covariance = self.posterior(rows)
        x = np.asarray(x, float)
        variance = np.einsum("...i,ij,...j->...", x, covariance, x) + self.noise**2
        return x @ mean, np.sqrt(variance)

    def _data(self, rows: dp.Rows) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(rows.args[0], float)[np.asarray(rows.mask, bool)]
        return x, _seen(rows, "y")[0]

    def _precision(self, x: np.ndarray) -> np.ndarray:
        return np.eye(self.dim) / self.prior_scale**2 + x.T @ x / self.noise**2


def linear_gaussian(
    dim: int = 2, prior_scale: float = 1.0, noise: float = 1.0
) -> LinearGaussianReference:
    r"""Outcome :math:`y \sim N(w^T x, \sigma^2)` with :math:`w \sim N(0, s^2 I)`.

    Args:
        dim: number of features.
        prior_scale: standard deviation s of a weight.
        noise: standard deviation :math:`\sigma` of an outcome.

    Returns:
        A `LinearGaussianReference`: posterior, marginal likelihood and predictive law.

    Raises:
        ValueError: a parameter that is not positive.

    Example:
        >>> import numpy as np
        >>> import decisionppl as dp
        >>> from decisionppl.testing import reference
        >>> truth = reference.linear_gaussian(dim=2)
        >>> rows = dp.observe(truth.model, (np.eye(2),), {"y": [1.0, -2.0]})
        >>> truth.posterior(rows)[0].round(6).tolist()
        [0.5, -1.0]
    """
    check_positive(dim=dim, prior_scale=prior_scale, noise=noise)

    def model(x: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0, prior_scale).expand([dim]).to_event(1))
        dp.outcome("y", dist.Normal(w @ x, noise))

    return LinearGaussianReference(model, (jnp.ones(dim),), dim, prior_scale, noise)
