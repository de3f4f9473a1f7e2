"""Seconds and peak memory of every tutorial, in full and in smoke size.

Targets: 60 s in full and 10 s in smoke size, on two cores, from an empty compile cache. In smoke
size nearly all of it is compiling; the tests compile quickly rather than well, and so is it here.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from _common import row, run_parts

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"


# as in tests/conftest.py
_FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def run(script, smoke):
    """Seconds by the clock, seconds of all cores, and MiB at the peak, of a process of its own."""
    environment = {**os.environ, "MPLBACKEND": "agg", "TUTORIAL_SMOKE": "1" if smoke else ""}
    if smoke:
        environment["XLA_FLAGS"] = _FAST_COMPILE
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with open(Path(folder) / "output", "w") as output:
            files = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
            before = os.getcwd()
            os.chdir(folder)
            try:
                child = os.posix_spawn(
                    sys.executable, [sys.executable, str(script)], environment, file_actions=files
                )
            finally:
                os.chdir(before)
            _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{script.name} failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _rows(smoke, limit):
    rows = []
    for script in sorted(FOLDER.glob("*.py")):
        seconds, busy, peak = run(script, smoke)
        size = "smoke size" if smoke else "full size"
        rows += [row(f"{script.stem}, {size}: by the clock", seconds, "s", limit, least=False),
                 row(f"{script.stem}, {size}: of all cores", busy, "CPU s"),
                 row(f"{script.stem}, {size}: peak memory", peak, "MiB")]  # fmt: skip
    return rows


PARTS = {
    "smoke": lambda options: _rows(True, 10.0),
    "full": lambda options: _rows(options.smoke, 60.0),
}

if __name__ == "__main__":
    run_parts(PARTS, __doc__)
