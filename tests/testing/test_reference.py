"""Reference models against routes that share nothing with them, and the engines against both.

Enumeration in exact fractions, SciPy's multivariate normal, linear solves, numerical derivatives.
"""

import itertools
from fractions import Fraction
from math import factorial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

import decisionppl as dp
from decisionppl import inference
from decisionppl.testing import reference, strategies
from decisionppl.testing._reference_beliefs import _best_probability

KEY = jax.random.key(0)
BETA = reference.beta_bernoulli(3, 2.0, 0.5)
NORMAL = reference.normal_normal(0.4, 1.7, 0.6)
LINEAR = reference.linear_gaussian(2, 1.3, 0.7)
CONJUGATE = {"beta": BETA, "normal": NORMAL, "linear": LINEAR}

normal_contexts = lambda key: (jax.random.normal(key, (2,)),)  # noqa: E731
DATA = {
    "beta": strategies.datasets(BETA.model, num_rows=(12,)),
    "normal": strategies.datasets(NORMAL.model, num_rows=(1, 12)),
    "linear": strategies.datasets(LINEAR.model, normal_contexts, num_rows=(1, 12)),
}
every_conjugate = pytest.mark.parametrize("name", CONJUGATE)


def bandit_rows(arm, reward):
    sites = {"arm": np.asarray(arm, int), "reward": np.asarray(reward, int)}
    return dp.Rows((), sites, np.ones(len(arm), bool))


def statistics(truth, rows):
    """Everything a reference says about the rows."""
    predictive = truth.predictive(rows, np.eye(2)) if truth is LINEAR else truth.predictive(rows)
    best = truth.best_probability(rows) if truth is BETA else 0.0
    parts = (*truth.posterior(rows), truth.log_marginal(rows), predictive, best)
    return np.concatenate([np.ravel(np.asarray(part, float)) for part in parts])


def log_next(truth, rows, i):
    """Log predictive probability of row i given the rows that count."""
    if truth is BETA:
        p = truth.predictive(rows)[int(rows.sites["arm"][i])]
        return np.log(p if rows.sites["reward"][i] == 1 else 1 - p)
    x = (np.asarray(rows.args[0][i], float),) if truth is LINEAR else ()
    return stats.norm(*truth.predictive(rows, *x)).logpdf(float(rows.sites["y"][i]))


def take(rows, index):
    return jax.tree.map(lambda x: np.asarray(x)[index], rows)


# Beta-Bernoulli


def test_polya_urn_by_enumeration():
    """Products of the urn's successive fractions, over all reward sequences of given arms."""
    truth = reference.beta_bernoulli(2, 2.0, 3.0)
    arms = [0, 1, 0, 0]
    total = 0.0
    for rewards in itertools.product([0, 1], repeat=4):
        urns = [[Fraction(2), Fraction(3)], [Fraction(2), Fraction(3)]]
        probability = Fraction(1)
        for arm, reward in zip(arms, rewards, strict=True):
            probability *= urns[arm][1 - reward] / sum(urns[arm])
            urns[arm][1 - reward] += 1
        rows = bandit_rows(arms, rewards)
        assert truth.log_marginal(rows) == pytest.approx(np.log(float(probability)), rel=1e-12)
        expected = [float(u[0] / sum(u)) for u in urns]
        np.testing.assert_allclose(truth.predictive(rows), expected, rtol=1e-12)
        np.testing.assert_allclose(truth.posterior(rows), np.array(urns, float).T, rtol=1e-12)
        total += np.exp(truth.log_marginal(rows))
    assert total == pytest.approx(1, rel=1e-12)


def multiply(p, q):
    product = [Fraction(0)] * (len(p) + len(q) - 1)
    for (i, a), (j, b) in itertools.product(enumerate(p), enumerate(q)):
        product[i + j] += a * b
    return product


def power(p, n):
    return [Fraction(1)] if n == 0 else multiply(p, power(p, n - 1))


