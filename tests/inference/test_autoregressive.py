"""Beliefs by generation: exact where closed forms exist, and nothing seen is ever overwritten."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.contrib.control_flow import scan
from scipy import stats

import decisionppl as dp
from decisionppl import inference
from decisionppl.inference._steps import steps_of
from decisionppl.models import sequences

KEY = jax.random.key(0)
# three statistics of 20,000 draws below, each with a false alarm once in 10^7
DRAWS, Z = 20_000, 5.3


def after(engine, y, **sites):
    y = jnp.asarray(y)
    rows = dp.Rows((), {"y": y, **sites}, jnp.ones(len(y), bool))
    return engine.update(KEY, engine.init(KEY), rows)


def test_imagined_urn_counts_follow_the_beta_binomial_exactly():
    """Every sequence of six draws, given a prefix, with the probability of the closed form."""
    engine = inference.autoregressive(sequences.polya_urn(2.0, 1.0).sequence, 9)
    belief = after(engine, [1, 1, 0])
    steps = steps_of(sequences.polya_urn(2.0, 1.0).sequence, 9)
    paths = jnp.asarray(list(itertools.product([0, 1], repeat=6)))

    def log_prob(path):
        step = lambda carry, y: steps.absorb(carry, 0, {"y": y})  # noqa: E731
        return jax.lax.scan(step, belief.carry, path)[1].sum()

    probability = np.exp(jax.vmap(log_prob)(paths).astype(float))
    counts = np.bincount(np.asarray(paths.sum(1)), weights=probability, minlength=7)
    np.testing.assert_allclose(counts, stats.betabinom.pmf(np.arange(7), 6, 4, 2), rtol=1e-5)
    worlds = engine.sample(KEY, belief, DRAWS)["y"]
    found = np.bincount(np.asarray(worlds[:, 3:].sum(1)), minlength=7)
    expected = DRAWS * stats.betabinom.pmf(np.arange(7), 6, 4, 2)
    assert np.square((found - expected) / np.sqrt(expected)).sum() < stats.chi2.isf(1e-7, 6)


@pytest.mark.parametrize("seen", [0, 4, 49, 50])
def test_population_mean_has_the_posterior_of_the_closed_form(seen):
    prior, noise, length = 0.9, 0.5, 50
    y = np.random.default_rng(0).normal(0.4, noise, seen)
    engine = inference.autoregressive(sequences.normal_normal(0.0, prior, noise).sequence, length)
    belief = after(engine, y) if seen else engine.init(KEY)
    means = np.asarray(engine.sample(KEY, belief, DRAWS)["y"], float).mean(axis=1)
    v = 1 / (1 / prior**2 + seen / noise**2)
    m = v * y.sum() / noise**2
    rest = length - seen
    mean = (y.sum() + rest * m) / length
    variance = (rest / length) ** 2 * (v + noise**2 / rest) if rest else 0.0
    if not rest:
        assert means.std() < 1e-7
        assert means[0] == pytest.approx(y.mean(), abs=1e-6)
        return
    assert abs(means.mean() - mean) < Z * (variance / DRAWS) ** 0.5
    assert abs(means.var() / variance - 1) < Z * (2 / DRAWS) ** 0.5


def test_one_step_worlds_do_not_hang_together():
    engine = inference.autoregressive(
        sequences.normal_normal(0.0, 0.9, 0.5).sequence, 50, one_step=True
    )
    means = np.asarray(engine.sample(KEY, engine.init(KEY), DRAWS)["y"], float).mean(axis=1)
    variance = (0.81 + 0.25) / 50  # not 0.81 + 0.25 / 50
    assert abs(means.var() / variance - 1) < Z * (2 / DRAWS) ** 0.5


def test_imputed_cells_follow_the_conditional_normal():
    x = np.linspace(-2, 2, 8)
    model = sequences.gaussian_process(x[:, None], noise_variance=0.1).sequence
    table = np.full(8, np.nan)
    table[[2, 5]] = [0.7, -0.5]
    known = np.isfinite(table)
    full = inference.impute(model, (jnp.arange(8),), table, key=0, num_worlds=DRAWS)["y"]
    cov = np.exp(-0.5 * np.square(x[:, None] - x)) + 0.1 * np.eye(8)
    gain = cov[~known][:, known] @ np.linalg.inv(cov[known][:, known])
    mean = gain @ table[known]
    cov = cov[~known][:, ~known] - gain @ cov[known][:, ~known]
    drawn = np.asarray(full, float)[:, ~known]
    assert (np.abs(drawn.mean(0) - mean) < Z * np.sqrt(np.diag(cov) / DRAWS)).all()
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / DRAWS)
    assert (np.abs(np.cov(drawn.T) - cov) < Z * error).all()
    assert bool((full[:, known] == jnp.asarray(table[known], jnp.float32)).all())


@settings(max_examples=12, deadline=None)
@given(st.lists(st.booleans(), min_size=12, max_size=12), st.integers(0, 2**31 - 1))
def test_observed_cells_are_kept_to_the_bit(pattern, seed):
    observed = np.asarray(pattern).reshape(6, 2)
    y = np.random.default_rng(seed).normal(size=(6, 2)).astype(np.float32)
    full = inference.impute(
        MODEL, (6,), y, observed=observed, key=seed, num_worlds=3, arms=2
    )["y"]  # fmt: skip
    assert np.array_equal(full[:, observed], np.broadcast_to(y[observed], (3, observed.sum())))
    assert (np.asarray(full[:, ~observed]) != y[~observed]).all()


MODEL = sequences.normal_normal().sequence


def test_blocks_of_missing_cells_are_one_chain():
    """More missing cells than a block holds, between seen ones, still one exchangeable draw."""
    length = 80
    observed = np.zeros(length, bool)
    observed[[0, 40, 79]] = True
    y = np.where(observed, 3.0, np.nan)
    worlds = inference.impute(
        sequences.normal_normal(0.0, 1.0, 0.1).sequence, (length,), y, key=1, num_worlds=4000
    )["y"]
    gaps = np.asarray(worlds[:, 1] - worlds[:, 78], float)
    # both hang on the same unknown mean: their difference is noise alone
    assert gaps.var() == pytest.approx(2 * 0.01, rel=0.15)
    assert np.asarray(worlds[:, 1]).var() > 0.01


def test_a_block_that_is_just_full_is_drawn_to_its_end():
    model = sequences.normal_normal(5.0, 0.1, 0.1).sequence
    worlds = inference.impute(model, (32,), np.full(32, np.nan), key=0, num_worlds=50)["y"]
    assert float(worlds.min()) > 4.0  # at least six standard deviations; nothing left at zero
    assert all(len(set(world)) == 32 for world in worlds.tolist())  # and nothing used twice


def test_rows_that_do_not_count_change_nothing():
    engine = inference.autoregressive(sequences.polya_urn().sequence, 6, arms=2)
    rows = dp.Rows(
        (), {"arm": jnp.asarray([0, 1, 0]), "y": jnp.asarray([1, 1, 0])},
        jnp.asarray([True, False, True]),
    )  # fmt: skip
    belief = engine.update(KEY, engine.init(KEY), rows)
    assert int(belief.count) == 2
    assert belief.observed.tolist()[:2] == [[True, False], [True, False]]
    assert belief.values["y"][:2, 0].tolist() == [1, 0]
    one_by_one = engine.init(KEY)
    for arm, y in ((0, 1), (0, 0)):
        one = dp.Rows((), {"arm": jnp.asarray([arm]), "y": jnp.asarray([y])}, jnp.ones(1, bool))
        one_by_one = engine.update(KEY, one_by_one, one)
    for a, b in zip(jax.tree.leaves(belief), jax.tree.leaves(one_by_one), strict=True):
        assert jnp.array_equal(a, b)


def test_a_growing_history_compiles_once(compilations):
    engine = inference.autoregressive(sequences.polya_urn().sequence, 40)
    belief = engine.init(KEY)
    row = dp.Rows((), {"y": jnp.asarray([1])}, jnp.ones(1, bool))
    compiled = []
    for _ in range(3):
        before = compilations()
        belief = engine.update(KEY, belief, row)
        engine.sample(KEY, belief, 4)
        compiled.append(compilations() - before)
    assert compiled[0] > 0
    assert compiled[1:] == [0, 0]


def test_contexts_to_come_are_drawn_and_those_seen_are_kept():
    def model(x):
        def step(total, x):
            y = dp.outcome("y", dist.Normal(100 * x[0], 0.1))
            return total + y, y

        return scan(step, 0.0, x)

    engine = inference.autoregressive(
        model, jnp.zeros((4, 1)), contexts=lambda key, t: jax.random.normal(key, (1,)) + 10
    )
    row = dp.Rows((jnp.asarray([[1.0]]),), {"y": jnp.asarray([100.0])}, jnp.ones(1, bool))
    belief = engine.update(KEY, engine.init(KEY), row)
    worlds = engine.sample(KEY, belief, 500)["y"]
    assert worlds[:, 0].tolist() == [100.0] * 500
    assert float(worlds[:, 1:].mean()) == pytest.approx(1000.0, abs=20)
    assert float(worlds[:, 1:].std()) == pytest.approx(100.0, rel=0.15)


def test_rounds_beyond_the_population_show():
    engine = inference.autoregressive(sequences.normal_normal().sequence, 2)
    belief = after(engine, [0.1, 0.2, 0.3])
    assert bool(jnp.isnan(engine.sample(KEY, belief, 2)["y"]).all())


def latent_outside():
    def model(n):
        m = numpyro.sample("m", dist.Normal(0, 1))
        return scan(lambda c, _: (c, dp.outcome("y", dist.Normal(m, 1))), 0.0, jnp.arange(n))

    return model


def latent_inside(n):
    return scan(lambda c, _: (c, numpyro.sample("y", dist.Normal(c, 1))), 0.0, jnp.arange(n))


def backwards(n):
    step = lambda c, _: (c, dp.outcome("y", dist.Normal(c, 1)))  # noqa: E731
    return scan(step, 0.0, jnp.arange(n), reverse=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inference.autoregressive(lambda n: None, 3), "no numpyro.contrib"),
        (lambda: inference.autoregressive(latent_outside(), 3), "before the scan"),
        (lambda: inference.autoregressive(latent_inside, 3), "carry no role"),
        (lambda: inference.autoregressive(backwards, 3), "reverse"),
        (lambda: inference.autoregressive(MODEL, 3, arms=0), "arms"),
        (lambda: inference.autoregressive(MODEL, 3, arms=(jnp.ones(2), jnp.ones(3))), "leading"),
        (lambda: inference.autoregressive(MODEL, 3, contexts=lambda k, t: 0.0), "contexts"),
        (lambda: inference.impute(MODEL, (3,), np.ones(4), key=0, num_worlds=1), "expected shape"),
        (lambda: inference.impute(MODEL, (3,), {"z": np.ones(3)}, key=0, num_worlds=1), "sites"),
        (lambda: after(inference.autoregressive(MODEL, 3, arms=2), [0.1]), r"\['arm'\]"),
    ],
)
def test_misuse_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
