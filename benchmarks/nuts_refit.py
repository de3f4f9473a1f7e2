"""Refitting NUTS on new data of a known shape: `inference.nuts` and NumPyro's `MCMC`.

Two models, 4 chains: eight schools (8 rows) and a logistic regression (1000 rows, 25
coefficients). Both sides fit the same posterior from a cold start, in turn, on the same new
data at each repeat; the first fit, which compiles, is its own row.
"""

import argparse
import os

if __name__ == "__main__":  # before JAX starts
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="fewer draws, one repeat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=4, help="host devices made of the CPU")
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    flag = f"--xla_force_host_platform_device_count={options.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import contextlib
import io
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import monitoring
from numpyro.infer import MCMC, NUTS

import decisionppl as dp
from decisionppl.inference.nuts import nuts, posterior

CHAINS = 4
# what a NumPyro user can choose. "tuned" is the fastest found: model arguments are compiled in
# as inputs, and its progress bar is what keeps NumPyro from compiling its loop again
PEERS = {
    "vectorized": {"chain_method": "vectorized", "progress_bar": False},
    "parallel": {"chain_method": "parallel", "progress_bar": False},
    "tuned": {"chain_method": "vectorized", "progress_bar": True, "jit_model_args": True},
}


class Problem(NamedTuple):
    """A posterior written twice: one round for us, all rows at once for the peer."""

    name: str
    round: Callable
    joint: Callable
    example: tuple
    data: Callable  # rng -> (args, y)


def _schools_prior() -> tuple:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([8]).to_event(1))
    return mu, tau, z


def schools() -> Problem:
    sigma = np.asarray([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)
    seen = np.asarray([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)

    def one_round(j: Any, sigma: Any) -> None:
        mu, tau, z = _schools_prior()
        dp.outcome("y", dist.Normal(mu + tau * z[j], sigma))

    def joint(args: tuple, y: Any) -> None:
        mu, tau, z = _schools_prior()
        numpyro.sample("y", dist.Normal(mu + tau * z, args[1]), obs=y)

    def data(rng: np.random.Generator) -> tuple:
        y = seen + rng.normal(0, 2, 8)
        return (np.arange(8), sigma), y.astype(np.float32)

    return Problem("eight schools", one_round, joint, (0, 1.0), data)


def logistic(rows: int = 1000, dim: int = 25) -> Problem:
    def one_round(x: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0, 1).expand([dim]).to_event(1))
        dp.outcome("y", dist.Bernoulli(logits=w @ x))

    def joint(args: tuple, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0, 1).expand([dim]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=args[0] @ w), obs=y)

    def data(rng: np.random.Generator) -> tuple:
        x = rng.normal(size=(rows, dim)).astype(np.float32)
        w = rng.normal(size=dim)
        y = rng.random(rows) < 1 / (1 + np.exp(-x @ w))
        return (x,), y.astype(np.int32)

    return Problem(f"logistic {rows}x{dim}", one_round, joint, (np.zeros(dim, np.float32),), data)


class _Compilations:
    """Counts XLA compilations."""

    def __init__(self) -> None:
        self.count = 0
        monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration: float, **_: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


def _ours(problem: Problem, draws: int) -> Callable:
    engine = nuts(
        problem.round, *problem.example, num_warmup=draws, num_samples=draws, num_chains=CHAINS
    )
    cold = engine.init(0)

    def fit(seed: int, args: tuple, y: np.ndarray) -> dict[str, np.ndarray]:
        rows = dp.Rows(args, {"y": y}, np.ones(len(y), bool))
        return jax.block_until_ready(posterior(engine.update(seed, cold, rows)))

    return fit


def _theirs(problem: Problem, draws: int, settings: dict) -> Callable:
    def build() -> MCMC:
        kernel = NUTS(problem.joint)
        return MCMC(kernel, num_warmup=draws, num_samples=draws, num_chains=CHAINS, **settings)

    kept = [build()]

    def fit(seed: int, args: tuple, y: np.ndarray) -> dict[str, np.ndarray]:
        key = jax.random.key(seed)
        inputs = jax.tree.map(jnp.asarray, (args, y))
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
            try:
                kept[0].run(key, *inputs)
            except ValueError:  # NumPyro 0.22 maps its sampler once more at each vectorized run
                kept[0] = build()
                kept[0].run(key, *inputs)
        return jax.block_until_ready(kept[0].get_samples(group_by_chain=True))

    return fit


