"""Picard iteration: equality with the sequential path, iterations, and speed."""

import time

import jax
from _common import row

from decisionppl.inference import picard
from decisionppl.models import fulfilment

_DEVELOPMENT = 11  # seed of the instance on which sizes are chosen, never the one reported
_SIZES = ((512, 128), (1024, 256), (2048, 256), (2048, 512))  # steps of a chunk, units of a batch


def picards(options):
    """Equality with the sequential path, iterations, and speed against the same jitted scan."""
    rows = _equality(options)
    for hidden in ((64, 64), (256, 256)):
        rows += _speed(options, hidden)
    return rows


def _equality(options):
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
    return [
        row(f"Picard, {count} fulfilment instances, cheapest node: equal to the sequential path",
            equal, "", count),
        row("Picard: most iterations above the number of exhausted nodes", max(over), "", 2,
            least=False),
    ]  # fmt: skip


def _begun(seed, products, nodes, orders, hidden):
    made = fulfilment.instance(jax.random.key(seed), products, nodes, orders)
    weights = fulfilment.init_policy(jax.random.key(1), nodes, hidden)
    weights[-1] = (0.05 * weights[-1][0], weights[-1][1])
    system = fulfilment.system(weights, float(made.warehouses.capacity.mean()))
    return (system, made.warehouses.capacity, made.warehouses.inventory, made.orders.product,
            made.orders)  # fmt: skip


def _took(fn):
    # CPU time on a CPU that others use too; on an accelerator it says nothing
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    found = fn()
    jax.block_until_ready(found[0])
    return clock() - start, found


def _speed(options, hidden):
    products, nodes, orders = (1000, 10, 3000) if options.smoke else (100_000, 30, 300_000)
    trial = _begun(_DEVELOPMENT, products, nodes, orders // 5, hidden)

    def fast(begun, sizes):
        return lambda: picard.scan(*begun, chunk=sizes[0], batch=sizes[1])

    times = {}
    for sizes in _SIZES[:2] if options.smoke else _SIZES:
        fast(trial, sizes)()
        times[sizes] = min(_took(fast(trial, sizes))[0] for _ in range(3))
    sizes = min(times, key=times.get)
    begun = _begun(options.seed, products, nodes, orders, hidden)
    slow, quick, kept = [], [], {}
    pair = {"plain": lambda: picard.sequential(*begun), "fast": fast(begun, sizes)}
    for fn in pair.values():
        fn()
    for _ in range(1 if options.smoke else 5):  # in turn
        for name, times in (("plain", slow), ("fast", quick)):
            took, kept[name] = _took(pair[name])
            times.append(took)
    run = kept["fast"]
    same = float((run.actions == kept["plain"][0]).mean())
    unit = "CPU s" if jax.default_backend() == "cpu" else "s"
    name = f"fulfilment, {orders} orders, {products} products, {nodes} nodes, network {hidden}"
    return [
        row(f"{name}: share of actions equal to the sequential ones", same, "", 1.0),
        row(f"{name}: steps of a chunk, chosen on another instance", sizes[0], ""),
        row(f"{name}: iterations of a chunk, mean", float(run.iterations.mean()), ""),
        row(f"{name}: iterations of a chunk, most", int(run.iterations.max()), ""),
        row(f"{name}: sequential scan", min(slow), unit),
        row(f"{name}: Picard", min(quick), unit),
        row(f"{name}: speed-up on this {jax.default_backend()}", min(slow) / min(quick), "x"),
    ]
