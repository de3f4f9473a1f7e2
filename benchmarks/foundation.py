"""Speed of the foundation beside its peers: `python benchmarks/foundation.py [--smoke] [--out F]`.

Both sides of a comparison run in turn, A B A B, in this process or in one that this script
starts; compile time is a row of its own. Peers that need other packages get an environment of
their own, made under `--peers DIR` on first use.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if __name__ == "__main__":
    # NUTS chains are spread over devices; everything else is asked to use one
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import nuts_refit
from _common import finish, one_device, parser, peer_python, row, spread

import decisionppl as dp
from decisionppl import experiment, inference, rules
from decisionppl.models import build

MABWISER = """
    import sys, time
    import numpy as np
    from mabwiser.mab import MAB, LearningPolicy
    rounds, dim, arms = int(sys.argv[1]), 10, 10
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(arms, dim))
    contexts = rng.normal(size=(rounds, dim))
    noise = rng.normal(size=rounds)
    bandit = MAB(list(range(arms)), LearningPolicy.LinTS(alpha=1.0))
    bandit.fit(list(range(arms)), [0.0] * arms, np.zeros((arms, dim)))
    begun = time.perf_counter()
    for t in range(rounds):
        x = contexts[t : t + 1]
        arm = bandit.predict(x)
        bandit.partial_fit([arm], [weights[arm] @ x[0] + noise[t]], x)
    print(rounds / (time.perf_counter() - begun))
