"""Kernels that learn how fidelities correlate with the target, in either direction.

Private; see `decisionppl.kernels`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from decisionppl._kernel_base import Kernel
from decisionppl._kernel_features import Block, Layout, draw_each
from decisionppl._kernel_pytree import (
    Array,
    Inputs,
    Parameter,
    assign,
    check_inputs,
    check_values,
    check_whole,
    float_type,
    positive,
    pytree,
    real,
    scalars,
)


@pytree
class KennedyOHagan(Kernel):
    r"""Autoregression over fidelity levels: :math:`f_s = \rho_s f_{s-1} + \delta_s`.

    With independent :math:`\delta_k`, of kernel :math:`k_k`,

    .. math::
        k((s, x), (s', x')) = \sum_{k \le \min(s, s')}
            \Big(\prod_{k < j \le s} \rho_j\Big) \Big(\prod_{k < j \le s'} \rho_j\Big) k_k(x, x').

    The first argument it sees is the level, a whole number from 0, the cheapest, to the target;
    the others are the inputs x. The signs of the :math:`\rho_j` are free, so a cheap level may
    mislead.

    Args:
        rho: :math:`(\rho_1, \dots)`, one for each level but the cheapest.
        kernels: one kernel on x per level, cheapest first.

    Raises:
        TypeError, ValueError: malformed arguments; at the call, unknown levels whose values are
            known. Unknown traced levels give NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> k = kernels.KennedyOHagan([-2.0], [kernels.RBF(1.0), kernels.RBF(0.5)])
        >>> x = (jnp.array([[0], [1]]), jnp.zeros((2, 1)))
        >>> k(x, x).tolist()
        [[1.0, -2.0], [-2.0, 5.0]]

    References:
        Kennedy and O'Hagan, Predicting the output from a complex computer code when fast
        approximations are available, 2000.
    """

    rho: Parameter
    kernels: tuple[Kernel, ...]

    def __init__(self, rho: Parameter, kernels: Sequence[Kernel]) -> None:
        kernels = tuple(kernels)
        if not all(isinstance(k, Kernel) for k in kernels):
            raise TypeError(f"KennedyOHagan: expected one kernel per level, got {kernels!r}.")
        rho = real("KennedyOHagan rho", rho)
        if jnp.ndim(rho) == 0 or jnp.shape(rho)[-1] != len(kernels) - 1:
            raise ValueError(
                f"KennedyOHagan: rho has shape {jnp.shape(rho)}, expected "
                f"({len(kernels) - 1},) for {len(kernels)} level(s)."
            )
        assign(self, rho=rho, kernels=kernels)

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        left, right = self._weights(x), self._weights(z)
        terms = [
            jnp.outer(left[:, i], right[:, i]) * k(x[1:], z[1:]) for i, k in enumerate(self.kernels)
        ]
        return sum(terms[1:], terms[0])

    def _diagonal(self, x: Inputs) -> Array:
        variances = jnp.stack([k.diagonal(x[1:]) for k in self.kernels], axis=1)
        return jnp.sum(self._weights(x) ** 2 * variances, axis=1)

    def _weights(self, x: Inputs) -> Array:
        """How much of every delta is in the function at the level of each point, [n, levels]."""
        if len(x) < 2 or x[0].shape[1] != 1:
            raise ValueError(
                "KennedyOHagan: the first argument is the level, [n, 1], and one or more inputs "
                f"follow; got shapes {[a.shape for a in x]}."
            )
        levels, count = x[0][:, 0], len(self.kernels)
        check_whole("KennedyOHagan level", levels, below=count)
        rho = jnp.asarray(self.rho).astype(float_type(*x[1:]))
        rows = [jnp.eye(count, dtype=rho.dtype)[0]]
        for level in range(1, count):
            rows.append((rho[level - 1] * rows[-1]).at[level].set(1.0))
        return (
            jnp.stack(rows)
            .at[levels.astype(int)]
            .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        )

    def _draw(self, key: Array, layout: Layout) -> Any:
        return draw_each(self.kernels, key, layout._replace(widths=layout.widths[1:]))

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        weights = self._weights(x)
        return tuple(
            block.scaled(weights[:, i])
            for i, (kernel, drawn) in enumerate(zip(self.kernels, draws, strict=True))
            for block in kernel._atoms(drawn, x[1:])
        )


@pytree
class Coregionalised(Kernel):
    r"""Finitely many functions with correlated weights: :math:`k = \psi(x) R R^\top \psi(z)^\top`.

    Times a kernel on the design it is a coregionalised surface, whose correlations between
    fidelities may have either sign.

    Args:
        root: R, [r, q]; :math:`R R^\top` is the covariance of the weights.
        features: :math:`\psi`, a callable of the inputs with values [n, r]. A pytree keeps its
            parameters as leaves; a plain function is structure.

    Raises:
        TypeError: features that cannot be called.
        ValueError: a root that is no matrix; at the call, features of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> root = jnp.array([[1.0, 0.0], [-0.8, 0.6]])
        >>> psi = kernels.ScalingFeatures(a=0.3, reach=(-4.0,))
        >>> s = (jnp.array([[0.0], [-4.0]]),)
        >>> [round(float(c), 2) for c in kernels.Coregionalised(root, psi)(s, s)[1]]
        [0.2, 0.4]

    References:
        Alvarez, Rosasco and Lawrence, Kernels for Vector-Valued Functions: a Review, arXiv
        1106.6251, section 4.2.
    """

    root: Parameter
    features_of: Any

    def __init__(self, root: Parameter, features: Callable[[Inputs], Array]) -> None:
        root = real("Coregionalised root", root)
        if jnp.ndim(root) < 2:
            raise ValueError(
                f"Coregionalised: root is a matrix [features, factors], got shape "
                f"{jnp.shape(root)}."
            )
        if not callable(features):
            raise TypeError(f"Coregionalised: features are a callable, got {features!r}.")
        if jax.tree_util.all_leaves([features]):
            features = jax.tree_util.Partial(features)
        assign(self, root=root, features_of=features)

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return self._columns(x) @ self._columns(z).T

    def _diagonal(self, x: Inputs) -> Array:
        return jnp.sum(self._columns(x) ** 2, axis=1)

    def _columns(self, x: Inputs) -> Array:
        psi, rows = self.features_of(x), jnp.shape(self.root)[0]
        if psi.shape != (len(x[0]), rows):
            raise ValueError(
                f"Coregionalised: features of {len(x[0])} points have shape {psi.shape}, expected "
                f"{(len(x[0]), rows)} for a root of shape {jnp.shape(self.root)}."
            )
        return psi @ jnp.asarray(self.root)

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        return (Block(self._columns(x)[:, None, :]),)


@pytree
class ScalingFeatures:
    r"""Fidelity features with the shape of a scaling law, for `Coregionalised`.

    With :math:`s = \log(m/m_*)` and :math:`t = \log(z/z_*)`, zero at the target and negative
    below it, and :math:`\phi_m = e^{-a s} - 1`, :math:`\phi_z = e^{-b t} - 1`, they are

    .. math::
        \psi = (1, \phi_m / c_m, \phi_z / c_z, \phi_m \phi_z / c_m c_z),

    scaled to one at the cheapest fidelity. At the target only the first is not zero, so there a
    `Coregionalised` kernel is the first entry of its covariance.

    Args:
        a: exponent of the scale m, positive.
        b: exponent of the steps z, positive; None for the scale alone, :math:`(1, \phi_m/c_m)`.
        reach: s, or (s, t), of the cheapest fidelity, negative.

    Raises:
        ValueError: parameters out of range, or not one reach per exponent.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> psi = kernels.ScalingFeatures(a=0.5, b=0.3, reach=(-2.0, -3.0))
        >>> psi((jnp.array([[-2.0]]), jnp.array([[-3.0]]))).round(4).tolist()
        [[1.0, 1.0, 1.0, 1.0]]

    References:
        Hoffmann et al., Training Compute-Optimal Large Language Models, arXiv 2203.15556, eq. 2.
    """

    a: Parameter
    b: Parameter | None = None
    reach: Any = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        a = positive("ScalingFeatures a", self.a)
        b = None if self.b is None else positive("ScalingFeatures b", self.b)
        reach = real("ScalingFeatures reach", self.reach)
        check_values("ScalingFeatures reach", reach, lambda v: v < 0, "negative log fidelities")
        fidelities = 1 if b is None else 2
        if jnp.ndim(reach) == 0 or jnp.shape(reach)[-1] != fidelities:
            raise ValueError(
                f"ScalingFeatures: reach has shape {jnp.shape(reach)}, expected ({fidelities},): "
                "one log fidelity per exponent."
            )
        assign(self, a=a, b=b, reach=reach)

    def __call__(self, x: Inputs) -> Array:
        """Features of log fidelities.

        Args:
            x: s, or s and t, [n, 1] each.

        Returns:
            psi, [n, 2] or [n, 4].
        """
        exponents = (self.a,) if self.b is None else (self.a, self.b)
        names = ("the log scale", "the log steps")[: len(exponents)]
        logs = scalars("ScalingFeatures", check_inputs("ScalingFeatures", x), *names)
        columns = [jnp.ones_like(logs[0])]
        for i, (exponent, log) in enumerate(zip(exponents, logs, strict=True)):
            limit = self.reach[i].astype(log.dtype)
            ratio = jnp.expm1(-exponent * log) / jnp.expm1(-exponent * limit)
            columns += [column * ratio for column in columns]
        return jnp.stack(columns, axis=1)
