"""Queues and supply chains: exact solutions, long-run costs, gradients, training, speed, Picard.

With `--only` the other parts of an existing `--out` are kept, so that parts can be run apart.
Wall-clock seconds were taken beside other programs and are upper bounds; rates are per second of
CPU time on one core.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from _common import run_parts
from _queue_costs import costs, exact, horizons, large, optimum
from _queue_fluid import fluids, fluids_reentrant
from _queue_gradients import gradients, training, training_large
from _queue_little import little
from _queue_picard import picards
from _queue_ppo import ppo, ppo_reentrant
from _queue_speed import admission, speed

PARTS = {
    "exact": exact,
    "optimum": optimum,
    "horizons": horizons,
    "costs": costs,
    "large": large,
    "gradients": gradients,
    "training": training,
    "training_large": training_large,
    "fluid": fluids,
    "fluid_reentrant": fluids_reentrant,
    "little": little,
    "ppo": ppo,
    "ppo_reentrant": ppo_reentrant,
    "speed": speed,
    "admission": admission,
    "picard": picards,
}


if __name__ == "__main__":
    run_parts(PARTS, __doc__)