"""


def linear_thompson(smoke, seed, peers):
    """Linear Thompson sampling, ten disjoint arms, ten features, through the public API."""
    problem = build("linear", num_arms=10, dim=10)
    begun = time.perf_counter()
    engine = problem.engine()
    built = time.perf_counter() - begun

    def ours(rounds, replications, **options):
        result = experiment.run(
            problem.model, engine, rules.thompson, None, rounds, key=seed, regret=False,
            contexts=problem.contexts, replications=replications, progress=False, **options,
        )  # fmt: skip
        return rounds * replications / result.attrs["run_seconds"], result.attrs["compile_seconds"]

    python = peer_python(peers / "mabwiser", "mabwiser")
    command = [python, "-c", textwrap.dedent(MABWISER), str(300 if smoke else 3000)]
    long, wide = (50_000, 200) if smoke else (400_000, 2000)
    compiled = ours(1000, 1, propensities=False)[1]
    compiled_wide = ours(10, 1000, propensities=False)[1]
    single, many, theirs = [], [], []
    for _ in range(2 if smoke else 4):
        theirs.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
        single.append(ours(long, 1, propensities=False)[0])
        many.append(ours(wide, 1000, propensities=False)[0])
    ratio = statistics.median(a / b for a, b in zip(single, theirs, strict=True))
    gain = statistics.median(a / b for a, b in zip(many, single, strict=True))
    ours(100, 1)
    with_law = ours(long // 50, 1)[0]
    name = "linear Thompson, 10 arms, d=10"
    return [
        row(f"{name}: build engine", built, "s"),
        row(f"{name}: compile, 1 environment", compiled, "s"),
        row(f"{name}: compile, 1000 environments", compiled_wide, "s"),
        row(f"{name}: 1 environment, median [range] {spread(single)}", statistics.median(single),
            "rounds/s", None, "MABWiser LinTS", statistics.median(theirs)),
        row(f"{name}: ratio to MABWiser ({spread(theirs)} rounds/s)", ratio, "x", 100),
        row(f"{name}: 1000 environments, {spread(many)}", statistics.median(many),
            "environment-rounds/s"),
        row(f"{name}: per environment-round, 1000 against 1", gain, "x", 3),
        row(f"{name}: 1 environment with propensities", with_law, "rounds/s"),
    ]  # fmt: skip


def streaming_laplace(smoke, seed):
    """100 latents in one dense block: nothing to gain from independent arms."""

    def model(features):
        w = numpyro.sample("w", dist.Normal(0, 0.1).expand([100]).to_event(1))
        arm = dp.action("arm", 2, given=features)
        dp.reward("reward", dist.BernoulliLogits(features[arm] @ w))

    engine = inference.laplace(model, jnp.ones((2, 100)))
    rounds = 2000 if smoke else 20_000

    def run(n):
        return experiment.run(
            model, engine, rules.thompson, None, n, key=seed, regret=False, propensities=False,
            contexts=lambda key, t: jax.random.normal(key, (2, 100)), progress=False,
        ).attrs  # fmt: skip

    compiled = run(100)["compile_seconds"]
    speeds = [rounds / run(rounds)["run_seconds"] for _ in range(3)]
    name = "streaming Laplace, logistic, 100 latents in one block, Thompson"
    return [
        row(f"{name}: compile", compiled, "s"),
        row(f"{name}: {spread(speeds)}", statistics.median(speeds), "rounds/s", 5000),
    ]


def beta_bernoulli(smoke, seed):
    """K = 5, T = 500, 200 replications."""
    problem = build("beta_bernoulli", num_arms=5)
    engine = problem.engine()
    runs = [
        experiment.run(problem.model, engine, rules.thompson, None, 500, key=seed + i,
                       replications=200, progress=False).attrs
        for i in range(2 if smoke else 5)
    ]  # fmt: skip
    name = "Beta-Bernoulli Thompson, K=5, T=500, 200 replications"
    seconds = [r["run_seconds"] for r in runs]
    return [
        row(f"{name}: compile", runs[0]["compile_seconds"], "s", 5, least=False),
        row(f"{name}: run, {spread(seconds)}", statistics.median(seconds), "s", 2, least=False),
    ]


def chunks(smoke, seed):
    """Progress bar, chunks and copies to the host against one call of the compiled loop."""
    problem = build("linear", num_arms=10, dim=10)
    engine = problem.engine()
    rounds = 16_384

    def run():
        begun = time.perf_counter()
        with open(os.devnull, "w") as hidden:
            stderr, sys.stderr = sys.stderr, hidden
            try:
                result = experiment.run(
                    problem.model, engine, rules.thompson, None, rounds, key=seed,
                    contexts=problem.contexts, propensities=False, progress=True,
                )  # fmt: skip
            finally:
                sys.stderr = stderr
        loop = result.attrs["run_seconds"]
        return loop, time.perf_counter() - begun - loop

    run()
    program = next(reversed(experiment._programs.values()))[0]
    keys = jax.random.split(jax.random.key(seed), 1)

    def plain():
        carry = jax.block_until_ready(program.start(keys))
        begun = time.perf_counter()
        jax.block_until_ready(program.chunk(carry, np.int32(0), np.int32(rounds)))
        return time.perf_counter() - begun

    plain()
    pairs = [(plain(), *run()) for _ in range(3 if smoke else 9)]
    over = statistics.median(b / a - 1 for a, b, _ in pairs)
    return [
        row("16,384 rounds in chunks with bar and copies, over one plain call", 100 * over, "%",
            20, least=False),
        row("set-up and result of a run already compiled", statistics.median(c for *_, c in pairs),
            "s"),
    ]  # fmt: skip


def storage(smoke, seed):
    """Saving 1e6 rounds with action, reward and propensity."""
    import xarray as xr

    from decisionppl.experiment import Result

    rng = np.random.default_rng(seed)
    shape = (1, 1_000_000)
    data = xr.Dataset({
        "arm": (["replication", "round"], rng.integers(0, 10, shape, dtype=np.int32)),
        "reward": (["replication", "round"], rng.normal(size=shape).astype(np.float32)),
        "propensity": (["replication", "round"], rng.random(shape, dtype=np.float32)),
    })  # fmt: skip
    result = Result(data, {"complete": True}, [np.zeros(3)])
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(2 if smoke else 5):
            begun = time.perf_counter()
            result.save(Path(folder) / f"{i}.nc")
            seconds.append(time.perf_counter() - begun)
    return [row(f"save 1e6 rounds, {spread(seconds)}", statistics.median(seconds), "s", 0.5,
                least=False)]  # fmt: skip


def import_time(smoke):
    """`import decisionppl` over `import numpyro`, in fresh processes, in turn."""

    def seconds(module):
        code = f"import time; t=time.perf_counter(); import {module}; print(time.perf_counter()-t)"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return float(done.stdout)

    seconds("decisionppl")
    pairs = [(seconds("numpyro"), seconds("decisionppl")) for _ in range(3 if smoke else 9)]
    over = min(b for _, b in pairs) - min(a for a, _ in pairs)
    return [row("import decisionppl over import numpyro (minima)", over, "s", 0.1,
                "import numpyro", min(a for a, _ in pairs), least=False)]  # fmt: skip


def main():
    options = parser(__doc__).parse_args()
    smoke, seed = options.smoke, options.seed
    parts = {
        "linear": lambda: linear_thompson(smoke, seed, options.peers),
        "laplace": lambda: streaming_laplace(smoke, seed),
        "beta": lambda: beta_bernoulli(smoke, seed),
        "chunks": lambda: chunks(smoke, seed),
        "storage": lambda: storage(smoke, seed),
        "import": lambda: import_time(smoke),
        "nuts": lambda: nuts_refit.rows(smoke, seed),
    }
    chosen = options.only.split(",") if options.only else list(parts)
    rows = []
    for part in chosen:
        alone = len(chosen) > 1 and part != "nuts"
        rows += one_device(__file__, part, options) if alone else parts[part]()
    finish(rows, options)


if __name__ == "__main__":
    main()