def _min_ess(draws: dict) -> float:
    draws = {n: np.asarray(x) for n, x in draws.items()}
    return float(min(np.min(az.ess(x, method="bulk")) for x in _scalars(draws)))


def _scalars(draws: dict) -> list[np.ndarray]:
    flat = [x.reshape(*x.shape[:2], -1) for x in draws.values()]
    return [x[..., i] for x in flat for i in range(x.shape[-1])]


def _row(name: str, value: float, unit: str, **rest: Any) -> dict:
    return {
        "name": name, "value": value, "unit": unit, "target": None, "peer": None,
        "peer_value": None, "passed": None, **rest,
    }  # fmt: skip


def _compare(problem: Problem, draws: int, repeats: int, peers: list[str], seed: int) -> list[dict]:
    rng, compilations = np.random.default_rng(seed), _Compilations()
    sides = {"ours": _ours(problem, draws)}
    sides |= {p: _theirs(problem, draws, PEERS[p]) for p in peers}
    seconds: dict = {n: [] for n in sides}
    ess: dict = {n: [] for n in sides}
    first, compiled = {}, []
    for repeat in range(repeats + 1):
        args, y = problem.data(rng)
        for name, fit in sides.items():
            before, start = compilations.count, time.perf_counter()
            result = fit(seed + repeat, args, y)
            took = time.perf_counter() - start
            if repeat == 0:
                first[name] = took
                continue
            seconds[name].append(took)
            ess[name].append(_min_ess(result))
            if name == "ours":
                compiled.append(compilations.count - before)
    per_second = {n: np.divide(ess[n], seconds[n]) for n in sides}
    where = f"{problem.name}, {CHAINS}x({draws}+{draws}), {jax.local_device_count()} devices"
    rows = [
        _row(f"{where}: compilations on refit", max(compiled), "count", target=0,
             passed=max(compiled) == 0),
        _row(f"{where}: refit", float(np.median(seconds["ours"])), "s"),
        _row(f"{where}: min bulk ESS", float(np.median(per_second["ours"])), "1/s"),
    ]  # fmt: skip
    for peer in peers:
        named = f"numpyro MCMC {peer}"
        faster = np.divide(seconds[peer], seconds["ours"])
        richer = per_second["ours"] / per_second[peer]
        rows += [
            _row(f"{where}: first fit, compilation included", first["ours"], "s", peer=named,
                 peer_value=first[peer]),
            _ratio(f"{where}: refit time ratio", faster, 10, named, seconds[peer]),
            _ratio(f"{where}: ESS per second ratio", richer, 5, named, per_second[peer]),
        ]  # fmt: skip
    return rows


def _ratio(name: str, ratios: np.ndarray, target: float, peer: str, values: Any) -> dict:
    value = float(np.median(ratios))
    spread = f"x ({ratios.min():.1f} to {ratios.max():.1f})"
    return _row(
        name, value, spread, target=target, peer=peer, peer_value=float(np.median(values)),
        passed=value >= target,
    )  # fmt: skip


def rows(smoke: bool = False, seed: int = 0) -> list[dict]:
    """Run the comparison; one dict per figure."""
    draws, repeats = (50, 1) if smoke else (1000, 7)
    peers = list(PEERS)
    if jax.local_device_count() < CHAINS:
        peers.remove("parallel")
    if smoke:
        peers = peers[1:2]  # the quickest to compile
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # divergences of short smoke runs
        for problem in (schools(), logistic()):
            found += _compare(problem, draws, repeats, peers, seed)
    return found


if __name__ == "__main__":
    for row in rows(options.smoke, options.seed):
        value, peer_value = f"{row['value']:.4g}", row["peer_value"]
        peer = "" if row["peer"] is None else f"  [{row['peer']}: {peer_value:.4g}]"
        goal = "" if row["target"] is None else f"  target {row['target']}"
        verdict = {None: "", True: "  ok", False: "  MISS"}[row["passed"]]
        print(f"{row['name']}: {value} {row['unit']}{goal}{verdict}{peer}")
