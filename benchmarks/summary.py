"""The table of what is reproduced, made from the result files and written where it is shown.

python benchmarks/summary.py            writes README.md and docs/evidence.md anew
python benchmarks/summary.py --check    exits with 1 if they do not show what the files hold

No number is typed: a line names a row of `benchmarks/results/NAME.json` and how to write it.
"""

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


class Line(NamedTuple):
    """One line: what is claimed, after whom, and the row that measures it."""

    claim: str
    source: str  # arXiv number, or whom it is compared with
    file: str
    row: str  # a pattern that the name of exactly one row matches
    measured: str  # a format of the value v, and of the peer's value p
    target: str  # a format of the target t, or a text
    peer: str = ""  # where rows beside several peers have one name


BANDITS = (
    Line("Linear Thompson sampling, rounds per second over MABWiser", "MABWiser", "foundation",
         r"linear Thompson, 10 arms, d=10: ratio to MABWiser", "{v:.0f} times", "{t:.0f}"),
    Line("NUTS refit on new data over NumPyro's vectorised MCMC", "NumPyro", "foundation",
         r"eight schools, 4x\(1000\+1000\), 4 devices: refit time ratio", "{v:.0f} times",
         "{t:.0f}", "numpyro MCMC vectorized"),
    Line("Simulation-based calibration of NUTS, time over simuk", "simuk", "validation",
         r"SBC of NUTS .* simuk's time over ours", "{v:.0f} times", ""),
    Line("Power of the calibration test, posterior 25 % too wide (ranks of the latent alone)",
         "arXiv 2211.02383", "validation", r"power: sd x 1.25, n=5", "{v:.3f} ({p:.2f})",
         "{t:.2f}"),
)  # fmt: skip
SEQUENCES = (
    Line("Thompson sampling by generation, news articles, learned model: regret (published)",
         "arXiv 2405.19466", "sequences", r"bimodal articles: learned sequence model, finite",
         "{v:.1f} ({p:.1f})", "at most {t:.1f}"),
    Line("Contextual, by missing outcomes: regret over that of Thompson sampling under the truth",
         "arXiv 2502.07064", "sequences", r"contextual: generation over true-prior", "{v:.2f}",
         "at most {t:.2f}"),
    Line("Labels by multi-step information: loss after 19 (exact model)", "arXiv 2503.01215",
         "sequences", r"labels: al_regions_v2_50, exact, sequential information, k = 19",
         "{v:.3f} nats", "at most {t:.2f}"),
)  # fmt: skip
FUNCTIONS = (
    Line("Data mixtures, simulator: times cheaper than random search at full size",
         "arXiv 2503.21023", "fidelity", r"T1 interior: times cheaper than random", "{v:.0f}",
         "{t:.1f}"),
    Line("The same, optimum on a face of the simplex: times cheaper than Hyperband over sizes",
         "arXiv 2503.21023", "fidelity", r"T1 vertex: times cheaper than Hyperband over sizes",
         "{v:.1f}", "{t:.1f}"),
    Line("Real mixtures at 1B parameters, ranked from runs at 1M and 60M: Spearman",
         "arXiv 2407.01492", "fidelity",
         r"RegMix mean of 13 at 1B, two fidelities, 13 GPs, averaged: Spearman", "{v:.2f}",
         "{t:.2f}"),
    Line("Knowledge-gradient step across fidelities, time over BoTorch", "BoTorch", "fidelity",
         r"knowledge-gradient step.* peer as shipped: times as fast", "{v:.0f} times", "{t:.0f}"),
    Line("Gaussian-process fit, 50 points, time over BoTorch", "BoTorch", "fidelity",
         r"MAP fit, n=50, d=6, one start each: times as fast", "{v:.0f} times", "{t:.0f}"),
)  # fmt: skip
EFFECTS = (
    Line("Two-state chain: effect by linear solve, distance to the known", "arXiv 2206.02371",
         "effects", r"two-state: effect", "{v:.0e}", "{t:.0e}"),
    Line("Rental market, 200,000 steps: error of Differences-in-Q, % of the effect",
         "arXiv 2206.02371", "effects", r"T=200000, 500 experiments, DQ, tabular", "{v:.1f} %",
         "{t:.0f} %"),
    Line("Non-stationary chain: error of the best estimator (published 23.2 %)",
         "arXiv 2506.05308", "effects", r"published path: best", "{v:.1f} %", "{t:.1f} %"),
    Line("Differences-in-Neighbors, 1,000 small-world experiments: error", "arXiv 2503.02271",
         "networks", r"unit, 1000 runs: DN \(bias", "{v:.1f} %", "{t:.0f} %"),
    Line("The same, a million units: time per edge", "arXiv 2503.02271", "networks",
         r"the same: DN, per unit and weight", "{v:.3f} us", "{t:.2f} us"),
    Line("Synthetically controlled Thompson sampling: regret", "arXiv 2202.07079", "networks",
         r"effect 0.3, 60 experiments, synthetically controlled .*: regret", "{v:.1f}", "{t:.0f}"),
)  # fmt: skip
LABELS = (
    Line("Adaptive labelling, synthetic: variance left after ten batches", "arXiv 2502.06076",
         "labelling", r"one-step lookahead: Var g after 10 batches", "{v:.5f}", "{t:.4f}"),
    Line("Digits, half of the clusters seen: labels that random needs per label", "",
         "labelling", r"10 of 20 clusters seen: labels that random needs", "at least {v:.1f}",
         "{t:.0f}"),
)  # fmt: skip
QUEUES = (
    Line("Criss-cross, c-mu rule: distance of the simulated cost to 18", "arXiv 2410.06170",
         "queues", r"criss_cross_bh, cmu: distance to 18", "{v:.3f}", "{t:.2f}"),
    Line("Criss-cross: events per second of one core", "arXiv 2409.03740", "queues",
         r"criss_cross_bh, MaxWeight, batch 1000: events", "{v_million:.0f} million",
         "{t_million:.0f} million"),
    Line("Criss-cross, trained policy: cost", "arXiv 2409.03740", "queues",
         r"criss_cross_bh: cost of the trained policy", "{v:.2f}", "{t:.1f}"),
    Line("Re-entrant line, six classes, trained policy: cost", "arXiv 2409.03740", "queues",
         r"reentrant1_6: cost of the trained policy", "{v:.2f}", "{t:.1f}"),
    Line("Picard iteration: instances of 100 equal to the sequential path", "Farias et al. (2025)",
         "queues", r"Picard, 100 fulfilment instances", "{v:.0f}", "{t:.0f}"),
)  # fmt: skip
LINES = (*BANDITS, *SEQUENCES, *FUNCTIONS, *EFFECTS, *LABELS, *QUEUES)


