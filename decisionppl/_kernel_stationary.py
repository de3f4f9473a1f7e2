"""Kernels on all of space, and the choice of the arguments that a kernel sees.

Private; see `decisionppl.kernels`.
"""

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from decisionppl._kernel_base import Block, Kernel, Layout
from decisionppl._kernel_pytree import (
    Array,
    Inputs,
    Parameter,
    assign,
    check_positions,
    join,
    positive,
    pytree,
    select,
    static,
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _matern(squared: Array, degree: int, rate: float) -> Array:
    """Matern kernel of smoothness degree + 1/2, as a function of the squared distance."""
    r = rate * jnp.sqrt(squared)
    polynomial = (1.0, 1 + r, 1 + r + r * r / 3)[degree]
    return polynomial * jnp.exp(-r)


@_matern.defjvp
def _matern_jvp(degree: int, rate: float, primals: tuple, tangents: tuple) -> tuple:
    """Slopes are Matern kernels one degree lower, so no derivative divides zero by zero."""
    (squared,), (tangent,) = primals, tangents
    value = _matern(squared, degree, rate)
    if degree == 0:
        apart = squared > 0
        distance = jnp.sqrt(jnp.where(apart, squared, 1.0))
        slope = jnp.where(apart, -rate / (2 * distance) * value, 0.0)
    else:
        factor = {1: -(rate**2) / 2, 2: -(rate**2) / 6}[degree]
        slope = factor * _matern(squared, degree - 1, rate)
    return value, slope * tangent


@pytree
class Stationary(Kernel):
    """A kernel of unit variance that depends on the scaled distance only."""

    lengthscale: Parameter

    # degrees of freedom of the spectral Student-t law, twice the smoothness; None for Gaussian
    _freedom: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        assign(self, lengthscale=positive(f"{self._name} lengthscale", self.lengthscale))

    def _profile(self, squared: Array) -> Array:
        """Covariance at a squared scaled distance."""
        raise NotImplementedError

    def _points(self, x: Inputs) -> Array:
        """All arguments side by side, [n, d]."""
        points, shape = join(x), jnp.shape(self.lengthscale)
        if shape not in ((), points.shape[1:]):
            raise ValueError(
                f"{self._name}: lengthscale has shape {shape}, but the points have "
                f"{points.shape[1]} columns. Give one number, or one per column; `On` chooses "
                "the arguments that a kernel sees."
            )
        return points

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        # differences first: |x|^2 + |z|^2 - 2 x'z, or scaling first, loses digits of small ones;
        # then a product of vector and matrix, for the value and for the slope in the scales
        first, second = self._points(x).T, self._points(z).T
        squares = (first[:, :, None] - second[:, None, :]) ** 2
        precision = jnp.broadcast_to(1 / jnp.square(self.lengthscale), first.shape[:1])
        return self._profile(jnp.tensordot(precision, squares, axes=1))

    def _diagonal(self, x: Inputs) -> Array:
        return jnp.ones(len(x[0]), jnp.result_type(self._points(x), self.lengthscale))

    def _draw(self, key: Array, layout: Layout) -> Array:
        direction_key, radius_key = jax.random.split(key)
        num, dtype = layout.num_features, layout.dtype
        waves = jax.random.normal(direction_key, (sum(layout.widths), num), dtype)
        if self._freedom is None:
            return waves
        normals = jax.random.normal(radius_key, (self._freedom, num), dtype)
        return waves / jnp.sqrt(jnp.mean(normals**2, axis=0))

    def _atoms(self, draws: Array, x: Inputs) -> tuple[Block, ...]:
        phase = (self._points(x) / self.lengthscale) @ draws
        return (Block(jnp.ones((len(phase), 1, 1), phase.dtype), phase),)


@pytree
class RBF(Stationary):
    r"""Squared exponential: :math:`k = \exp(-r^2 / 2)`, r the scaled Euclidean distance.

    Distances are taken between all arguments that the kernel sees, side by side.

    Args:
        lengthscale: positive, one number or one per column (ARD).

    Raises:
        ValueError: a lengthscale that is not positive; at the call, one of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> x, z = jnp.zeros((1, 2)), jnp.array([[1.0, 4.0]])
        >>> round(float(kernels.RBF([1.0, 4.0])((x,), (z,))[0, 0]), 4)
        0.3679

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 4.9.
    """

    def _profile(self, squared: Array) -> Array:
        return jnp.exp(-squared / 2)


@pytree
class Matern12(Stationary):
    r"""Exponential kernel: :math:`k = e^{-r}`; paths are continuous and nowhere smooth.

    Its gradient at distance zero, where it has a kink, counts as zero.

    Args:
        lengthscale: positive, one number or one per column (ARD).

    Raises:
        ValueError: a lengthscale that is not positive; at the call, one of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> x, z = jnp.zeros((1, 1)), jnp.ones((1, 1))
        >>> round(float(kernels.Matern12(1.0)((x,), (z,))[0, 0]), 4)
        0.3679

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 4.2.1.
    """

    _freedom = 1

    def _profile(self, squared: Array) -> Array:
        return _matern(squared, 0, 1.0)


@pytree
class Matern32(Stationary):
    r"""Once differentiable: :math:`k = (1 + \sqrt 3 r) e^{-\sqrt 3 r}`.

    Args:
        lengthscale: positive, one number or one per column (ARD).

    Raises:
        ValueError: a lengthscale that is not positive; at the call, one of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> x, z = jnp.zeros((1, 1)), jnp.ones((1, 1))
        >>> round(float(kernels.Matern32(1.0)((x,), (z,))[0, 0]), 4)
        0.4834

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 4.17.
    """

    _freedom = 3

    def _profile(self, squared: Array) -> Array:
        return _matern(squared, 1, math.sqrt(3))


@pytree
class Matern52(Stationary):
    r"""Twice differentiable: :math:`k = (1 + \sqrt 5 r + 5 r^2 / 3) e^{-\sqrt 5 r}`.

    Args:
        lengthscale: positive, one number or one per column (ARD).

    Raises:
        ValueError: a lengthscale that is not positive; at the call, one of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> x, z = jnp.zeros((1, 1)), jnp.ones((1, 1))
        >>> round(float(kernels.Matern52(1.0)((x,), (z,))[0, 0]), 4)
        0.524

    References:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 4.17.
    """

    _freedom = 5

    def _profile(self, squared: Array) -> Array:
        return _matern(squared, 2, math.sqrt(5))


@pytree
class Linear(Kernel):
    """Covariance x'z of a linear function through the origin with standard normal slopes.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
        >>> kernels.Linear()((x,), (x,)).tolist()
        [[5.0, 3.0], [3.0, 9.0]]
    """

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return join(x) @ join(z).T

    def _diagonal(self, x: Inputs) -> Array:
        return jnp.sum(join(x) ** 2, axis=1)

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        return (Block(join(x)[:, None, :]),)


@pytree
class On(Kernel):
    """A kernel that sees only some arguments of the unknown function.

    Args:
        kernel: kernel on the chosen arguments.
        *positions: which arguments, counted from 0, in the order in which the kernel takes them.

    Raises:
        TypeError, ValueError: positions that are not distinct ints from 0 on; at the call, one
            that the inputs do not have.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> k = kernels.On(kernels.RBF(1.0), 0) * kernels.On(kernels.Linear(), 1)
        >>> x = (jnp.zeros((2, 3)), jnp.array([[1.0], [2.0]]))
        >>> k(x, x).tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    kernel: Kernel
    positions: tuple[int, ...] = static()

    def __init__(self, kernel: Kernel, *positions: int) -> None:
        if not isinstance(kernel, Kernel):
            raise TypeError(f"On: expected a kernel first, got {kernel!r}.")
        assign(self, kernel=kernel, positions=check_positions("On", positions))

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return self.kernel(self._seen(x), self._seen(z))

    def _diagonal(self, x: Inputs) -> Array:
        return self.kernel.diagonal(self._seen(x))

    def _draw(self, key: Array, layout: Layout) -> Any:
        return self.kernel._draw(key, layout._replace(widths=self._seen(layout.widths)))

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        return self.kernel._atoms(draws, self._seen(x))

    def _seen(self, items: tuple) -> tuple:
        return select(f"On({self.kernel._name})", items, self.positions)
