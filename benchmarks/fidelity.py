"""Fidelity surfaces: cost to a good mixture, real tables of runs, exactness, BoTorch beside us.

Parts 2 to 4 read tables of real runs: give their folder by `--data` (see `_real_runs.py`). Part 6
makes an environment with BoTorch in the folder `--peers`. With `--only` the other parts of an
existing `--out` are kept, so that parts can be run apart.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

from _common import finish, parser
from _real_runs import extrapolation, regmix_pool, regmix_small
from _scaling_search import flipped, interior, noisy, vertex


def accuracy(options):
    import _gaussian_process_accuracy

    return _gaussian_process_accuracy.rows(options)


def side_by_side(options):
    import _side_by_side

    return _side_by_side.rows(options)


PARTS = {
    "interior": interior,
    "vertex": vertex,
    "sign_flipped": flipped,
    "noisy": noisy,
    "regmix_pool": regmix_pool,
    "regmix_small": regmix_small,
    "extrapolation": extrapolation,
    "accuracy": accuracy,
    "side_by_side": side_by_side,
}
NEED_DATA = ("regmix_pool", "regmix_small", "extrapolation")


def main():
    made = parser(__doc__)
    made.add_argument("--data", type=Path, help="folder with regmix/ and mlfoundations_scaling/")
    made.add_argument("--seeds", type=int, default=20, help="seeds of parts 1 and 2")
    options = made.parse_args()
    chosen = options.only.split(",") if options.only else list(PARTS)
    rows = []
    for part in chosen:
        if part in NEED_DATA and options.data is None:
            print(f"{part}: left out, it needs --data")
            continue
        rows += [{**r, "part": part} for r in PARTS[part](options)]
    finish(rows, options, earlier=options.only != "")


if __name__ == "__main__":
    main()
