"""Picard iteration: equality with the sequential path, iterations, and speed."""

import time

import jax
from _common import row

from decisionppl.inference import picard
from decisionppl.models import fulfilment


def picards(options):
    """Equality with the sequential path, iterations, and speed against the same jitted scan."""
    sizes = [(50, 5, 1000), (200, 10, 2000), (100, 8, 2000)]
    count = 6 if options.smoke else 100
    greedy = fulfilment.system()
    equal, over = 0, []
    for seed in range(count):
        products, nodes, orders = sizes[seed % 3]
        made = fulfilment.instance(jax.random.key(options.seed + 1000 + seed), products, nodes,
                                   orders)  # fmt: skip
        run = picard.scan(greedy, made.warehouses.capacity, made.warehouses.inventory,
                          made.orders.product, made.orders, batch=64, prove=True)  # fmt: skip
        equal += run.equal
        over.append(int(run.iterations[0]) - int((run.shared == 0).sum()))
    rows = [
        row(f"Picard, {count} fulfilment instances, cheapest node: equal to the sequential path",
            equal, "", count),
        row("Picard: most iterations above the number of exhausted nodes", max(over), "", 2,
            least=False),
    ]  # fmt: skip
    products, nodes, orders = (1000, 10, 3000) if options.smoke else (100_000, 30, 300_000)
    made = fulfilment.instance(jax.random.key(options.seed), products, nodes, orders)
    scale = float(made.warehouses.capacity.mean())
    for hidden in ((64, 64),):
        weights = fulfilment.init_policy(jax.random.key(1), nodes, hidden)
        weights[-1] = (0.05 * weights[-1][0], weights[-1][1])
        system = fulfilment.system(weights, scale)
        begin = (made.warehouses.capacity, made.warehouses.inventory, made.orders.product,
                 made.orders)  # fmt: skip
        kept = {}

        def plain(system=system, begin=begin, kept=kept):
            kept["plain"] = picard.sequential(system, *begin)[0]
            return kept["plain"]

        def fast(system=system, begin=begin, kept=kept):
            kept["run"] = picard.scan(system, *begin, chunk=orders // 1000, batch=256)
            return kept["run"].actions

        slow, quick = [], []
        plain(), fast()
        for _ in range(1 if options.smoke else 2):  # in turn
            for fn, times in ((plain, slow), (fast, quick)):
                start = time.perf_counter()
                jax.block_until_ready(fn())
                times.append(time.perf_counter() - start)
        name = f"fulfilment, {orders} orders, {products} products, {nodes} nodes, network {hidden}"
        run = kept["run"]
        same = float((run.actions == kept["plain"]).mean())
        rows += [
            row(f"{name}: share of actions equal to the sequential ones", same, "", 1.0),
            row(f"{name}: most iterations of a thousandth of them", int(run.iterations.max()), ""),
            row(f"{name}: sequential scan", min(slow), "s"),
            row(f"{name}: Picard", min(quick), "s"),
            row(f"{name}: speed-up on this CPU", min(slow) / min(quick), "x"),
        ]  # fmt: skip
    return rows
