"""Random features of kernels: independent atoms, whose sums and products are taken one by one.

Private; see `decisionppl.kernels`.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._kernel_pytree import (
    Array,
    Inputs,
    check_inputs,
    float_type,
    pytree,
    static,
    widths_of,
)

if TYPE_CHECKING:
    from decisionppl._kernel_base import Kernel


class Layout(NamedTuple):
    """What random numbers are drawn for: atoms, width of every argument, precision."""

    num_features: int
    widths: tuple[int, ...]
    dtype: Any


class Block(NamedTuple):
    r"""Random functions :math:`u_{sb}(x) = r_{sb}(x) e^{i \theta_s(x)}` of one term of a kernel.

    Averaged over atoms s and summed over b, the real part of :math:`u(x) \bar u(z)` is unbiased
    for the term. The product of two independent blocks multiplies amplitudes and adds phases, so
    a product of waves stays one wave per atom.

    Attributes:
        amplitude: r, [n, atoms or 1, b]; 1 where all atoms agree.
        phase: :math:`\theta`, [n, atoms], or None for zero.
    """

    amplitude: Array
    phase: Array | None = None

    def times(self, other: "Block") -> "Block":
        """Block of the product of two terms: per atom, the Kronecker product."""
        product = self.amplitude[..., :, None] * other.amplitude[..., None, :]
        amplitude = product.reshape(*product.shape[:2], -1)
        phases = [p for p in (self.phase, other.phase) if p is not None]
        return Block(amplitude, sum(phases[1:], phases[0]) if phases else None)

    def scaled(self, factor: Array) -> "Block":
        """Block of the term whose functions are multiplied by `factor`, a number or [n]."""
        factor = factor if jnp.ndim(factor) == 0 else factor[:, None, None]
        return self._replace(amplitude=self.amplitude * factor)

    def columns(self) -> Array:
        """Real features [n, columns], whose inner products average over the atoms."""
        values = self.amplitude
        if self.phase is not None:
            wave = [jnp.cos(self.phase)[..., None], jnp.sin(self.phase)[..., None]]
            values = jnp.concatenate([values * w for w in wave], axis=-1)
        num_points, atoms, _ = values.shape
        return values.reshape(num_points, -1) / np.sqrt(atoms)


@pytree
class Features:
    """Features drawn for a kernel: a pytree that maps points to [n, F].

    Attributes:
        kernel: what the features are for; its leaves can be differentiated.
        key: random key of the draw.
        draws: random numbers drawn ahead, or None.
        num_features: number of random atoms.
        widths: columns of every argument that ``draws`` fit, or None.
    """

    kernel: "Kernel"
    key: Array
    draws: Any
    num_features: int = static()
    widths: tuple[int, ...] | None = static()

    def __call__(self, x: Inputs) -> Array:
        """Features of points.

        Args:
            x: one array [n, width] per argument of f.

        Returns:
            Features, [n, F].

        Raises:
            ValueError: inputs of other widths than the features were drawn for.
        """
        x = check_inputs(f"features of {self.kernel._name}", x)
        draws = self.draws
        if self.widths is None:
            layout = Layout(self.num_features, widths_of(x), float_type(*x))
            draws = self.kernel._draw(self.key, layout)
        elif self.widths != widths_of(x):
            raise ValueError(
                f"features of {self.kernel._name}: drawn for arguments of widths {self.widths}, "
                f"got {widths_of(x)}."
            )
        return jnp.concatenate([b.columns() for b in self.kernel._atoms(draws, x)], axis=1)


def draw_each(kernels: tuple["Kernel", ...], key: Array, layout: Layout) -> tuple:
    """Independent random numbers for each of several kernels on the same inputs."""
    keys = jax.random.split(key, len(kernels))
    return tuple(k._draw(key, layout) for k, key in zip(kernels, keys, strict=True))
