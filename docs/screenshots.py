"""Make the pictures of the README: the tour, a report of it, and an effect by order.

python docs/screenshots.py      (needs chromium on the PATH)
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpyro.distributions as dist

import decisionppl as dp
from decisionppl.inference import effects, markov

IMAGES = Path(__file__).resolve().parent / "images"


def command(folder, *arguments):
    """Run `decisionppl` in a folder."""
    code = "from decisionppl.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, check=True)


def tour_and_report(folder):
    """Plot of the tour, and the page of its saved experiment as a browser shows it."""
    command(folder, "tour")
    shutil.copy(folder / "tour" / "regret.png", IMAGES / "tour.png")
    command(folder, "report", "tour/tour.nc", "--out", "report.html")
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1000",
         "--hide-scrollbars", f"--user-data-dir={folder / 'browser'}",
         f"--screenshot={IMAGES / 'report.png'}", (folder / "report.html").as_uri()],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def customer(free):
    """Twenty flats for rent; half of the customers get a discount."""
    treat = dp.action("treat", dist.Bernoulli(0.5), given=free)
    wish = jnp.where(treat == 1, 0.4, 0.1) * free
    booked = dp.outcome("booked", dist.Bernoulli(wish / (1 + wish)))
    dp.reward("revenue", jnp.where(treat == 1, 0.65, 1.0) * booked)
    back = dp.outcome("back", dist.Bernoulli(0.01 * (20 - free)))
    return dp.state("free", free - booked + back)


def orders():
    """The effect by order, beside the comparison that misses most of it."""
    series = effects.taylor(markov.kernel(customer, jnp.arange(21)), 5)
    _, ax = plt.subplots(figsize=(6.4, 5), layout="constrained")
    dp.plots.effects(series, ax=ax)
    ax.figure.savefig(IMAGES / "effects.png", dpi=110)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        tour_and_report(Path(work))
    orders()
