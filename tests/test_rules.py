"""Rules: exact laws first, properties second, statistics last.

Statistical tests use fixed keys and exact binomial or Hoeffding bounds. Each states its chance of
a false alarm, had the key been random; for the file they sum to less than 1e-7.
"""

import functools
import itertools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, special, stats

from decisionppl import _acquisition, rules

KEY = jax.random.key(7)
NAMES = [
    "thompson",
    "probability_of_best",
    "top_two",
    "greedy",
    "ucb",
    "epsilon_greedy",
    "uniform",
    "information_directed",
    "expected_improvement",
    "log_ei",
]
every_rule = pytest.mark.parametrize("name", NAMES)
without_ids = pytest.mark.parametrize("name", [n for n in NAMES if n != "information_directed"])
thorough = settings(max_examples=25, deadline=None, derandomize=True)


@functools.cache
def compiled(name, **parameters):
    return jax.jit(functools.partial(getattr(rules, name), **parameters))


def matrices(low=-3, high=3):
    # Integers and a power of two of draws: means, shifts and ties are exact in float32.
    return hnp.arrays(np.int32, (8, 4), elements=st.integers(low, high)).map(np.float32)


def smooth(seed, draws=8, actions=4):
    """Draws without ties, from correlated arms."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(actions, actions))
    return np.float32(rng.normal(size=(draws, actions)) @ mixing + rng.normal(size=actions))


def normal(loc, scale):
    return dist.Normal(jnp.asarray(loc), jnp.asarray(scale), validate_args=False)


def enumerate_best(draws):
    """Each draw's law of the best action, ties shared, by plain loops."""
    laws = []
    for row in draws:
        tied = [a for a, value in enumerate(row) if value == max(row)]
        laws.append([1 / len(tied) if a in tied else 0.0 for a in range(len(row))])
    return np.array(laws)


def integrate_best(loc, scale):
    """P(best) of independent Gaussian arms by adaptive integration, split where arms vary."""
    loc, scale = np.float64(loc), np.float64(scale)
    cuts = np.unique(np.concatenate([loc + c * scale for c in np.linspace(-9, 9, 13)]))

    def density(x, arm):
        z = (x - loc) / scale
        others = np.delete(stats.norm.logcdf(z), arm).sum()
        return np.exp(stats.norm.logpdf(z[arm]) - np.log(scale[arm]) + others)

    def probability(arm):
        pieces = itertools.pairwise(cuts)
        return sum(integrate.quad(density, a, b, args=(arm,), epsabs=1e-13)[0] for a, b in pieces)

    return np.array([probability(arm) for arm in range(len(loc))])


def log_h(z):
    """log(phi(z) + z Phi(z)): the integral of the tail, by quadrature of a scaled integrand."""
    scaled = integrate.quad(lambda t: t * math.exp(-0.5 * t * t + z * t), 0, 60, epsabs=0)[0]
    return -0.5 * z * z - 0.5 * math.log(2 * math.pi) + math.log(scaled)


# --- exact ---------------------------------------------------------------------------------------


@thorough
@given(draws=matrices(-1, 1))
def test_thompson_law_of_draws_is_the_enumeration(draws):
    law = compiled("thompson")(KEY, draws).probabilities
    np.testing.assert_allclose(law, enumerate_best(draws).mean(0), atol=1e-6)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.3, 2.0), (1e-3, 1.0), (1e3, 1e-3), (0.0, 1.0)])
@pytest.mark.parametrize("gap", [-3.0, -0.5, 0.0, 1.0, 5.0])
def test_quadrature_of_two_arms_is_analytic(scales, gap):
    loc = np.float32([0.2 + gap, 0.2])
    law = compiled("thompson")(KEY, normal(loc, np.float32(scales))).probabilities
    first = stats.norm.cdf((loc[0] - loc[1]) / math.hypot(*scales))
    np.testing.assert_allclose(law, [first, 1 - first], atol=1e-6)


@pytest.mark.parametrize(
    ("loc", "scale"),
    [
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ((0.0, 0.5, -0.4), (1.0, 0.3, 2.0)),
        ((0.3, 0.0, 0.301), (1e-3, 1.0, 2e-3)),
        ((100.0, 250.0, 0.0), (1.0, 30.0, 1000.0)),
        ((0.0, 1e-6, 0.0, 0.5), (1e-6, 1e-6, 1e-3, 1.0)),
    ],
)
def test_quadrature_agrees_with_adaptive_integration(loc, scale):
    arms = normal(np.float32(loc), np.float32(scale))
    expected = integrate_best(np.float32(loc), np.float32(scale))
    assert abs(expected.sum() - 1) < 1e-9
    law = compiled("thompson")(KEY, arms).probabilities
    np.testing.assert_allclose(law, expected, atol=2e-6)
    with jax.enable_x64(True):
        arms = normal(np.float64(np.float32(loc)), np.float64(np.float32(scale)))
        np.testing.assert_allclose(
            jax.jit(rules.thompson)(KEY, arms).probabilities, expected, atol=1e-9, rtol=0
        )


