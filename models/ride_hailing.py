r"""Ride hailing in a grid city: riders who accept take drivers away from those who follow.

A step is one request. The city is side x side zones; going from zone i to j takes
:math:`T_{ij} = b (1 + |i - j|_1)` seconds. The state is the time of day c, and of each driver the
zone and the seconds left until free. With :math:`w = 2 \pi c / \mathrm{period}`:

.. math::

    \text{gap to the request} &\sim \mathrm{Exponential}((1 - \kappa \cos w) / g), \\
    \text{origin} &\sim \mathrm{Categorical}(\propto e^{\tau \sin(w) h}), \quad
    \text{destination} \sim \mathrm{Categorical}(\propto e^{-\tau \sin(w) h}), \\
    \text{accepted} &\sim \mathrm{Bernoulli}(
        \mathrm{logistic}(\alpha - \beta_1 \text{fare} - \beta_2 \text{wait})),

where h, between -1 and 1, says how far out a zone is: the tide goes into the centre in the first
half of the day and out in the second. The fare is :math:`\pi T` of the trip. The nearest free
driver is offered, at a wait of T to the origin, unless that is more than the radius :math:`\rho`;
then the request is lost. A driver whose ride was accepted is busy for the wait and the trip, and
waits at the destination afterwards. The reward is the fare of an accepted request.

Two experiments: the treatment raises the price :math:`\pi` ("pricing"), or widens the radius
:math:`\rho` ("dispatch"). In both, what a request does to the fleet is felt by later requests under
the other arm, so a comparison of treated with control requests is wrong: a rider who declines the
higher price leaves a driver for others, and one who gets a driver from afar costs others more than
a ride.

The rate of requests is that at the last one, since gaps are short against the day.

The defaults are round numbers of supply and demand: 100 drivers, trips of eight minutes on average,
a request every four seconds. At p = 1/2 about three quarters of the fleet are busy, and 45 % of the
requests are accepted; the others find no driver near, or decline. Raising the price of all requests
earns 0.680 more per request (standard error 0.005, 16 pairs of runs of two days with the same
random numbers), and comparing treated with control requests says 0.429 (0.008), 37 % less.
Widening the radius of all requests earns 0.12 (0.005), and the comparison says 0.60, five times as
much.

References:
    The effects of such experiments are the subject of Farias et al., arXiv 2206.02371, and Peng, Ye
    and Zheng, Differences-in-Neighbors, arXiv 2503.02271. The city and its numbers are our own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.models._arguments import check_count, check_number, check_pair, check_treatment
from decisionppl.models._markov import MarkovModel

_TREATMENTS = ("pricing", "dispatch")
_SOON = 300.0  # seconds; features tell drivers who are free within this from the others


class City(NamedTuple):
    """State of the city, after a request.

    Durations, not times of a running clock: these keep their precision in long runs.

    Attributes:
        clock: time of day in seconds, from 0 to the period.
        zone: [drivers], where each driver is, or will be once free.
        busy: [drivers], seconds until each is free; 0 for those who are.
    """

    clock: Any
    zone: Any
    busy: Any


class Request(NamedTuple):
    """What is known when a request is treated or not.

    Attributes:
        city: the city at the time of the request.
        origin, destination: zones.
    """

    city: City
    origin: Any
    destination: Any


def ride_hailing(
    *,
    treatment: str = "pricing",
    side: int = 5,
    num_drivers: int = 100,
    gap: float = 4.0,
    swing: float = 0.4,
    tide: float = 0.7,
    period: float = 86_400.0,
    block: float = 120.0,
    price: tuple[float, float] = (0.01, 0.015),
    radius: tuple[float, float] = (300.0, 420.0),
    appeal: float = 3.0,
    price_weight: float = 0.22,
    wait_weight: float = 0.005,
    p: float = 0.5,
) -> MarkovModel:
    r"""A city of drivers and riders, one request a step.

    Args:
        treatment: "pricing", treated riders pay `price[1]`; or "dispatch", treated requests are
            offered drivers up to `radius[1]` away. The other pair's first number holds for all.
        side: zones along each side of the city.
        num_drivers: size of the fleet.
        gap: seconds between requests g, on average over the day.
        swing: how much demand varies over the day :math:`\kappa`, from 0 to below 1.
        tide: how much origins and destinations vary over the day :math:`\tau`.
        period: length of a day in seconds.
        block: seconds to cross a zone b.
        price: per second of the trip :math:`\pi`, (control, treated).
        radius: longest wait of an offer in seconds :math:`\rho`, (control, treated).
        appeal, price_weight, wait_weight: a rider's log-odds of accepting
            :math:`\alpha, \beta_1, \beta_2`.
        p: probability of treatment under the logging policy.

    Returns:
        `MarkovModel`; sites `gap`, `origin` and `destination`, which no treatment changes, `treat`,
        `accept`, `fare`, and the computed states `clock`, `zone`, `busy`. `init` starts the day
        with the fleet spread over the zones, half of it busy: its sites are `at` and `left`. A few
        thousand steps of `burn_in` bring it to its own balance. `features(city)` are the free
        drivers in each zone, the drivers who will be free there within five minutes (both relative
        to an even spread of the fleet), two harmonics of the time of day and a constant,
        [2 side^2 + 5].

    Raises:
        ValueError: a parameter out of range.

    Example:
        >>> from decisionppl.inference import markov
        >>> import jax
        >>> from decisionppl.models import ride_hailing
        >>> city = ride_hailing.ride_hailing(num_drivers=20, gap=20.0)
        >>> runs = markov.rollout(city.step, city.init, 500, key=0, burn_in=100)
        >>> runs.state.busy.shape, jax.vmap(jax.vmap(city.features))(runs.state).shape
        ((1, 501, 20), (1, 501, 55))
    """
    count, zones = check_count("num_drivers", num_drivers), check_count("side", side, 2) ** 2
    if treatment not in _TREATMENTS:
        raise ValueError(f"treatment: expected one of {_TREATMENTS}, got {treatment!r}.")
    for name, x in (("gap", gap), ("period", period), ("block", block)):
        check_number(name, x, above=0)
    for name, pair in (("price", price), ("radius", radius)):
        for arm, x in enumerate(check_pair(name, pair)):
            check_number(f"{name}[{arm}]", x, above=0)
    for name, x in (
        ("swing", swing), ("price_weight", price_weight), ("wait_weight", wait_weight),
    ):  # fmt: skip
        check_number(name, x, least=0)
    if swing >= 1:
        raise ValueError(f"swing: expected a number from 0 to below 1, got {swing!r}.")
    check_number("tide", tide)
    check_number("appeal", appeal)
    check_treatment(p)
    travel, outward = _map(side, block)
    prices = tuple(price) if treatment == "pricing" else (price[0], price[0])
    radii = tuple(radius) if treatment == "dispatch" else (radius[0], radius[0])

    def init() -> City:
        spread = dist.CategoricalLogits(jnp.zeros(zones)).expand([count]).to_event(1)
        zone = numpyro.sample("at", spread)
        mean = float(travel.mean())
        left = numpyro.sample("left", dist.Uniform(-mean, mean).expand([count]).to_event(1))
        return City(jnp.asarray(0.0), zone, jnp.maximum(left, 0.0))

    def step(city: City) -> City:
        rate = (1 - swing * jnp.cos(_angle(city.clock, period))) / gap
        passed = numpyro.sample("gap", dist.Exponential(rate))
        clock = dp.state("clock", jnp.mod(city.clock + passed, period))
        busy = jnp.maximum(city.busy - passed, 0.0)
        lean = tide * jnp.sin(_angle(clock, period)) * jnp.asarray(outward, clock.dtype)
        origin = numpyro.sample("origin", dist.CategoricalLogits(lean))
        destination = numpyro.sample("destination", dist.CategoricalLogits(-lean))
        now = Request(City(clock, city.zone, busy), origin, destination)
        treat = dp.action("treat", dist.Bernoulli(p), given=now)

        seconds = jnp.asarray(travel, clock.dtype)
        waits = jnp.where(busy > 0, jnp.inf, seconds[origin][city.zone])
        driver = jnp.argmin(waits)
        offered = waits[driver] <= jnp.asarray(radii)[treat]
        wait = jnp.where(offered, waits[driver], 0.0)
        trip = seconds[origin, destination]
        fare = jnp.asarray(prices)[treat] * trip
        wish = jax.nn.sigmoid(appeal - price_weight * fare - wait_weight * wait)
        accept = dp.outcome("accept", dist.Bernoulli(jnp.where(offered, wish, 0.0)))
        dp.reward("fare", accept * fare)

        taken = (jnp.arange(count) == driver) & (accept == 1)
        return City(
            clock,
            dp.state("zone", jnp.where(taken, destination, city.zone)),
            dp.state("busy", jnp.where(taken, wait + trip, busy)),
        )

    def features(city: City) -> jax.Array:
        here = city.zone == jnp.arange(zones)[:, None]
        free, soon = city.busy <= 0, (city.busy > 0) & (city.busy <= _SOON)
        counts = [jnp.sum(here & who, axis=1) * zones / count for who in (free, soon)]
        angle = _angle(city.clock, period)
        day = [jnp.sin(angle), jnp.cos(angle), jnp.sin(2 * angle), jnp.cos(2 * angle)]
        return jnp.concatenate([*counts, jnp.stack([*day, jnp.ones_like(angle)])])

    return MarkovModel(step, init, None, features)


def _map(side: int, block: float) -> tuple[np.ndarray, np.ndarray]:
    """Seconds between zones [zones, zones], and how far out each is, from -1 to 1, [zones]."""
    grid = np.stack(np.divmod(np.arange(side * side), side), axis=1)
    travel = block * (1 + np.abs(grid[:, None] - grid).sum(2))
    far = np.abs(grid - (side - 1) / 2).sum(1)
    if far.min() == far.max():  # four zones, all corners
        return travel, np.zeros(len(far))
    return travel, 2 * (far - far.min()) / (far.max() - far.min()) - 1


def _angle(clock: Any, period: float) -> Any:
    """Time of day as an angle."""
    return 2 * jnp.pi / period * clock
