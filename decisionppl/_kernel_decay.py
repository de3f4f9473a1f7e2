"""Kernels of learning curves, which are mixtures of decaying exponentials.

Private; see `decisionppl.kernels`.
"""

import jax
import jax.numpy as jnp

from decisionppl._acquisition import safe_sqrt
from decisionppl._kernel_base import Kernel
from decisionppl._kernel_features import Block, Layout
from decisionppl._kernel_pytree import (
    Array,
    Inputs,
    Parameter,
    assign,
    check_values,
    check_whole,
    non_negative,
    positive,
    pytree,
    scalars,
)


@pytree
class ExponentialDecay(Kernel):
    r"""Exponential decay: :math:`k = w + \beta^\alpha / (x + x' + \beta)^\alpha`, x >= 0.

    A mixture of the curves :math:`e^{-\lambda x}` with :math:`\lambda \sim
    \mathrm{Gamma}(\alpha, \beta)`, which are its random features. It sees one scalar argument.

    Args:
        beta: :math:`\beta`, positive: where the decay sets in.
        alpha: :math:`\alpha`, positive: how fast it is.
        offset: w, not negative: variance that does not decay.

    Raises:
        ValueError: parameters out of range; at the call, negative inputs whose values are known.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> x = (jnp.array([[0.0], [1.0]]),)
        >>> kernels.ExponentialDecay(beta=1.0, alpha=1.0)(x, x).round(3).tolist()
        [[1.0, 0.5], [0.5, 0.3330000042915344]]

    References:
        Swersky, Snoek and Adams, Freeze-Thaw Bayesian Optimization, arXiv 1406.3896, section 3.
    """

    beta: Parameter = 1.0
    alpha: Parameter = 1.0
    offset: Parameter = 0.0

    def __post_init__(self) -> None:
        beta = positive("ExponentialDecay beta", self.beta)
        alpha = positive("ExponentialDecay alpha", self.alpha)
        offset = non_negative("ExponentialDecay offset", self.offset)
        assign(self, beta=beta, alpha=alpha, offset=offset)

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return self.offset + _decay(_steps(x)[:, None] + _steps(z), self.beta, self.alpha)

    def _diagonal(self, x: Inputs) -> Array:
        return self.offset + _decay(2 * _steps(x), self.beta, self.alpha)

    def _draw(self, key: Array, layout: Layout) -> Array:
        return _rates(key, layout, self.alpha)

    def _atoms(self, draws: Array, x: Inputs) -> tuple[Block, ...]:
        curves = _curves(_steps(x), draws, self.beta)
        constant = safe_sqrt(jnp.full((len(curves), 1, 1), self.offset, curves.dtype))
        return (Block(curves[:, :, None]), Block(constant))


def _steps(x: Inputs) -> Array:
    (steps,) = scalars("ExponentialDecay", x, "the steps")
    _check_steps("ExponentialDecay", steps)
    return steps


def _check_steps(owner: str, steps: Array) -> None:
    check_values(f"{owner} steps", steps, lambda v: v >= 0, "numbers that are not negative")


def _decay(total: Array, beta: Parameter, alpha: Parameter) -> Array:
    return jnp.exp(-alpha * jnp.log1p(total / beta))


def _rates(key: Array, layout: Layout, alpha: Parameter) -> Array:
    """Decay rates of the atoms, in units of 1 / beta."""
    return jax.random.gamma(key, alpha, (layout.num_features,), layout.dtype)


def _curves(steps: Array, rates: Array, beta: Parameter) -> Array:
    return jnp.exp(-jnp.outer(steps, rates) / beta)


@pytree
class FreezeThaw(Kernel):
    r"""What the points of one run share: :math:`1[r = r'] \beta^\alpha / (z + z' + \beta)^\alpha`.

    It sees two scalar arguments: the label r of the run, a whole number, and the steps z >= 0.
    Different runs are independent; their random features have independent signs.

    Args:
        beta: :math:`\beta`, positive.
        alpha: :math:`\alpha`, positive.

    Raises:
        ValueError: parameters out of range; at the call, labels that are not whole or negative
            steps, whose values are known.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> x = (jnp.array([[0], [0], [1]]), jnp.array([[0.0], [1.0], [1.0]]))
        >>> kernels.FreezeThaw(beta=1.0, alpha=1.0)(x, x)[0].tolist()
        [1.0, 0.5, 0.0]

    References:
        Swersky, Snoek and Adams, Freeze-Thaw Bayesian Optimization, arXiv 1406.3896, section 3.
    """

    beta: Parameter
    alpha: Parameter

    def __post_init__(self) -> None:
        beta = positive("FreezeThaw beta", self.beta)
        assign(self, beta=beta, alpha=positive("FreezeThaw alpha", self.alpha))

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        (runs, steps), (other_runs, other_steps) = self._seen(x), self._seen(z)
        covariance = _decay(steps[:, None] + other_steps, self.beta, self.alpha)
        return jnp.where(runs[:, None] == other_runs, covariance, 0.0)

    def _diagonal(self, x: Inputs) -> Array:
        return _decay(2 * self._seen(x)[1], self.beta, self.alpha)

    def _seen(self, x: Inputs) -> tuple[Array, Array]:
        _, steps = scalars("FreezeThaw", x, "the run label", "the steps")
        _check_steps("FreezeThaw", steps)
        labels = x[0][:, 0]
        check_whole("FreezeThaw run label", labels)
        return labels.astype(int), steps

    def _draw(self, key: Array, layout: Layout) -> tuple[Array, Array]:
        sign_key, rate_key = jax.random.split(key)
        return sign_key, _rates(rate_key, layout, self.alpha)

    def _atoms(self, draws: tuple[Array, Array], x: Inputs) -> tuple[Block, ...]:
        sign_key, rates = draws
        runs, steps = self._seen(x)
        curves = _curves(steps, rates, self.beta)

        def signs(run: Array) -> Array:
            return jax.random.rademacher(jax.random.fold_in(sign_key, run), rates.shape)

        return (Block((jax.vmap(signs)(runs) * curves)[:, :, None]),)