def best_exactly(alpha, beta):
    """P(arm is best) for whole parameters: densities and distribution functions are polynomials."""
    densities = []
    for a, b in zip(alpha, beta, strict=True):
        norm = Fraction(factorial(a + b - 1), factorial(a - 1) * factorial(b - 1))
        shape = multiply(
            [Fraction(0)] * (a - 1) + [norm], power([Fraction(1), Fraction(-1)], b - 1)
        )
        densities.append(shape)
    integral = lambda p: [Fraction(0)] + [c / (i + 1) for i, c in enumerate(p)]  # noqa: E731
    result = []
    for k in range(len(alpha)):
        integrand = densities[k]
        for j in range(len(alpha)):
            integrand = integrand if j == k else multiply(integrand, integral(densities[j]))
        result.append(float(sum(integral(integrand))))
    return result


@pytest.mark.parametrize(
    "counts",
    [[[0, 0]], [[0, 0], [0, 0]], [[3, 1], [2, 2]], [[1, 0], [0, 1], [2, 2]],
     [[12, 0], [0, 12], [6, 6], [3, 9]], [[4, 0], [3, 1], [2, 2], [1, 3], [0, 0]]],
)  # fmt: skip
def test_probability_of_being_best_is_exact(counts):
    """`counts` are (successes, failures) per arm."""
    truth = reference.beta_bernoulli(len(counts))
    arms = [a for a, (s, f) in enumerate(counts) for _ in range(s + f)]
    rewards = [r for s, f in counts for r in [1] * s + [0] * f]
    rows = bandit_rows(arms, rewards)
    exact = best_exactly([s + 1 for s, _ in counts], [f + 1 for _, f in counts])
    np.testing.assert_allclose(truth.best_probability(rows), exact, atol=1e-12)


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [([1, 0.05], [0.05, 0.05]), ([5, 0.1], [0.1, 2.0]), ([3000, 1.0], [7000.0, 1.0]),
     ([3000, 3030.0], [7000.0, 6970.0]), ([1, 1.5], [5000.0, 5000.0]), ([2, 0.07], [9000.0, 4.0])],
)  # fmt: skip
def test_probability_of_being_best_of_extreme_beliefs(alpha, beta):
    """Against a finite sum, which holds where the first alpha is a whole number."""
    i = np.arange(alpha[0])
    log_terms = special.betaln(alpha[1] + i, sum(beta)) - np.log(beta[0] + i)
    log_terms -= special.betaln(1 + i, beta[0]) + special.betaln(alpha[1], beta[1])
    best = _best_probability(np.array(alpha, float), np.array(beta))
    assert best[0] == pytest.approx(np.exp(log_terms).sum(), abs=1e-10)
    assert best.sum() == pytest.approx(1, abs=1e-10)


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.floats(0.2, 300)] * 2), min_size=2, max_size=5))
def test_some_arm_is_best(parameters):
    a, b = np.array(parameters).T
    best = _best_probability(a, b)
    assert best.sum() == pytest.approx(1, abs=1e-10)
    swapped = _best_probability(a[::-1], b[::-1])
    np.testing.assert_allclose(best, swapped[::-1], atol=1e-12)


# Gaussian models


@settings(max_examples=20)
@given(DATA["normal"])
def test_normal_against_multivariate_density(rows):
    y = np.asarray(rows.sites["y"], float)
    n = len(y)
    covariance = 0.6**2 * np.eye(n) + 1.7**2 * np.ones((n, n))
    law = stats.multivariate_normal(np.full(n, 0.4), covariance)
    assert NORMAL.log_marginal(rows) == pytest.approx(law.logpdf(y), rel=1e-9)
    # conditioning of the joint normal law of the mean and the outcomes
    gain = np.linalg.solve(covariance, np.full(n, 1.7**2))
    mean, scale = NORMAL.posterior(rows)
    assert mean == pytest.approx(0.4 + gain @ (y - 0.4), rel=1e-9, abs=1e-9)
    assert scale**2 == pytest.approx(1.7**2 - gain.sum() * 1.7**2, rel=1e-9)
    assert NORMAL.predictive(rows)[1] ** 2 == pytest.approx(scale**2 + 0.6**2, rel=1e-12)