def test_quadrature_holds_for_many_arms_points_and_masks():
    law = compiled("thompson")(KEY, normal(jnp.zeros(1000), jnp.ones(1000))).probabilities
    np.testing.assert_allclose(law, 1e-3, rtol=1e-4)
    points = normal([0.0, 2.0, 2.0, -1.0], jnp.zeros(4))
    law = compiled("thompson")(KEY, points).probabilities
    np.testing.assert_allclose(law, [0, 0.5, 0.5, 0], atol=1e-6)
    one_wide = normal(jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(
        compiled("thompson")(KEY, one_wide).probabilities, [0.5, 0.25, 0.25], atol=1e-5
    )
    masked = normal([0.0, jnp.nan, 1.0], jnp.array([1.0, jnp.nan, 2.0]))
    law = compiled("thompson")(KEY, masked, mask=jnp.array([True, False, True])).probabilities
    first = stats.norm.cdf(-1 / math.sqrt(5))
    np.testing.assert_allclose(law, [first, 0, 1 - first], atol=1e-6)


def test_quadrature_gradient_is_the_density_of_the_difference():
    gradient = jax.jit(
        jax.grad(lambda m: rules.thompson(KEY, normal(m, [1.0, 2.0])).probabilities[0])
    )
    density = stats.norm.pdf(0.7, scale=math.sqrt(5))
    np.testing.assert_allclose(
        gradient(jnp.array([0.0, 0.7])), [density, -density], rtol=1e-4, atol=1e-6
    )


@thorough
@given(draws=matrices(-1, 1), beta=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_top_two_law_is_leader_and_challenger_enumerated(draws, beta):
    best = enumerate_best(draws).mean(0)
    actions = range(len(best))
    means = np.array([draws[:, a].mean() for a in actions])
    law = beta * best
    for leader in actions:
        others = [a for a in actions if a != leader]
        weights = np.array([best[a] for a in others])
        if weights.sum() < 1e-12:
            weights = np.float64(means[others] == means[others].max())
        law[others] += (1 - beta) * best[leader] * weights / weights.sum()
    chosen = compiled("top_two")(KEY, draws, beta=beta)
    np.testing.assert_allclose(chosen.probabilities, law, atol=2e-6)


def test_top_two_challenger_of_a_unanimous_leader_is_the_next_mean():
    draws = np.float32([[9, 1, 2, 3], [8, 1, 2, 0.9]])
    law = compiled("top_two")(KEY, draws, beta=0.8).probabilities
    np.testing.assert_allclose(law, [0.8, 0, 0.2, 0], atol=1e-6)
    only = compiled("top_two")(KEY, draws, mask=jnp.array([False, True, False, False]))
    assert only.action == 1
    np.testing.assert_array_equal(only.probabilities, [0, 1, 0, 0])
    # Far apart but not unanimous: the challengers' odds survive in float32.
    arms = normal([10.0, 3.0, 2.5, -10.0], [1.0, 1.0, 1.0, 1.0])
    law = compiled("top_two")(KEY, arms).probabilities
    odds = stats.norm.cdf([-7 / math.sqrt(2), -7.5 / math.sqrt(2)])  # of beating the leader
    np.testing.assert_allclose(law, [0.5, *0.5 * odds / odds.sum(), 0], atol=1e-3)


def attained(law, regret, gain):
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (law @ regret) ** 2 / (law @ gain)
    return np.where(law @ regret < 1e-9, 0.0, ratio)


@pytest.mark.parametrize("price", [None, (1.0, 3.0, 0.5, 2.0)])
@pytest.mark.parametrize("seed", range(12))
def test_information_directed_is_the_best_of_a_dense_grid(seed, price):
    draws = smooth(seed, draws=16)
    best = draws.argmax(1)
    regret = (draws.max(1)[:, None] - draws).mean(0, dtype=float)
    told = {a: draws[best == a].mean(0, dtype=float) for a in set(best.tolist())}
    gain = sum((best == a).mean() * (told[a] - draws.mean(0)) ** 2 for a in told)
    gain = gain / (1 if price is None else np.array(price))
    cost = None if price is None else jnp.array(price)
    chosen = compiled("information_directed")(KEY, draws, cost=cost)
    law = np.float64(chosen.probabilities)
    assert (law > 1e-6).sum() <= 2
    np.testing.assert_allclose(chosen.scores, -(regret**2) / gain, rtol=1e-4)
    q = np.linspace(0, 1, 2001)[:, None]
    vertices = np.eye(4)
    pairs = np.concatenate([q * a + (1 - q) * b for a in vertices for b in vertices])
    inner = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), 5000)
    reached = attained(law, regret, gain)
    assert reached <= attained(pairs, regret, gain).min() * (1 + 1e-5)
    assert reached >= attained(pairs, regret, gain).min() * (1 - 1e-3)  # the grid is that fine
    assert reached <= attained(inner, regret, gain).min() * (1 + 1e-5)


