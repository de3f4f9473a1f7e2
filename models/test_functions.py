r"""Multi-fidelity test functions with known optima.

Each function here makes a `Function`: a callable of a point x and a fidelity s in [0, 1], where
s = 1 is the target, together with its box, its exact minimum at the target and a price. All are
to be minimised, and are written in `jax.numpy`, so that they can be compiled, mapped and
differentiated.

- `augmented_branin`, `augmented_hartmann`, `augmented_rosenbrock`: every s in [0, 1] is a
  fidelity (the last has two).
- `forrester`, `currin`, `borehole`, `park1`, `park2`: a low and a high fidelity, s = 0 and 1.
- `hartmann3`: three levels, s = 0, 1/2, 1.

Functions with levels are defined between them too, by interpolation that is linear in s; that is
ours, and agrees with the published functions at the levels. Prices are ours as well.

References:
    Wu, Toscano-Palmerin, Frazier and Wilson, arXiv 1903.04703 (augmented functions); Forrester,
    Sobester and Keane (2007), Proceedings of the Royal Society A 463; Xiong, Qian and Wu (2013),
    Technometrics 55 (Currin, borehole, Park); Kandasamy et al. (2019), Journal of Artificial
    Intelligence Research 66 (levels of Hartmann-3); Surjanovic and Bingham, Virtual Library of
    Simulation Experiments.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike


# a NamedTuple cannot be handed to jax.jit, which keeps weak references to what it compiles
@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A function to be minimised at its highest fidelity.

    Called with x [..., d] and s, by default the target; s is a number or an array that
    broadcasts against the batch of x, and has a last axis of length `fidelity_dim` where there is
    more than one fidelity.

    Attributes:
        name: of the function.
        evaluate: `(x, s) -> value`, without checks of shapes.
        bounds: of x, [2, d], the lower ones first.
        optimum: minimum at the target.
        optimizers: points where it is attained, [k, d]; some of them where there is a continuum.
        fidelities: levels of s, the target last; None where all of [0, 1] will do.
        cost: `s -> price` of an evaluation.
        fidelity_dim: how many fidelities there are.
        minimise: always True.
    """

    name: str
    evaluate: Callable
    bounds: np.ndarray
    optimum: float
    optimizers: np.ndarray
    fidelities: tuple[float, ...] | None
    cost: Callable
    fidelity_dim: int = 1
    minimise: bool = True

    @property
    def dim(self) -> int:
        """Dimension of x."""
        return self.bounds.shape[1]

    @property
    def space(self) -> dist.Distribution:
        """The uniform distribution on the box, an event of shape [d]."""
        low, high = jnp.asarray(self.bounds, float)
        return dist.Uniform(low, high).to_event(1)

    def __call__(self, x: ArrayLike, s: ArrayLike = 1.0) -> jax.Array:
        """Value at x [..., d] and fidelity s.

        Raises:
            ValueError: x does not have d coordinates, or s not as many as there are fidelities.
        """
        x, s = jnp.asarray(x, float), jnp.asarray(s, float)
        if x.shape[-1:] != (self.dim,):
            raise ValueError(f"{self.name}: expected x of shape [..., {self.dim}], got {x.shape}.")
        if self.fidelity_dim > 1:
            if s.ndim == 0:
                s = jnp.broadcast_to(s, (self.fidelity_dim,))
            if s.shape[-1] != self.fidelity_dim:
                raise ValueError(
                    f"{self.name}: expected s of shape [..., {self.fidelity_dim}], got {s.shape}."
                )
        return self.evaluate(x, s)


def _box(*sides: tuple[float, float]) -> np.ndarray:
    return np.array(sides, float).T


def _affine_cost(fixed_cost: float, fidelity_dim: int = 1) -> Callable:
    if not fixed_cost >= 0:
        raise ValueError(f"fixed_cost: expected a number of at least 0, got {fixed_cost!r}.")

    def cost(s: ArrayLike) -> jax.Array:
        s = jnp.asarray(s, float)
        if fidelity_dim == 1:
            return fixed_cost + s
        return fixed_cost + (s.sum(-1) if s.ndim else fidelity_dim * s)

    return cost


