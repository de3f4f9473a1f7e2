"""Experiments on networks: exactness, a small world, a city by zone and period, panels, speed.

With `--only` the other parts of an existing `--out` are kept, so that parts can be run apart.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import itertools
import time
from functools import partial

import _network_city
import _synthetic_control
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from _common import row, run_parts, seconds

from decisionppl import testing
from decisionppl.inference import designs, network
from decisionppl.models import network as gallery

UNITS = 8


def all_draws(design):
    drawn = np.array(list(itertools.product((0, 1), repeat=design.num_coins)))
    return drawn, np.where(drawn == 1, design.probability, 1 - design.probability).prod(1)


def coins_of(reach, unit):
    return np.append(reach.own[unit], np.asarray(reach.coin)[np.asarray(reach.unit) == unit])


def outcomes(design, reach, drawn, rng, kind, spill=1.0):
    """Outcomes [draws, units] of everything that the coins may say."""
    found = []
    for i in range(design.num_units):
        coins = coins_of(reach, i)
        if kind == "any":
            table = rng.normal(1.0, 2.0, 2 ** len(coins))
            found.append(table[drawn[:, coins] @ 2 ** np.arange(len(coins))])
            continue
        own, slopes = drawn[:, coins[0]], rng.normal(0.5, 0.5, (2, len(coins) - 1))
        felt = [spill * drawn[:, coins[1:]] @ s for s in slopes]
        if kind == "curved":
            felt = [f + f**2 for f in felt]
        found.append(rng.normal(2.0) + rng.normal() * own + felt[0] + own * felt[1])
    return np.stack(found, axis=1)


def bias(design, reach, kind, estimate, seed, spill=1.0):
    """Expected estimate less the effect, by enumeration."""
    drawn, chance = all_draws(design)
    y = outcomes(design, reach, drawn, np.random.default_rng(seed), kind, spill)
    ends = y[(drawn == 1).all(1)].mean() - y[(drawn == 0).all(1)].mean()
    data = network.NetworkData(y, drawn, design.probability, reach)
    return chance @ np.asarray(estimate(data).estimate) - ends


def exact(options):
    """Everything by enumeration, in double precision."""
    graph = network.graph(nx.random_regular_graph(4, UNITS, seed=options.seed))
    uneven = np.random.default_rng(options.seed).uniform(0.2, 0.8, UNITS)
    unit, half = designs.unit(UNITS, uneven), designs.unit(UNITS)
    several = {
        "unit": unit, "clusters": designs.cluster(np.arange(UNITS) // 2, uneven[: UNITS // 2]),
    }  # fmt: skip
    plain = partial(network.dn, baseline=False)
    with jax.enable_x64(True):
        rows = []
        for name, design in several.items():
            reach = network.interference(design, graph)
            for what, kind, estimate in (
                ("Horvitz-Thompson, any outcomes", "any", network.horvitz_thompson),
                ("DN, additive interference", "additive", plain),
                ("DN with baseline, additive interference", "additive", network.dn),
            ):
                off = abs(bias(design, reach, kind, estimate, options.seed))
                rows.append(row(f"{name}, unequal p: bias of {what}", off, "", 1e-10, least=False))
        reach = network.interference(half, graph)
        drawn, _ = all_draws(half)
        y = outcomes(half, reach, drawn, np.random.default_rng(1), "any")
        data = network.NetworkData(y, drawn, half.probability, reach)

        def distance(one, other):
            return float(np.abs(one.estimate - other.estimate).max())

        single = data._replace(reach=network.interference(designs.cluster(range(UNITS)), graph))
        empty = data._replace(reach=network.interference(half))
        score = drawn / 0.5 - (1 - drawn) / 0.5
        same = {
            "p = 1/2: DN and SNIPE of order 1": distance(network.dn(data), network.snipe(data)),
            "p = 1/2: SNIPE of orders 1 and 2": distance(
                network.snipe(data), network.snipe(data, 2)
            ),
            "clusters of one and units: DN": distance(network.dn(single), network.dn(data)),
            "SNIPE of the highest order and Horvitz-Thompson": distance(
                network.snipe(data, 5, baseline=False), network.horvitz_thompson(data)
            ),
            "no graph: DN and the weighted difference in means": float(
                np.abs(plain(empty).estimate - (score * y).mean(1)).max()
            ),
        }
        rows += [
            row(f"{n}, largest difference", x, "", 1e-10, least=False) for n, x in same.items()
        ]
        reach = network.interference(unit, graph)
        order = testing.bias_order(
            lambda spill: bias(unit, reach, "curved", plain, options.seed, float(spill)), order=2
        )
    slope = float(np.asarray(order.slopes)[-1])
    rows.append(row(f"DN, curved interference, unequal p: order of the bias {slope:.3f}, distance "
                    "to 2", abs(slope - 2), "", 0.15, least=False))  # fmt: skip
    return rows


SMALL_WORLD = {
    "difference in means": network.difference_in_means,
    "DN": network.dn,
    "DN without baseline": partial(network.dn, baseline=False),
    "SNIPE of order 2": partial(network.snipe, order=2),
    "Horvitz-Thompson": network.horvitz_thompson,
    "Hajek": network.hajek,
}
TARGETS = {"unit": 11.0, "clusters of 20": 7.0}


def small_world(options):
    """2,000 units, ten neighbours each, saturating spillovers."""
    num_runs, rows = (20, []) if options.smoke else (1000, [])
    graph = network.graph(nx.watts_strogatz_graph(2000, 10, 0.05, seed=options.seed))
    market = gallery.spillovers(graph)
    made = {"unit": designs.unit(2000), "clusters of 20": designs.cluster(np.arange(2000) // 20)}
    for i, (name, design) in enumerate(made.items()):
        reach = network.interference(design, graph)
        key = jax.random.key(options.seed + i)
        data = network.experiment(market.model, design, reach, key=key, num_runs=num_runs)
        for who, estimate in SMALL_WORLD.items():
            found = estimate(data)
            value, stderr = (np.asarray(x) / market.effect * 100 for x in found[:2])
            some = np.isfinite(value)
            off, wide = value[some] - 100, 1.96 * stderr[some]
            target = TARGETS[name] if who == "DN" else None
            rows.append(row(
                f"{name}, {num_runs} runs: {who} (bias {off.mean():+.1f}, sd {off.std():.1f}, mean "
                f"standard error {stderr[some].mean():.1f}, no estimate in {np.mean(~some):.0%})",
                np.sqrt((off**2).mean()), "% RMSE", target, least=False,
            ))  # fmt: skip
            covers = np.mean(np.abs(off) < wide)
            if who == "DN":  # wanted: .92 to .97
                what = f"{name}: {who}, 95 % intervals cover the effect in {covers:.3f}"
                off = abs(covers - 0.945)
                rows.append(row(f"{what}, distance to .945", off, "", 0.025, least=False))
            else:
                rows.append(row(f"{name}: {who}, 95 % intervals cover the effect", covers, ""))
    return rows


def speed(options):
    """One experiment of many units, ten neighbours each, from edges to interval."""
    count = 20_000 if options.smoke else 1_000_000
    rng = np.random.default_rng(options.seed)
    receiver = np.repeat(np.arange(count), 10)
    sender = (receiver + rng.integers(1, 50, len(receiver))) % count
    start = time.perf_counter()
    graph = network.graph(np.stack([sender, receiver], 1), count, directed=True)
    made = time.perf_counter() - start
    design = designs.unit(count)
    start = time.perf_counter()
    reach = network.interference(design, graph)
    reached = time.perf_counter() - start
    data = network.NetworkData(
        rng.normal(size=count).astype(np.float32), rng.integers(0, 2, count),
        design.probability, reach,
    )  # fmt: skip
    data = jax.tree.map(jnp.asarray, data)
    weights = len(graph.receiver) + count  # one for each unit and each of its neighbours
    rows = [
        row(f"{count} units, {len(graph.receiver)} edges: graph from edges", made, "s"),
        row("the same: who is reached", reached, "s"),
    ]
    for name in ("difference in means", "DN", "DN without baseline", "Horvitz-Thompson"):
        took = seconds(lambda f=SMALL_WORLD[name]: f(data), 3)
        rows.append(row(f"the same: {name}, with interval", took, "s"))
        if name == "DN":
            rows.append(row("the same: DN, per unit and weight", 1e6 * took / weights, "us", 0.05,
                            least=False))  # fmt: skip
    return rows


PARTS = {
    "exact": exact,
    "small_world": small_world,
    "city": _network_city.rows,
    "synthetic_control": lambda o: _synthetic_control.rows(o.seed, o.smoke),
    "speed": speed,
}


if __name__ == "__main__":
    run_parts(PARTS, __doc__)
