r"""Rental marketplace: units that treated customers book are missing for those who follow.

The state m is the number of free units out of N, and a step is at most one event:

- a customer arrives with probability :math:`\alpha`, and books with probability
  :math:`v_a m / (N + v_a m)`, where the treatment a sets the utility :math:`v_a` of a free unit
  (reward 1, one unit fewer);
- a rented unit comes back with probability :math:`\beta (N - m) / N`;
- nothing happens with probability :math:`1 - \alpha - \beta`, or where the customer does not
  book, or where the unit that would come back is not rented.

This is the birth-death chain of a market in continuous time with customers who arrive at rate
:math:`\lambda N` and rentals that end at rate :math:`\mu` each, watched at the ticks of a Poisson
clock of rate :math:`\Lambda N`: :math:`\alpha = \lambda / \Lambda, \beta = \mu / \Lambda`. The
stationary law is a product, for a market in which each customer is treated with probability
:math:`\theta`:

.. math:: \rho_\theta(m) \propto \prod_{i < m} \frac{\beta (N - i) / N}{b_\theta(i + 1)},
    \qquad b_\theta(m) = \alpha \sum_a \theta_a \frac{v_a m}{N + v_a m},
    \qquad J(\theta) = \sum_m \rho_\theta(m) b_\theta(m).

References:
    Johari, Li, Liskovich and Weintraub, Experimental Design in Two-Sided Platforms, arXiv
    2002.05670, for the market; Farias et al., arXiv 2206.02371, for it as a Markov chain.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import special

import decisionppl as dp
from decisionppl.models._arguments import (
    check_count,
    check_inner_probability,
    check_number,
    check_probability,
    check_treatment,
)
from decisionppl.models._markov import MarkovModel


def rental_marketplace(
    num_units: int = 10,
    *,
    arrival: float = 0.5,
    v0: float = 0.315,
    v1: float = 0.3937,
    idle: float = 0.0,
    p: float = 0.5,
    unknown: bool = False,
) -> MarkovModel:
    r"""A market for rented units, where customers who are treated like free units better.

    Args:
        num_units: number of units N.
        arrival: probability that an event is an arrival; 1/2 where customers arrive, per unit, at
            the rate at which rentals end.
        v0, v1: a customer's utility for a free unit, control and treated.
        idle: share of the steps without an event, :math:`1 - \alpha - \beta`.
        p: probability of treatment under the logging policy.
        unknown: make the four structural parameters latent: `event` [3], the probabilities
            :math:`(\alpha, \beta, 1 - \alpha - \beta)`, uniform over the simplex, and `utility`
            [2], :math:`v_a \sim \mathrm{LogNormal}(-1, 1)`. `arrival`, `v0`, `v1` and `idle` are
            not used. A step is then one round of evidence about them. Trajectories and kernels are
            of a step in which they are fixed, as in `two_state`.

    Returns:
        `MarkovModel`; sites `treat`, `booking`, `return`, `free`; starts with all units free.

    Raises:
        ValueError: a parameter out of range.

    The four parameters are identified by (state, arm, booking, return) if two states at least
    occur under each arm: returns give :math:`\beta`, and bookings, as m varies, give both the
    level :math:`\alpha v_a` and the saturation :math:`v_a` of :math:`\alpha v_a m / (N + v_a m)`.
    If :math:`\alpha + \beta = 1` were taken as known, there would be three parameters; customers
    who see the offer and do not book look like ticks without an event, so that :math:`\alpha` is
    known much less well than :math:`\alpha v_a`, on which J mostly depends.

    Example:
        >>> from decisionppl.inference import markov
        >>> from decisionppl.models import rental_marketplace as market
        >>> model = market.rental_marketplace(10)
        >>> markov.kernel(model.step, model.states).dense().shape
        (2, 11, 11)
        >>> round(market.value(1.0, 10) - market.value(0.0, 10), 10)
        0.0153478329
    """
    count = check_count("num_units", num_units)
    check_treatment(p)
    shares, known = _parameters(arrival, v0, v1, idle)

    def step(free: Any) -> Any:
        if unknown:
            event = jnp.asarray(numpyro.sample("event", dist.Dirichlet(jnp.ones(3))))
            arrive, back = event[0], event[1]
            prior = dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1)
            utility = jnp.asarray(numpyro.sample("utility", prior))
        else:
            (arrive, back), utility = shares, jnp.asarray(known)
        treat = dp.action("treat", dist.Bernoulli(p), given=free)
        # zero as a constant: second derivatives of log(0 * x) are NaN
        book = jnp.where(free > 0, arrive * _books(utility[treat], free, count), 0.0)
        booked = dp.reward("booking", dist.Bernoulli(book))
        # at most one event a step: a unit comes back only where none was booked
        end = back * (count - free) / count / (1 - book)
        possible = (booked == 0) & (free < count)
        returned = dp.outcome("return", dist.Bernoulli(jnp.where(possible, end, 0.0)))
        return dp.state("free", free - booked + returned)

    return MarkovModel(step, np.asarray(count), np.arange(count + 1), None)


def stationary(
    theta: float,
    num_units: int = 10,
    *,
    arrival: float = 0.5,
    v0: float = 0.315,
    v1: float = 0.3937,
) -> np.ndarray:
    """Long-run share of time with each number of free units.

    The product is a sum of logarithms, so that it neither overflows nor underflows however many
    units there are.

    Args:
        theta: probability of treatment, from 0 to 1.
        num_units, arrival, v0, v1: as in `rental_marketplace`; idle steps change nothing here.

    Returns:
        float64 [num_units + 1].

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from decisionppl.models import rental_marketplace as market
        >>> market.stationary(0.5, 2).round(3).tolist()
        [0.049, 0.326, 0.625]
    """
    count = check_count("num_units", num_units)
    free = np.arange(count + 1)
    (_, back), _ = _parameters(arrival, v0, v1, 0.0)
    rise = np.log(back) + np.log((count - free[:-1]) / count)
    fall = np.log(_bookings(theta, count, arrival, v0, v1)[1:])
    return special.softmax(np.concatenate([[0.0], np.cumsum(rise - fall)]))


def value(
    theta: float,
    num_units: int = 10,
    *,
    arrival: float = 0.5,
    v0: float = 0.315,
    v1: float = 0.3937,
    idle: float = 0.0,
) -> float:
    r"""Bookings per step :math:`J(\theta)` in the long run.

    Args:
        theta: probability of treatment, from 0 to 1.
        num_units, arrival, v0, v1, idle: as in `rental_marketplace`.

    Returns:
        J in double precision.

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from decisionppl.models import rental_marketplace as market
        >>> round(market.value(1.0, 10_000) - market.value(0.0, 10_000), 6)
        0.015534
    """
    _parameters(arrival, v0, v1, idle)
    law = stationary(theta, num_units, arrival=arrival, v0=v0, v1=v1)
    return float((1 - idle) * law @ _bookings(theta, num_units, arrival, v0, v1))


def _parameters(
    arrival: float, v0: float, v1: float, idle: float
) -> tuple[tuple[float, float], np.ndarray]:
    """Probabilities of an arrival and of a return (of a rented unit), and the utilities [arms]."""
    check_inner_probability("arrival", arrival)
    for name, v in (("v0", v0), ("v1", v1)):
        check_number(name, v, above=0)
    if check_probability("idle", idle) == 1:
        raise ValueError("idle: expected less than 1, got 1: nothing would ever happen.")
    event = 1 - idle
    return (event * arrival, event * (1 - arrival)), np.array([v0, v1], float)


def _books(utility: Any, free: Any, count: int) -> Any:
    """Probability that a customer books."""
    return utility * free / (count + utility * free)


def _bookings(theta: float, count: int, arrival: float, v0: float, v1: float) -> np.ndarray:
    """Probability of a booking in a step that has an event, [states]."""
    check_probability("theta", theta)
    free = np.arange(count + 1)
    return arrival * (theta * _books(v1, free, count) + (1 - theta) * _books(v0, free, count))