def test_information_directed_reads_a_gaussian_from_its_draws():
    arms = normal([0.0, 0.4, -1.0], [1.0, 0.5, 2.0])
    draws = jax.random.normal(KEY, (40_000, 3)) * arms.scale + arms.loc
    exact = compiled("information_directed")(KEY, draws).scores
    scores = compiled("information_directed", num_draws=40_000)(KEY, arms).scores
    np.testing.assert_allclose(scores, exact, rtol=0.25)  # six standard errors


def test_information_directed_mixes_exactly_where_mixing_wins():
    # Two safe draws and an informative third arm that is never best: Delta and g by hand.
    draws = np.float32([[1, -1, 0.5 - 2], [-1, 1, -0.5 - 2]])
    regret, gain = np.array([1.0, 1.0, 3.0]), np.array([1.0, 1.0, 0.25])
    chosen = compiled("information_directed")(KEY, draws)
    np.testing.assert_allclose(chosen.scores, -(regret**2) / gain)
    np.testing.assert_allclose(chosen.probabilities, [0.5, 0.5, 0])
    # regret (1, 4), gain (1, 12): q = 4 / -3 + 24 / 11 = 28 / 33 on the first.
    law = _acquisition.two_point_law(
        jnp.array([1.0, 4.0]), jnp.array([1.0, 12.0]), jnp.ones(2, bool)
    )
    np.testing.assert_allclose(law, [28 / 33, 5 / 33], rtol=1e-5)


def test_information_directed_is_greedy_when_nothing_is_left_to_learn():
    known = np.float32([[1, 3, 2], [1.5, 3.5, 2.5]])
    np.testing.assert_array_equal(
        compiled("information_directed")(KEY, known).probabilities, [0, 1, 0]
    )
    tied = np.float32([[3, 1, 3], [2, 0, 2]])
    np.testing.assert_allclose(
        compiled("information_directed")(KEY, tied).probabilities, [0.5, 0, 0.5]
    )
    never_beaten = np.float32([[1, 1, 0], [1, 0, 0]])  # the second reveals which draw, to no use
    law = compiled("information_directed")(KEY, never_beaten).probabilities
    np.testing.assert_array_equal(law, [1, 0, 0])
    one = compiled("information_directed")(KEY, np.float32([[3, 1, 2]]))
    np.testing.assert_array_equal(one.probabilities, [1, 0, 0])


@pytest.mark.parametrize("z", [-8.0, -3.0, -1.0, -0.2, 0.0, 0.7, 4.0])
def test_expected_improvement_is_the_integral(z):
    mean, sd, best = 0.4 + z * 1.7, 1.7, 0.4
    exact = 1.7 * math.exp(log_h(z))
    chosen = compiled("expected_improvement")(KEY, normal([mean], [sd]), best=best)
    np.testing.assert_allclose(chosen.scores, [exact], rtol=1e-4 if z < -4 else 2e-5)
    with jax.enable_x64(True):
        arms = normal(np.array([mean]), np.array([sd]))
        scores = compiled("expected_improvement")(KEY, arms, best=best).scores
        np.testing.assert_allclose(scores, [exact], rtol=1e-10)


def test_expected_improvement_of_draws_by_hand():
    draws = np.float32([[0, 4, 1], [2, 0, 1]])
    scores = compiled("expected_improvement")(KEY, draws).scores  # incumbent: the largest mean, 2
    np.testing.assert_allclose(scores, [0, 1, 0])
    mask = jnp.array([True, False, True])  # the incumbent is feasible: 1
    masked = compiled("expected_improvement")(KEY, draws, mask=mask).scores
    np.testing.assert_allclose(masked, [0.5, -jnp.inf, 0])
    masked = compiled("expected_improvement")(KEY, draws - 9, mask=mask).scores
    np.testing.assert_allclose(masked, [0.5, -jnp.inf, 0])


@pytest.mark.parametrize("x64", [False, True])
def test_log_ei_and_its_gradients_far_below_the_incumbent(x64):
    distances = [1.0, 5.0, 11.9, 12.1, 13.14, 16.0, 40.0, 300.0, 1e4, 1e8]
    with jax.enable_x64(x64):
        loc, scale = -jnp.array(distances), jnp.ones(len(distances))

        def total(loc, scale):
            scores = compiled("log_ei")(KEY, normal(loc, scale), best=0.0).scores
            return scores.sum(), scores

        grads, scores = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(loc, scale)
    near = np.array(distances) < 100
    exact = [log_h(-d) for d in distances if d < 100]
    np.testing.assert_allclose(scores[near], exact, rtol=1e-11 if x64 else 2e-6)
    assert np.isfinite(scores).all()
    assert (np.diff(scores) < 0).all()
    slope = np.exp(special.log_ndtr(-np.array(distances))[near] - np.array(exact))
    np.testing.assert_allclose(grads[0][near], slope, rtol=1e-8 if x64 else 1e-4)
    assert np.isfinite(grads).all()
    np.testing.assert_allclose(grads[0][~near], np.array(distances)[~near], rtol=1e-3)


