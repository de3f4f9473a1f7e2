"""Zones and periods: a ride-hailing city in which each zone has a coin for each stretch of time.

The city of the gallery, a price raised; requests of one day after some hours of burn-in. Requests
are units. The coins that reach one are its own (zone of origin, stretch) and those of zones at most
one block away whose stretch was not over for more than ten minutes: as far as a driver is sent, and
somewhat longer than a trip lasts. The truth is `effects.simulated`, all treated against none, over
the same hours. Errors are in percent of it.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from _common import finish, parser, row
from numpyro import handlers

import decisionppl as dp
from decisionppl.inference import designs, effects, network
from decisionppl.models import ride_hailing

LENGTHS = (120, 300, 600, 900, 1200, 1800, 3600)
WINDOW, BURN_IN, DAY, ZONES = 600.0, 4000, 86_400.0, 25
GRID = np.stack(np.divmod(np.arange(ZONES), 5), axis=1)
NEAR = np.abs(GRID[:, None] - GRID).sum(2) <= 1
CITY = ride_hailing.ride_hailing(period=DAY)


def one_day(length, num_steps, key, table):
    """Time of day, zones of origin and destination and fare of a day's requests, [requests]."""

    def rule(given, space):
        return table[(given.city.clock // length).astype(int), given.origin]

    def forward(city, t):
        after = []
        step = lambda city: after.append(CITY.step(city))  # noqa: E731
        trace = dp.play(step, jax.random.fold_in(key, t), policy=rule)(city)
        seen = (trace[name]["value"] for name in ("clock", "origin", "destination", "fare"))
        return after[0], tuple(seen)

    begin, key = jax.random.split(key)
    city = handlers.seed(CITY.init, begin)()
    city = jax.lax.fori_loop(0, BURN_IN, lambda t, c: forward(c, t)[0], city)
    return jax.lax.scan(forward, city, BURN_IN + jnp.arange(num_steps))[1]


@partial(jax.jit, static_argnums=(1, 2))
def days(key, length, num_steps, tables):
    """The same of several days, [days, requests]."""
    keys = jax.random.split(key, len(tables))
    return jax.vmap(partial(one_day, length, num_steps))(keys, tables)


COVARIATES = "DN, baseline by covariates"
ESTIMATORS = {
    "difference in means": network.difference_in_means,
    "DN": network.dn,
    COVARIATES: network.dn,
    "DN without baseline": partial(network.dn, baseline=False),
    "Horvitz-Thompson": network.horvitz_thompson,
}


def covariates(time, origin, destination):
    """What is known of a request before it is treated: length of the trip, time, place."""
    blocks = np.abs(GRID[origin] - GRID[destination]).sum(1)
    angle = 2 * np.pi * time / DAY
    outward = np.abs(GRID[origin] - 2).sum(1)
    return np.stack([blocks, blocks**2, np.sin(angle), np.cos(angle), outward], axis=1)


def frontier(length, effect, num_days, num_steps, seed):
    """Estimates [days] and standard errors of each estimator, in percent of the effect."""
    stretches = int(DAY // length) + 1
    key = jax.random.fold_in(jax.random.key(seed), length)
    tables = jax.random.bernoulli(key, 0.5, (num_days, stretches, ZONES)).astype(int)
    time, zone, end, fare = map(
        np.asarray, days(jax.random.fold_in(key, 1), length, num_steps, tables)
    )
    size, found = None, {name: [] for name in ESTIMATORS}
    for d in range(num_days):
        cell = (time[d] // length).astype(int) * ZONES + zone[d]
        design = designs.Design(np.full(stretches * ZONES, 0.5), cell[:, None].astype(np.int32))
        pairs = network.recent(design, time[d], length, window=WINDOW, zone=zone[d], near=NEAR)
        size = size or 1 << int(1.1 * len(pairs[0])).bit_length()
        reach = network.interference(design, pairs=pairs, size=size)
        drawn = np.asarray(tables[d]).ravel()
        data = network.NetworkData(fare[d], drawn, design.probability, reach)
        for name, estimate in ESTIMATORS.items():
            known = {"features": covariates(time[d], zone[d], end[d])} if name == COVARIATES else {}
            one = estimate(data, **known)
            found[name].append([float(one.estimate), float(one.stderr)])
    return {n: np.asarray(x).T / effect * 100 for n, x in found.items()}


def rows(options):
    num_days, num_steps, pairs = (4, 1500, 4) if options.smoke else (60, 15_000, 64)
    lengths = LENGTHS[:1] + LENGTHS[-1:] if options.smoke else LENGTHS
    truth = effects.simulated(
        CITY.step, CITY.init, num_steps, key=options.seed, num_runs=pairs, burn_in=BURN_IN
    )
    effect = float(truth.estimate)
    found = [
        row("the effect", effect, "per request"),
        row("its standard error", 100 * float(truth.stderr) / effect, "% of it"),
    ]
    for length in lengths:
        spread = {}
        table = frontier(length, effect, num_days, num_steps, options.seed)
        for name, (estimate, stderr) in table.items():
            off, sd = estimate - 100, estimate.std(ddof=1)
            spread[name] = sd
            mean = estimate.mean()
            cover = np.mean(np.abs(estimate - mean) < 1.96 * stderr)
            found.append(row(
                f"stretches of {length} s: {name} (bias {off.mean():+.1f}, sd {sd:.1f}, {num_days} "
                f"days, mean standard error {stderr.mean():.1f}, covers its own mean {cover:.2f})",
                np.sqrt((off**2).mean()), "% RMSE",
            ))  # fmt: skip
        for name in ("DN", COVARIATES):
            ratio = spread[name] / spread["DN without baseline"]
            found.append(row(f"stretches of {length} s: sd of {name}, as a share of that without",
                             ratio, "", 0.25, least=False))  # fmt: skip
    return found


def main():
    options = parser(__doc__).parse_args()
    finish([{**r, "part": "city"} for r in rows(options)], options, earlier=True)


if __name__ == "__main__":
    main()
