"""The synthetic scaling law: exact optimum, fidelities, noise, prices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from decisionppl.models import _mixture_scaling as scaling
from decisionppl.models._mixture_scaling import VARIANTS, mixture_scaling

CELLS = ((20, 9), (20, 60), (300, 60), (1000, 9), (1000, 60))
EVEN = np.full(5, 0.2)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def mixtures(num_sources=5, count=1500):
    return np.random.default_rng(99).dirichlet(np.ones(num_sources), count)


def correlations(problem, w):
    """Spearman correlations without noise between each cell and the target."""
    target = np.asarray(problem.truth(w))
    return np.array([spearmanr(problem.objective(w, m, z), target)[0] for m, z in CELLS])


# --- the optimum -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("num_sources", "seed"), [(5, 0), (5, 1), (2, 2), (9, 4)])
def test_the_optimum_is_exact(variant, num_sources, seed, double):
    problem = mixture_scaling(variant, seed=seed, num_sources=num_sources)
    best, value = problem.optimum
    assert best.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(problem.truth(best), value, rtol=0, atol=1e-12)
    # gradient . (best - w) bounds the loss of `best` against any w of a convex function
    gradient = np.asarray(jax.jit(jax.grad(problem.truth))(jnp.asarray(best)))
    assert gradient @ best - gradient.min() <= 1e-12
    assert np.linalg.matrix_rank(problem.transfer) == num_sources
    w = mixtures(num_sources, 500)
    assert np.all(np.asarray(problem.truth(w)) > value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_objective_is_convex_at_every_fidelity(variant, double):
    problem = mixture_scaling(variant, seed=3)
    hessian = jax.jit(jax.vmap(jax.hessian(problem.objective), (0, None, None)))
    for m, z in (*CELLS, (1000, 197)):
        curvature = hessian(jnp.asarray(mixtures(count=4)), m, z)
        assert np.linalg.eigvalsh(curvature).min() >= -1e-10


@pytest.mark.parametrize(
    ("variant", "support"), [("interior", 5), ("noisy", 5), ("vertex", 1), ("sign_flipped", 3)]
)
def test_where_the_optimum_lies(variant, support):
    first = set()
    for seed in range(8):
        best = mixture_scaling(variant, seed=seed).optimum.mixture
        assert np.count_nonzero(best) == support
        first.add(int(np.argmax(best)))
    assert len(first) > 1  # not always the same source


def test_the_best_vertex_is_strictly_best(double):
    problem = mixture_scaling("vertex", seed=2)
    gradient = np.sort(jax.grad(problem.truth)(jnp.asarray(problem.optimum.mixture)))
    assert gradient[1] - gradient[0] > 0.01


# --- fidelities --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["interior", "vertex"])
def test_cheap_runs_rank_mixtures_as_well_as_their_fidelity_allows(variant):
    w = mixtures()
    table = np.array([correlations(mixture_scaling(variant, seed=seed), w) for seed in range(6)])
    small, small_long, medium_long, early, late = table.T
    assert np.all((table > 0.4) & (table < 0.995))
    for cheaper, dearer in [
        (small, small_long),
        (small_long, medium_long),
        (medium_long, late),
        (small, early),
        (early, late),
    ]:
        assert np.all(cheaper < dearer)
    assert 0.55 < small.mean() < 0.8
    assert late.mean() > 0.93


def test_small_models_mislead_where_the_sign_is_flipped():
    w = mixtures()
    table = [correlations(mixture_scaling("sign_flipped", seed=s), w) for s in range(6)]
    small, small_long, medium_long, early, late = np.array(table).T
    assert np.all(small < -0.7)
    assert np.all(small_long < -0.6)
    assert np.all(early < -0.2)
    assert np.all((medium_long > 0) & (medium_long < 0.7))
    assert np.all(late > 0.95)


def test_losses_fall_with_size_and_length():
    problem = mixture_scaling("interior")
    by_size = problem.domain_losses(EVEN, np.array(scaling.SIZES), 60)
    by_steps = problem.domain_losses(EVEN, 300, np.array([1, 9, 60, 120, 197]))
    assert by_size.shape == (7, 5)
    assert np.all(np.diff(by_size, axis=0) < 0)
    assert np.all(np.diff(by_steps, axis=0) < 0)


def test_the_gap_between_size_and_data_is_not_a_sum():
    """With d > 0 the worth of more steps depends on the size."""
    problem = mixture_scaling("interior")._replace(drift=(0.0, 0.0, 1.0))
    loss = lambda m, z: np.asarray(problem.domain_losses(EVEN, m, z))  # noqa: E731
    cross = loss(20, 9) - loss(20, 60) - loss(1000, 9) + loss(1000, 60)
    assert np.all(cross > 1e-3)
    additive = problem._replace(interaction=np.zeros(5))
    loss = lambda m, z: np.asarray(additive.domain_losses(EVEN, m, z))  # noqa: E731
    cross = loss(20, 9) - loss(20, 60) - loss(1000, 9) + loss(1000, 60)
    np.testing.assert_allclose(cross, 0, atol=1e-5)


def test_gradients_are_finite_at_the_target():
    for variant in ("interior", "sign_flipped"):
        problem = mixture_scaling(variant)
        slopes = jax.jit(jax.grad(problem.objective, (0, 1, 2)))
        for m, z in ((1000.0, 197.0), (20.0, 1.0)):
            for slope in slopes(jnp.asarray(EVEN), m, z):
                assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("variant", ["interior", "sign_flipped"])
def test_gradients_at_the_target_are_those_of_the_limit(variant, double):
    problem = mixture_scaling(variant)
    compiled = jax.jit(jax.value_and_grad(problem.objective, (1, 2)))
    value, slopes = compiled(EVEN, 1000.0, 197.0)
    for slope, (m, z) in zip(slopes, [(999.99, 197.0), (1000.0, 196.99)], strict=True):
        below, _ = compiled(EVEN, m, z)
        assert (value - below) / 0.01 == pytest.approx(float(slope), rel=1e-3)


# --- noise -------------------------------------------------------------------------------------


@jax.jit
def draws(problem, m, z):
    keys = jax.random.split(jax.random.key(5), 4000)
    return jax.vmap(lambda key: problem.simulate(key, EVEN, m, z))(keys)


@pytest.mark.parametrize(("variant", "m", "z"), [("interior", 1000, 197), ("noisy", 20, 9)])
def test_noise_has_the_stated_scale(variant, m, z):
    problem = mixture_scaling(variant)
    loss = np.asarray(draws(problem, m, z)["loss"], float)
    scale = float(problem.noise_scale(m, z))
    assert loss.std() == pytest.approx(scale, rel=0.07)  # 6 standard errors
    mean = float(problem.objective(EVEN, m, z))
    assert abs(loss.mean() - mean) < 6 * scale / np.sqrt(len(loss)) + 1e-5


def test_noise_grows_towards_cheap_runs_and_in_the_noisy_variant():
    plain, noisy = mixture_scaling("interior"), mixture_scaling("noisy")
    scale = lambda m, z: float(plain.noise_scale(m, z))  # noqa: E731
    assert scale(20, 60) > scale(300, 60) > scale(1000, 60) > scale(1000, 197)
    np.testing.assert_allclose(
        noisy.noise_scale(300, 60), 6 * plain.noise_scale(300, 60), rtol=1e-5
    )
    np.testing.assert_array_equal(noisy.truth(EVEN), plain.truth(EVEN))


def test_steps_of_a_run_share_their_noise():
    problem = mixture_scaling("noisy")
    keys = jax.random.split(jax.random.key(6), 4000)
    curves = jax.jit(jax.vmap(lambda key: problem.curve(key, EVEN, 300, 9)["loss"]))(keys)
    steps = jnp.arange(1, 10)
    residual = (curves - problem.objective(EVEN, 300, steps)) / problem.noise_scale(300, steps)
    correlation = np.corrcoef(np.asarray(residual).T)
    off = correlation[~np.eye(9, dtype=bool)]
    # the stated share, 0.7; the standard error of a correlation is about 0.008
    assert np.all(np.abs(off - 0.7) < 0.05)


def test_a_longer_curve_continues_the_shorter_one():
    problem = mixture_scaling("noisy", seed=2)
    short, long = problem.curve(3, EVEN, 60, 9), problem.curve(3, EVEN, 60, 30)
    end = problem.simulate(3, EVEN, 60, 9)
    assert short["step"].tolist() == list(range(1, 10))
    for name in problem.metrics:
        np.testing.assert_allclose(short[name], long[name][:9], rtol=1e-6)
        np.testing.assert_allclose(end[name], short[name][-1], rtol=1e-6)
    other = problem.curve(4, EVEN, 60, 9)
    assert not np.allclose(other["loss"], short["loss"], rtol=1e-6)


def test_metrics():
    problem = mixture_scaling("interior")
    values = problem.simulate(0, EVEN, 300, 60)
    losses = [f"loss_{j}" for j in range(5)]
    names = ("loss", *losses, "accuracy_0", "accuracy_1", "accuracy_2")
    assert tuple(values) == problem.metrics == names
    total = np.array([values[name] for name in losses]) @ problem.weights
    np.testing.assert_allclose(values["loss"], total, rtol=1e-6)
    assert len(mixture_scaling(num_sources=2).metrics) == 5


def test_accuracies_are_at_chance_for_small_runs_and_not_at_the_target():
    problem = mixture_scaling("interior")
    best = problem.optimum.mixture
    small, full = draws(problem, 20, 9), problem.simulate(0, best, 1000, 197)
    for name in ("accuracy_0", "accuracy_1", "accuracy_2"):
        assert abs(float(np.mean(small[name])) - 0.25) < 0.01
        assert float(full[name]) > 0.75
    # at chance what is left is the luck of the questions, sqrt(.25 * .75 / 2000)
    assert float(np.std(draws(problem, 20, 1)["accuracy_0"])) == pytest.approx(0.0097, rel=0.1)


# --- prices ------------------------------------------------------------------------------------


def test_prices_and_continuation():
    problem = mixture_scaling()
    ratios = [0.01296, 0.03232, 0.07484, 0.14773, 0.21662, 0.29830, 1.0]
    np.testing.assert_allclose(problem.cost(np.array(scaling.SIZES), 1), ratios, rtol=1e-5)
    np.testing.assert_allclose(problem.cost(300, 60), 60 * 0.14773, rtol=1e-5)
    assert float(problem.cost(1000, 197)) == 197
    together = problem.cost(500, 9) + problem.cost(500, 60, done=9)
    np.testing.assert_allclose(together, problem.cost(500, 60), rtol=1e-6)
    between = float(problem.cost(400, 1))
    assert 0.14773 < between < 0.21662
    np.testing.assert_allclose(jax.jit(problem.cost)(300, 60), problem.cost(300, 60), rtol=1e-6)


# --- reproducibility and errors ----------------------------------------------------------------


def test_seeds():
    one, again, other = (mixture_scaling("vertex", seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.allclose(one.transfer, other.transfer)


def test_traced_calls():
    problem = mixture_scaling("sign_flipped")
    w = jnp.asarray(mixtures(count=3))
    run = jax.jit(jax.vmap(problem.simulate))
    keys = jax.random.split(jax.random.key(0), 3)
    values = run(keys, w, jnp.array([20.0, 300.0, 1000.0]), jnp.array([9, 60, 197]))
    np.testing.assert_allclose(
        values["loss"][1], problem.simulate(keys[1], w[1], 300, 60)["loss"], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: mixture_scaling("flat"), "variant: expected one of interior, vertex"),
        (lambda p: mixture_scaling(num_sources=1), "num_sources: expected an int of at least 2"),
        (lambda p: p.truth(np.ones(4) / 4), "w: expected shape [..., 5], got (4,)"),
        (lambda p: p.truth(np.ones(5)), "w: expected proportions that sum to one"),
        (lambda p: p.truth(np.array([1.2, -0.2, 0, 0, 0])), "w: expected proportions"),
        (lambda p: p.objective(EVEN, 10, 60), "m: expected 20 to 1000, got 10"),
        (lambda p: p.objective(EVEN, 20, 198), "z: expected 1 to 197, got 198"),
        (lambda p: p.simulate(0, EVEN, 20, 0), "z: expected 1 to 197, got 0"),
        (lambda p: p.simulate(0, EVEN, 20, 9.5), "every hundred steps, got 9.5"),
        (lambda p: p.simulate(0, np.stack([EVEN, EVEN]), 20, 9), "got shape (2, 5)"),
        (lambda p: p.curve(0, EVEN, 20, 9.0), "z: a curve needs an int, got 9.0"),
        (lambda p: p.cost(20, 9, done=10), "done: 10 is beyond the end of the run, z = 9"),
        (lambda p: p.cost(2000, 9), "m: expected 20 to 1000, got 2000"),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(mixture_scaling())
