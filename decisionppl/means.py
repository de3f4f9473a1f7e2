r"""Prior means of an unknown function.

A mean m maps a batch of points, a tuple with one array [n, width] per argument of f (scalars as
[n, 1]), to its values [n]. Means are immutable pytrees, as `decisionppl.kernels` are, and add,
with each other and with numbers.

Example:
    >>> import jax.numpy as jnp
    >>> from decisionppl import means
    >>> m = means.Linear([2.0]) + 1.0
    >>> m((jnp.array([[0.0], [3.0]]),)).tolist()
    [1.0, 7.0]
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._kernel_pytree import (
    Array,
    Inputs,
    Parameter,
    assign,
    check_inputs,
    check_positions,
    float_type,
    is_scalar,
    join,
    known,
    positive,
    pytree,
    real,
    scalars,
    select,
    static,
)

__all__ = ["ChanceFloored", "Constant", "Inputs", "Linear", "Mean", "ScalingLaw", "Sum", "Zero"]


class Mean(abc.ABC):
    """A prior mean. One of your own is a pytree subclass that defines ``_values(x) -> [n]``."""

    # a NumPy number on the left leaves the sum to the mean
    __array_ufunc__ = None

    def __call__(self, x: Inputs) -> Array:
        """Values at points.

        Args:
            x: one array [n, width] per argument of f.

        Returns:
            Values, [n].

        Raises:
            TypeError: inputs that are not a tuple of arrays.
            ValueError: shapes that do not fit each other or the mean.
        """
        return self._values(check_inputs(type(self).__name__, x))

    @abc.abstractmethod
    def _values(self, x: Inputs) -> Array:
        """Values [n] at checked inputs."""

    def __add__(self, other: Any) -> "Mean":
        if isinstance(other, Mean):
            return Sum(self, other)
        return Sum(self, Constant(other)) if is_scalar(other) else NotImplemented

    def __radd__(self, other: Any) -> "Mean":
        return Sum(Constant(other), self) if is_scalar(other) else NotImplemented


@pytree
class Sum(Mean):
    """``left + right``."""

    left: Mean
    right: Mean

    def _values(self, x: Inputs) -> Array:
        return self.left(x) + self.right(x)


@pytree
class Zero(Mean):
    """Zero everywhere.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import means
        >>> means.Zero()((jnp.ones((2, 3)),)).tolist()
        [0.0, 0.0]
    """

    def _values(self, x: Inputs) -> Array:
        return jnp.zeros(len(x[0]), float_type(*x))


@pytree
class Constant(Mean):
    """The same value everywhere.

    Args:
        value: a number.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import means
        >>> means.Constant(3.0)((jnp.ones((2, 3)),)).tolist()
        [3.0, 3.0]
    """

    value: Parameter

    def __post_init__(self) -> None:
        assign(self, value=real("Constant value", self.value))

    def _values(self, x: Inputs) -> Array:
        return jnp.full(len(x[0]), self.value, jnp.result_type(float_type(*x), self.value))


@pytree
class Linear(Mean):
    r"""Linear in all arguments, side by side: :math:`m = x^\top w + b`.

    Args:
        weights: w, one per column.
        offset: b.

    Raises:
        ValueError: at the call, weights of another shape than (columns,).

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import means
        >>> x = (jnp.array([[1.0, 2.0]]), jnp.array([[3.0]]))
        >>> means.Linear([1.0, 0.0, -1.0], offset=5.0)(x).tolist()
        [3.0]
    """

    weights: Parameter
    offset: Parameter = 0.0

    def __post_init__(self) -> None:
        weights = real("Linear weights", self.weights)
        assign(self, weights=weights, offset=real("Linear offset", self.offset))

    def _values(self, x: Inputs) -> Array:
        points = join(x)
        if jnp.shape(self.weights) != points.shape[1:]:
            raise ValueError(
                f"Linear: weights have shape {jnp.shape(self.weights)}, expected "
                f"{points.shape[1:]}: one per column of all arguments."
            )
        return points @ jnp.asarray(self.weights) + self.offset


@pytree
class ScalingLaw(Mean):
    r"""Scaling law of a loss, written from the target: :math:`m = E + A \phi_m + B \phi_z`.

    :math:`\phi_m = e^{-a s} - 1` with :math:`s = \log(m/m_*)` the log model scale relative to
    the target, and :math:`\phi_z = e^{-b t} - 1` with :math:`t = \log(z/z_*)` the log steps.
    Both vanish at the target, where the mean is E. It is the law :math:`E_0 + A_0 m^{-a} +
    B_0 z^{-b}` with :math:`A = A_0 m_*^{-a}`, :math:`B = B_0 z_*^{-b}` and
    :math:`E = E_0 + A + B`.

    Args:
        floor: E, the value at the target.
        size: A.
        exponent_size: a, positive.
        steps: B; None, together with `exponent_steps`, for a law in the scale alone.
        exponent_steps: b, positive.
        positions: which arguments of f hold s and t, counted from 0: (1, 2) by default, for
            f(w, s, t), and (1,) without steps. Other arguments are not looked at.

    Raises:
        TypeError, ValueError: parameters out of range, or positions that do not fit them.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import means
        >>> law = means.ScalingLaw(floor=2.0, size=0.5, exponent_size=1.0)
        >>> x = (jnp.ones((2, 3)), jnp.log(jnp.array([[1.0], [0.25]])))
        >>> law(x).round(4).tolist()
        [2.0, 3.5]

    References:
        Hoffmann et al., Training Compute-Optimal Large Language Models, arXiv 2203.15556, eq. 2.
    """

    floor: Parameter
    size: Parameter
    exponent_size: Parameter
    steps: Parameter = None
    exponent_steps: Parameter = None
    positions: tuple[int, ...] = static(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if (self.steps is None) != (self.exponent_steps is None):
            raise ValueError("ScalingLaw: give both of steps and exponent_steps, or neither.")
        assign(
            self,
            floor=real("ScalingLaw floor", self.floor),
            size=real("ScalingLaw size", self.size),
            exponent_size=positive("ScalingLaw exponent_size", self.exponent_size),
        )
        expected = (1,)
        if self.steps is not None and self.exponent_steps is not None:
            exponent = positive("ScalingLaw exponent_steps", self.exponent_steps)
            assign(self, steps=real("ScalingLaw steps", self.steps), exponent_steps=exponent)
            expected = (1, 2)
        positions = tuple(self.positions) or expected
        if len(positions) != len(expected):
            raise ValueError(
                f"ScalingLaw: expected {len(expected)} position(s), of the log scale and, with "
                f"steps, of the log steps, got {positions!r}."
            )
        assign(self, positions=check_positions("ScalingLaw", positions))

    def _values(self, x: Inputs) -> Array:
        names = ("the log scale", "the log steps")[: len(self.positions)]
        logs = scalars("ScalingLaw", select("ScalingLaw", x, self.positions), *names)
        value = self.floor + self.size * jnp.expm1(-self.exponent_size * logs[0])
        if self.exponent_steps is None:
            return value
        return value + self.steps * jnp.expm1(-self.exponent_steps * logs[1])


@pytree
class ChanceFloored(Mean):
    r"""An accuracy above chance: floor + (ceiling - floor) sigmoid(mean).

    Args:
        mean: mean on the logit scale.
        floor: accuracy of guessing, in [0, ceiling).
        ceiling: largest accuracy, up to one.

    Raises:
        TypeError: `mean` is not a mean.
        ValueError: bounds that are not 0 <= floor < ceiling <= 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import means
        >>> means.ChanceFloored(means.Zero(), floor=0.25)((jnp.ones((1, 1)),)).tolist()
        [0.625]
    """

    mean: Mean
    floor: Parameter
    ceiling: Parameter = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.mean, Mean):
            raise TypeError(f"ChanceFloored: expected a mean first, got {self.mean!r}.")
        floor = real("ChanceFloored floor", self.floor)
        ceiling = real("ChanceFloored ceiling", self.ceiling)
        _check_bounds(floor, ceiling)
        assign(self, floor=floor, ceiling=ceiling)

    def _values(self, x: Inputs) -> Array:
        return self.floor + (self.ceiling - self.floor) * jax.nn.sigmoid(self.mean(x))


def _check_bounds(floor: Any, ceiling: Any) -> None:
    low, high = known(floor), known(ceiling)
    if low is None or high is None:
        return
    if not np.all((low >= 0) & (low < high) & (high <= 1)):
        raise ValueError(
            f"ChanceFloored: expected 0 <= floor < ceiling <= 1, got floor {floor}, "
            f"ceiling {ceiling}."
        )
