"""Gradients over random batches: enumeration of all ordered draws, limits, descent.

Monte Carlo bounds are 5.7 standard errors: a correct program fails one with a chance of about 1e-8.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decisionppl as dp
from decisionppl import _gradient_plan, _policy_gradient, inference, lookahead

KEY = jax.random.key(0)
SES = 5.7
OPTIMIZER = optax.adam(0.2)  # one object, so one compilation
N, K = 5, 2
ORDERS = np.array(list(itertools.permutations(range(N), K)))
LOGITS = np.array([0.3, -0.5, 1.0, 0.0, -1.2])
COSTS = np.random.default_rng(0).uniform(1, 3, (N, N))
COSTS = COSTS + COSTS.T  # of unordered pairs

LOG_PROB = jax.jit(jax.vmap(lookahead.plackett_luce_log_prob, (None, 0)))
SMOOTH = jax.jit(lookahead.smooth_subset, static_argnums=2)
logits = st.lists(st.floats(-4, 4), min_size=N, max_size=N)


def by_hand(w, order):
    """Probability of an ordered draw, from its definition."""
    weight, left, p = np.exp(w), list(range(len(w))), 1.0
    for i in order:
        p *= weight[i] / weight[left].sum()
        left.remove(i)
    return p


def expected_cost(w):
    log_prob = jax.vmap(lookahead.plackett_luce_log_prob, (None, 0))(w, jnp.asarray(ORDERS))
    return jnp.exp(log_prob) @ jnp.asarray(COSTS)[ORDERS[:, 0], ORDERS[:, 1]]


@settings(max_examples=25, deadline=None)
@given(logits)
def test_plackett_luce_is_its_definition_and_sums_to_one(w):
    p = np.exp(LOG_PROB(jnp.asarray(w), jnp.asarray(ORDERS)))
    np.testing.assert_allclose(p, [by_hand(np.array(w), o) for o in ORDERS], rtol=2e-5)
    assert p.sum() == pytest.approx(1, abs=1e-5)


def test_draws_have_the_probabilities_of_their_law():
    count = 40_000
    draw = jax.jit(jax.vmap(lambda key: lookahead.plackett_luce(key, LOGITS, K)))
    drawn = np.asarray(draw(jax.random.split(KEY, count)))
    for order in ORDERS:
        p = by_hand(LOGITS, order)
        share = np.mean((drawn == order).all(1))
        assert abs(share - p) < SES * np.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize("baseline", [None, "leave_one_out", "optimal"])
def test_the_score_function_is_unbiased_by_enumeration(baseline):
    """All pairs of ordered draws, each with its probability: no Monte Carlo error at all."""
    score = jax.vmap(jax.grad(lookahead.plackett_luce_log_prob), (None, 0))
    scores = score(jnp.asarray(LOGITS), jnp.asarray(ORDERS))
    p = np.array([by_hand(LOGITS, o) for o in ORDERS])
    costs = jnp.asarray(COSTS[ORDERS[:, 0], ORDERS[:, 1]])

    def estimate(i, j):
        pair = jnp.stack([i, j])
        return _policy_gradient._slope(scores[pair], costs[pair], baseline)

    every = jnp.arange(len(ORDERS))
    slopes = jax.vmap(jax.vmap(estimate, (None, 0)), (0, None))(every, every)
    exact = jax.grad(expected_cost)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(np.einsum("i,j,ijn->n", p, p, slopes), exact, atol=2e-5)


def test_the_score_function_averages_what_was_enumerated():
    """The same by draws, through the public estimator."""
    costs = jnp.asarray(COSTS)
    estimator = lookahead.score_function(
        lambda key, s: costs[s[0], s[1]] + jax.random.normal(key), K, num_samples=4
    )
    slopes = jax.jit(jax.vmap(lambda key: estimator(key, LOGITS).slope))(
        jax.random.split(KEY, 20_000)
    )
    exact = np.asarray(jax.grad(expected_cost)(jnp.asarray(LOGITS)))
    error = np.abs(slopes.mean(0) - exact)
    assert (error < SES * slopes.std(0) / np.sqrt(20_000)).all()


def test_baselines_take_variance_away():
    costs = jnp.asarray(COSTS) + 20.0

    def spread(baseline):
        estimator = lookahead.score_function(
            lambda key, s: costs[s[0], s[1]], K, num_samples=8, baseline=baseline
        )
        slopes = jax.jit(jax.vmap(lambda key: estimator(key, LOGITS).slope))(
            jax.random.split(KEY, 2000)
        )
        return float(jnp.var(slopes, axis=0).sum())

    # measured: 310, 1.0 and 1.0; a variance over 2,000 draws is known to within some 10 %
    assert spread("leave_one_out") < spread(None) / 20
    assert spread("optimal") < spread(None) / 20


@settings(max_examples=25, deadline=None)
@given(logits, st.sampled_from([0.05, 0.3, 1.0, 5.0]), st.integers(0, 1000))
def test_shares_sum_to_k_and_become_the_hard_draw(w, temperature, seed):
    key = jax.random.key(seed)
    w = jnp.asarray(w)
    shares = np.asarray(SMOOTH(key, w, K, temperature))
    assert shares.sum() == pytest.approx(K, rel=1e-5)
    assert (shares >= 0).all()
    hard = set(np.asarray(lookahead.plackett_luce(key, w, K)).tolist())
    sharp = np.asarray(SMOOTH(key, w, K, 1e-4))
    ranked = np.sort(np.asarray(w + jax.random.gumbel(key, (N,))))
    if np.diff(ranked)[-K:].min() > 0.01:
        np.testing.assert_allclose(sharp, [float(i in hard) for i in range(N)], atol=1e-4)


def test_a_candidate_that_is_gone_is_never_drawn_and_has_no_slope():
    w = jnp.asarray(LOGITS).at[2].set(-jnp.inf)
    drawn = jax.vmap(lambda key: lookahead.plackett_luce(key, w, 4))(jax.random.split(KEY, 200))
    assert not (drawn == 2).any()
    cost = jnp.arange(5.0)
    for estimator in (
        lookahead.score_function(lambda key, s: cost[s].sum(), K, num_samples=50),
        lookahead.smoothed(lambda key, a: a @ cost, K, num_samples=50, temperature=0.5),
    ):
        slope = np.asarray(estimator(KEY, w).slope)
        assert np.isfinite(slope).all()
        assert slope[2] == 0
        assert (np.abs(np.delete(slope, 2)) > 0).any()


def test_the_smoothed_slope_is_the_derivative_of_the_smoothed_cost():
    """For one draw with a fixed key: finite differences in double precision."""
    with jax.enable_x64(True):
        matrix = jnp.asarray(COSTS)
        estimator = lookahead.smoothed(
            lambda key, a: a @ matrix @ a, K, num_samples=3, temperature=0.7
        )
        w = jnp.asarray(LOGITS)
        run = jax.jit(lambda w: estimator(KEY, w))
        slope = run(w).slope
        for i in range(N):
            up, down = (run(w.at[i].add(s)).value for s in (1e-6, -1e-6))
            assert float(slope[i]) == pytest.approx(float(up - down) / 2e-6, rel=1e-5, abs=1e-7)


def test_smoothing_becomes_exact_for_a_cost_that_is_linear_in_shares():
    """As the temperature falls, so does the bias; at high temperature slopes are too small."""
    price = jnp.array([3.0, 1.0, 2.0, 0.0, 1.5])
    pairs = jnp.asarray(ORDERS)
    exact = jax.grad(lambda w: jnp.exp(LOG_PROB(w, pairs)) @ price[pairs].sum(1))(
        jnp.asarray(LOGITS)
    )

    def slope(temperature):
        estimator = lookahead.smoothed(
            lambda key, a: a @ price, K, num_samples=20_000, temperature=temperature
        )
        return jax.jit(estimator)(KEY, LOGITS).slope

    errors = [float(jnp.abs(slope(t) - exact).max()) for t in (4.0, 1.0, 0.2)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.04


# Costs of plans.


def coins():
    p = numpyro.sample("p", dist.Beta(0.3, 0.9).expand([6]).to_event(1))
    dp.reward("y", dist.Bernoulli(p[dp.action("coin", 6)]))


def coin_problem():
    engine = inference.conjugate(coins)
    share = jnp.array([0.05, 0.4, 0.05, 0.05, 0.4, 0.05])
    arms = jnp.arange(6)
    return lookahead.problem(coins, engine, arms, lookahead.mean_outcome(arms, share)), engine


def test_imagined_labels_give_the_expected_variance_of_independent_coins():
    """What a toss leaves depends on how it comes out, so one imagined toss would not do."""
    found, engine = coin_problem()
    assert not found.is_gaussian
    imagined = jax.jit(lambda key: _gradient_plan.table(found, key, engine.init(0), 200, 4000))(KEY)
    now, hard, soft = _gradient_plan.drawn_costs(imagined)
    share = np.array(found.functional.slope)
    prior, heads, tails = (float(dist.Beta(0.3 + h, 0.9 + t).variance)
                           for h, t in ((0, 0), (1, 0), (0, 1)))  # fmt: skip
    after = 0.25 * heads + 0.75 * tails
    exact = lambda seen: share**2 @ np.where(np.isin(range(6), seen), after, prior)  # noqa: E731
    # 4,000 worlds and 200 outcomes: relative standard errors of some 2 % each; one outcome alone
    # would be 20 % off at the least
    for seen in ([], [1], [1, 4]):
        padded = jnp.array([*seen, *[-1] * (2 - len(seen))])
        assert float(hard(padded)) == pytest.approx(exact(seen), rel=0.15)
        shares = jnp.zeros(6).at[jnp.array(seen, int)].set(1.0)
        assert float(soft(shares)) == pytest.approx(float(hard(padded)), rel=1e-4)
    assert float(soft(jnp.zeros(6))) == pytest.approx(float(now), rel=1e-4)


@pytest.mark.parametrize("estimator", ["smoothed", pytest.param("score", marks=pytest.mark.slow)])
def test_policy_gradients_find_the_coins_that_count(estimator):
    found, engine = coin_problem()
    plan = lookahead.policy_gradient(
        0, found, engine.init(0), k=2, estimator=estimator, num_steps=60, num_outcomes=16,
        num_worlds=500, optimizer=OPTIMIZER,
    )  # fmt: skip
    assert set(plan.chosen.tolist()) == {1, 4}
    offered = jnp.ones(6, bool).at[4].set(False)
    plan = lookahead.policy_gradient(
        0, found, engine.init(0), offered, k=2, estimator=estimator, num_steps=60,
        num_outcomes=16, num_worlds=500, optimizer=OPTIMIZER,
    )  # fmt: skip
    assert plan.chosen[0] == 1
    assert 4 not in plan.chosen.tolist()
    assert float(plan.expected[-1]) < float(plan.expected[0])


@pytest.mark.slow
def test_policy_gradients_use_the_closed_form_where_there_is_one():
    def line():
        w = numpyro.sample("w", dist.Normal(0, jnp.array([1.0, 0.5])).to_event(1))
        x = dp.action("x", dist.Normal(0, 3))
        dp.reward("y", dist.Normal(w[0] + w[1] * x, 0.3))

    engine = inference.conjugate(line)
    goal = lookahead.squared_loss(jnp.array([3.0, 4.0]), jnp.zeros(2))
    found = lookahead.problem(line, engine, jnp.linspace(-4, 4, 9), goal)
    best = lookahead.greedy(0, found, engine.init(0), k=2)
    for estimator in ("score", "smoothed"):
        plan = lookahead.policy_gradient(0, found, engine.init(0), k=2, estimator=estimator)
        assert float(plan.expected[-1]) < 1.3 * float(best.expected[-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: lookahead.score_function(f, 1, num_samples=4, baseline="mean"), "baseline"),
        (lambda f: lookahead.score_function(f, 1, num_samples=1), "too few"),
        (lambda f: lookahead.smoothed(f, 1, num_samples=4, temperature=0.0), "temperature"),
        (lambda f: lookahead.policy_gradient(0, coin_problem()[0], None, k=1, estimator="x"),
         "estimator"),
    ],
)  # fmt: skip
def test_misuse_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call(lambda key, s: 0.0)
