"""Part of the benchmark of queues: PPO by Stable-Baselines3 on the compiled simulator."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
from _common import peer_python, row
from jax.tree_util import Partial

from decisionppl.models import queueing
from decisionppl.models._queue_events import servable

HERE = Path(__file__).resolve().parent

# As PPO-WC of arXiv 2409.03740, in small: there 50 actors of 50,000 events in each of 100 rounds.
SETTINGS = {
    "copies": 250, "steps": 200, "batch": 2500, "epochs": 3, "discount": 0.998, "trace": 0.99,
    "kl": 0.03, "rate": 9e-4, "clip": 0.2, "hidden": [64, 64],
}  # fmt: skip
_NEVER = -1e30


def _ppo(network, weights, length, space=None):
    x = jnp.log1p(length)
    for w, b in weights[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = weights[-1]
    scores = (x @ w + b).reshape(network.num_servers, network.num_classes + 1)
    can = servable(network, length)
    can = jnp.concatenate([can, ~can.any(1, keepdims=True)], axis=1)
    return jnp.argmax(jnp.where(can, scores, _NEVER), axis=1)


def trained(name, seconds, options):
    """What PPO learns on a network: weights, and what its training took."""
    python = peer_python(
        options.peers / "sb3", "torch==2.13.0", "stable-baselines3==2.9.0", "sb3-contrib==2.9.0",
        f"jax=={jax.__version__}", f"numpyro=={numpyro.__version__}", "optax", "xarray", "tqdm",
    )  # fmt: skip
    network, seed = queueing.instance(name), options.seed
    runs = queueing.simulate(network, queueing.cmu(network), 20_000, key=seed, num_runs=20)
    usual = float(runs.cost.sum() / 20 / 20_000)  # cost of an event
    task = {**SETTINGS, "instance": name, "seconds": seconds, "seed": seed, "usual": usual}
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "task.json", Path(folder) / "result.json"
        given.write_text(json.dumps(task))
        paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        subprocess.run([python, HERE / "_ppo_peer.py", given, result], check=True,
                       env={**os.environ, "PYTHONPATH": paths})  # fmt: skip
        return json.loads(result.read_text())


def scored(name, found, options):
    """Rows of what was learned: its last policy, not the best one seen."""
    network = queueing.instance(name)
    weights = [(jnp.asarray(w), jnp.asarray(b)) for w, b in found["weights"]]
    runs, events = (10, 5000) if options.smoke else (400, 200_000)
    made = queueing.simulate(network, Partial(_ppo, network, weights), events,
                             key=options.seed + 1, num_runs=runs).average()  # fmt: skip
    return [
        row(f"{name}: cost of PPO (MaskablePPO, final policy, most likely classes), 95 % +- "
            f"{1.96 * made.stderr:.3f}", made.estimate, ""),
        row(f"{name}: training of PPO", found["seconds"], "CPU s"),
        row(f"{name}: training of PPO, events of the compiled simulator in 250 copies, updates "
            "included", found["events"] / found["seconds"], "1/CPU s"),
    ]  # fmt: skip


def ppo(options):
    """PPO for five minutes of CPU time on the criss-cross network."""
    # QGym and QueueTorch, on whose environments PPO was published, are on no package index; the
    # package that is called qgym there compiles quantum circuits
    name = "criss_cross_bh"
    return scored(name, trained(name, 5 if options.smoke else 300, options), options)


def ppo_reentrant(options):
    """The same for two minutes of CPU time on the re-entrant line of six classes."""
    name = "reentrant1_6"
    return scored(name, trained(name, 5 if options.smoke else 120, options), options)