def _geometric_cost(ratio: float) -> Callable:
    if not ratio > 0:
        raise ValueError(f"ratio: expected a positive number, got {ratio!r}.")
    return lambda s: ratio ** jnp.asarray(s, float)


def _between(low: Callable, high: Callable) -> Callable:
    def evaluate(x: jax.Array, s: jax.Array) -> jax.Array:
        return (1 - s) * low(x) + s * high(x)

    return evaluate


def _two_levels(
    name: str,
    low: Callable,
    high: Callable,
    bounds: np.ndarray,
    lowest: tuple[float, list],
    highest: tuple[float, list],
    *,
    ratio: float,
    negate: bool,
) -> Function:
    """A function of two levels from its extremes, each a value and the points."""
    evaluate = _between(low, high)
    value, points = highest if negate else lowest
    sign = -1.0 if negate else 1.0
    return Function(
        name=f"negated {name}" if negate else name,
        evaluate=(lambda x, s: -evaluate(x, s)) if negate else evaluate,
        bounds=bounds,
        optimum=sign * value,
        optimizers=np.array(points, float),
        fidelities=(0.0, 1.0),
        cost=_geometric_cost(ratio),
    )


def augmented_branin(fixed_cost: float = 5.0) -> Function:
    r"""Branin with a fidelity, on :math:`[-5, 10] \times [0, 15]`.

    .. math:: (x_2 - (b - 0.1 (1 - s)) x_1^2 + c x_1 - 6)^2 + 10 (1 - t) \cos x_1 + 10

    with :math:`b = 5.1 / 4\pi^2`, :math:`c = 5 / \pi`, :math:`t = 1 / 8\pi`. The minimum
    :math:`5 / 4\pi` is attained at three points of the target; since only the square depends on
    s, other fidelities have the same minimum elsewhere.

    Args:
        fixed_cost: an evaluation costs `fixed_cost + s`.

    Returns:
        The function.

    Raises:
        ValueError: a negative cost.

    Example:
        >>> from decisionppl.models import test_functions
        >>> f = test_functions.augmented_branin()
        >>> round(float(f(f.optimizers[0])), 4), round(f.optimum, 4)
        (0.3979, 0.3979)
    """
    b, c, t = 5.1 / (4 * np.pi**2), 5 / np.pi, 1 / (8 * np.pi)

    def evaluate(x: jax.Array, s: jax.Array) -> jax.Array:
        x1, x2 = x[..., 0], x[..., 1]
        square = (x2 - (b - 0.1 * (1 - s)) * x1**2 + c * x1 - 6) ** 2
        return square + 10 * (1 - t) * jnp.cos(x1) + 10

    return Function(
        name="augmented Branin",
        evaluate=evaluate,
        bounds=_box((-5, 10), (0, 15)),
        optimum=5 / (4 * np.pi),
        optimizers=np.array([(-np.pi, 12.275), (np.pi, 2.275), (3 * np.pi, 2.475)]),
        fidelities=None,
        cost=_affine_cost(fixed_cost),
    )


_HARTMANN_WEIGHTS = (1.0, 1.2, 3.0, 3.2)
_HARTMANN6_RATES = (
    (10, 3, 17, 3.5, 1.7, 8),
    (0.05, 10, 17, 0.1, 8, 14),
    (3, 3.5, 1.7, 10, 17, 8),
    (17, 8, 0.05, 10, 0.1, 14),
)
_HARTMANN6_CENTRES = (
    (1312, 1696, 5569, 124, 8283, 5886),
    (2329, 4135, 8307, 3736, 1004, 9991),
    (2348, 1451, 3522, 2883, 3047, 6650),
    (4047, 8828, 8732, 5743, 1091, 381),
)
_HARTMANN3_RATES = ((3, 10, 30), (0.1, 10, 35), (3, 10, 30), (0.1, 10, 35))
_HARTMANN3_CENTRES = ((3689, 1170, 2673), (4699, 4387, 7470), (1091, 8732, 5547), (381, 5743, 8828))


