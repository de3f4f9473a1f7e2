"""Expected information gain: linear-Gaussian truths for each estimator, and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl import inference, kernels, lookahead

KEY = jax.random.key(0)
SES = 5.7  # standard errors: a correct program fails one check with a chance of about 1e-8
X = np.array([-2.0, -0.5, 0.3, 1.0, 2.5])
BATCHES = [[4, -1], [0, 4], [2, 3], [-1, -1], [1, 4]]
PRIOR = np.diag([1.0, 0.25])


def line():
    w = numpyro.sample("w", dist.Normal(0, jnp.array([1.0, 0.5])).to_event(1))
    x = dp.action("x", dist.Normal(0, 3))
    dp.reward("y", dist.Normal(w[0] + w[1] * x, 0.5 + 0.1 * jnp.abs(x)))


def truth(covariance, noise, batch):
    """Half the log determinant of labels in units of their noise."""
    batch = [i for i in batch if i >= 0]
    if not batch:
        return 0.0
    block = covariance[np.ix_(batch, batch)] / np.outer(noise[batch], noise[batch])
    return 0.5 * np.linalg.slogdet(np.eye(len(batch)) + block)[1]


@pytest.fixture(scope="module")
def linear():
    engine = inference.conjugate(line)
    found = lookahead.problem(line, engine, X, lookahead.mean_outcome(np.array([2.0])))
    phi = np.column_stack([np.ones(5), X])
    exact = [truth(phi @ PRIOR @ phi.T, 0.5 + 0.1 * np.abs(X), b) for b in BATCHES]
    return found, engine.init(0), np.array(exact)


def test_exact_is_the_determinant(linear):
    found, belief, exact = linear
    got = lookahead.information_gain(0, found, belief, BATCHES, method="exact")
    np.testing.assert_allclose(got, exact, atol=1e-6)


def test_laplace_is_exact_for_a_linear_model_up_to_the_draws(linear):
    found, belief, exact = linear
    got = lookahead.information_gain(0, found, belief, BATCHES, method="laplace", num_worlds=20_000)
    # the log of a determinant of two variances, each of relative error sqrt(2 / 20,000)
    np.testing.assert_allclose(got, exact, atol=SES * np.sqrt(2 / 20_000))
    assert float(got[3]) == 0


def test_nested_approaches_the_truth_from_below(linear):
    found, belief, exact = linear

    def gains(num_worlds):
        run = lambda key: lookahead.information_gain(  # noqa: E731
            key, found, belief, BATCHES, num_outcomes=200, num_worlds=num_worlds
        )
        return np.asarray(jax.lax.map(run, jax.random.split(KEY, 40)))

    few, many = gains(8), gains(2000)
    error = SES * many.std(0) / np.sqrt(40)
    assert (np.abs(many.mean(0) - exact) <= error + 0.005).all()  # the bias is of order 1 / worlds
    assert (few.mean(0)[[0, 1, 2]] < many.mean(0)[[0, 1, 2]]).all()
    assert (few.max(0) <= np.log(9) + 1e-5).all()


@pytest.mark.slow
def test_nested_for_a_coin_by_enumeration():
    """One toss of a uniform coin: entropy of a fair toss less that of the coin, log 2 - 1/2."""

    def coins():
        p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        dp.reward("y", dist.Bernoulli(p[dp.action("coin", 2)]))

    engine = inference.conjugate(coins)
    arms = jnp.arange(2)
    found = lookahead.problem(coins, engine, arms, lookahead.mean_outcome(arms))
    got = jax.lax.map(
        lambda key: lookahead.information_gain(
            key, found, engine.init(0), [[0], [1]], num_outcomes=400, num_worlds=400
        ),
        jax.random.split(KEY, 40),
    )
    error = SES * np.asarray(got).std(0) / np.sqrt(40)
    assert (np.abs(got.mean(0) - (np.log(2) - 0.5)) < error + 0.003).all()


def test_laplace_of_a_coin_reads_the_fisher_information():
    """For a known bias the Fisher information of a toss is 1 / (p (1 - p))."""

    def coin():
        p = numpyro.sample("p", dist.Uniform(0.3, 0.7))
        dp.action("toss", 1)
        dp.reward("y", dist.Bernoulli(p))

    engine = inference.laplace(coin)
    found = lookahead.problem(coin, engine, jnp.zeros(1, int), lookahead.mean_outcome(jnp.zeros(1)))
    belief = engine.init(0)
    got = lookahead.information_gain(0, found, belief, [[0]], method="laplace", num_worlds=4000)
    p = np.asarray(engine.sample(jax.random.key(1), belief, 4000)["p"])
    exact = np.mean(0.5 * np.log(1 + p.var() / (p * (1 - p))))
    assert float(got[0]) == pytest.approx(exact, rel=0.2)  # a variance of 4,000 draws: 3 %


def surface():
    f = numpyro.sample("f", dp.GaussianProcess(kernels.RBF(1.0)))
    x = dp.action("x", dist.Normal(0, 3))
    dp.outcome("y", dist.Normal(f(x), 0.3))


def test_information_about_targets_is_mutual_and_less():
    engine = inference.gaussian_process(surface, capacity=4)
    targets = np.array([0.0, 3.0])
    found = lookahead.problem(surface, engine, X, lookahead.mean_outcome(targets))
    belief = engine.init(0)
    with jax.enable_x64(True):
        about = lookahead.information_gain(
            0, found, belief, BATCHES, method="exact", about="targets"
        )
        world = lookahead.information_gain(0, found, belief, BATCHES, method="exact")
    every = np.concatenate([X, targets])
    gram = np.exp(-0.5 * (every[:, None] - every) ** 2)
    noise = np.full(7, 0.3)

    def log_det(index, extra):
        return np.linalg.slogdet(gram[np.ix_(index, index)] + np.diag(extra))[1]

    for batch, gain in zip(BATCHES[:3], about, strict=False):
        b, t = [i for i in batch if i >= 0], [5, 6]
        # I(y; f_T) = (log|K_yy| + log|K_TT| - log|K_both|) / 2
        exact = 0.5 * (
            log_det(b, noise[b] ** 2)
            + log_det(t, np.zeros(2))
            - log_det([*b, *t], np.r_[noise[b] ** 2, np.zeros(2)])
        )
        assert float(gain) == pytest.approx(exact, abs=1e-5)
    assert (np.asarray(about) <= np.asarray(world) + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "laplace"}, TypeError, "holds a function"),
        ({"method": "guess"}, ValueError, "method: expected one of"),
        ({"about": "targets"}, ValueError, 'with method="exact"'),
        ({"batches": [0, 1]}, ValueError, "int \\[batches, k\\]"),
        ({"method": "exact", "closed_form": False}, ValueError, "needs a Gaussian belief"),
    ],
)
def test_misuse_says_what_to_do(options, error, message):
    engine = inference.gaussian_process(surface, capacity=4)
    options = {"batches": [[0]], **options}
    goal, closed = lookahead.mean_outcome(X), options.pop("closed_form", True)
    found = lookahead.problem(surface, engine, X, goal, closed_form=closed)
    with pytest.raises(error, match=message):
        lookahead.information_gain(0, found, engine.init(0), **options)
