r"""Data mixtures across scales: which cheap runs tell most about the expensive one.

The loss f(w, s, t) of a training run is unknown: w is the mixture of data sources, on the simplex;
s and t are the logarithms of model size and of training steps relative to the target, zero there
and negative below. What is wanted is a mixture with a low loss at the target, f(w, 0, 0). Every
run costs, and cheap runs at small sizes tell of the target as much as f's covariance says.

- `surface`: our model, with a scaling law for its mean and a covariance between fidelities that is
  learned, its sign included.
- `published`: the model of arXiv 2503.21023.
- `MixtureScaling` (`simulator`): a synthetic truth with the published prices and a known optimum.
- `load_runs`: tables of real runs from CSV files; `search`: buy runs of such a table in turn.

References:
    Data Mixture Optimization: A Multi-fidelity Multi-scale Bayesian Framework, arXiv 2503.21023;
    RegMix: Data Mixture as Regression for Language Model Pre-training, arXiv 2407.01492.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl import kernels, means
from decisionppl.models._mixture_scaling import (
    NUM_STEPS,
    SIZES,
    STEP_PRICES,
    VARIANTS,
    MixtureScaling,
    Optimum,
    mixture_scaling,
)
from decisionppl.models._mixture_search import Search, search
from decisionppl.models._run_tables import RunTable, load_runs

__all__ = [
    "NUM_STEPS",
    "SIZES",
    "STEP_PRICES",
    "VARIANTS",
    "MixtureScaling",
    "Optimum",
    "RunTable",
    "Search",
    "load_runs",
    "mixture_scaling",
    "published",
    "search",
    "surface",
]


def _levels(name: str, values: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """Positive fidelity levels in increasing order, the target last."""
    levels = np.asarray([1.0] if values is None else values, float)
    if levels.ndim != 1 or not len(levels) or not np.all(np.isfinite(levels) & (levels > 0)):
        raise ValueError(f"{name}: expected positive numbers, the target last, got {values!r}.")
    if np.any(np.diff(levels) <= 0):
        raise ValueError(f"{name}: expected increasing levels, the target last, got {values!r}.")
    return levels


def _prices(sizes: np.ndarray, steps: np.ndarray, price: Any) -> np.ndarray:
    """Price of each fidelity, [sizes, steps]."""
    table: Any
    if price is None:
        table = sizes[:, None] * steps / (sizes[-1] * steps[-1])
    elif callable(price):
        table = np.asarray([[price(m, z) for z in steps] for m in sizes])
    else:
        table = np.asarray(price, float)
    if table.shape != (len(sizes), len(steps)) or not np.all(np.isfinite(table) & (table > 0)):
        raise ValueError(
            f"price: expected positive prices [{len(sizes)} sizes, {len(steps)} steps] or a "
            f"function (size, steps) -> price, got {table!r}."
        )
    return table


def surface(
    num_sources: int,
    sizes: Sequence[float] | np.ndarray,
    steps: Sequence[float] | np.ndarray | None = None,
    *,
    price: Any = None,
    centre: float = 0.0,
    spread: float = 1.0,
    ard: bool = True,
    noise_by_mixture: bool = False,
) -> Callable:
    r"""Loss as a Gaussian process over mixtures, model sizes and training steps.

    With :math:`\phi_m = e^{-a s} - 1` and :math:`\phi_z = e^{-b t} - 1`, zero at the target,

    .. math::
        f \sim GP(E + A \phi_m + B \phi_z, \;
            (\psi^T \Sigma \psi' + \tau^2 k(s, s') k(t, t')) \; k(\sqrt{w}, \sqrt{w'})), \qquad
        \psi = (1, \phi_m / c_m, \phi_z / c_z, \phi_m \phi_z / c_m c_z),

    where k are Matern 5/2 kernels, for mixtures on the square roots of the weights (Hellinger
    geometry: exact zeros are allowed), and :math:`\Sigma = D R D` has a free correlation R. At the
    target only the first feature is left, so what all scales share is the first component, and
    its correlation with what small runs add can be anything between -1 and 1. No law of scaling
    holds exactly, and four features would extrapolate as if it did: the second term, of standard
    deviation :math:`\tau`, lets mixtures change places in ways that the features do not know, the
    more the farther apart two scales are. Without it runs far below the target make a search sure
    of what they cannot tell. Noise has a scale per fidelity, :math:`\log \sigma = n_0 + n_1 s +
    n_2 t`.

    Action sites: `mixture` [num_sources], on the simplex; `size` and, if `steps` are given,
    `steps`, indices of levels. Outcome site `loss`; cost site `price`; reward site `value`, minus
    the loss at the target.

    Args:
        num_sources: number of data sources.
        sizes: model sizes on offer, increasing, the target last.
        steps: training steps on offer, increasing, the target last; None if every size has one
            length of training.
        price: price of a run, an array [sizes, steps] or a function `(size, steps) -> price`;
            default proportional to size times steps, one at the target.
        centre: typical loss at the target.
        spread: standard deviation of losses at the target over mixtures. Both set the scale of
            the priors only.
        ard: one length scale per source, or one for all.
        noise_by_mixture: let the logarithm of the noise's scale be linear in the square roots of
            the weights too: losses of extreme mixtures may repeat less well than others.

    Returns:
        A one-round model without arguments.

    Raises:
        ValueError: levels or prices that are not positive and increasing.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import data_mixture
        >>> model = data_mixture.surface(3, [20, 1000], price=[[1.0], [50.0]])
        >>> trace = dp.play(model, 0, policy={"mixture": [0.2, 0.3, 0.5], "size": 0})()
        >>> float(trace["price"]["value"]), trace["value"]["value"].shape
        (1.0, ())

    References:
        arXiv 2503.21023 (the problem); Hoffmann et al., arXiv 2203.15556, equation 2 (the mean).
    """
    if not isinstance(num_sources, int | np.integer) or num_sources < 2:
        raise ValueError(f"num_sources: expected an int of at least 2, got {num_sources!r}.")
    if not spread > 0:
        raise ValueError(f"spread: expected a positive number, got {spread!r}.")
    size_levels, step_levels = _levels("sizes", sizes), _levels("steps", steps)
    with_steps = steps is not None
    prices = _prices(size_levels, step_levels, price)
    log_size, log_steps = (
        np.log(size_levels / size_levels[-1]),
        np.log(step_levels / step_levels[-1]),
    )
    single = len(size_levels) == 1  # one fidelity: there is nothing to learn about others
    short = with_steps and len(step_levels) > 1
    width = (1 if single else 2) * (2 if short else 1)

    def covariance() -> tuple[Any, Any]:
        """Kernel over log size and log steps, and the mean."""
        floor = numpyro.sample("floor", dist.Normal(centre, 5 * spread))
        reach, given, exponents = [], {}, []
        if not single:
            a = numpyro.sample("size_exponent", dist.LogNormal(jnp.log(0.3), 0.4))
            given["size"] = numpyro.sample("size_effect", dist.HalfNormal(10 * spread))
            exponents.append(a)
            reach.append(log_size[0])
        if short:
            b = numpyro.sample("step_exponent", dist.LogNormal(jnp.log(0.3), 0.4))
            given["steps"] = numpyro.sample("step_effect", dist.HalfNormal(10 * spread))
            exponents.append(b)
            reach.append(log_steps[0])
        sd = numpyro.sample("sd", dist.HalfNormal(spread).expand([width]).to_event(1))
        if width == 1:
            return sd[0] ** 2, means.Constant(floor)
        root = numpyro.sample("correlation", dist.LKJCholesky(width, 2.0))
        # effects are losses added at the cheapest fidelity, whatever the exponents
        effects = [
            e / jnp.expm1(-x * r) for e, x, r in zip(given.values(), exponents, reach, strict=True)
        ]
        positions = (1, 2)[: len(exponents)] if not single else (2,)
        if len(exponents) == 2:
            mean = means.ScalingLaw(floor, effects[0], exponents[0], effects[1], exponents[1])
        else:
            mean = means.ScalingLaw(floor, effects[0], exponents[0], positions=positions)
        psi = kernels.ScalingFeatures(*exponents, reach=tuple(reach))
        scales = kernels.Coregionalised(sd[:, None] * root, psi)
        # what the features miss; lengths are in units of the logarithms of size and steps
        drift = numpyro.sample("drift", dist.HalfNormal(spread))
        reaches = dist.LogNormal(jnp.log(2.0), 0.5).expand([len(positions)]).to_event(1)
        lengths = numpyro.sample("drift_lengthscale", reaches)
        near = [kernels.On(kernels.Matern52(lengths[i]), p) for i, p in enumerate(positions)]
        fidelities = near[0] if len(near) == 1 else near[0] * near[1]
        return kernels.On(scales, *positions) + drift**2 * fidelities, mean

    def model() -> None:
        count = num_sources if ard else 1
        scale = numpyro.sample(
            "lengthscale",
            dist.LogNormal(jnp.log(0.5) + 0.5 * jnp.log(num_sources), 1.0)
            .expand([count])
            .to_event(1),
        )
        fidelity, mean = covariance()
        mixtures = kernels.Hellinger(kernels.Matern52(scale if ard else scale[0]))
        f: Any = numpyro.sample("f", dp.GaussianProcess(kernels.On(mixtures, 0) * fidelity, mean))
        level = numpyro.sample("noise", dist.Normal(jnp.log(0.1 * spread), 1.0))
        w = dp.action("mixture", dist.Dirichlet(jnp.ones(num_sources)))
        i = dp.action("size", len(size_levels))
        j = dp.action("steps", len(step_levels)) if with_steps else 0
        s, t = jnp.asarray(log_size)[i], jnp.asarray(log_steps)[j]
        if not single:
            level = level + numpyro.sample("noise_size", dist.Normal(0.0, 0.5)) * s
        if short:
            level = level + numpyro.sample("noise_steps", dist.Normal(0.0, 0.5)) * t
        if noise_by_mixture:
            tilt = dist.Normal(0.0, 1.0).expand([num_sources]).to_event(1)
            level = level + jnp.sqrt(w) @ numpyro.sample("noise_mixture", tilt)
        dp.cost("price", jnp.asarray(prices)[i, j])
        dp.outcome("loss", dist.Normal(f(w, s, t), jnp.exp(level)))
        dp.reward("value", -f(w, 0.0, 0.0))

    return model


def published(
    num_sources: int = 5,
    sizes: Sequence[float] | np.ndarray = SIZES,
    steps: Sequence[float] | np.ndarray = (60, 120, 197),
    *,
    price: Any = None,
    noise: float = 0.1,
) -> Callable:
    r"""The model of arXiv 2503.21023: a product of three isotropic RBF kernels, a linear mean.

    :math:`f \sim GP(a \cdot (w, m, z) + b, \; k(w, w') k(m, m') k(z, z'))` with variance one, the
    variance of the noise fixed, m the size divided by ten times the largest and z the steps
    divided by the most. The paper fits by marginal likelihood, without priors; here length
    scales, slopes and offset have wide ones (a factor of ten, and standard deviations of ten).

    Sites are those of `surface`.

    Args:
        num_sources, sizes, steps, price: as for `surface`.
        noise: variance of the noise.

    Returns:
        A one-round model without arguments.

    Raises:
        ValueError: levels or prices that are not positive and increasing.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import data_mixture
        >>> trace = dp.play(data_mixture.published(), 0)()
        >>> trace["mixture"]["value"].shape
        (5,)

    References:
        arXiv 2503.21023, appendix C.
    """
    size_levels, step_levels = _levels("sizes", sizes), _levels("steps", steps)
    prices = _prices(size_levels, step_levels, price)
    m_levels, z_levels = size_levels / (10 * size_levels[-1]), step_levels / step_levels[-1]

    def model() -> None:
        wide = dist.LogNormal(0.0, jnp.log(10.0))
        scales = [numpyro.sample(f"{n}_lengthscale", wide) for n in ("mixture", "size", "steps")]
        slope = numpyro.sample(
            "slope", dist.Normal(0.0, 10.0).expand([num_sources + 2]).to_event(1)
        )
        offset = numpyro.sample("offset", dist.Normal(0.0, 10.0))
        kernel = kernels.On(kernels.RBF(scales[0]), 0)
        kernel = kernel * kernels.On(kernels.RBF(scales[1]), 1)
        kernel = kernel * kernels.On(kernels.RBF(scales[2]), 2)
        f: Any = numpyro.sample("f", dp.GaussianProcess(kernel, means.Linear(slope, offset)))
        w = dp.action("mixture", dist.Dirichlet(jnp.ones(num_sources)))
        i, j = dp.action("size", len(size_levels)), dp.action("steps", len(step_levels))
        m, z = jnp.asarray(m_levels), jnp.asarray(z_levels)
        dp.cost("price", jnp.asarray(prices)[i, j])
        dp.outcome("loss", dist.Normal(f(w, m[i], z[j]), jnp.sqrt(noise)))
        dp.reward("value", -f(w, m[-1], z[-1]))

    return model