def row_of(line):
    """The row that a line names."""
    rows = json.loads((RESULTS / f"{line.file}.json").read_text(encoding="utf-8"))["rows"]
    found = [r for r in rows if re.match(line.row, r["name"]) and line.peer in (r["peer"] or "")]
    if len(found) != 1:
        raise ValueError(f"{line.file}.json: {len(found)} rows match {line.row!r}, not one")
    return found[0]


def table():
    """The table, in Markdown."""
    text = ["| what | after | measured | target | |", "| --- | --- | --- | --- | --- |"]
    for line in LINES:
        r = row_of(line)
        numbers = {"v": r["value"], "p": r["peer_value"], "t": r["target"]}
        numbers |= {f"{k}_million": x / 1e6 for k, x in numbers.items() if x is not None}
        verdict = {True: "", False: "missed", None: ""}[r["passed"]]
        cells = (line.claim, line.source, line.measured.format(**numbers),
                 line.target.format(**numbers), verdict)  # fmt: skip
        text.append("| " + " | ".join(cells) + " |")
    files = sorted({line.file for line in LINES})
    found = {f: json.loads((RESULTS / f"{f}.json").read_text(encoding="utf-8")) for f in files}
    made = ", ".join(f"`{f}.py` {found[f]['date']}" for f in files)
    cores = {f"{d['machine']['processor']}, {d['machine']['cores']} cores" for d in found.values()}
    text += ["", f"`python benchmarks/NAME.py` reproduces the lines of each: {made}; seed 0;",
             f"{' and '.join(sorted(cores))}, no accelerator."]  # fmt: skip
    return "\n".join(text)


def put(text, made):
    """A text with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}"


SHOWN = (ROOT / "README.md", ROOT / "docs" / "evidence.md")


def stale():
    """Files that do not show what the result files hold."""
    made = table()
    return [p for p in SHOWN if put(p.read_text(encoding="utf-8"), made) != p.read_text("utf-8")]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(f"{p.name}: run python benchmarks/summary.py" for p in stale()) or 0)
    for path in SHOWN:
        path.write_text(put(path.read_text(encoding="utf-8"), table()), encoding="utf-8")
