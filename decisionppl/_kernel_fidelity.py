"""Kernels over fidelities in [0, 1], with parts that vanish at the target.

Private; see `decisionppl.kernels`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decisionppl._acquisition import safe_sqrt
from decisionppl._kernel_base import Kernel
from decisionppl._kernel_features import Block, Layout, draw_each
from decisionppl._kernel_pytree import (
    Array,
    Inputs,
    Parameter,
    assign,
    check_positions,
    check_unit_interval,
    non_negative,
    pytree,
    scalars,
    select,
    static,
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Degree:
    """A whole power: structure, since features need as many columns."""

    value: int


@pytree
class LinearTruncated(Kernel):
    r"""Unbiased part plus parts that vanish at the target, for one or two fidelities in [0, 1].

    With fidelity x, one at the target, and the remaining arguments w of f:

    .. math::
        k = k_0(w, w') + c(x, x') k_1(w, w'), \qquad
        c(x, x') = (1 - x)(1 - x')(1 + x x')^p.

    Two fidelities x, y have the factor :math:`c(x, x') + c(y, y') + (1 - x)(1 - x')(1 - y)
    (1 - y')(1 + x x' + y y')^p` on :math:`k_1`.

    Args:
        unbiased: :math:`k_0`, a kernel on the remaining arguments.
        biased: :math:`k_1`, a kernel on the remaining arguments.
        *fidelities: position of the one or two arguments of f that are fidelities.
        power: p, not negative. A Python int is structure. Any other number is a hyperparameter
            that can be fitted, but the factor is positive semi-definite for whole p only (its
            Taylor coefficients change sign), and there are no features.

    Raises:
        TypeError, ValueError: malformed arguments; at the call, fidelities outside [0, 1] whose
            values are known.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> k = kernels.LinearTruncated(kernels.Constant(), kernels.Constant(), 1, power=1)
        >>> x = (jnp.zeros((2, 3)), jnp.array([[0.5], [1.0]]))
        >>> k(x, x).tolist()
        [[1.3125, 1.0], [1.0, 1.0]]

    References:
        Wu, Toscano-Palmerin, Frazier and Wilson, arXiv 1903.04703; the linear truncated fidelity
        kernel of BoTorch, which clamps fidelities to [0, 1] where this one objects.
    """

    unbiased: Kernel
    biased: Kernel
    fidelities: tuple[int, ...] = static()
    _power: Any = dataclasses.field(repr=False)

    def __init__(
        self, unbiased: Kernel, biased: Kernel, *fidelities: int, power: Parameter = 1
    ) -> None:
        if not isinstance(unbiased, Kernel) or not isinstance(biased, Kernel):
            raise TypeError(
                "LinearTruncated: expected two kernels, then positions of fidelities, got "
                f"{unbiased!r}, {biased!r}."
            )
        fidelities = check_positions("LinearTruncated", fidelities)
        if len(fidelities) > 2:
            raise ValueError(
                f"LinearTruncated: defined for one or two fidelities, got {len(fidelities)}."
            )
        whole = isinstance(power, int | np.integer)
        power = non_negative("LinearTruncated power", power)
        held = _Degree(int(power)) if whole else power
        assign(self, unbiased=unbiased, biased=biased, fidelities=fidelities, _power=held)

    @property
    def power(self) -> Any:
        """The exponent p."""
        return self._power.value if isinstance(self._power, _Degree) else self._power

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        rest_x, rest_z = self._split(x)[1], self._split(z)[1]
        return self.unbiased(rest_x, rest_z) + self._factor(x, z) * self.biased(rest_x, rest_z)

    def _factor(self, x: Inputs, z: Inputs) -> Array:
        total, missed, inner = 0.0, 1.0, 1.0
        levels = zip(self._split(x)[0], self._split(z)[0], strict=True)
        for a, b in levels:
            gap, dot = jnp.outer(1 - a, 1 - b), jnp.outer(a, b)
            total, missed, inner = total + gap * (1 + dot) ** self.power, missed * gap, inner + dot
        both = missed * inner**self.power if len(self.fidelities) == 2 else 0.0
        return jnp.asarray(total + both)

    def _split(self, x: tuple) -> tuple[tuple, tuple]:
        """Fidelities, each [n], and the remaining arguments."""
        seen = scalars(
            "LinearTruncated", select("LinearTruncated", x, self.fidelities), *self._names
        )
        for level in seen:
            check_unit_interval("LinearTruncated", level)
        return seen, self._rest(x)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(f"the fidelity at position {p}" for p in self.fidelities)

    def _rest(self, items: tuple) -> tuple:
        rest = tuple(a for i, a in enumerate(items) if i not in self.fidelities)
        if not rest:
            raise ValueError("LinearTruncated: needs an argument of f beside its fidelities.")
        return rest

    def _check_features(self) -> None:
        if not isinstance(self._power, _Degree):
            self._no_features("its power is not a Python int, so its features are not finite")
        super()._check_features()

    def _draw(self, key: Array, layout: Layout) -> Any:
        rest = layout._replace(widths=self._rest(layout.widths))
        return draw_each((self.unbiased, self.biased), key, rest)

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        levels, rest = self._split(x)
        exact = self.unbiased._atoms(draws[0], rest)
        factor = Block(self._factor_features(levels)[:, None, :])
        return exact + tuple(factor.times(b) for b in self.biased._atoms(draws[1], rest))

    def _factor_features(self, levels: tuple[Array, ...]) -> Array:
        """The features of the factor, [n, columns]: multinomial expansions of the powers."""
        terms = [(1 - a)[:, None] * _powers((a,), self.power) for a in levels]
        if len(levels) == 2:
            missed = (1 - levels[0]) * (1 - levels[1])
            terms.append(missed[:, None] * _powers(levels, self.power))
        return jnp.concatenate(terms, axis=1)


def _powers(values: tuple[Array, ...], degree: int) -> Array:
    """Features [n, columns] of the kernel (1 + sum of products of values) ** degree."""
    columns = []
    for exponents in np.ndindex(*(degree + 1,) * len(values)):
        if sum(exponents) <= degree:
            ways = math.factorial(degree) // math.factorial(degree - sum(exponents))
            ways //= math.prod(math.factorial(e) for e in exponents)
            column = [v**e for v, e in zip(values, exponents, strict=True)]
            columns.append(math.sqrt(ways) * math.prod(column[1:], start=column[0]))
    return jnp.stack(columns, axis=1)


@pytree
class Downsampling(Kernel):
    r"""Downsampling: :math:`k = c + (1 - x)^{1 + \delta} (1 - x')^{1 + \delta}`, x in [0, 1].

    It sees one scalar argument, the share of the data, one at the target.

    Args:
        power: :math:`\delta`, not negative.
        offset: c, not negative.

    Raises:
        ValueError: negative parameters; at the call, shares outside [0, 1] whose values are known.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import kernels
        >>> x = (jnp.array([[0.5], [1.0]]),)
        >>> kernels.Downsampling(power=1.0)(x, x).tolist()
        [[1.0625, 1.0], [1.0, 1.0]]

    References:
        Klein, Falkner, Bartels, Hennig and Hutter, Fast Bayesian Optimization of Machine
        Learning Hyperparameters on Large Datasets, arXiv 1605.07079; Wu et al., arXiv 1903.04703.
    """

    power: Parameter = 1.0
    offset: Parameter = 1.0

    def __post_init__(self) -> None:
        power = non_negative("Downsampling power", self.power)
        assign(self, power=power, offset=non_negative("Downsampling offset", self.offset))

    def _gram(self, x: Inputs, z: Inputs) -> Array:
        return self.offset + jnp.outer(self._missed(x), self._missed(z))

    def _diagonal(self, x: Inputs) -> Array:
        return self.offset + self._missed(x) ** 2

    def _missed(self, x: Inputs) -> Array:
        (share,) = scalars("Downsampling", x, "the share of the data")
        check_unit_interval("Downsampling", share)
        # a share that rounding has put above one would have no real power
        return jnp.maximum(1 - share, 0.0) ** (1 + self.power)

    def _atoms(self, draws: Any, x: Inputs) -> tuple[Block, ...]:
        missed = self._missed(x)
        constant = safe_sqrt(jnp.full_like(missed, self.offset))
        return (Block(jnp.stack([constant, missed], axis=1)[:, None, :]),)
