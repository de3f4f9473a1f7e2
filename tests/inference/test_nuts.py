"""NUTS beliefs: right posteriors, and refits that neither recompile nor depend on padding.

Statistical bounds are 6 standard errors of the effective sample size found: a false alarm
has probability 2e-9 per comparison, 1e-7 for the file. Keys are fixed.
"""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl.inference.nuts import diagnostics, nuts, posterior

NOISE = 0.5
# fits of a few transitions, on purpose
pytestmark = pytest.mark.filterwarnings("ignore:NUTS transitions diverged:RuntimeWarning")


def line(x: Any) -> None:
    w = numpyro.sample("w", dist.Normal(1.0, 2.0).expand([2]).to_event(1))
    dp.reward("y", dist.Normal(w @ x, NOISE))


def data(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    y = x @ np.array([3.0, -1.0]) + NOISE * rng.normal(size=n)
    return x.astype(np.float32), y.astype(np.float32)


def rows_of(x: np.ndarray, y: np.ndarray, mask: Any = None) -> dp.Rows:
    return dp.Rows((x,), {"y": y}, np.ones(len(y), bool) if mask is None else np.asarray(mask))


def exact(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    covariance = np.linalg.inv(np.eye(2) / 4 + x.T @ x / NOISE**2)
    return covariance @ (np.ones(2) / 4 + x.T @ y / NOISE**2), covariance


def check_moments(belief: Any, site: str, mean: Any, covariance: Any) -> None:
    ess = np.min(diagnostics(belief)["ess"][site])
    draws = np.asarray(posterior(belief)[site]).reshape(-1, np.size(mean))
    assert ess > 200
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(draws.mean(0) - mean) / sd < 6 / np.sqrt(ess))
    # an entry of a sample correlation matrix has a standard error of at most sqrt(2 / n)
    scaled = (np.cov(draws.T) - covariance) / np.outer(sd, sd)
    assert np.all(np.abs(scaled) < 6 * np.sqrt(2 / ess))


@pytest.fixture(scope="module")
def engine() -> dp.Inference:
    return nuts(line, np.ones(2, np.float32))


@pytest.fixture(scope="module")
def quick() -> dp.Inference:
    """Few draws, so that floating-point noise has no time to grow."""
    return nuts(
        line, np.ones(2, np.float32), capacity=16, num_warmup=4, num_samples=4, num_chains=2
    )


def test_linear_regression_over_several_refits(engine: dp.Inference) -> None:
    (x, y), belief = data(0, 13), engine.init(0)
    for i, part in enumerate((slice(0, 5), slice(5, 6), slice(6, 13))):
        belief = engine.update(i, belief, rows_of(x[part], y[part]))
        check_moments(belief, "w", *exact(x[: part.stop], y[: part.stop]))
    found = diagnostics(belief)
    assert np.all(found["r_hat"]["w"] < 1.05)
    assert found["r_hat"]["w"].shape == (2,)
    assert found["divergences"] == 0
    assert np.all(found["accept_prob"] > 0.6)


def test_the_prior_before_any_row(engine: dp.Inference) -> None:
    belief = engine.init(1)
    check_moments(belief, "w", np.ones(2), 4 * np.eye(2))
    assert posterior(belief)["w"].shape == (4, 500, 2)


def test_masked_rows_change_nothing(engine: dp.Inference) -> None:
    x, y = data(1, 6)
    plain = engine.update(3, engine.init(0), rows_of(x, y))
    mask = np.array([0, 1, 1, 0, 1, 1, 0, 1, 1], bool)
    padded_x, padded_y = np.full((9, 2), np.nan, np.float32), np.full(9, np.nan, np.float32)
    padded_x[mask], padded_y[mask] = x, y
    padded = engine.update(3, engine.init(0), rows_of(padded_x, padded_y, mask))
    jax.tree.map(np.testing.assert_array_equal, plain.draws, padded.draws)


def test_no_valid_row_changes_nothing(quick: dp.Inference) -> None:
    x, y = data(1, 10)
    belief = quick.update(3, quick.init(0), rows_of(x, y))
    nothing = rows_of(x, np.full(10, np.nan, np.float32), np.zeros(10, bool))
    key = jax.random.key(9)
    for new in (quick.update(key, belief, nothing), jax.jit(quick.update)(key, belief, nothing)):
        jax.tree.map(np.testing.assert_array_equal, belief, new)


def test_jit_scan_and_vmap_agree_with_eager(quick: dp.Inference) -> None:
    x, y = data(2, 9)
    rounds = rows_of(x.reshape(3, 3, 2), y.reshape(3, 3), np.ones((3, 3), bool))
    keys = jax.random.split(jax.random.key(0), 3)
    begin = quick.init(0)
    eager = begin
    for i in range(3):
        eager = quick.update(keys[i], eager, jax.tree.map(lambda a, i=i: a[i], rounds))

    def loop(begin: Any, keys: jax.Array, rounds: dp.Rows) -> Any:
        return jax.lax.scan(lambda b, kr: (quick.update(kr[0], b, kr[1]), None),
                            begin, (keys, rounds))[0]  # fmt: skip

    two = jax.tree.map(lambda a: jnp.stack([a, a]), begin)
    both = jax.jit(jax.vmap(loop, (0, None, None)))(two, keys, rounds)
    for i in range(2):
        one = jax.tree.map(lambda a, i=i: a[i], both)
        assert int(one.buffer.count) == 9
        np.testing.assert_array_equal(one.buffer.rows.sites["y"], eager.buffer.rows.sites["y"])
        np.testing.assert_allclose(one.draws["w"], eager.draws["w"], rtol=1e-2, atol=1e-3)


def test_refits_compile_once_per_bucket(
    engine: dp.Inference, compilations: Callable[[], int]
) -> None:
    belief = engine.update(0, engine.init(0), rows_of(*data(0, 7)))
    keys, counts = list(jax.random.split(jax.random.key(0), 4)), []
    for key, n in zip(keys, (2, 7, 1, 3), strict=True):  # 9, 16 | 17, 20 rows
        before = compilations()
        belief = engine.update(key, belief, rows_of(*data(n, n)))
        counts.append(compilations() - before)
    assert counts == [0, 0, 1, 0]


def test_a_refit_starts_where_the_last_one_ended() -> None:
    def far() -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 1e4))
        dp.reward("y", dist.Normal(mu, 1.0))

    engine = nuts(far, capacity=16, num_warmup=2, num_samples=20, num_chains=2)
    cold = engine.init(0)
    at = jax.tree.map(lambda x: jnp.full_like(x, 5000.0), cold.chains.position)
    warm = cold._replace(chains=cold.chains._replace(position=at))
    rows = dp.observe(far, sites={"y": np.full(4, 5000.0)})
    distance = {
        name: np.abs(np.asarray(engine.update(1, b, rows).draws["mu"]) - 5000.0).mean()
        for name, b in {"cold": cold, "warm": warm}.items()
    }
    assert distance["warm"] < 5
    assert distance["cold"] > 50
    # a position without a finite potential is left
    lost = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), cold.chains.position)
    lost = engine.update(1, cold._replace(chains=cold.chains._replace(position=lost)), rows)
    assert np.isfinite(lost.draws["mu"]).all()
    assert np.ptp(lost.draws["mu"]) > 0


