r"""Functionals of a world: what is to be known, as a function of the means at target actions.

A functional looks at a world through the expected outcomes :math:`m_t = E[y | do(a_t)]` of target
actions: the population over which a predictor is evaluated, the treated and the control arm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_pytree_node_class
class Functional(NamedTuple):
    r"""A number that depends on a world through the means m at target actions.

    Either :math:`g(m) = c + b^T m + \sum_t w_t (m_t - \psi_t)^2`, whose moments are closed form
    under a Gaussian belief, or any function of m. Arrays may be traced: a functional passes through
    `jax.jit` and `jax.vmap`.

    Attributes:
        targets: candidates of the action sites [targets, ...], as in `decisionppl.utility`.
        weights: w, [targets].
        centre: :math:`\psi`, [targets].
        slope: b, [targets].
        constant: c, scalar.
        value: `(means [targets]) -> scalar` in place of the quadratic form; else None.
    """

    targets: Any
    weights: Any
    centre: Any
    slope: Any
    constant: Any
    value: Callable | None = None

    def __call__(self, means: jax.Array) -> jax.Array:
        """The functional at means [..., targets]."""
        if self.value is not None:
            return jnp.vectorize(self.value, signature="(t)->()")(means)
        distance = means - self.centre
        return self.constant + means @ self.slope + distance**2 @ self.weights

    def gradient(self, means: jax.Array) -> jax.Array:
        """Slope of the quadratic form at means [..., targets]."""
        return self.slope + 2 * self.weights * (means - self.centre)

    @property
    def is_quadratic(self) -> bool:
        """Whether moments under a Gaussian belief are closed form."""
        return self.value is None

    def tree_flatten(self) -> tuple:
        """Arrays, and what is none."""
        return (self.targets, self.weights, self.centre, self.slope, self.constant), self.value

    @classmethod
    def tree_unflatten(cls, value: Any, leaves: Any) -> "Functional":
        """The same."""
        targets, weights, centre, slope, constant = leaves
        return cls(targets, weights, centre, slope, constant, value)


def squared_loss(targets: Any, predictions: Any, weights: Any = None) -> Functional:
    r"""Mean squared distance of a predictor from the truth, over a population of targets.

    :math:`g(f) = \sum_t w_t (f(x_t) - \psi(x_t))^2`.

    Args:
        targets: actions [targets, ...]: a dict by site, or an array if there is one.
        predictions: what the predictor says, :math:`\psi(x_t)`, [targets].
        weights: of the population, [targets]; default equal, with sum 1.

    Returns:
        Functional.

    Raises:
        ValueError: lengths that disagree.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> loss = lookahead.squared_loss(jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0]))
        >>> float(loss(jnp.array([1.0, 3.0])))
        2.0

    References:
        arXiv 2502.06076, section 2.
    """
    count = _count(targets)
    predictions = _vector("predictions", predictions, count)
    zeros = jnp.zeros(count)
    return Functional(targets, _shares(weights, count), predictions, zeros, jnp.zeros(()))


def mean_outcome(targets: Any, weights: Any = None) -> Functional:
    r"""Mean outcome over a population: :math:`g = \sum_t w_t m_t`.

    With outcomes that say whether a prediction was right, the accuracy of the predictor.

    Args:
        targets: actions [targets, ...]: a dict by site, or an array if there is one.
        weights: of the population, [targets]; default equal, with sum 1.

    Returns:
        Functional.

    Raises:
        ValueError: lengths that disagree.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> float(lookahead.mean_outcome(jnp.arange(2))(jnp.array([0.5, 1.0])))
        0.75
    """
    count = _count(targets)
    zeros = jnp.zeros(count)
    return Functional(targets, zeros, zeros, _shares(weights, count), jnp.zeros(()))


def accuracy(targets: Any, predicted: Any, weights: Any = None) -> Functional:
    r"""Expected share of right predictions of binary outcomes over a population.

    :math:`g = \sum_t w_t (\hat y_t p_t + (1 - \hat y_t)(1 - p_t))` with :math:`p_t` the chance of
    outcome 1.

    Args:
        targets: actions [targets, ...]: a dict by site, or an array if there is one.
        predicted: :math:`\hat y_t`, 0 or 1, [targets].
        weights: of the population, [targets]; default equal, with sum 1.

    Returns:
        Functional.

    Raises:
        ValueError: lengths that disagree.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> right = lookahead.accuracy(jnp.arange(2), jnp.array([1, 0]))
        >>> round(float(right(jnp.array([0.9, 0.3]))), 3)
        0.8
    """
    count = _count(targets)
    says = _vector("predicted", predicted, count)
    shares, zeros = _shares(weights, count), jnp.zeros(count)
    return Functional(targets, zeros, zeros, shares * (2 * says - 1), shares @ (1 - says))


def recall(targets: Any, predicted: Any, weights: Any = None) -> Functional:
    r"""Share of the positive outcomes that a classifier finds.

    :math:`g = \sum_t w_t \hat y_t p_t / \sum_t w_t p_t`, with :math:`p_t` the chance of outcome 1;
    0 where nothing is positive.

    Args:
        targets: actions [targets, ...]: a dict by site, or an array if there is one.
        predicted: :math:`\hat y_t`, 0 or 1, [targets].
        weights: of the population, [targets]; default equal, with sum 1.

    Returns:
        Functional, not quadratic: plans average over draws.

    Raises:
        ValueError: lengths that disagree.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> found = lookahead.recall(jnp.arange(2), jnp.array([1, 0]))
        >>> round(float(found(jnp.array([0.9, 0.3]))), 3)
        0.75
    """
    count = _count(targets)
    says, shares = _vector("predicted", predicted, count), _shares(weights, count)
    positive = jnp.stack([shares * says, shares])

    def value(means: jax.Array) -> jax.Array:
        hits, total = positive @ means
        return hits / jnp.where(total > 0, total, 1.0)

    return functional(targets, value)


def average_treatment_effect(treated: Any, control: Any) -> Functional:
    r"""Mean outcome of the same units under treatment less that under control.

    Args:
        treated: actions [units, ...] with treatment: a dict by site, or an array if there is one.
        control: the same units without it.

    Returns:
        Functional, with 2 * units targets.

    Raises:
        ValueError: lengths that disagree.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> effect = lookahead.average_treatment_effect(jnp.array([1, 1]), jnp.array([0, 0]))
        >>> float(effect(jnp.array([3.0, 5.0, 1.0, 1.0])))
        3.0
    """
    units = _count(treated)
    if _count(control) != units:
        raise ValueError(
            f"control has {_count(control)} units, treated {units}: give the same units twice."
        )
    both = jax.tree.map(lambda t, c: jnp.concatenate([t, c]), treated, control)
    zeros = jnp.zeros(2 * units)
    signs = jnp.repeat(jnp.array([1.0, -1.0]), units) / units
    return Functional(both, zeros, zeros, signs, jnp.zeros(()))


def functional(targets: Any, value: Callable) -> Functional:
    """Any function of the means at target actions.

    Args:
        targets: actions [targets, ...]: a dict by site, or an array if there is one.
        value: `(means [targets]) -> scalar`.

    Returns:
        Functional; plans average over draws.

    Raises:
        TypeError: `value` that cannot be called.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl import lookahead
        >>> best = lookahead.functional(jnp.arange(3), jnp.max)
        >>> float(best(jnp.array([1.0, 3.0, 2.0])))
        3.0
    """
    if not callable(value):
        raise TypeError(
            f"value: expected a function (means [targets]) -> scalar, got {type(value).__name__}."
        )
    zeros = jnp.zeros(_count(targets))
    return Functional(targets, zeros, zeros, zeros, jnp.zeros(()), value)


def _count(targets: Any) -> int:
    shapes = [np.shape(x) for x in jax.tree.leaves(targets)]
    counts = {s[:1] for s in shapes}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(
            f"targets: expected actions with one common leading axis [targets, ...], got shapes "
            f"{[list(s) for s in shapes]}."
        )
    return counts.pop()[0]


def _vector(name: str, value: Any, count: int) -> jax.Array:
    value = jnp.asarray(value, float)
    if value.shape != (count,):
        raise ValueError(f"{name}: expected one number per target, [{count}], got {value.shape}.")
    return value


def _shares(weights: Any, count: int) -> jax.Array:
    if weights is None:
        return jnp.full(count, 1 / count)
    return _vector("weights", weights, count)
