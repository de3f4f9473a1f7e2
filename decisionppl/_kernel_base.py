"""What every kernel is: a Gram builder with an algebra, and random features.

Private; see `decisionppl.kernels`.
"""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._acquisition import safe_sqrt
from decisionppl._kernel_features import Block, Features, Layout, draw_each
from decisionppl._kernel_pytree import (
    Array,
    Inputs,
    Parameter,
    assign,
    check_inputs,
    float_type,
    is_scalar,
    non_negative,
    pytree,
    widths_of,
)


class Kernel(abc.ABC):
    """A covariance function of the arguments of an unknown function.

    Kernels are immutable pytrees: hyperparameters are leaves, structure is static. They add and
    multiply, with each other and with numbers that are not negative.

    A kernel of your own is a subclass, registered as a pytree
    (`jax.tree_util.register_dataclass`), that defines ``_gram(x, z) -> [n, m]`` for checked
    inputs, and ``_diagonal(x) -> [n]`` where that can be had cheaper than point by point.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> k = 2.0 * kernels.Constant() + kernels.Linear() * kernels.Linear()
        >>> x = (jnp.array([[0.0], [1.0], [2.0]]),)
        >>> k(x, x)[1].tolist()
        [2.0, 3.0, 6.0]
        >>> k.diagonal(x).tolist()
        [2.0, 3.0, 18.0]
    """

    # a NumPy number on the left leaves the operation to the kernel
    __array_ufunc__ = None

    def __call__(self, x: Inputs, z: Inputs) -> Array:
        """Gram matrix of two sets of points.

        Args:
            x: one array [n, width] per argument of f.
            z: the same arguments at other points, [m, width] each.

        Returns:
            Covariances, [n, m].

        Raises:
            TypeError: inputs that are not tuples of arrays.
            ValueError: shapes that do not fit each other or the kernel.
        """
        x, z = check_inputs(self._name, x), check_inputs(self._name, z)
        if widths_of(x) != widths_of(z):
            raise ValueError(
                f"{self._name}: both inputs need the same arguments, got widths {widths_of(x)} "
                f"and {widths_of(z)}."
            )
        return self._gram(x, z)

    def diagonal(self, x: Inputs) -> Array:
        """Variances at points, the diagonal of ``k(x, x)``, without the matrix.

        Args:
            x: one array [n, width] per argument of f.

        Returns:
            Variances, [n].
        """
        return self._diagonal(check_inputs(self._name, x))

    def features(self, key: Array, num_features: int, *, like: Inputs | None = None) -> Features:
        """Random features: a map phi with E[phi(x) phi(z)'] = k(x, z) over the key.

        With standard normal weights w, ``phi(x) @ w`` is a function drawn from the prior, exactly
        where all random parts are given finitely many functions (`Constant`, `Linear`,
        `Downsampling`, `Coregionalised`), else in the limit of many features.

        Args:
            key: random key.
            num_features: independent random atoms. A kernel may need several columns for each,
                and none where finitely many functions are exact.
            like: inputs as wide as those to come. Given, random numbers are drawn now; otherwise
                at every call, from the same key and so with the same result.

        Returns:
            `Features`.

        Raises:
            NotImplementedError: the kernel has no features; the message names it.
            TypeError, ValueError: `num_features` is not a positive int.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from decisionppl import kernels
            >>> phi = kernels.Matern52(1.0).features(jax.random.key(0), 500)
            >>> x = (jnp.array([[0.0], [1.0]]),)
            >>> phi(x).shape
            (2, 1000)
            >>> bool(jnp.allclose(phi(x) @ phi(x).T, kernels.Matern52(1.0)(x, x), atol=0.1))
            True

        References:
            Rahimi and Recht, Random Features for Large-Scale Kernel Machines, NIPS 2007.
        """
        if isinstance(num_features, bool) or not isinstance(num_features, int | np.integer):
            raise TypeError(f"num_features: expected an int, got {num_features!r}.")
        if num_features < 1:
            raise ValueError(f"num_features: expected at least 1, got {num_features}.")
        self._check_features()
        if like is None:
            return Features(self, key, None, int(num_features), None)
        like = check_inputs(self._name, like)
        layout = Layout(int(num_features), widths_of(like), float_type(*like))
        return Features(self, key, self._draw(key, layout), layout.num_features, layout.widths)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @abc.abstractmethod
    def _gram(self, x: Inputs, z: Inputs) -> Array:
        """Covariances [n, m] of checked inputs."""

    def _diagonal(self, x: Inputs) -> Array:
        points = tuple(a[:, None, :] for a in x)
        return jax.vmap(lambda *point: self._gram(point, point)[0, 0])(*points)

    def _parts(self) -> Iterator["Kernel"]:
        """Kernels that this one is made of."""
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Kernel):
                    yield part

    def _check_features(self) -> None:
        """Raise NotImplementedError where this kernel or a part of it has no features."""
        if type(self)._atoms is Kernel._atoms:
            self._no_features("no finite or random features are known for it")
        for part in self._parts():
            part._check_features()

    def _no_features(self, reason: str) -> None:
        raise NotImplementedError(
            f"{self._name} has no random features: {reason}. Draw values at given points from the "
            "Gram matrix instead."
        )

    def _draw(self, key: Array, layout: Layout) -> Any:
        """Random numbers of the atoms, a pytree; None where there is no randomness."""
        return None

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        """Blocks whose columns, side by side, are the features."""
        raise NotImplementedError

    def __add__(self, other: Any) -> "Kernel":
        if isinstance(other, Kernel):
            return Sum(self, other)
        return Sum(self, Scale(Constant(), other)) if is_scalar(other) else NotImplemented

    def __radd__(self, other: Any) -> "Kernel":
        return Sum(Scale(Constant(), other), self) if is_scalar(other) else NotImplemented

    def __mul__(self, other: Any) -> "Kernel":
        if isinstance(other, Kernel):
            return Product(self, other)
        return Scale(self, other) if is_scalar(other) else NotImplemented

    def __rmul__(self, other: Any) -> "Kernel":
        return Scale(self, other) if is_scalar(other) else NotImplemented