def _bumps(x: jax.Array, rates: Any, centres: Any) -> jax.Array:
    """The four exponentials of a Hartmann function, [..., 4]."""
    distance = (x[..., None, :] - jnp.asarray(centres) * 1e-4) ** 2
    return jnp.exp(-jnp.sum(jnp.asarray(rates, float) * distance, axis=-1))


def augmented_hartmann(fixed_cost: float = 5.0) -> Function:
    r"""Hartmann in six dimensions with a fidelity, on :math:`[0, 1]^6`.

    .. math:: -(\alpha_1 - 0.1 (1 - s)) e_1(x) - \sum_{i=2}^4 \alpha_i e_i(x), \qquad
        e_i(x) = \exp\bigl(-\textstyle\sum_j A_{ij} (x_j - P_{ij})^2\bigr)

    with :math:`\alpha = (1, 1.2, 3, 3.2)`.

    Args:
        fixed_cost: an evaluation costs `fixed_cost + s`.

    Returns:
        The function.

    Raises:
        ValueError: a negative cost.

    Example:
        >>> from decisionppl.models import test_functions
        >>> f = test_functions.augmented_hartmann(fixed_cost=0.05)
        >>> round(float(f(f.optimizers[0])), 4), round(float(f.cost(1.0)), 2)
        (-3.3224, 1.05)
    """

    def evaluate(x: jax.Array, s: jax.Array) -> jax.Array:
        bumps = _bumps(x, _HARTMANN6_RATES, _HARTMANN6_CENTRES)
        return 0.1 * (1 - s) * bumps[..., 0] - bumps @ jnp.asarray(_HARTMANN_WEIGHTS)

    return Function(
        name="augmented Hartmann-6",
        evaluate=evaluate,
        bounds=_box(*[(0, 1)] * 6),
        optimum=-3.322368011415515,
        optimizers=np.array(
            [(0.2016895110, 0.1500106917, 0.4768739747, 0.2753324305, 0.3116516166, 0.6573005341)]
        ),
        fidelities=None,
        cost=_affine_cost(fixed_cost),
    )


def augmented_rosenbrock(dim: int = 2, fixed_cost: float = 5.0) -> Function:
    r"""Rosenbrock with two fidelities, on :math:`[-5, 10]^d`.

    .. math:: \sum_{i=1}^{d-1} 100 \bigl(x_{i+1} - x_i^2 + 0.1 (1 - s_1)\bigr)^2
        + \bigl(x_i - 1 + 0.1 (1 - s_2)^2\bigr)^2

    All coordinates of x take part in the sum. The minimum, 0, is at (1, ..., 1).

    Args:
        dim: dimension of x, at least 2.
        fixed_cost: an evaluation costs `fixed_cost` plus the sum of the fidelities.

    Returns:
        The function; s is [..., 2], or a number for both.

    Raises:
        ValueError: fewer than two dimensions, or a negative cost.

    Example:
        >>> from decisionppl.models import test_functions
        >>> f = test_functions.augmented_rosenbrock(3)
        >>> float(f([1.0, 1.0, 1.0])), round(float(f([1.0, 1.0, 1.0], [0.0, 1.0])), 3)
        (0.0, 2.0)
    """
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 2:
        raise ValueError(f"dim: expected an int of at least 2, got {dim!r}.")

    def evaluate(x: jax.Array, s: jax.Array) -> jax.Array:
        now, after = x[..., :-1], x[..., 1:]
        valley = after - now**2 + 0.1 * (1 - s[..., :1])
        slope = now - 1 + 0.1 * (1 - s[..., 1:]) ** 2
        return jnp.sum(100 * valley**2 + slope**2, axis=-1)

    return Function(
        name="augmented Rosenbrock",
        evaluate=evaluate,
        bounds=_box(*[(-5, 10)] * dim),
        optimum=0.0,
        optimizers=np.ones((1, dim)),
        fidelities=None,
        cost=_affine_cost(fixed_cost, 2),
        fidelity_dim=2,
    )


