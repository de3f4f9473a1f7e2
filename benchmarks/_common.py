"""What every benchmark shares: rows of the table, peers' environments, the result file."""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path


def row(name, value, unit, target=None, peer=None, peer_value=None, *, least=True):
    """One line of the table; `least` says whether the target is a lower bound."""
    passed = None if target is None else bool(value >= target if least else value <= target)
    return {
        "name": name, "value": value, "unit": unit, "target": target, "peer": peer,
        "peer_value": peer_value, "passed": passed,
    }  # fmt: skip


def spread(values):
    """Median with the range, as text."""
    return f"{statistics.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]"


def peer_python(folder, *packages, interpreter=None):
    """A Python with the packages, in a virtual environment of its own.

    `interpreter` is the Python to build it with, where the peer needs another version.
    """
    folder = Path(folder)
    python = folder / "bin" / "python"
    if not python.exists():
        if interpreter is None:
            venv.create(folder, with_pip=True)
        else:
            subprocess.run([interpreter, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def parser(description):
    """The options that every benchmark takes."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--smoke", action="store_true", help="small sizes, under a minute")
    made.add_argument("--out", type=Path, help="JSON file for the results")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--only", default="", help="comma-separated parts")
    made.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "dppl-peers",
                      help="folder of the peers' environments")  # fmt: skip
    return made


def one_device(script, part, options):
    """Rows of one part, run in a process of its own with a single device, as the peers have."""
    environment = {**os.environ, "XLA_FLAGS": ""}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, script, "--only", part, "--out", str(out),
                   "--seed", str(options.seed), "--peers", str(options.peers)]  # fmt: skip
        command += ["--smoke"] if options.smoke else []
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())["rows"]


def run_parts(parts, description):
    """Run the parts of a benchmark, `{name: options -> rows}`, those of `--only` or all.

    What is measured is written at once; with `--only` other parts of the result file stay.
    """
    options = parser(description).parse_args()
    chosen = options.only.split(",") if options.only else list(parts)
    unknown = sorted(set(chosen) - set(parts))
    if unknown:
        raise SystemExit(f"--only: no part {unknown[0]!r}; there are {', '.join(parts)}.")
    for i, part in enumerate(chosen):
        rows = [{**r, "part": part} for r in parts[part](options)]
        finish(rows, options, earlier=i > 0 or options.only != "")


def one_core():
    """Keep this process on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def seconds(fn, repeats=5):
    """Least of several timings after one call that compiles."""
    import jax

    jax.block_until_ready(fn())
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn())
        found.append(time.perf_counter() - start)
    return min(found)


def finish(rows, options, *, earlier=False):
    """Print the table and write the result file.

    With `earlier` rows that the file already has of other parts (their "part") stay.
    """
    import jax
    import numpyro

    import decisionppl as dp

    for r in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[r["passed"]]
        target = "" if r["target"] is None else f"target {r['target']:g}"
        peer = "" if r["peer"] is None else f"{r['peer']}: {r['peer_value']:.4g}"
        print(
            f"{r['name']:<95} {r['value']:>12.4g} {r['unit']:<20} {target:<12} {verdict:<7} {peer}"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        if earlier and options.out.exists():
            now = {r["part"] for r in rows}
            before = json.loads(options.out.read_text())["rows"]
            rows = [r for r in before if r["part"] not in now] + rows
        options.out.write_text(json.dumps({
            "machine": {"processor": platform.processor() or platform.machine(),
                        "cores": os.cpu_count(), "devices": [str(d) for d in jax.devices()]},
            "versions": {"python": platform.python_version(), "jax": jax.__version__,
                         "numpyro": numpyro.__version__, "decisionppl": dp.__version__},
            "seed": options.seed, "date": datetime.date.today().isoformat(),
            "smoke": options.smoke, "rows": rows,
        }, indent=1, default=float) + "\n")  # fmt: skip