@pytree
class Sum(Kernel):
    """``left + right``: the covariance of a sum of independent functions."""

    left: Kernel
    right: Kernel

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return self.left(x, z) + self.right(x, z)

    def _diagonal(self, x: Inputs) -> Array:
        return self.left.diagonal(x) + self.right.diagonal(x)

    def _draw(self, key: Array, layout: Layout) -> Any:
        return draw_each((self.left, self.right), key, layout)

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        return self.left._atoms(draws[0], x) + self.right._atoms(draws[1], x)


@pytree
class Product(Kernel):
    """``left * right``: the entrywise product, a kernel by Schur's theorem."""

    left: Kernel
    right: Kernel

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return self.left(x, z) * self.right(x, z)

    def _diagonal(self, x: Inputs) -> Array:
        return self.left.diagonal(x) * self.right.diagonal(x)

    def _draw(self, key: Array, layout: Layout) -> Any:
        return draw_each((self.left, self.right), key, layout)

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        left, right = self.left._atoms(draws[0], x), self.right._atoms(draws[1], x)
        return tuple(a.times(b) for a in left for b in right)


@pytree
class Scale(Kernel):
    """``variance * kernel``.

    Attributes:
        kernel: the kernel that is scaled.
        variance: factor, not negative.
    """

    kernel: Kernel
    variance: Parameter

    def __post_init__(self) -> None:
        assign(self, variance=non_negative("variance of a scaled kernel", self.variance))

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return self.variance * self.kernel(x, z)

    def _diagonal(self, x: Inputs) -> Array:
        return self.variance * self.kernel.diagonal(x)

    def _draw(self, key: Array, layout: Layout) -> Any:
        return self.kernel._draw(key, layout)

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        scale = safe_sqrt(jnp.asarray(self.variance, float_type(*x)))
        return tuple(block.scaled(scale) for block in self.kernel._atoms(draws, x))


@pytree
class Constant(Kernel):
    """The kernel of an unknown offset, with variance one everywhere.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> (9.0 * kernels.Constant()).diagonal((jnp.zeros((2, 1)),)).tolist()
        [9.0, 9.0]
    """

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return jnp.ones((len(x[0]), len(z[0])), float_type(*x, *z))

    def _diagonal(self, x: Inputs) -> Array:
        return jnp.ones(len(x[0]), float_type(*x))

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        return (Block(jnp.ones((len(x[0]), 1, 1), float_type(*x))),)