def forrester(ratio: float = 10.0) -> Function:
    r"""Forrester's function of one variable, on [0, 1].

    High :math:`f = (6 x - 2)^2 \sin(12 x - 4)`, low :math:`f / 2 + 10 (x - 1/2) - 5`.
    The constant of the low fidelity is +5 in some implementations.

    Args:
        ratio: price of the high fidelity, where the low one costs 1.

    Returns:
        The function.

    Raises:
        ValueError: a ratio that is not positive.

    Example:
        >>> from decisionppl.models import test_functions
        >>> f = test_functions.forrester()
        >>> round(float(f(f.optimizers[0])), 4)
        -6.0207
    """

    def high(x: jax.Array) -> jax.Array:
        return (6 * x[..., 0] - 2) ** 2 * jnp.sin(12 * x[..., 0] - 4)

    def low(x: jax.Array) -> jax.Array:
        return 0.5 * high(x) + 10 * (x[..., 0] - 0.5) - 5

    return Function(
        name="Forrester",
        evaluate=_between(low, high),
        bounds=_box((0, 1)),
        optimum=-6.020740055767083,
        optimizers=np.array([[0.7572487586]]),
        fidelities=(0.0, 1.0),
        cost=_geometric_cost(ratio),
    )


def currin(ratio: float = 10.0, negate: bool = False) -> Function:
    r"""Currin's exponential function, on :math:`[0, 1]^2`.

    High

    .. math:: f(x) = \bigl(1 - e^{-1 / 2 x_2}\bigr)
        \frac{2300 x_1^3 + 1900 x_1^2 + 2092 x_1 + 60}{100 x_1^3 + 500 x_1^2 + 4 x_1 + 20},

    with the limit at :math:`x_2 = 0`; low the mean of f at
    :math:`(x_1 \pm 0.05, x_2 + 0.05)` and :math:`(x_1 \pm 0.05, \max(0, x_2 - 0.05))`.

    Args:
        ratio: price of the high fidelity, where the low one costs 1.
        negate: the function with its sign reversed, whose minimum is the maximum that is usually
            looked for in the literature.

    Returns:
        The function.

    Raises:
        ValueError: a ratio that is not positive.

    Example:
        >>> from decisionppl.models import test_functions
        >>> round(test_functions.currin(negate=True).optimum, 3)
        -13.799
    """

    def at(x1: jax.Array, x2: jax.Array) -> jax.Array:
        # the limit at zero, without a division by zero in the derivative
        positive = x2 > 0
        decay = jnp.where(positive, jnp.exp(-0.5 / jnp.where(positive, x2, 1.0)), 0.0)
        above = 2300 * x1**3 + 1900 * x1**2 + 2092 * x1 + 60
        return (1 - decay) * above / (100 * x1**3 + 500 * x1**2 + 4 * x1 + 20)

    def high(x: jax.Array) -> jax.Array:
        return at(x[..., 0], x[..., 1])

    def low(x: jax.Array) -> jax.Array:
        x1, up, down = x[..., 0], x[..., 1] + 0.05, jnp.maximum(0.0, x[..., 1] - 0.05)
        left, right = x1 - 0.05, x1 + 0.05
        return 0.25 * (at(right, up) + at(right, down) + at(left, up) + at(left, down))

    lowest = (3 * (1 - np.exp(-0.5)), [(0, 1)])
    highest = (13.798722044728438, [(0.2166666673, 0)])
    return _two_levels(
        "Currin", low, high, _box((0, 1), (0, 1)), lowest, highest, ratio=ratio, negate=negate
    )


