"""Markov models whose policy value has a closed form."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import special

import decisionppl as dp
from decisionppl.testing._check import check_positive, check_probability


class MarkovReference(NamedTuple):
    r"""Markov model that moves to neighbouring states only, and the truths of its experiment.

    Such a birth-death chain is reversible, so its stationary law is a product: with u(i) and
    d(i) the probabilities of moving up and down from i when each step is treated with
    probability :math:`\theta`,

    .. math:: \rho_\theta(m) \propto \prod_{i<m} u(i) / d(i + 1), \quad
        J(\theta) = \sum_m \rho_\theta(m) r_\theta(m).

    Made by `two_state_mdp` and `rental_marketplace`. Arms are 0 (control) and 1 (treated).

    Attributes:
        model: one step, `state -> next state`; sites `treat`, a state and a reward.
        args: its example arguments, one state.
        transition: float64 [arms, states, next states].
        reward: expected reward, float64 [arms, states].
        p: probability of treatment under the model's logging policy.
    """

    model: Callable
    args: tuple
    transition: np.ndarray
    reward: np.ndarray
    p: float

    def stationary(self, theta: float) -> np.ndarray:
        """Long-run share of time in each state, [states], in product form.

        Args:
            theta: probability of treatment, from 0 to 1.
        """
        return special.softmax(_log_product(np.log(_moves(self._mixed(self.transition, theta)))))

    def value(self, theta: float) -> float:
        """Average reward per step J(theta).

        Args:
            theta: probability of treatment, from 0 to 1.
        """
        return float(self.stationary(theta) @ self._mixed(self.reward, theta))

    def effect(self) -> float:
        """Average treatment effect J(1) - J(0)."""
        return self.value(1.0) - self.value(0.0)

    def naive(self, p: float | None = None) -> float:
        """What a comparison of treated with control steps estimates: ignores later states.

        Args:
            p: probability of treatment in the experiment; default the logging policy's.
        """
        p = self.p if p is None else p
        return float(self.stationary(p) @ (self.reward[1] - self.reward[0]))

    def dq(self, p: float | None = None) -> float:
        r"""Differences-in-Q estimand J'(p), by exact differentiation of the product form.

        With :math:`g = \partial_\theta \log \rho_\theta` up to a constant, it is the naive
        estimand plus the covariance of g and the reward under :math:`\rho_p`.

        Args:
            p: probability of treatment in the experiment; default the logging policy's.
        """
        p = self.p if p is None else p
        change = _moves(self.transition[1]) - _moves(self.transition[0])
        score = _log_product(change / _moves(self._mixed(self.transition, p)))
        law = self.stationary(p)
        return self.naive(p) + float(law * (score - law @ score) @ self._mixed(self.reward, p))

    def _mixed(self, arms: np.ndarray, theta: float) -> np.ndarray:
        if not 0 <= theta <= 1:
            raise ValueError(f"expected a probability of treatment from 0 to 1, got {theta!r}.")
        return theta * arms[1] + (1 - theta) * arms[0]


def _moves(transition: np.ndarray) -> np.ndarray:
    """Probabilities of i -> i + 1 (first row) and i + 1 -> i (second row), [2, states - 1]."""
    return np.stack([np.diagonal(transition, 1), np.diagonal(transition, -1)])


def _log_product(moves: np.ndarray) -> np.ndarray:
    """Running sums of up minus down, [states], starting from 0 in the first state."""
    return np.concatenate([[0.0], np.cumsum(moves[0] - moves[1])])


def _tridiagonal(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Kernel [arms, states, states] from the probabilities [arms, states] of the two moves."""
    arms = zip(up, down, strict=True)
    return np.stack([np.diag(u[:-1], 1) + np.diag(d[1:], -1) + np.diag(1 - u - d) for u, d in arms])


