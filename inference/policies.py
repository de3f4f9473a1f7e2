r"""Policies fitted to a completed table of outcomes, and restrictions on them.

Thompson sampling by generation completes the table of a problem, contexts x [T, ...] and outcomes
y [T, K] of all T rounds and K arms, fits a policy to it, and plays what that policy chooses at the
current context. What is fitted is the designer's choice, a `PolicyClass`: `fit(x, y)` gives
parameters, `score(params, x)` gives the score of every arm at one context, and the arm with the
largest score is played; the caller settles ties.

- `arm_means`: no context, the mean outcome of each arm.
- `linear`: ridge regression of each arm's outcomes on the context.
- `logistic`: logistic regression of each arm's outcomes on the context.
- `budget`: an arm is chosen in a limited share of the rounds.
- `equal_selection`: an arm is chosen at the same rate in all groups.

A context is an array or a pytree of arrays; the two regressions flatten and join its leaves.

References:
    Contextual Thompson Sampling via Generation of Missing Data, arXiv 2502.07064 (the policy
    fitted to the completed table, of a class that the designer chooses).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from decisionppl.inference._irls import logistic_regressions
from decisionppl.inference._policy_class import (
    PolicyClass,
    as_policy_class,
    check_number,
    check_rounds,
    outcomes_of,
    whole_number,
)
from decisionppl.inference._restrictions import budget, equal_selection

__all__ = [
    "PolicyClass",
    "arm_means",
    "as_policy_class",
    "budget",
    "equal_selection",
    "linear",
    "logistic",
]


class _Regression(NamedTuple):
    """Predictors `weight @ (x - centre) + offset`: weight [K, D], offset [K], centre [D].

    The centre stays apart because offsets at x = 0 lose digits where the data are far from it.
    """

    weight: jax.Array
    offset: jax.Array
    centre: jax.Array


def arm_means() -> PolicyClass:
    """One arm for all contexts: the score of an arm is the mean of its outcomes.

    Returns:
        A policy class whose parameters are the means [K]. Contexts are ignored and may be None.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import policies
        >>> policy = policies.arm_means()
        >>> params = policy.fit(None, jnp.array([[0.0, 1.0], [1.0, 1.0]]))
        >>> policy.score(params, None).tolist()
        [0.5, 1.0]
    """

    def fit(x: Any, y: Any) -> jax.Array:
        return jnp.mean(outcomes_of(y), axis=0)

    return PolicyClass(fit, lambda params, x: params)


def linear(ridge: float = 1.0, intercept: bool = True) -> PolicyClass:
    r"""Ridge regression of each arm's outcomes on the context.

    Minimises :math:`\sum_t (y_{ta} - b_a - w_a^T x_t)^2 + \lambda |w_a|^2` for every arm a. The
    table is complete, so all arms share their covariates and one factorisation serves them all.

    Args:
        ridge: :math:`\lambda`, not negative. Covariates also bear a ridge of a few units in the
            last place of their own variation, so that collinear ones have an answer at zero too.
        intercept: whether there is :math:`b_a`, which is not penalised; otherwise it is 0.

    Returns:
        A policy class whose scores are predicted outcomes.

    Raises:
        ValueError: a ridge that is negative; in `fit`, outcomes that are not [T, K], contexts of
            another length, or neither contexts nor an intercept.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import policies
        >>> x = jnp.array([[-1.0], [0.0], [1.0]])
        >>> y = jnp.array([[0.0, 3.0], [1.0, 1.0], [2.0, -1.0]])
        >>> policy = policies.linear(ridge=0.0)
        >>> [round(s, 3) for s in policy.score(policy.fit(x, y), jnp.array([2.0])).tolist()]
        [3.0, -3.0]

    References:
        Hoerl and Kennard, Technometrics 12, 1970.
    """
    check_number("ridge", ridge, lambda v: v >= 0, "a number that is not negative")

    def fit(x: Any, y: Any) -> _Regression:
        x, y = _table(x, y, intercept)
        centre = jnp.mean(x, axis=0) if intercept else jnp.zeros(x.shape[1], x.dtype)
        offset = jnp.mean(y, axis=0) if intercept else jnp.zeros(y.shape[1], x.dtype)
        if x.shape[1] == 0:
            return _Regression(jnp.zeros((y.shape[1], 0), x.dtype), offset, centre)
        z = x - centre
        variation = jnp.sum(z**2, axis=0)
        jitter = 4 * x.shape[1] * jnp.finfo(x.dtype).eps * variation
        # a covariate that never varies has no weight
        jitter = jnp.where((variation > 0) | (ridge > 0), jitter + ridge, 1.0)
        factor = jax.scipy.linalg.cho_factor(z.T @ z + jnp.diag(jitter), lower=True)
        weight = jax.scipy.linalg.cho_solve(factor, z.T @ (y - offset))
        return _Regression(weight.T, offset, centre)

    return PolicyClass(fit, _predict)


def logistic(l2: float = 1.0, intercept: bool = True, num_steps: int = 10) -> PolicyClass:
    r"""Logistic regression of each arm's outcomes on the context.

    Minimises :math:`\sum_t \ell(y_{ta}, b_a + w_a^T x_t) + \lambda |w_a|^2 / 2` for every arm a,
    with :math:`\ell(y, z) = \log(1 + e^z) - y z`. This is the `LogisticRegression(C=1 / l2)` of
    scikit-learn.

    All arms are fitted at once by a fixed number of Newton steps, from the best fit without
    covariates. A step is taken in full unless a shorter one, whose length makes a lower loss
    certain, is better. Six steps reach float32 accuracy at a penalty of 1 and ten at 0.01, nearly
    separable data included; a number too small leaves large weights short of their values.

    Args:
        l2: :math:`\lambda`, positive.
        intercept: whether there is :math:`b_a`; otherwise it is 0. It is not penalised but for a
            ridge of 1e-4 at the mean context, which keeps it finite (about -13 in 500 rounds)
            for an arm whose outcomes are all 0 or all 1.
        num_steps: number of Newton steps, at least 1.

    Returns:
        A policy class whose scores are probabilities [K], comparable with rewards in [0, 1].

    Raises:
        ValueError: an l2 that is not positive, a number of steps below one; in `fit`, outcomes
            that are not [T, K] or, where they are known (not traced), outside [0, 1]; contexts of
            another length, or neither contexts nor an intercept.
        TypeError: a number of steps that is not whole.

    Example:
        >>> import jax.numpy as jnp
        >>> from decisionppl.inference import policies
        >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]])
        >>> y = jnp.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> policy = policies.logistic()
        >>> [round(s, 3) for s in policy.score(policy.fit(x, y), jnp.array([1.0])).tolist()]
        [0.732, 0.694]

    References:
        Bach, Self-concordant analysis for logistic regression, arXiv 0910.4627 (step length).
    """
    check_number("l2", l2, lambda v: v > 0, "a positive number")
    num_steps = whole_number("num_steps", num_steps)
    check_number("num_steps", num_steps, lambda v: v >= 1, "a number of Newton steps, at least 1")

    def fit(x: Any, y: Any) -> _Regression:
        if not isinstance(y, Tracer):
            known = np.asarray(y)
            if not ((known >= 0) & (known <= 1)).all():
                raise ValueError(
                    f"y: expected outcomes in [0, 1], got values from {known.min()} to "
                    f"{known.max()}. Rescale them, or use policies.linear()."
                )
        x, y = _table(x, y, intercept)
        return _Regression(*logistic_regressions(x, y, l2, intercept, num_steps))

    return PolicyClass(fit, lambda params, x: jax.nn.sigmoid(_predict(params, x)))


def _predict(params: _Regression, x: Any) -> jax.Array:
    row = _row(x, params.weight.dtype)
    if row.shape != params.centre.shape:
        raise ValueError(
            f"x: the context of one round has {row.size} covariates, but the policy was fitted to "
            f"{params.centre.size}. Give one row of the contexts given to fit."
        )
    return params.weight @ (row - params.centre) + params.offset


def _row(x: Any, dtype: Any) -> jax.Array:
    """Covariates [D] of the context of one round."""
    leaves = [jnp.ravel(jnp.asarray(leaf, dtype)) for leaf in jax.tree.leaves(x)]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0, dtype)


def _table(x: Any, y: Any, intercept: bool) -> tuple[jax.Array, jax.Array]:
    """Covariates [T, D] and outcomes [T, K] in one dtype."""
    y = outcomes_of(y)
    check_rounds(x, y)
    dtype = jnp.result_type(y, *jax.tree.leaves(x))
    rows = jax.vmap(lambda row: _row(row, dtype), axis_size=len(y))(x)
    if rows.shape[1] == 0 and not intercept:
        raise ValueError("x: a regression without an intercept needs contexts, got none.")
    return rows, y.astype(dtype)