def borehole(ratio: float = 10.0, negate: bool = False) -> Function:
    r"""Flow of water through a borehole, eight variables with their physical ranges.

    With :math:`x = (r_w, r, T_u, H_u, T_l, H_l, L, K_w)` and :math:`\ell = \log(r / r_w)`, high

    .. math:: \frac{2 \pi T_u (H_u - H_l)}
        {\ell \bigl(1 + T_u / T_l\bigr) + 2 L T_u / (r_w^2 K_w)},

    and low the same with 5 for :math:`2 \pi` and 1.5 for 1.

    Args:
        ratio: price of the high fidelity, where the low one costs 1.
        negate: the function with its sign reversed, whose minimum is the maximum that is usually
            looked for in the literature.

    Returns:
        The function.

    Raises:
        ValueError: a ratio that is not positive.

    Example:
        >>> from decisionppl.models import test_functions
        >>> round(test_functions.borehole().optimum, 3)
        7.82
    """

    def flow(x: jax.Array, front: float, constant: float) -> jax.Array:
        radius, reach, upper, upper_head, lower, lower_head, length, conductivity = jnp.moveaxis(
            x, -1, 0
        )
        leak = 2 * length * upper / (radius**2 * conductivity)
        resistance = jnp.log(reach / radius) * (constant + upper / lower) + leak
        return front * upper * (upper_head - lower_head) / resistance

    # monotone in every variable: both extremes are corners
    fewest = (0.05, 50_000, 63_070, 990, 63.1, 820, 1680, 9855)
    most = (0.15, 100, 115_600, 1110, 116, 700, 1120, 12_045)
    return _two_levels(
        "borehole",
        lambda x: flow(x, 5.0, 1.5),
        lambda x: flow(x, 2 * np.pi, 1.0),
        _box(
            (0.05, 0.15),
            (100, 50_000),
            (63_070, 115_600),
            (990, 1110),
            (63.1, 116),
            (700, 820),
            (1120, 1680),
            (9855, 12_045),
        ),
        (7.819676328755232, [fewest]),
        (309.5755876604079, [most]),
        ratio=ratio,
        negate=negate,
    )


def park1(ratio: float = 10.0, negate: bool = False) -> Function:
    r"""Park's first function, on :math:`[0, 1]^4`.

    High

    .. math:: f(x) = \frac{x_1}{2} \Bigl(\sqrt{1 + (x_2 + x_3^2) x_4 / x_1^2} - 1\Bigr)
        + (x_1 + 3 x_4) e^{1 + \sin x_3},

    with the limit at :math:`x_1 = 0`; low
    :math:`(1 + \sin(x_1) / 10) f(x) - 2 x_1 + x_2^2 + x_3^2 + 1/2`. The square of :math:`x_3`
    under the root is missing in some implementations.

    Args:
        ratio: price of the high fidelity, where the low one costs 1.
        negate: the function with its sign reversed, whose minimum is the maximum that is usually
            looked for in the literature.

    Returns:
        The function. Its minimum, 0, is attained wherever :math:`x_1 = x_4 = 0`.

    Raises:
        ValueError: a ratio that is not positive.

    Example:
        >>> from decisionppl.models import test_functions
        >>> float(test_functions.park1()([0.0, 0.3, 0.6, 0.0]))
        0.0
    """

    def high(x: jax.Array) -> jax.Array:
        x1, x2, x3, x4 = jnp.moveaxis(x, -1, 0)
        # x1 is taken under the root, which leaves the limit at zero and no division
        inside = x1**2 + (x2 + x3**2) * x4
        root = jnp.where(inside > 0, jnp.sqrt(jnp.where(inside > 0, inside, 1.0)), 0.0)
        return 0.5 * (root - x1) + (x1 + 3 * x4) * jnp.exp(1 + jnp.sin(x3))

    def low(x: jax.Array) -> jax.Array:
        x1, x2, x3, _ = jnp.moveaxis(x, -1, 0)
        return (1 + jnp.sin(x1) / 10) * high(x) - 2 * x1 + x2**2 + x3**2 + 0.5

    largest = 0.5 * (np.sqrt(3) - 1) + 4 * np.exp(1 + np.sin(1))
    return _two_levels(
        "Park 1",
        low,
        high,
        _box(*[(0, 1)] * 4),
        (0.0, [(0, 0, 0, 0), (0, 1, 1, 0)]),
        (float(largest), [(1, 1, 1, 1)]),
        ratio=ratio,
        negate=negate,
    )