def test_log_ei_of_a_certain_action_is_finite_and_last():
    arms = normal([3.0, 1.0, -40.0, 2.0], [0.0, 0.0, 1.0, 0.0])
    scores = compiled("log_ei")(KEY, arms, best=2.0).scores
    np.testing.assert_allclose(scores[0], 0.0, atol=1e-6)  # log(3 - 2)
    assert scores[1] == scores[3] == np.float32(-1e30)
    assert scores[2] > scores[1]
    gradient = jax.jit(
        jax.grad(
            lambda m, s: rules.log_ei(KEY, normal(m, s), best=2.0).scores.sum(), argnums=(0, 1)
        )
    )(jnp.array([3.0, 1.0, -40.0, 2.0]), jnp.array([0.0, 0.0, 1.0, 0.0]))
    assert np.isfinite(gradient).all()
    ahead = jax.jit(jax.grad(lambda u: rules.log_ei(KEY, u, best=0.0).scores.sum()))(
        jnp.ones((3, 2))
    )
    assert np.isfinite(ahead).all()  # draws that all agree


def test_a_masked_nan_spoils_no_gradient():
    draws = jnp.array([[1.0, jnp.nan, 0.0], [0.0, jnp.nan, 2.0]])
    mask = np.array([True, False, True])

    def feasible_scores(draws):
        return rules.log_ei(KEY, draws, mask=mask, best=1.0).scores[np.array([0, 2])].sum()

    assert np.isfinite(jax.jit(jax.grad(feasible_scores))(draws)).all()


def test_log_ei_is_the_log_of_ei_where_that_is_a_number():
    arms = normal(jnp.linspace(-8, 8, 33), jnp.linspace(0.5, 2, 33))
    for cost in (None, jnp.linspace(1, 5, 33)):
        log_of = jnp.log(compiled("expected_improvement")(KEY, arms, best=1.0, cost=cost).scores)
        scores = compiled("log_ei")(KEY, arms, best=1.0, cost=cost).scores
        finite = np.isfinite(log_of)
        assert finite.sum() > 25
        np.testing.assert_allclose(scores[finite], log_of[finite], rtol=1e-5, atol=1e-5)


def test_log_ei_summarises_draws_by_mean_and_deviation():
    draws = smooth(3)
    arms = normal(draws.mean(0), draws.std(0))
    np.testing.assert_allclose(
        compiled("log_ei")(KEY, draws).scores, compiled("log_ei")(KEY, arms).scores, rtol=1e-4
    )


def test_ucb_is_the_quantile():
    arms = normal([0.0, 1.0], [2.0, 0.5])
    expected = stats.norm.ppf(0.9, [0.0, 1.0], [2.0, 0.5])
    np.testing.assert_allclose(compiled("ucb")(KEY, arms, quantile=0.9).scores, expected, rtol=1e-5)
    joint = dist.MultivariateNormal(arms.loc, jnp.diag(arms.scale**2))
    np.testing.assert_allclose(
        compiled("ucb")(KEY, joint, quantile=0.9).scores, expected, rtol=1e-5
    )
    draws = np.random.default_rng(0).permuted(np.float32(np.tile(np.arange(101), (2, 1))), axis=1)
    scores = compiled("ucb")(KEY, draws.T * [1, 2], quantile=0.95).scores
    np.testing.assert_allclose(scores, [95, 190], rtol=1e-5)


