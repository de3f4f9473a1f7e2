"""Exact exchangeable sequences against closed forms, and the two forms against each other."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import special, stats

import decisionppl as dp
from decisionppl import inference, testing
from decisionppl.inference._steps import steps_of
from decisionppl.models import sequences

KEY = jax.random.key(0)
LENGTH = 10
DESIGN = np.linspace(-2, 2, 6)[:, None] * [1.0, 0.5]
ROWS = np.array([0, 3, 3, 5, 1, 0, 2, 4, 3, 1])
PLACES = np.array([-4.0, -1.0, 0.5, 4.9, -4.5, 1.0, 6.0, -3.0, 2.5, -0.1])


# Closed forms, in NumPy float64: log probability of a whole sequence.


def urn_truth(p, y):
    ones = y.sum()
    return special.betaln(p["alpha"] + ones, p["beta"] + len(y) - ones) - special.betaln(
        p["alpha"], p["beta"]
    )


def dirichlet_truth(p, y):
    prior, after = p["concentration"], p["concentration"] + np.bincount(y, minlength=3)
    log_norm = lambda a: special.gammaln(a).sum() - special.gammaln(a.sum())  # noqa: E731
    return log_norm(after) - log_norm(prior)


def mixture_truth(p, y):
    ones = y.sum()
    terms = [
        special.betaln(25 * m + 1 + ones, 26 - 25 * m + len(y) - ones)
        - special.betaln(25 * m + 1, 26 - 25 * m)
        for m in (p["z"][0] / 4, 0.75 + p["z"][1] / 4)
    ]
    return special.logsumexp(terms) - np.log(2)


def normal_truth(p, y):
    cov = p["prior_scale"] ** 2 + p["noise"] ** 2 * np.eye(len(y))
    return stats.multivariate_normal(np.full(len(y), p["prior_mean"]), cov).logpdf(y)


def student_truth(p, y):
    a, b = p["concentration"], p["rate"]
    shape = b / a * (np.eye(len(y)) + 1 / p["precision"])
    return stats.multivariate_t(np.full(len(y), p["loc"]), shape, df=2 * a).logpdf(y)


def gaussian_process_truth(p, y, rows):
    points = DESIGN[rows] / p["length_scale"]
    squares = ((points[:, None] - points) ** 2).sum(-1)
    cov = p["variance"] * np.exp(-squares / 2) + p["noise_variance"] * np.eye(len(y))
    return stats.multivariate_normal(np.zeros(len(y)), cov).logpdf(y)


def regions_truth(p, y, x):
    bins = np.searchsorted([-2.5, 0.0, 2.5], x, side="right")
    same = bins[:, None] == bins
    cov = same * p["scales"][bins] ** 2 + np.diag(p["noises"][bins] ** 2)
    return stats.multivariate_normal(np.zeros(len(y)), cov).logpdf(y)


class Case(NamedTuple):
    make: Callable  # (**parameters) -> Twins
    parameters: dict[str, Any]
    truth: Callable  # (parameters, y, covariates if any) -> log probability
    num_values: int | None = None  # of y; None if y is real
    covariates: np.ndarray | None = None

    def twins(self):
        return self.make(**self.parameters)

    def args(self, length=LENGTH):
        return (length,) if self.covariates is None else (jnp.asarray(self.covariates[:length]),)

    def data(self, length=LENGTH):
        rng = np.random.default_rng(0)
        if self.num_values is None:
            return rng.normal(size=length).astype(np.float32)
        return rng.integers(self.num_values, size=length)

    def log_prob(self, y, covariates=None, parameters=None):
        y, given = np.asarray(y), () if covariates is None else (np.asarray(covariates),)
        y = y.astype(float) if self.num_values is None else y
        exact = {n: np.asarray(v, float) for n, v in (parameters or self.parameters).items()}
        return self.truth(exact, y, *given)


CASES = {
    "polya_urn": Case(sequences.polya_urn, {"alpha": 0.7, "beta": 2.0}, urn_truth, 2),
    "dirichlet_multinomial": Case(
        sequences.dirichlet_multinomial, {"concentration": np.array([0.5, 1.0, 2.5])},
        dirichlet_truth, 3,
    ),
    "beta_mixture": Case(sequences.beta_mixture, {"z": np.array([0.4, 0.3])}, mixture_truth, 2),
    "normal_normal": Case(
        sequences.normal_normal, {"prior_mean": 0.5, "prior_scale": 1.5, "noise": 0.6},
        normal_truth,
    ),
    "normal_inverse_gamma": Case(
        sequences.normal_inverse_gamma,
        {"loc": -0.5, "precision": 0.7, "concentration": 3.0, "rate": 2.0}, student_truth,
    ),
    "gaussian_process": Case(
        functools.partial(sequences.gaussian_process, DESIGN),
        {"length_scale": 0.8, "variance": 1.3, "noise_variance": 0.2},
        gaussian_process_truth, None, ROWS,
    ),
    "regions": Case(
        sequences.regions,
        {"scales": np.array([1.0, 0.3, 2.0, 0.7]), "noises": np.array([0.2, 1.0, 0.4, 0.5])},
        regions_truth, None, PLACES,
    ),
}  # fmt: skip
each_case = pytest.mark.parametrize("name", CASES)


def log_prob_steps(twins, args, y):
    """log p(y_t | past), [length], through the sequence model as a program."""
    model = handlers.condition(handlers.seed(twins.sequence, KEY), {"y": y})
    site = handlers.trace(model).get_trace(*args)["y"]
    return site["fn"].log_prob(site["value"])


@functools.cache
def compiled(name):
    """`(parameters, covariates, y) -> log p(y)`: the parameters are traced."""
    case = CASES[name]

    def log_prob(parameters, covariates, y):
        args = (len(y),) if covariates is None else (covariates,)
        return jnp.sum(log_prob_steps(case.make(**parameters), args, y))

    return jax.jit(log_prob)


# The joint distribution.


@each_case
def test_joint_probability_to_double_precision(name):
    case = CASES[name]
    y = case.data()
    with jax.enable_x64(True):
        data = jnp.asarray(y, float if case.num_values is None else int)
        found = log_prob_steps(case.twins(), case.args(), data).sum()
        assert found.dtype == jnp.float64
        assert float(found) == pytest.approx(case.log_prob(y, case.covariates), rel=1e-10)


@each_case
@settings(max_examples=30)
@given(random=st.data())
def test_joint_probability_of_any_data_in_any_order(name, random):
    """Float32: off by rounding of each of the terms, so 1e-5 relative to their number too."""
    case = CASES[name]
    factors = st.floats(0.5, 2.0, width=32)
    parameters = {
        n: np.float32(v) * np.float32(random.draw(factors)) for n, v in case.parameters.items()
    }
    if case.num_values is None:
        values = st.floats(-4, 4, width=32, allow_subnormal=False)
    else:
        values = st.integers(0, case.num_values - 1)
    y = np.array(random.draw(st.lists(values, min_size=LENGTH, max_size=LENGTH)))
    y = y.astype(np.float32 if case.num_values is None else np.int32)
    order = np.array(random.draw(st.permutations(range(LENGTH))))
    covariates = case.covariates
    expected = case.log_prob(y, covariates, parameters)
    for moved in (slice(None), order):
        x = None if covariates is None else covariates[moved]
        found = float(compiled(name)(parameters, x, y[moved]))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5 * LENGTH)


def test_number_of_ones_in_an_urn_is_beta_binomial():
    alpha, beta = 0.7, 2.0
    every = np.array(list(itertools.product([0, 1], repeat=8)))
    twins = sequences.polya_urn(alpha, beta)
    steps = jax.vmap(lambda y: log_prob_steps(twins, (8,), y))(jnp.asarray(every))
    for length in range(1, 9):
        # sequences that agree on the first steps share their probability
        weight = np.exp(steps[:, :length].sum(1)) / 2 ** (8 - length)
        found = np.bincount(every[:, :length].sum(1), weight, minlength=length + 1)
        exact = stats.betabinom(length, alpha, beta).pmf(np.arange(length + 1))
        np.testing.assert_allclose(found, exact, rtol=1e-5)


# The public checks.


@pytest.fixture
def student_quantiles(monkeypatch):
    """Student-t quantiles, and draws by them.

    NumPyro's quantiles need a package that does not import on current JAX, and its draws take
    seconds to compile.
    """

    def icdf(law, q):
        exact = lambda *args: stats.t.ppf(*args).astype(q.dtype)  # noqa: E731
        shape = jax.ShapeDtypeStruct(q.shape, q.dtype)
        return jax.pure_callback(exact, shape, q, law.df, law.loc, law.scale,
                                 vmap_method="expand_dims")  # fmt: skip

    def sample(law, key, sample_shape=()):
        return icdf(law, jax.random.uniform(key, (*sample_shape, *law.batch_shape), minval=1e-6))

    monkeypatch.setattr(dist.StudentT, "icdf", icdf)
    monkeypatch.setattr(dist.StudentT, "sample", sample)


quantiles = pytest.mark.usefixtures("student_quantiles")


@each_case
@quantiles
def test_order_does_not_matter(name):
    case = CASES[name]
    model, args = case.twins().sequence, case.args()
    testing.assert_exchangeable(model, *args, num_sequences=3, num_permutations=8)


@each_case
@quantiles
def test_predictive_law_is_a_martingale(name):
    """With covariates: at one place, since laws at different places differ."""
    case = CASES[name]
    args = case.args()
    if case.covariates is not None:
        args = (jnp.full(LENGTH, case.covariates[2]),)
    found = testing.assert_martingale(
        case.twins().sequence, *args, num_sequences=2, num_positions=3, num_samples=64, level=1e-7
    )
    if case.num_values is not None:
        assert not found.stderr.any()  # a sum over all values, no Monte Carlo


@each_case
@quantiles
def test_laws_see_the_past_and_multiply_to_the_joint(name):
    case = CASES[name]

    def joint(data):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        exact = lambda y: np.float32(case.log_prob(y, case.covariates))  # noqa: E731
        return jax.pure_callback(exact, shape, data["y"])

    testing.assert_consistency(
        case.twins().sequence, *case.args(), joint=joint, shorter=case.args(4), num_sequences=3
    )


# The twins.


def summary(law):
    """What laws are compared by: all probabilities, or mean and variance."""
    if law.has_enumerate_support:
        return jnp.exp(jax.vmap(law.log_prob)(law.enumerate_support(expand=False)))
    return jnp.stack([law.mean, law.variance])


def law_after(case, y):
    """Summary of the law after a prefix absorbed step by step, and log p(prefix)."""
    steps = steps_of(case.twins().sequence, *case.args())
    at = lambda t: jax.tree.map(lambda x: x[t], steps.xs)  # noqa: E731

    @jax.jit
    def run(y):
        absorb = lambda carry, given: steps.absorb(carry, given[0], {"y": given[1]})  # noqa: E731
        carry, log_prob = jax.lax.scan(absorb, steps.init, (at(slice(len(y))), y))
        return summary(steps.law(carry, at(len(y)))), jnp.sum(log_prob)

    return run(jnp.asarray(y))


def law_of_belief(name, parameters, belief):
    """Predictive law in an exact engine's belief, at the seventh covariate."""
    if CASES[name].num_values is not None:
        counts = np.asarray(belief["p"])
        counts = counts[::-1] if name == "polya_urn" else counts[0]
        return counts / counts.sum()
    if name == "normal_inverse_gamma":
        mean, root = belief.weights
        spread = belief.rate[0] / (belief.shape[0] - 1)
        return mean[0, 0], spread * (1 + root[0, 0, 0] ** 2)
    block, entry = {"gaussian_process": (0, ROWS[6]), "regions": (3, 0)}.get(name, (0, 0))
    noise = {
        "normal_normal": lambda p: p["noise"] ** 2,
        "gaussian_process": lambda p: p["noise_variance"],
        "regions": lambda p: p["noises"][3] ** 2,
    }[name](parameters)
    spread = (belief.root[block][entry] ** 2).sum()
    return belief.mean[block][entry], spread + noise