def test_step_size_and_mass_are_adapted_and_kept(engine: dp.Inference) -> None:
    x, y = data(3, 10)
    chains = engine.update(0, engine.init(0), rows_of(x, y)).chains
    variance = np.diag(exact(x, y)[1])
    assert chains.step_size.shape == (4,)
    assert np.all((chains.step_size > 0.05) & (chains.step_size < 2.5))
    # at a rate set by the 375 draws of the adaptation windows, within a factor of two
    assert np.all((chains.inverse_mass / variance > 0.5) & (chains.inverse_mass / variance < 2))


def test_worlds_are_posterior_draws(engine: dp.Inference) -> None:
    belief = engine.update(0, engine.init(0), rows_of(*data(4, 4)))
    pool = {tuple(w) for w in np.asarray(belief.draws["w"]).reshape(-1, 2).tolist()}
    some = [tuple(w) for w in np.asarray(engine.sample(1, belief, 50)["w"]).tolist()]
    assert set(some) <= pool
    every = engine.sample(1, belief, 2000)["w"]
    flat = np.asarray(belief.draws["w"]).reshape(-1, 2)
    np.testing.assert_array_equal(np.sort(every, 0), np.sort(flat, 0))  # without replacement
    assert engine.sample(1, belief, 2001)["w"].shape == (2001, 2)
    jitted = jax.jit(engine.sample, static_argnums=2)(jax.random.key(1), belief, 50)
    np.testing.assert_array_equal(jitted["w"], engine.sample(1, belief, 50)["w"])
    with pytest.raises(ValueError, match="num_worlds: expected a positive int"):
        engine.sample(1, belief, 0)


def test_lost_rows_are_never_silent(quick: dp.Inference) -> None:
    x, y = data(5, 10)
    update = jax.jit(quick.update)
    key = jax.random.key(0)
    belief = update(key, update(key, quick.init(0), rows_of(x, y)), rows_of(x, y))
    assert np.isnan(jax.jit(quick.sample, static_argnums=2)(key, belief, 3)["w"]).all()
    for read in (lambda: quick.sample(0, belief, 3), lambda: posterior(belief),
                 lambda: diagnostics(belief)):  # fmt: skip
        with pytest.raises(ValueError, match="20 rows do not fit"):
            read()
    with pytest.raises(ValueError, match="capacity="):
        quick.update(0, quick.init(0), rows_of(*data(5, 17)))