def test_greedy_epsilon_and_uniform_by_hand():
    draws = np.float32([[1, 3, 0, 3], [1, -1, 0, -1]])  # means 1, 1, 0, 1
    mask = jnp.array([True, True, True, False])
    greedy = compiled("greedy")(KEY, draws, mask=mask)
    np.testing.assert_allclose(greedy.probabilities, [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(greedy.scores, [1, 1, 0, -jnp.inf])
    law = compiled("epsilon_greedy")(KEY, draws, mask=mask, epsilon=0.3).probabilities
    np.testing.assert_allclose(law, [0.45, 0.45, 0.1, 0], rtol=1e-6)
    even = compiled("uniform")(KEY, draws, mask=mask)
    np.testing.assert_allclose(even.probabilities, [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_cost_divides_utility_improvement_or_information():
    draws, cost = np.float32([[4, 3], [2, 3.5]]), jnp.array([2.0, 1.0])
    np.testing.assert_allclose(compiled("greedy")(KEY, draws, cost=cost).scores, [1.5, 3.25])
    np.testing.assert_allclose(compiled("thompson")(KEY, draws, cost=cost).probabilities, [0, 1])
    for rule in map(compiled, ("greedy", "ucb", "thompson")):
        per_price = rule(KEY, normal([4.0, 3.0], [1.0, 2.0]), cost=cost)
        scaled = rule(KEY, normal([2.0, 3.0], [0.5, 2.0]))
        np.testing.assert_allclose(per_price.scores, scaled.scores, rtol=1e-5)
    improvement = compiled("expected_improvement")(KEY, draws).scores
    priced = compiled("expected_improvement")(KEY, draws, cost=cost).scores
    np.testing.assert_allclose(priced, improvement / cost)


def test_feasible_counts_draws_within_limits():
    values = np.tile(np.arange(1, 101, dtype=np.float32)[:, None], 3)
    within = rules.feasible(values, upper=np.array([94.0, 95.0, 96.0]))
    np.testing.assert_array_equal(within, [False, True, True])
    within = rules.feasible(values, lower=6, upper=95, probability=0.9)
    assert within.all()
    assert not rules.feasible(values, lower=6.5, upper=95, probability=0.9).any()
    values[:10] = np.nan
    assert not rules.feasible(values, upper=1000).any()
    for share in range(1, 100):  # a share of exactly `probability` is enough
        assert rules.feasible(
            np.float32(np.arange(100) < share)[:, None], lower=1, probability=share / 100
        )


# --- properties ----------------------------------------------------------------------------------


@every_rule
@thorough
@given(data=st.data())
def test_permuting_actions_permutes_the_choice(name, data):
    if name == "information_directed":  # without exact ties, which rounding would break
        draws = smooth(data.draw(st.integers(0, 10**6)))
    else:
        draws = data.draw(matrices())
    order = np.array(data.draw(st.permutations(range(draws.shape[1]))))
    plain, permuted = compiled(name)(KEY, draws), compiled(name)(KEY, draws[:, order])
    np.testing.assert_allclose(permuted.probabilities, plain.probabilities[order], atol=1e-5)
    np.testing.assert_allclose(permuted.scores, plain.scores[order], rtol=1e-4, atol=1e-5)


@every_rule
@thorough
@given(data=st.data(), shift=st.integers(-8, 8))
def test_a_common_shift_changes_no_probability(name, data, shift):
    ids = name == "information_directed"
    draws = smooth(data.draw(st.integers(0, 10**6))) if ids else data.draw(matrices())
    plain, shifted = compiled(name)(KEY, draws), compiled(name)(KEY, draws + np.float32(shift))
    np.testing.assert_allclose(shifted.probabilities, plain.probabilities, atol=1e-3 * ids + 1e-6)


# With the default incumbent raising an arm also raises what it must beat, so EI gets a fixed one.
# Information-directed sampling is left out: raising the losses of an arm can destroy what it
# reveals. log EI knows draws by mean and deviation, so its arm is raised alike in all draws.
# top_two is monotone for beta >= 1/2 only: two arms share 1 - pi otherwise.
@without_ids
@thorough
@given(data=st.data())
def test_raising_an_arm_never_lowers_it(name, data):
    draws = data.draw(matrices())
    arm = data.draw(st.integers(0, draws.shape[1] - 1))
    steps = data.draw(hnp.arrays(np.int32, draws.shape[0], elements=st.integers(0, 3)))
    steps = np.full_like(steps, steps[0]) if name == "log_ei" else steps
    raised = draws.copy()
    raised[:, arm] += steps
    rule = (
        compiled(name, best=0.5) if name in ("expected_improvement", "log_ei") else compiled(name)
    )
    before, after = rule(KEY, draws), rule(KEY, raised)
    assert after.probabilities[arm] >= before.probabilities[arm] - 1e-6
    assert after.scores[arm] >= before.scores[arm] - 1e-5


@every_rule
@thorough
@given(data=st.data(), seed=st.integers(0, 2**31 - 1))
def test_laws_are_laws_and_masked_arms_are_never_chosen(name, data, seed):
    draws = data.draw(matrices())
    actions = draws.shape[1]
    mask = data.draw(hnp.arrays(bool, actions).filter(np.any))
    draws[:, ~mask] = data.draw(st.sampled_from([0.0, 1e6, np.nan, np.inf]))
    chosen = compiled(name)(jax.random.key(seed), draws, mask=mask)
    law = np.array(chosen.probabilities)
    assert (law[~mask] == 0).all()
    assert (law >= 0).all()
    assert abs(law.sum() - 1) < 1e-5
    assert law[chosen.action] > 0
    assert (np.array(chosen.scores)[~mask] == -np.inf).all()
    assert not np.isnan(chosen.scores).any()


@every_rule
def test_leaving_an_arm_out_is_masking_it(name):
    draws = smooth(4)
    masked = compiled(name)(KEY, draws, mask=np.arange(4) < 3)
    without = compiled(name)(KEY, draws[:, :3])
    np.testing.assert_allclose(masked.probabilities[:3], without.probabilities, atol=1e-5)
    np.testing.assert_allclose(masked.scores[:3], without.scores, rtol=1e-4, atol=1e-6)


@every_rule
@thorough
@given(data=st.data(), price=st.sampled_from([0.25, 2.0, 8.0]))
def test_equal_costs_change_no_probability(name, data, price):
    ids = name == "information_directed"
    draws = smooth(data.draw(st.integers(0, 10**6))) if ids else data.draw(matrices())
    cost = jnp.full(draws.shape[1], price)
    plain, priced = compiled(name)(KEY, draws), compiled(name)(KEY, draws, cost=cost)
    np.testing.assert_allclose(priced.probabilities, plain.probabilities, atol=1e-5)


@thorough
@given(draws=matrices(), best=st.floats(-5, 5))
def test_improvement_is_never_negative_nor_its_log_infinite(draws, best):
    assert (compiled("expected_improvement")(KEY, draws, best=best).scores >= 0).all()
    assert np.isfinite(compiled("log_ei")(KEY, draws, best=best).scores).all()


@every_rule
def test_ties_are_shared(name):
    twins = np.repeat(np.float32([[1], [0], [2], [-1]] * 2), 4, axis=1)
    law = compiled(name)(KEY, twins).probabilities
    np.testing.assert_allclose(law, np.full(4, 1 / 4), rtol=1e-6)
    law = compiled(name)(KEY, twins, mask=np.array([True, False, True, True])).probabilities
    np.testing.assert_allclose(law, [1 / 3, 0, 1 / 3, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("name", ["thompson", "top_two", "information_directed", "log_ei"])
def test_equal_points_are_a_tie_of_gaussians(name):
    law = compiled(name)(KEY, normal(jnp.zeros(4), jnp.zeros(4))).probabilities
    np.testing.assert_allclose(law, np.full(4, 1 / 4), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "draws") for name in NAMES] + [("top_two", "arms"), ("top_two", "joint")],
)
def test_compiled_and_mapped_equal_eager(name, kind):
    mask, cost = np.array([True, True, False, True]), np.float32([1, 2, 1, 1.5])
    scale = np.float32([1, 0.5, 2, 1])

    def choose(key, values):
        utility = {
            "draws": lambda: values,
            "arms": lambda: normal(values[0], scale),
            "joint": lambda: dist.MultivariateNormal(values[0], jnp.diag(scale) + 0.1),
        }[kind]()
        return getattr(rules, name)(key, utility, mask=mask, cost=cost)

    values = jnp.stack([smooth(seed) for seed in range(2)])
    keys = jax.random.split(KEY, 2)
    eager = choose(keys[1], values[1])
    mapped = jax.jit(jax.vmap(choose))(keys, values)
    results = [mapped]
    if name == "top_two":
        results.append(jax.lax.scan(lambda c, kv: (c, choose(*kv)), 0, (keys, values))[1])
    for other in results:
        assert other.action.dtype == jnp.int32
        assert other.action[1] == eager.action
        np.testing.assert_allclose(other.probabilities[1], eager.probabilities, atol=1e-5)
        np.testing.assert_allclose(other.scores[1], eager.scores, rtol=1e-4, atol=1e-5)


def test_a_mapped_normal_is_read_by_its_parameters():
    loc = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    mapped = jax.jit(jax.vmap(lambda arms: rules.thompson(KEY, arms)))(
        normal(loc, jnp.ones((2, 2)))
    )
    one = compiled("thompson")(KEY, normal(loc[1], jnp.ones(2)))
    np.testing.assert_allclose(mapped.probabilities[1], one.probabilities, atol=1e-6)


@every_rule
def test_values_never_recompile_and_parameters_may_be_traced(name):
    parameter = {"ucb": "quantile", "epsilon_greedy": "epsilon", "top_two": "beta"}.get(name)
    traces = []

    @jax.jit
    def choose(key, draws, mask, cost, value):
        traces.append(name)
        own = {} if parameter is None else {parameter: value}
        return getattr(rules, name)(key, draws, mask=mask, cost=cost, **own)

    for seed in range(3):
        mask = np.arange(4) != seed
        choose(jax.random.key(seed), smooth(seed), mask, np.ones(4) + seed, 0.2 + 0.1 * seed)
    assert len(traces) == 1


@every_rule
def test_typed_and_raw_keys_agree(name):
    draws = smooth(0)
    typed = getattr(rules, name)(jax.random.key(3), draws)
    raw = getattr(rules, name)(jax.random.PRNGKey(3), draws)
    assert typed.action == raw.action
    np.testing.assert_array_equal(typed.probabilities, raw.probabilities)


@every_rule
def test_precision_follows_the_utility(name):
    rule = getattr(rules, name)
    assert jax.eval_shape(rule, KEY, np.array([[1, 2], [3, 4]])).scores.dtype == jnp.float32
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            arms = normal(jnp.zeros(3, dtype), jnp.ones(3, dtype))
            for utility in (jnp.eye(3, dtype=dtype), arms):
                shape = jax.eval_shape(rule, KEY, utility)
                assert shape.probabilities.dtype == shape.scores.dtype == dtype
                assert shape.action.dtype == jnp.int32


@without_ids
def test_double_precision_agrees_with_single(name):
    draws = smooth(2)
    single = compiled(name)(KEY, draws)
    with jax.enable_x64(True):
        double = jax.jit(getattr(rules, name))(KEY, np.float64(draws))
    np.testing.assert_allclose(double.probabilities, single.probabilities, atol=1e-5)
    np.testing.assert_allclose(double.scores, single.scores, rtol=1e-4, atol=1e-5)


def test_wrapped_normals_are_independent_arms():
    plain = compiled("thompson")(KEY, dist.Normal(jnp.zeros(3), jnp.ones(3)))
    wrapped = [
        dist.Normal(0.0, 1.0).expand([3]),
        dist.Normal(jnp.zeros(3), 1.0).to_event(1),
        dist.Normal(0.0, 1.0).expand([3]).to_event(1),
    ]
    for utility in wrapped:
        np.testing.assert_array_equal(
            compiled("thompson")(KEY, utility).probabilities, plain.probabilities
        )


# --- per_cost and errors -------------------------------------------------------------------------


def test_per_cost_marks_a_rule_and_requires_the_cost():
    rule = rules.per_cost(functools.partial(rules.ucb, quantile=0.9))
    assert rule.per_cost is True
    assert not hasattr(rules.ucb, "per_cost")
    assert rules.per_cost(rules.log_ei) == rules.per_cost(rules.log_ei)
    assert hash(rules.per_cost(rules.log_ei)) == hash(rules.per_cost(rules.log_ei))
    assert rules.per_cost(rules.log_ei) != rules.per_cost(rules.greedy)
    assert rules.per_cost(rule) is rule
    assert pickle.loads(pickle.dumps(rules.per_cost(rules.log_ei))) == rules.per_cost(rules.log_ei)
    draws, cost = smooth(1), jnp.array([1.0, 2.0, 3.0, 4.0])
    direct = rules.ucb(KEY, draws, quantile=0.9, cost=cost)
    np.testing.assert_array_equal(rule(KEY, draws, cost=cost).scores, direct.scores)
    with pytest.raises(ValueError, match=r"per_cost\(greedy\) needs cost"):
        rules.per_cost(rules.greedy)(KEY, draws)
    with pytest.raises(TypeError, match="rule must be callable"):
        rules.per_cost("greedy")


DRAWS = np.zeros((2, 3), np.float32)
POOR = {
    "vector": (ValueError, r"\[draws, actions\].*got \(3,\)", {"utility": np.zeros(3)}),
    "cube": (ValueError, r"got \(1, 2, 3\)", {"utility": np.zeros((1, 2, 3))}),
    "no draws": (ValueError, r"got \(0, 3\)", {"utility": np.zeros((0, 3))}),
    "no array": (TypeError, "got str", {"utility": "arms"}),
    "scalar normal": (ValueError, "batch_shape", {"utility": dist.Normal(0.0, 1.0)}),
    "normal matrix": (ValueError, "batch_shape", {"utility": dist.Normal(DRAWS, 1.0)}),
    "other law": (TypeError, "got Gamma", {"utility": dist.Gamma(jnp.ones(3), 1.0)}),
    "other event": (TypeError, "got Gamma", {"utility": dist.Gamma(jnp.ones(3), 1.0).to_event(1)}),
    "joint batch": (
        ValueError,
        r"got \(2,\)",
        {"utility": dist.MultivariateNormal(DRAWS, jnp.eye(3))},
    ),
    "nan": (ValueError, r"NaN at actions \[1\]", {"utility": np.array([[0, np.nan], [0, 0]])}),
    "nan normal": (ValueError, r"NaN at actions \[0\]", {"utility": normal([jnp.nan, 0], 1.0)}),
    "mask shape": (ValueError, r"mask.*\(3,\).*got \(2,\)", {"mask": np.ones(2, bool)}),
    "mask dtype": (TypeError, "mask must be bool", {"mask": np.ones(3)}),
    "mask empty": (ValueError, "all False", {"mask": np.zeros(3, bool)}),
    "cost shape": (ValueError, r"cost.*\(3,\).*got \(1, 3\)", {"cost": np.ones((1, 3))}),
    "cost zero": (ValueError, "positive", {"cost": np.array([1.0, 0.0, 2.0])}),
    "cost nan": (ValueError, "positive", {"cost": np.array([1.0, np.nan, 2.0])}),
}


@every_rule
@pytest.mark.parametrize("case", POOR)
def test_malformed_arguments_say_what_was_expected(name, case):
    error, match, arguments = POOR[case]
    with pytest.raises(error, match=match):
        getattr(rules, name)(KEY, **{"utility": DRAWS, **arguments})


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("ucb", {"quantile": 1.0}, r"quantile must lie in \(0, 1\)"),
        ("ucb", {"quantile": jnp.float32(-1)}, "quantile"),
        ("ucb", {"quantile": np.array([0.5])}, "quantile must be a scalar"),
        ("top_two", {"beta": 1.5}, r"beta must lie in \[0, 1\]"),
        ("epsilon_greedy", {"epsilon": -0.1}, "epsilon"),
        ("epsilon_greedy", {"epsilon": math.nan}, "epsilon"),
        ("thompson", {"num_draws": 0}, "num_draws"),
        ("information_directed", {"num_draws": 2.5}, "num_draws"),
        ("log_ei", {"best": np.zeros(3)}, "best must be a scalar"),
    ],
)
def test_parameters_out_of_range_raise(name, arguments, match):
    with pytest.raises(ValueError, match=match):
        getattr(rules, name)(KEY, DRAWS, **arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "neither lower nor upper"),
        ({"lower": np.zeros(2)}, r"lower must be a scalar or \[3\]"),
        ({"upper": 1.0, "probability": 1.1}, "probability"),
    ],
)
def test_feasible_says_what_it_needs(arguments, match):
    with pytest.raises(ValueError, match=match):
        rules.feasible(DRAWS, **arguments)