@settings(max_examples=20)
@given(DATA["linear"])
def test_linear_against_multivariate_density(rows):
    x, y = np.asarray(rows.args[0], float), np.asarray(rows.sites["y"], float)
    covariance = 0.7**2 * np.eye(len(y)) + 1.3**2 * x @ x.T
    law = stats.multivariate_normal(np.zeros(len(y)), covariance)
    assert LINEAR.log_marginal(rows) == pytest.approx(law.logpdf(y), rel=1e-9)
    gain = 1.3**2 * np.linalg.solve(covariance, x).T
    mean, posterior = LINEAR.posterior(rows)
    np.testing.assert_allclose(mean, gain @ y, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(posterior, 1.3**2 * (np.eye(2) - gain @ x), rtol=1e-8, atol=1e-9)
    at = np.array([[1.0, 2.0], [0.0, -3.0]])
    location, scale = LINEAR.predictive(rows, at)
    np.testing.assert_allclose(location, at @ gain @ y, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(scale**2, np.diag(at @ posterior @ at.T) + 0.49, rtol=1e-9)
    assert np.shape(LINEAR.predictive(rows, at[0])[0]) == ()


# properties of all three


@every_conjugate
def test_order_of_rows_does_not_matter(name):
    @settings(max_examples=15)
    @given(DATA[name], st.randoms(use_true_random=False))
    def check(rows, random):
        order = list(range(len(rows.mask)))
        random.shuffle(order)
        truth = CONJUGATE[name]
        np.testing.assert_allclose(
            statistics(truth, take(rows, order)), statistics(truth, rows), rtol=1e-9, atol=1e-11
        )

    check()


@every_conjugate
def test_chain_rule(name):
    """The predictive probabilities of one row after another multiply to the marginal."""

    @settings(max_examples=15)
    @given(DATA[name])
    def check(rows):
        truth, n = CONJUGATE[name], len(rows.mask)
        before = [rows._replace(mask=np.arange(n) < i) for i in range(n + 1)]
        assert truth.log_marginal(before[0]) == pytest.approx(0, abs=1e-12)
        total = sum(log_next(truth, before[i], i) for i in range(n))
        assert total == pytest.approx(truth.log_marginal(rows), rel=1e-10, abs=1e-10)

    check()


@every_conjugate
def test_masked_rows_change_nothing(name):
    @settings(max_examples=15)
    @given(DATA[name], st.data())
    def check(rows, data):
        n = len(rows.mask)
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        truth = CONJUGATE[name]
        masked = statistics(truth, rows._replace(mask=mask))
        np.testing.assert_array_equal(masked, statistics(truth, take(rows, mask)))

    check()


@every_conjugate
def test_engines_agree(name):
    truth = CONJUGATE[name]
    with jax.enable_x64(True):
        engine = inference.conjugate(truth.model, *truth.args)

        contexts = [normal_contexts] * (name == "linear")

        @settings(max_examples=5)
        @given(strategies.datasets(truth.model, *contexts, num_rows=(4,)))
        def check(rows):
            rows = rows._replace(mask=np.arange(len(rows.mask)) != 1)
            belief = engine.update(KEY, engine.init(KEY), rows)
            first, second = truth.posterior(rows)
            if name == "beta":
                np.testing.assert_allclose(belief["probability"], [first, second], rtol=1e-12)
                return
            root = np.asarray(belief.root[0])
            covariance = second if name == "linear" else [[second**2]]
            np.testing.assert_allclose(np.ravel(belief.mean), np.ravel(first), rtol=1e-9)
            np.testing.assert_allclose(root @ root.T, covariance, rtol=1e-9, atol=1e-12)

        check()


@every_conjugate
def test_example_arguments_run(name):
    truth = CONJUGATE[name]
    values = jax.jit(lambda *args: [s["value"] for s in dp.play(truth.model, KEY)(*args).values()])
    assert all(np.isfinite(value).all() for value in values(*truth.args))


# Markov models

TWO_STATE = reference.two_state_mdp()
MARKETS = {n: reference.rental_marketplace(n) for n in (1, 4, 10, 50)}
CHAINS = {"two-state": TWO_STATE, "market 1": MARKETS[1], "market 4": MARKETS[4],
          "market 10": MARKETS[10], "p = 0.3": reference.two_state_mdp(p=0.3),
          "arrivals": reference.rental_marketplace(6, arrival=0.8, p=0.2)}  # fmt: skip
every_chain = pytest.mark.parametrize("name", CHAINS)


@pytest.mark.parametrize(
    ("chain", "effect", "naive", "dq", "digits"),
    [
        (TWO_STATE, 1.55555556, 1.0, 1.41666667, 8),
        (MARKETS[10], 0.0153478329, 0.0187418484, 0.0153470436, 10),
        (MARKETS[50], 0.0154976650, 0.0188646304, 0.0154970757, 10),
    ],
)
def test_table_of_effects(chain, effect, naive, dq, digits):
    """Numbers that were found with other code, by linear algebra."""
    tolerance = 0.5000001 * 10.0**-digits
    assert chain.effect() == pytest.approx(effect, abs=tolerance)
    assert chain.naive() == pytest.approx(naive, abs=tolerance)
    assert chain.dq() == pytest.approx(dq, abs=tolerance)


def solved(chain, theta):
    """Stationary law, average reward and bias function by linear solves."""
    transition = theta * chain.transition[1] + (1 - theta) * chain.transition[0]
    reward = theta * chain.reward[1] + (1 - theta) * chain.reward[0]
    n = len(transition)
    equations = np.vstack([transition.T - np.eye(n), np.ones(n)])
    law = np.linalg.lstsq(equations, np.r_[np.zeros(n), 1.0])[0]
    fundamental = np.linalg.inv(np.eye(n) - transition + law)
    return law, law @ reward, fundamental @ (reward - law @ reward)


@every_chain
@pytest.mark.parametrize("theta", [0.0, 0.2, 0.5, 1.0])
def test_product_form_against_linear_solves(name, theta):
    chain = CHAINS[name]
    law, average, bias = solved(chain, theta)
    np.testing.assert_allclose(chain.stationary(theta), law, atol=1e-12)
    assert chain.value(theta) == pytest.approx(average, rel=1e-11)
    advantage = chain.reward[1] - chain.reward[0]
    assert chain.naive(theta) == pytest.approx(law @ advantage, rel=1e-10)
    advantage = advantage + (chain.transition[1] - chain.transition[0]) @ bias
    assert chain.dq(theta) == pytest.approx(law @ advantage, rel=1e-9)


@every_chain
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_dq_is_the_derivative_of_the_value(name, p):
    chain, h = CHAINS[name], 1e-3
    j = {k: chain.value(p + k * h) for k in (-2, -1, 1, 2)}
    slope = (8 * (j[1] - j[-1]) - (j[2] - j[-2])) / (12 * h)
    assert chain.dq(p) == pytest.approx(slope, rel=1e-8)


@every_chain
def test_performance_difference_lemma(name):
    """The effect as an average of the advantage at p under both arms' own stationary laws."""
    chain = CHAINS[name]
    p = chain.p
    advantage = chain.reward[1] - chain.reward[0]
    advantage = advantage + (chain.transition[1] - chain.transition[0]) @ solved(chain, p)[2]
    weights = (1 - p) * chain.stationary(1.0) + p * chain.stationary(0.0)
    assert chain.effect() == pytest.approx(weights @ advantage, rel=1e-10)


@settings(max_examples=30)
@given(st.lists(st.floats(0.05, 0.95), min_size=5, max_size=5),
       st.lists(st.floats(-5, 5), min_size=4, max_size=4))  # fmt: skip
def test_two_state_closed_form(chances, rewards):
    """The formula for two states, written out, for any parameters and p."""
    a0, a1, b0, b1, p = chances
    r = np.reshape(rewards, (2, 2))
    chain = reference.two_state_mdp(up=(a0, a1), down=(b0, b1), reward=r.tolist(), p=p)
    up, down = p * a1 + (1 - p) * a0, p * b1 + (1 - p) * b0
    rho = up / (up + down)
    mixed = p * r[:, 1] + (1 - p) * r[:, 0]
    difference = (mixed[1] - mixed[0]) / (up + down)
    naive = (1 - rho) * (r[0, 1] - r[0, 0]) + rho * (r[1, 1] - r[1, 0])
    dq = naive + difference * ((1 - rho) * (a1 - a0) - rho * (b1 - b0))
    np.testing.assert_allclose(chain.stationary(p), [1 - rho, rho], rtol=1e-12)
    assert chain.value(p) == pytest.approx((1 - rho) * mixed[0] + rho * mixed[1], abs=1e-12)
    assert chain.naive() == pytest.approx(naive, abs=1e-12)
    assert chain.dq() == pytest.approx(dq, abs=1e-11)


@every_chain
def test_kernels_are_kernels(name):
    chain = CHAINS[name]
    assert (chain.transition >= 0).all()
    np.testing.assert_allclose(chain.transition.sum(-1), 1, rtol=1e-14)
    assert chain.transition.dtype == chain.reward.dtype == np.float64
    assert chain.transition.shape == (2, *[chain.reward.shape[1]] * 2)


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("state", [0, 1])
def test_two_state_model_has_this_kernel(state, arm):
    trace = dp.play(TWO_STATE.model, 0, policy=arm)(state)
    assert float(trace["state"]["fn"].mean) == pytest.approx(TWO_STATE.transition[arm, state, 1])
    assert float(trace["reward"]["value"]) == TWO_STATE.reward[arm, state]
    assert [dp.role_of(s) for s in trace.values()] == ["action", "reward", "state"]


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("name", ["market 4", "arrivals"])
def test_marketplace_model_has_this_kernel(name, arm):
    """All four combinations of booking and return, weighted by the sites' own laws."""
    chain = CHAINS[name]
    outcomes = list(itertools.product([0, 1], repeat=2))

    @jax.jit
    def branch(free, booked, returned):
        data = {"booking": booked, "return": returned}
        trace = dp.play(chain.model, KEY, policy=arm, data=data)(free)
        means = trace["booking"]["fn"].mean, trace["return"]["fn"].mean
        return trace["free"]["value"], *means

    transition = np.zeros_like(chain.transition[arm])
    for free, (booked, returned) in itertools.product(range(len(transition)), outcomes):
        following, book, back = branch(free, booked, returned)
        weight = (book if booked else 1 - book) * (back if returned else 1 - back)
        if weight > 0:
            transition[free, int(following)] += float(weight)
        assert float(book) == pytest.approx(chain.reward[arm, free], rel=1e-6)
    np.testing.assert_allclose(transition, chain.transition[arm], atol=1e-6)


@every_chain
def test_model_has_these_rewards_and_logging_policy(name):
    chain = CHAINS[name]
    utility = jax.jit(lambda state: dp.utility(chain.model, {}, key=KEY, args=(state,))[0])
    rewards = np.stack([utility(state) for state in range(chain.reward.shape[1])], axis=1)
    np.testing.assert_allclose(rewards, chain.reward, rtol=1e-5)
    trace = dp.play(chain.model, 0)(*chain.args)
    assert float(trace["treat"]["fn"].mean) == pytest.approx(chain.p)


@pytest.mark.parametrize("name", ["two-state", "market 4"])
def test_model_steps_inside_a_scan(name):
    """State in, next state out, in one dtype; visits come near the stationary law.

    100,000 steps with a fixed key. The tolerance is over seven standard deviations of a share
    even at an integrated autocorrelation time of ten steps: a chance of a false alarm below 1e-9.
    """
    chain = CHAINS[name]

    def step(state, key):
        following = jax.tree.leaves(dp.play(_last(chain.model), key)(state)["next"]["value"])[0]
        return following, following

    keys = jax.random.split(KEY, 100_000)
    visits = jax.jit(lambda state: jax.lax.scan(step, state, keys)[1])(*chain.args)
    shares = np.bincount(np.asarray(visits), minlength=chain.reward.shape[1]) / len(keys)
    np.testing.assert_allclose(shares, chain.stationary(chain.p), atol=0.035)


def _last(model):
    def run(state):
        return dp.outcome("next", model(state))

    return run


# errors


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: reference.beta_bernoulli(alpha=0.0), "alpha: expected a positive number, got 0.0"),
        (lambda: reference.normal_normal(noise=-1.0), "noise: expected a positive"),
        (lambda: reference.linear_gaussian(0), "dim: expected a positive"),
        (lambda: reference.two_state_mdp(up=(0.1, 1.2)), r"up\[1\]: expected .* got 1.2"),
        (lambda: reference.two_state_mdp(p=0.0), "p: expected a number between 0 and 1"),
        (lambda: reference.rental_marketplace(0), "num_units: expected a positive"),
        (lambda: reference.rental_marketplace(arrival=1.0), "arrival: expected a number between"),
        (lambda: TWO_STATE.value(1.5), "probability of treatment from 0 to 1, got 1.5"),
        (lambda: NORMAL.posterior(dp.Rows((), {"z": np.zeros(1)}, np.ones(1, bool))),
         "site 'y', got sites .'z'"),
    ],
)  # fmt: skip
def test_errors_name_what_was_expected(build, match):
    with pytest.raises(ValueError, match=match):
        build()