@pytest.mark.parametrize("name", [n for n in CASES if n != "beta_mixture"])
def test_twins_predict_alike(name):
    case = CASES[name]
    y = case.data(6)
    seen = None if case.covariates is None else case.covariates[:6]
    row = () if case.covariates is None else (case.covariates[6],)
    latent = case.twins().latent
    rows = dp.observe(latent, () if seen is None else (seen,), {"y": y})
    engine = inference.conjugate(latent, *row)
    belief = engine.update(KEY, engine.init(KEY), rows)
    law, total = law_after(case, y)
    # the covariance of a Gaussian process at its design is given some jitter
    tolerance = 1e-4 if name == "gaussian_process" else 1e-5
    expected = law_of_belief(name, case.parameters, belief)
    np.testing.assert_allclose(law, expected, rtol=tolerance, atol=tolerance)
    assert float(total) == pytest.approx(case.log_prob(y, seen), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("prefix", [[], [1, 1, 0], [0, 0, 0, 0, 1, 0]])
def test_twins_of_the_mixture_by_quadrature(prefix):
    """The posterior of p by integrating over the program with the latent."""
    case = CASES["beta_mixture"]
    latent = case.twins().latent
    nodes, weights = np.polynomial.legendre.leggauss(200)
    p = jnp.asarray((nodes + 1) / 2)

    def log_joint(p, y):
        return log_density(latent, (), {}, {"p": p, "y": y})[0]

    over_p = jax.vmap(log_joint, in_axes=(0, None))
    zero, one = jax.jit(jax.vmap(over_p, in_axes=(None, 0)))(p, jnp.arange(2))
    prior = jnp.logaddexp(zero, one)  # one observation of either value
    likelihood = jnp.stack([zero, one]) - prior
    posterior = weights * np.exp(prior + sum(likelihood[y] for y in prefix))
    expected = (posterior * np.exp(likelihood[1])).sum() / posterior.sum()
    law, _ = law_after(case, np.array(prefix, int))
    assert weights @ np.exp(prior) / 2 == pytest.approx(1, rel=1e-5)
    assert float(law[1]) == pytest.approx(expected, rel=1e-5)


# Numerics and speed.


def test_paths_of_a_gaussian_process_share_its_covariance():
    steps = steps_of(sequences.gaussian_process(DESIGN).sequence, jnp.asarray(ROWS))

    def generate(key):
        def step(carry, given):
            return steps.draw(given[0], carry, given[1])

        keys = jax.random.split(key, LENGTH)
        (mean, covariance), y = jax.lax.scan(step, steps.init, (keys, steps.xs))
        return mean, covariance, y["y"]

    # None refuses what is batched
    keys = jax.random.split(KEY, 3)
    mean, covariance, y = jax.vmap(generate, out_axes=(0, None, 0))(keys)
    assert mean.shape == (3, 6)
    assert covariance.shape == (6, 6)
    assert y.shape == (3, LENGTH)


def test_long_gaussian_process_stays_exact_in_float32():
    """3,000 observations of two points that are nearly the same."""
    twins = sequences.gaussian_process(np.array([[0.0], [0.01]]), noise_variance=1e-3)
    steps = steps_of(twins.sequence, jnp.arange(3_000) % 2)
    absorb = lambda carry, row: steps.absorb(carry, row, {"y": 0.3})  # noqa: E731
    (mean, covariance), _ = jax.lax.scan(absorb, steps.init, steps.xs)
    correlation = np.exp(-0.5 * 0.01**2)
    prior = np.linalg.inv([[1, correlation], [correlation, 1]])
    exact = np.linalg.inv(prior + 1_500 / 1e-3 * np.eye(2))
    np.testing.assert_allclose(jnp.diagonal(covariance), np.diag(exact), rtol=1e-3)
    np.testing.assert_allclose(mean, 0.3, rtol=1e-5)


def test_long_normal_sequence_stays_exact_in_float32():
    """20,000 observations far from zero, where float32 has steps of 6e-5."""
    y = 1_000 + np.random.default_rng(0).normal(size=20_000)
    run = dp.play(sequences.normal_normal(1_000.0).sequence, 0, data={"y": y})(20_000)
    law = run["y"]["fn"]
    seen = y[:-1].astype(np.float32).astype(float)
    assert float(law.mean[-1]) == pytest.approx((1_000 + seen.sum()) / 20_000, rel=1e-7)
    assert float(law.variance[-1]) == pytest.approx(1 + 1 / 20_000, rel=1e-6)


def test_published_settings():
    for twins, signal, noise in (
        (sequences.al_regions_v2_50(), (0.9, 0.5), (0.1, 0.7)),
        (sequences.al_hregions(), (0.05, 0.95), (1.55, 0.05)),
    ):
        edges = jnp.array([-5.0, -0.01, 0.01, 4.99])
        variance = dp.play(twins.sequence, 0)(edges)["y"]["fn"].variance
        exact = np.repeat(np.square(signal) + np.square(noise), 2)
        np.testing.assert_allclose(variance, exact, rtol=1e-6)
        assert dp.play(twins.latent, 0)(0.0)["theta"]["value"].shape == (50,)


# Misuse.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sequences.polya_urn(alpha=0.0), "alpha: expected a number, positive.*got 0.0"),
        (lambda: sequences.polya_urn(beta=jnp.ones(2)), "beta: expected a number"),
        (lambda: sequences.polya_urn().sequence(0), "length: expected an int.*got 0"),
        (lambda: sequences.polya_urn().sequence(2.0), "length: expected an int.*got 2.0"),
        (lambda: sequences.dirichlet_multinomial(1.0), "concentration: expected an array"),
        (lambda: sequences.dirichlet_multinomial([1.0, -1.0]), "concentration: .*positive"),
        (lambda: sequences.beta_mixture([0.5, 1.5]), "z: .*between 0 and 1"),
        (lambda: sequences.beta_mixture([0.5]), "z: expected two features"),
        (lambda: sequences.normal_normal(prior_mean=np.nan), "prior_mean: .*finite"),
        (lambda: sequences.normal_normal(noise=-1), "noise: .*positive"),
        (lambda: sequences.normal_inverse_gamma(rate=np.inf), "rate: .*finite"),
        (lambda: sequences.gaussian_process(np.ones(3)), "design: expected an array .n, d"),
        (lambda: sequences.gaussian_process(DESIGN, noise_variance=0), "noise_variance: "),
        (lambda: sequences.regions([1.0], [1.0, 2.0]), "noises: expected shape"),
        (lambda: sequences.regions([1.0], [1.0], 2.0, 1.0), "high: expected a number above"),
    ],
)
def test_bad_parameters_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@each_case
def test_latent_twins_accept_traced_parameters(name):
    case = CASES[name]
    row = () if case.covariates is None else (case.covariates[0],)

    def play(parameters):
        return dp.play(case.make(**parameters).latent, KEY)(*row)["y"]["value"]

    traced = {n: jnp.asarray(v) for n, v in case.parameters.items()}
    assert jax.eval_shape(play, traced).shape == ()