def test_known_values_are_checked_inside_a_trace_without_being_traced():
    bad = np.zeros(3, bool)
    with pytest.raises(ValueError, match="all False"):
        jax.jit(lambda key: rules.greedy(key, DRAWS, mask=bad))(KEY)
    traced = jax.jit(rules.greedy)(KEY, DRAWS, mask=bad)  # values unknown: cannot raise
    np.testing.assert_array_equal(traced.probabilities, np.zeros(3))


# --- statistics ----------------------------------------------------------------------------------


def check_frequencies(actions, law, false_alarm):
    """Exact binomial tails per action, `false_alarm` shared between them."""
    total = len(actions)
    counts = np.bincount(actions, minlength=len(law))
    law = np.clip(np.float64(law), 0, 1)
    assert (counts[law == 0] == 0).all()
    tail = np.minimum(stats.binom.cdf(counts, total, law), stats.binom.sf(counts - 1, total, law))
    assert (tail > false_alarm / (2 * len(law))).all(), (counts / total, law)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "draws") for name in NAMES] + [("thompson", "arms"), ("top_two", "arms")],
)
def test_actions_follow_the_stated_law(name, kind):
    # 12 cases at 1e-9 each.
    ties = np.float32([[0, 2, 2, 1], [1, 1, 0, 1], [0, -1, 2, 2], [0, 3, 0, 1]] * 2)
    arms = normal([0.0, 0.3, -0.2, 5.0], [1.0, 0.5, 1.5, 1.0])
    mask = np.array([True, True, True, kind == "draws"])
    utility = ties if kind == "draws" else arms
    law = compiled(name)(KEY, utility, mask=mask).probabilities
    keys = jax.random.split(jax.random.key(11), 20_000)
    actions = jax.vmap(lambda key: getattr(rules, name)(key, utility, mask=mask).action)
    check_frequencies(jax.jit(actions)(keys), law, 1e-9)