def two_state_mdp(
    *,
    up: tuple[float, float] = (0.1, 0.4),
    down: tuple[float, float] = (0.2, 0.5),
    reward: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 1.0), (5.0, 6.0)),
    p: float = 0.5,
) -> MarkovReference:
    """Two states, where the treatment moves the chain and so changes what later steps earn.

    Args:
        up: probability of moving from state 0 to 1, (control, treated).
        down: probability of moving from state 1 to 0, (control, treated).
        reward: reward[state][arm] of a step.
        p: probability of treatment under the logging policy.

    Returns:
        A `MarkovReference`; sites `treat`, `reward`, `state`.

    Raises:
        ValueError: a probability out of range.

    Example:
        >>> from decisionppl.testing import reference
        >>> chain = reference.two_state_mdp()
        >>> round(chain.effect(), 8), round(chain.naive(), 8), round(chain.dq(), 8)
        (1.55555556, 1.0, 1.41666667)

    References:
        Farias et al., arXiv 2206.02371, for the estimands.
    """
    for arm in range(2):
        check_probability(f"up[{arm}]", up[arm])
        check_probability(f"down[{arm}]", down[arm])
    check_probability("p", p)
    table = np.array(reward, float)
    by_arm = np.array([[up[a], down[a]] for a in range(2)])  # [arms, states]: of leaving a state

    def step(state: Any) -> Any:
        treat = dp.action("treat", dist.Bernoulli(p), given=state)
        dp.reward("reward", jnp.asarray(table)[state, treat])
        leave = jnp.asarray(by_arm)[treat, state]
        return dp.state("state", dist.Bernoulli(jnp.where(state == 1, 1 - leave, leave)))

    transition = _tridiagonal(by_arm * [1, 0], by_arm * [0, 1])
    return MarkovReference(step, (jnp.asarray(0),), transition, table.T.copy(), p)


def rental_marketplace(
    num_units: int = 10,
    *,
    arrival: float = 0.5,
    v0: float = 0.315,
    v1: float = 0.3937,
    p: float = 0.5,
) -> MarkovReference:
    r"""Rental marketplace: units that treated customers book are missing for those who follow.

    The state m is the number of free units out of N. An event is the arrival of a customer with
    probability `arrival`, who books with probability :math:`v_a m / (N + v_a m)` (reward 1, one
    unit fewer). Otherwise a unit comes back with probability :math:`(N - m) / N`. Treatment
    raises :math:`v_0` to :math:`v_1`.

    Args:
        num_units: number of units N; `transition` holds 2 (N + 1)^2 numbers.
        arrival: probability that an event is an arrival; 1/2 where the rates of arrival per
            unit and of return are equal.
        v0, v1: a customer's utility for a free unit, control and treated.
        p: probability of treatment under the logging policy.

    Returns:
        A `MarkovReference`; sites `treat`, `booking`, `return`, `free`. With the default
        parameters the naive estimand overstates the effect by about a fifth.

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from decisionppl.testing import reference
        >>> market = reference.rental_marketplace(10)
        >>> round(market.effect(), 10), round(market.naive(), 10), round(market.dq(), 10)
        (0.0153478329, 0.0187418484, 0.0153470436)

    References:
        Farias et al., arXiv 2206.02371; the model of a marketplace is due to Johari et al.,
        Experimental Design in Two-Sided Platforms, arXiv 2002.05670.
    """
    check_positive(num_units=num_units, v0=v0, v1=v1)
    check_probability("arrival", arrival)
    check_probability("p", p)

    def booking_probability(v: Any, free: Any) -> Any:
        return arrival * v * free / (num_units + v * free)

    def step(free: Any) -> Any:
        treat = dp.action("treat", dist.Bernoulli(p), given=free)
        book = booking_probability(jnp.where(treat == 1, v1, v0), free)
        booked = dp.reward("booking", dist.Bernoulli(book))
        # one event a step: a return can only follow where there was no booking
        back = (1 - arrival) * (num_units - free) / num_units / (1 - book)
        returned = dp.outcome("return", dist.Bernoulli(jnp.where(booked == 1, 0.0, back)))
        return dp.state("free", free - booked + returned)

    free = np.arange(num_units + 1)
    down = np.stack([booking_probability(v, free) for v in (v0, v1)])
    up = np.stack([(1 - arrival) * (num_units - free) / num_units] * 2)
    return MarkovReference(step, (jnp.asarray(num_units),), _tridiagonal(up, down), down, p)
