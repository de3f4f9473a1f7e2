"""Exchangeable sequences: exactness, bandits, regression, active labelling, speed of generation.

Learned models are trained by the script itself (`_learned.py`) and kept in a folder; a full run
without them takes about an hour on two cores, with them about half of that.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from _common import finish, parser
from _learned import add_options
from _sequence_bandits import calibration, clicks, contextual, two_arms
from _sequence_regression import (
    architecture,
    diagnostics,
    exactness,
    gaussian_process,
    labelling,
    labelling_invariant,
    speed,
)

PARTS = {
    "exactness": exactness,
    "two_arms": two_arms,
    "clicks": clicks,
    "contextual": contextual,
    "calibration": calibration,
    "gaussian_process": gaussian_process,
    "architecture": architecture,
    "diagnostics": diagnostics,
    "labelling": labelling,
    "labelling_invariant": labelling_invariant,
    "speed": speed,
}


def main():
    options = add_options(parser(__doc__)).parse_args()
    chosen = options.only.split(",") if options.only else list(PARTS)
    rows = []
    for part in chosen:
        rows += PARTS[part](options)
    finish(rows, options)


if __name__ == "__main__":
    main()