def test_thompson_plays_a_beta_arm_as_often_as_it_is_best():
    # False alarm 2e-9: binomial for the actions, Hoeffding for the law.
    (a, b), (c, d) = (3, 5), (4, 4)
    second = sum(
        math.exp(special.betaln(a + i, b + d) - special.betaln(1 + i, d) - special.betaln(a, b))
        / (d + i)
        for i in range(c)
    )
    size = 100_000
    arms = dist.Beta(jnp.array([a, c], float), jnp.array([b, d], float))
    draws = arms.sample(jax.random.key(5), (size,))
    law = compiled("thompson")(KEY, draws).probabilities
    assert abs(law[1] - second) < math.sqrt(math.log(2e9) / (2 * size))
    keys = jax.random.split(jax.random.key(6), size)
    actions = jax.jit(jax.vmap(lambda k, u: rules.thompson(k, u).action))(keys, draws[:, None])
    check_frequencies(actions, [1 - second, second], 1e-9)


def test_thompson_on_a_joint_gaussian_respects_the_correlation():
    # False alarm 2e-9: Hoeffding for the law, binomial for the actions.
    covariance = jnp.array([[1.0, 0.9], [0.9, 1.0]])
    joint = dist.MultivariateNormal(jnp.array([0.0, 0.3]), covariance)
    first = stats.norm.cdf(-0.3 / math.sqrt(2 - 1.8))
    law = rules.thompson(KEY, joint, num_draws=50_000).probabilities
    assert abs(law[0] - first) < math.sqrt(math.log(2e9) / (2 * 50_000))
    keys = jax.random.split(jax.random.key(8), 20_000)
    actions = jax.jit(jax.vmap(lambda k: rules.thompson(k, joint).action))(keys)
    check_frequencies(actions, [first, 1 - first], 1e-9)
