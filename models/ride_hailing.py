"""Ride hailing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.models._markov import MarkovModel


class City(NamedTuple):
    clock: Any
    place: Any
    busy: Any


def ride_hailing(
    *,
    side=5,
    num_drivers=100,
    treatment="pricing",
    gap=4.0,
    swing=0.4,
    tide=1.0,
    period=86_400.0,
    block=120.0,
    price=(0.01, 0.02),
    radius=(400.0, 800.0),
    appeal=4.0,
    price_weight=0.3,
    wait_weight=0.005,
    p=0.5,
):
    zones = side * side
    grid = np.stack(np.divmod(np.arange(zones), side), axis=1)
    blocks = np.abs(grid[:, None] - grid[None]).sum(2)
    seconds = (block * (blocks + 1)).astype(np.float32)
    outward = np.abs(grid - (side - 1) / 2).sum(1)
    outward = (outward - outward.mean()) / np.abs(outward - outward.mean()).max()

    fares = price if treatment == "pricing" else (price[0],) * 2
    reach = radius if treatment == "dispatch" else (radius[0],) * 2

    def init():
        place = numpyro.sample("place", dist.Categorical(jnp.full(zones, 1 / zones)).expand([num_drivers]))
        mean = float(seconds.mean())
        left = numpyro.sample("left", dist.Uniform(-mean, mean).expand([num_drivers]))
        return City(jnp.asarray(0.0), place, jnp.maximum(left, 0.0))

    def step(city):
        wave = 2 * jnp.pi / period * city.clock
        since = numpyro.sample("gap", dist.Exponential((1 - swing * jnp.cos(wave)) / gap))
        clock = jnp.mod(city.clock + since, period)
        busy = jnp.maximum(city.busy - since, 0.0)
        wave = 2 * jnp.pi / period * clock
        lean = tide * jnp.sin(wave) * jnp.asarray(outward, busy.dtype)
        origin = numpyro.sample("origin", dist.Categorical(logits=lean))
        target = numpyro.sample("destination", dist.Categorical(logits=-lean))
        treat = dp.action("treat", dist.Bernoulli(p), given=city)
        table = jnp.asarray(seconds)
        pickup = jnp.where(busy > 0, jnp.inf, table[origin][city.place])
        driver = jnp.argmin(pickup)
        wait = pickup[driver]
        offered = wait <= jnp.asarray(reach)[treat]
        trip = table[origin, target]
        fare = jnp.asarray(fares)[treat] * trip
        wish = appeal - price_weight * fare - wait_weight * jnp.where(offered, wait, 0.0)
        accept = dp.outcome("accept", dist.Bernoulli(jnp.where(offered, jax.nn.sigmoid(wish), 0.0)))
        dp.reward("fare", accept * fare)
        taken = (jnp.arange(num_drivers) == driver) & (accept == 1)
        return City(
            dp.state("clock", clock),
            dp.state("place", jnp.where(taken, target, city.place)),
            dp.state("busy", jnp.where(taken, wait + trip, busy)),
        )

    return MarkovModel(step, init, None, None)