def test_chains_do_not_depend_on_how_they_are_run(quick: dp.Inference) -> None:
    settings = {"capacity": 16, "num_warmup": 4, "num_samples": 4, "num_chains": 2}
    at_once = nuts(line, np.ones(2, np.float32), chain_method="vectorized", **settings)
    rows = rows_of(*data(6, 8))
    one, other = (e.update(2, e.init(0), rows).draws["w"] for e in (quick, at_once))
    np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)


PARALLEL = """
    import sys
    import jax, numpy as np, numpyro, numpyro.distributions as dist
    numpyro.set_host_device_count(2)
    import decisionppl as dp
    from decisionppl.inference._chains import default_method
    from decisionppl.inference.nuts import nuts

    def line(x):
        w = numpyro.sample("w", dist.Normal(1.0, 2.0).expand([2]).to_event(1))
        dp.reward("y", dist.Normal(w @ x, 0.5))

    assert [default_method(n) for n in (2, 3, 4)] == ["parallel", "sequential", "parallel"]
    x, y = np.load(sys.argv[1])["x"], np.load(sys.argv[1])["y"]
    engine = nuts(line, x[0], capacity=16, num_warmup=4, num_samples=4, num_chains=2)
    belief = engine.init(0)
    for i in range(2):
        belief = engine.update(i, belief, dp.Rows((x,), {"y": y}, np.ones(len(y), bool)))
    # no mesh leaks: draws mix with arrays of any one device
    assert len(belief.draws["w"].devices()) == 1
    engine.sample(0, belief, 3)["w"] + jax.device_put(1.0, jax.devices()[1])
    np.save(sys.argv[2], belief.draws["w"])
"""


def test_parallel_chains_on_two_devices(quick: dp.Inference, tmp_path: Path) -> None:
    x, y = data(6, 7)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    arguments = [str(tmp_path / "data.npz"), str(tmp_path / "draws.npy")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PARALLEL), *arguments],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    belief = quick.init(0)
    for i in range(2):
        belief = quick.update(i, belief, rows_of(x, y))
    parallel = np.load(arguments[1])
    np.testing.assert_allclose(parallel, belief.draws["w"], rtol=1e-2, atol=1e-3)


def test_dense_blocks_counts_and_divergences() -> None:
    def funnel() -> None:
        s = numpyro.sample("s", dist.Normal(0, 3))
        x = numpyro.sample("x", dist.Normal(0, jnp.exp(s)).expand([9]).to_event(1))
        dp.outcome("y", dist.Normal(x[0], 10.0))

    engine = nuts(
        funnel, num_warmup=50, num_samples=200, num_chains=2, dense_mass=[("x",)],
        target_accept=0.3,
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="diverged.*target_accept"):
        belief = engine.update(0, engine.init(0), dp.observe(funnel, sites={"y": [1.0, 0.0]}))
    assert belief.chains.inverse_mass[("x",)].shape == (2, 9, 9)
    assert belief.chains.inverse_mass[("s",)].shape == (2, 1)
    assert diagnostics(belief)["divergences"] > 0


def test_impossible_rows_are_an_error(quick: dp.Inference) -> None:
    x, y = data(0, 10)
    y[3] = np.inf
    with pytest.raises(ValueError, match="impossible under the model"):
        quick.update(0, quick.init(0), rows_of(x, y))
    belief = jax.jit(quick.update)(jax.random.key(0), quick.init(0), rows_of(x, y))
    assert np.isnan(belief.draws["w"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_chains": 0}, "num_chains: expected a positive int"),
        ({"num_warmup": 0}, "num_warmup: expected a positive int"),
        ({"capacity": 0}, "capacity: expected a positive int"),
        ({"target_accept": 1.0}, "target_accept: expected a probability"),
        ({"chain_method": "pmap"}, "chain_method: expected one of"),
        ({"sites": ["nope"]}, "'nope'"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nuts(line, np.ones(2, np.float32), **settings)


def test_discrete_latents_are_refused() -> None:
    def switch() -> None:
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        dp.reward("y", dist.Normal(k, 1.0))

    with pytest.raises(TypeError, match="'k' is discrete"):
        nuts(switch)


def test_rows_without_an_expected_site(quick: dp.Inference) -> None:
    with pytest.raises(ValueError, match=r"lack site 'y'.*sites="):
        quick.update(0, quick.init(0), dp.Rows((np.zeros((1, 2)),), {}, np.ones(1, bool)))