def park2(ratio: float = 10.0, negate: bool = False) -> Function:
    r"""Park's second function, on :math:`[0, 1]^4`.

    High :math:`f(x) = \frac{2}{3} e^{x_1 + x_2} - x_4 \sin x_3 + x_3`, low
    :math:`1.2 f(x) - 1`, which has the same order.

    Args:
        ratio: price of the high fidelity, where the low one costs 1.
        negate: the function with its sign reversed, whose minimum is the maximum that is usually
            looked for in the literature.

    Returns:
        The function. Its minimum, 2/3, is attained wherever :math:`x_1 = x_2 = x_3 = 0`.

    Raises:
        ValueError: a ratio that is not positive.

    Example:
        >>> from decisionppl.models import test_functions
        >>> round(test_functions.park2().optimum, 3)
        0.667
    """

    def high(x: jax.Array) -> jax.Array:
        x1, x2, x3, x4 = jnp.moveaxis(x, -1, 0)
        return 2 / 3 * jnp.exp(x1 + x2) - x4 * jnp.sin(x3) + x3

    return _two_levels(
        "Park 2",
        lambda x: 1.2 * high(x) - 1,
        high,
        _box(*[(0, 1)] * 4),
        (2 / 3, [(0, 0, 0, 0), (0, 0, 0, 1)]),
        (float(2 / 3 * np.exp(2) + 1), [(1, 1, 1, 0)]),
        ratio=ratio,
        negate=negate,
    )


def hartmann3(ratio: float = 100.0) -> Function:
    r"""Hartmann in three dimensions with three levels, on :math:`[0, 1]^3`.

    .. math:: -\sum_{i=1}^4 \bigl(\alpha_i + 2 (1 - s) \delta_i\bigr) e_i(x), \qquad
        e_i(x) = \exp\bigl(-\textstyle\sum_j A_{ij} (x_j - P_{ij})^2\bigr)

    with :math:`\alpha = (1, 1.2, 3, 3.2)` and :math:`\delta = (0.01, -0.01, -0.1, 0.1)`, at
    s = 0, 1/2 and 1.

    Args:
        ratio: price of the target, where the lowest level costs 1 and the middle one the root.

    Returns:
        The function.

    Raises:
        ValueError: a ratio that is not positive.

    Example:
        >>> from decisionppl.models import test_functions
        >>> f = test_functions.hartmann3()
        >>> round(float(f(f.optimizers[0])), 4), f.fidelities
        (-3.8628, (0.0, 0.5, 1.0))
    """
    delta = (0.01, -0.01, -0.1, 0.1)

    def evaluate(x: jax.Array, s: jax.Array) -> jax.Array:
        shift = 2 * (1 - s[..., None]) * jnp.asarray(delta)
        weights = jnp.asarray(_HARTMANN_WEIGHTS) + shift
        return -jnp.sum(weights * _bumps(x, _HARTMANN3_RATES, _HARTMANN3_CENTRES), axis=-1)

    return Function(
        name="Hartmann-3",
        evaluate=evaluate,
        bounds=_box(*[(0, 1)] * 3),
        optimum=-3.862779787332663,
        optimizers=np.array([(0.1145888771, 0.5556488946, 0.8525469848)]),
        fidelities=(0.0, 0.5, 1.0),
        cost=_geometric_cost(ratio),
    )


FUNCTIONS = {
    "augmented_branin": augmented_branin,
    "augmented_hartmann": augmented_hartmann,
    "augmented_rosenbrock": augmented_rosenbrock,
    "borehole": borehole,
    "currin": currin,
    "forrester": forrester,
    "hartmann3": hartmann3,
    "park1": park1,
    "park2": park2,
}
"""All of them by name."""
