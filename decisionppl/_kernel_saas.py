"""Length scales of which most are long: sparse axis-aligned subspaces."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def saas_lengthscales(name: str, size: int, *, strength: float = 0.1) -> jax.Array:
    r"""Length scales under the SAAS prior: most inputs do not matter until data say so.

    .. math::
        \tau \sim \text{HalfCauchy}(\alpha), \quad \rho_i \sim \text{HalfCauchy}(1), \quad
        \ell_i = (\tau \rho_i)^{-1/2}.

    To be called inside a model, for a kernel of many inputs; with
    `inference.gaussian_process(model, fit="nuts")`, since the mode of such a prior says little.

    Args:
        name: of the two sample sites, `name_shrinkage` for :math:`\tau` and `name_relevance` for
            :math:`\rho`.
        size: number of inputs.
        strength: :math:`\alpha`; the smaller, the fewer inputs matter.

    Returns:
        [size].

    Raises:
        ValueError: a size below one, or a strength that is not positive.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> import decisionppl as dp
        >>> def model():
        ...     scale = dp.kernels.saas_lengthscales("scale", 30)
        ...     f = numpyro.sample("f", dp.GaussianProcess(dp.kernels.Matern52(scale)))
        ...     x = dp.action("x", dist.Uniform(0, 1).expand([30]).to_event(1))
        ...     dp.reward("y", dist.Normal(f(x), 0.1))
        >>> dp.play(model, 0)()["scale_relevance"]["value"].shape
        (30,)

    References:
        Eriksson and Jankowiak, High-Dimensional Bayesian Optimization with Sparse Axis-Aligned
        Subspaces, arXiv 2103.00349, section 4.1.
    """
    if size < 1:
        raise ValueError(f"saas_lengthscales {name!r}: size: expected at least 1, got {size!r}.")
    if not strength > 0:
        raise ValueError(
            f"saas_lengthscales {name!r}: strength: expected a positive number, got {strength!r}."
        )
    tau = numpyro.sample(f"{name}_shrinkage", dist.HalfCauchy(strength))
    relevance = dist.HalfCauchy(1.0).expand([size]).to_event(1)
    rho = numpyro.sample(f"{name}_relevance", relevance)
    # squared inverse length scales of both sides of the Cauchy law's range stay finite in float32
    return jax.lax.rsqrt(jnp.clip(tau * rho, 1e-12, 1e12))
