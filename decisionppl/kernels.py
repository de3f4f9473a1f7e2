r"""Kernels: covariance functions of an unknown function, as builders of Gram matrices.

The function f is called with one or several arguments, scalars or vectors. A batch of n points
is a tuple with one array [n, width] per argument, scalars as [n, 1]. A kernel k has

- ``k(x, z)``: the covariances [n, m] of two batches;
- ``k.diagonal(x)``: the variances [n];
- ``k.features(key, num_features)``: random features `Features`, to draw whole functions from
  the prior.

Kernels add and multiply, with each other and with numbers that are not negative. They are
immutable pytrees: hyperparameters are leaves, so they pass through `jax.jit`, `jax.vmap`,
`jax.grad` and loops; arguments' positions and the like are structure. Concrete hyperparameters
out of range are errors where a kernel is made; traced ones are not looked at.

- On all of space: `RBF`, `Matern12`, `Matern32`, `Matern52`, `Linear`, `Constant`.
- On the simplex: `Hellinger`, `TotalVariation`, `JensenShannon`.
- Over fidelities: `LinearTruncated`, `Downsampling`, `ExponentialDecay`, `FreezeThaw`,
  `KennedyOHagan`, `Coregionalised` with `ScalingFeatures`.
- Of kernels: `On` (some arguments only), `Sum`, `Product`, `Scale`.
- `saas_lengthscales`: a prior of length scales under which most inputs do not matter.

Example:
    A surface over mixtures w and log model scales s, whose value at the target scale s = 0 may
    be correlated with the others in either direction:

    >>> import jax, jax.numpy as jnp
    >>> from decisionppl import kernels
    >>> mixtures = kernels.Hellinger(kernels.Matern52(0.5))
    >>> psi = kernels.ScalingFeatures(a=0.3, reach=(-4.0,))
    >>> scales = kernels.Coregionalised(jnp.array([[1.0, 0.0], [-0.8, 0.6]]), psi)
    >>> k = kernels.On(mixtures, 0) * kernels.On(scales, 1)
    >>> x = (jnp.array([[0.5, 0.5], [0.0, 1.0]]), jnp.array([[0.0], [-4.0]]))
    >>> k.diagonal(x).round(3).tolist()
    [1.0, 0.4000000059604645]
    >>> phi = k.features(jax.random.key(0), 100)
    >>> weights = jax.random.normal(jax.random.key(1), phi(x).shape[1:])
    >>> (phi(x) @ weights).shape  # one function of the prior, at both points
    (2,)
"""

from decisionppl._kernel_base import Constant, Kernel, Product, Scale, Sum
from decisionppl._kernel_decay import ExponentialDecay, FreezeThaw
from decisionppl._kernel_features import Features
from decisionppl._kernel_fidelity import Downsampling, LinearTruncated
from decisionppl._kernel_levels import Coregionalised, KennedyOHagan, ScalingFeatures
from decisionppl._kernel_pytree import Inputs
from decisionppl._kernel_saas import saas_lengthscales
from decisionppl._kernel_simplex import Hellinger, JensenShannon, TotalVariation
from decisionppl._kernel_stationary import RBF, Linear, Matern12, Matern32, Matern52, On

__all__ = [
    "RBF",
    "Constant",
    "Coregionalised",
    "Downsampling",
    "ExponentialDecay",
    "Features",
    "FreezeThaw",
    "Hellinger",
    "Inputs",
    "JensenShannon",
    "KennedyOHagan",
    "Kernel",
    "Linear",
    "LinearTruncated",
    "Matern12",
    "Matern32",
    "Matern52",
    "On",
    "Product",
    "Scale",
    "ScalingFeatures",
    "Sum",
    "TotalVariation",
    "saas_lengthscales",
]
