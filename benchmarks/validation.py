"""Power, false alarms and speed of checks: `python benchmarks/validation.py [--smoke] [--out F]`.

Simulation-based calibration of NUTS is timed in turn with simuk's, which needs Python 3.12 and so
gets a process and an environment of its own (`--python312`). Powers are shares of
repeats that a check rejects, at the level that stands in the row.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import json
import shutil
import statistics
import subprocess
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from _common import finish, parser, peer_python, row, spread
from scipy import stats

import decisionppl as dp
from decisionppl import inference, testing
from decisionppl.testing import reference
from decisionppl.testing._sbc import verdict_of

SIGMA = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
LEVEL = 0.01

SIMUK = """
    import json, sys, time, warnings
    import numpy as np
    import jax.numpy as jnp
    import numpyro, numpyro.distributions as dist
    from numpyro.infer import NUTS
    import simuk
    warnings.simplefilter("ignore")

    def schools(sigma, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        z = numpyro.sample("z", dist.Normal(0, 1).expand([8]).to_event(1))
        numpyro.sample("y", dist.Normal(mu + tau * z, sigma).to_event(1), obs=y)

    count, draws = int(sys.argv[1]), int(sys.argv[2])
    data = {"sigma": jnp.array(json.loads(sys.argv[3])), "y": jnp.zeros(8)}
    sbc = simuk.SBC(
        NUTS(schools), num_simulations=count, seed=0, data_dir=data, progress_bar=False,
        sample_kwargs={"num_warmup": draws, "num_samples": draws, "num_chains": 1,
                       "progress_bar": False},
    )
    begun = time.perf_counter()
    sbc.run_simulations()
    print(time.perf_counter() - begun)
"""


def schools(j, sigma):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([8]).to_event(1))
    dp.outcome("y", dist.Normal(mu + tau * z[j], sigma))


def sbc_of_nuts(seed, simulations, draws):
    """Seconds for one calibration of NUTS on eight schools, everything included."""
    begun = time.perf_counter()
    engine = inference.nuts(
        schools, 0, 1.0, num_warmup=draws, num_samples=draws, num_chains=1, capacity=8
    )
    args = (jnp.arange(8), jnp.asarray(SIGMA))
    found = testing.sbc(schools, engine, args, key=seed, num_simulations=simulations, num_draws=50)
    return time.perf_counter() - begun, found


def against_simuk(smoke, seed, peers, python312):
    """The whole calibration in turn with simuk's; the peer is given fewer simulations."""
    simulations, count, draws, repeats = (50, 3, 50, 1) if smoke else (500, 10, 200, 3)
    ours, theirs = [], []
    interpreter = shutil.which(python312)
    if interpreter is not None:
        python = peer_python(peers / "simuk", "simuk==0.3.0", "numpyro", interpreter=interpreter)
        script = peers / "simuk_sbc.py"
        script.write_text(textwrap.dedent(SIMUK))
    for repeat in range(repeats):
        # the seed is a new one, and so is the program: each repeat compiles again
        seconds, found = sbc_of_nuts(seed + repeat, simulations, draws)
        ours.append(seconds)
        if interpreter is not None:
            command = [python, script, str(count), str(draws), json.dumps(SIGMA)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            theirs.append(float(done.stdout.split()[-1]) / count)
    each = [s / simulations for s in ours]
    name = f"SBC of NUTS {draws}+{draws}, eight schools, N={simulations}"
    rows = [
        row(f"{name}: all, compilation included, {spread(ours)}", statistics.median(ours), "s",
            None if smoke else 25, least=False),
        row(f"{name}: per simulation", statistics.median(each), "s", None if smoke else 0.05,
            "simuk 0.3.0, s" if theirs else None,
            statistics.median(theirs) if theirs else None, least=False),
        row(f"{name}: smallest p of {len(found.names)} quantities, times their number",
            min(float(found.p_values.min()) * len(found.names), 1.0), "p"),
    ]  # fmt: skip
    if theirs:
        ratios = [b / a for a, b in zip(each, theirs, strict=True)]
        rows.append(row(f"{name}: simuk's time over ours, {spread(ratios)}",
                        statistics.median(ratios), "x"))  # fmt: skip
    return rows


NORMAL = reference.normal_normal()


def by_hand(scale=1.0, shift=0.0, prior_only=False):
    """Normal mean, unit prior and noise: the posterior in closed form, made wrong on purpose."""

    def update(key, belief, rows):
        total, count = belief
        seen = jnp.where(rows.mask, rows.sites["y"], 0.0)
        return belief if prior_only else (total + seen.sum(), count + rows.mask.sum())

    def sample(key, belief, num_worlds):
        total, count = belief
        noise = jax.random.normal(key, (num_worlds,)) / jnp.sqrt(1 + count)
        return {"mean": total / (1 + count) + shift + scale * noise}

    return inference.Inference(lambda key: (jnp.zeros(()), jnp.zeros(())), update, sample)


def ranks(engine, seed, repeats, size, num_draws=100):
    """Repeats of `size` simulations each, as one run of as many: they are independent."""
    found = testing.sbc(
        NORMAL.model, engine, key=seed, num_rows=5, num_simulations=repeats * size,
        num_draws=num_draws, batch_size=1024,
    )  # fmt: skip
    return found.names, found.ranks.reshape(repeats, size, -1)


def rejected(names, ranks, num_draws=100, level=LEVEL):
    """Share of repeats that the check rejects."""
    return np.mean([not verdict_of(names, r, num_draws, level).passed for r in ranks])


def kolmogorov_smirnov(ranks, num_draws=100, level=LEVEL):
    """The same with the Kolmogorov-Smirnov test of the latent's ranks."""
    share = (ranks[:, :, 0] + 0.5) / (num_draws + 1)
    return np.mean([stats.kstest(x, "uniform").pvalue < level for x in share])


def power(smoke, seed):
    """Power at the 1 % level, and false alarms."""
    repeats = 20 if smoke else 400
    rows = []
    cases = (
        ("posterior = prior", {"prior_only": True}, 200, 0.99),
        ("sd x 1.25", {"scale": 1.25}, 500, 0.93),
        ("sd x 0.8", {"scale": 0.8}, 500, 0.97),
        ("mean shifted by 0.1", {"shift": 0.1}, 500, 0.95),
    )
    for name, broken, size, target in cases:
        names, found = ranks(by_hand(**broken), seed, repeats, size)
        wanted = None if smoke else target
        rows.append(row(f"power: {name}, n=5, N={size}, level 1 %, {repeats} repeats",
                        rejected(names, found), "", wanted,
                        "Kolmogorov-Smirnov, latent alone", kolmogorov_smirnov(found)))  # fmt: skip
        only = names.index("log-likelihood")
        rows.append(row(f"power: {name}: ranks of the log-likelihood alone",
                        rejected(names[only:], found[:, :, only:]), ""))  # fmt: skip
    size, repeats = 500, 40 if smoke else 2000
    names, found = ranks(by_hand(), seed + 1, repeats, size)
    for level in (0.01, 0.05):
        share = rejected(names, found, level=level)
        rows.append(row(f"false alarms on exact posteriors over the level of {level:g}, N={size}, "
                        f"{repeats} repeats", share / level, "x",
                        None if smoke else 1.5, least=False))  # fmt: skip
        few = rejected(names, found[:200], level=level)
        rows.append(row(f"the same, first 200 repeats, level {level:g}", few / level, "x",
                        None if smoke else 1.5, least=False))  # fmt: skip
    return rows


def geweke(smoke, seed):
    """A prior precision that is wrong by a factor, in MALA: abs(z), and seconds."""

    def model(precision=1.0):
        mu = numpyro.sample("mu", dist.Normal(0, precision**-0.5).expand([2]).to_event(1))
        dp.outcome("y", dist.Normal(mu, 1.0).to_event(1))

    def runs(factor, count):
        found, seconds = [], []
        for repeat in range(count):
            begun = time.perf_counter()
            step = testing.hmc_transition(lambda: model(factor), step_size=0.8)
            found.append(testing.geweke(model, step, key=seed + repeat, num_rows=5))
            seconds.append(time.perf_counter() - begun)
        return found, seconds

    rows = []
    for factor in (1.2, 0.8):
        found, seconds = runs(factor, 2 if smoke else 10)
        z = [float(np.abs(f.z).max()) for f in found]
        name = f"Geweke, MALA, prior precision x {factor:g}"
        rows += [
            row(f"{name}: smallest of the runs' largest abs(z), {spread(z)}", min(z), "", 5),
            row(f"{name}: seconds, compilation included, {spread(seconds)}",
                statistics.median(seconds), "s", None if smoke else 5, least=False),
        ]  # fmt: skip
    found, _ = runs(1.0, 2 if smoke else 30)
    alarms = sum(not f.passed for f in found)
    square = float(np.mean([f.z**2 for f in found]))
    name = f"Geweke, right sampler, {len(found)} runs"
    rows.append(row(f"{name}: rejected at the 1 % level", alarms, "runs"))
    rows.append(row(f"{name}: mean square of z, 1 if standard errors are right", square, ""))
    return rows


def main():
    options = parser(__doc__)
    options.add_argument("--python312", default="python3.12", help="Python to run simuk with")
    options = options.parse_args()
    smoke, seed = options.smoke, options.seed
    parts = {
        "simuk": lambda: against_simuk(smoke, seed, options.peers, options.python312),
        "power": lambda: power(smoke, seed),
        "geweke": lambda: geweke(smoke, seed),
    }
    chosen = options.only.split(",") if options.only else list(parts)
    rows = []
    for part in chosen:
        rows += parts[part]()
    finish(rows, options)


if __name__ == "__main__":
    main()
