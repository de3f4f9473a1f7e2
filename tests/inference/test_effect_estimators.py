"""Estimators of effects from trajectories: identities first, then errors and coverage."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl import testing
from decisionppl.inference import effects, markov, value
from decisionppl.inference._basis import Basis
from decisionppl.inference._value_estimates import lstd_sums
from decisionppl.testing import reference

MARKET = reference.rental_marketplace(6, p=0.3)
CHAIN = reference.two_state_mdp()


@pytest.fixture(scope="module")
def runs():
    """Two runs of a marketplace with unequal probabilities."""
    return markov.rollout(MARKET.model, 4, 3000, key=0, num_runs=2)


def by_hand(data, p, close=True):
    """Tabular Differences-in-Q from counts, in plain NumPy, loops over runs closed."""
    state, arm, reward = (np.asarray(x) for x in (data.state, data.arm, data.reward))
    source, target = state[:, :-1].ravel(), state[:, 1:].ravel()
    ends, begins = state[:, -1], np.roll(state[:, 0], -1)
    counts = np.zeros((7, 7))
    np.add.at(counts, (source, target), 1)
    visits = counts.sum(1)
    np.add.at(counts, (ends, begins), 1)
    mean = reward.mean()
    excess = np.bincount(source, reward.ravel(), 7) - mean * visits
    flow = np.diag(counts.sum(1)) - counts
    later = np.linalg.pinv(flow) @ excess
    p = float(np.float32(p))  # as the data have it
    eta = np.where(arm == 1, 1 / p, -1 / (1 - p))
    change = (later[target] - later[source]).reshape(arm.shape)
    return np.mean(eta * (reward - mean + change)), later, eta


# Identities.


def test_sums_of_features_keep_their_digits_in_single_precision():
    """Under vmap too, where a plain product is one running sum of all steps."""
    random = np.random.default_rng(0)
    table = random.uniform(0.5, 1.5, (3, 2)).astype(np.float32)
    state = np.cumsum(random.random((4, 20_001)) < 0.01, axis=1) % 3  # states last
    weight = jnp.full((4, 20_000), 1.9)

    def matrix(values, weight):
        basis = Basis(values, jnp.ones(2), 3)
        here, later = basis._replace(values=values[:-1]), basis._replace(values=values[1:])
        return lstd_sums(here, later, here, weight, weight)["A"][:2, :2]

    found = np.asarray(jax.vmap(matrix)(table[state], weight))
    values = table[state].astype(float)
    change = values[:, :-1] - values[:, 1:]
    exact = np.einsum("rti,rtj->rij", values[:, :-1], change) * float(weight[0, 0])
    np.testing.assert_allclose(found, exact, rtol=0, atol=20_000 * 1e-7)


def test_tabular_dq_is_made_of_counts(runs):
    exact, later, _ = by_hand(runs, 0.3)
    with jax.enable_x64(True):
        found = effects.dq(runs, 7)
        dense = effects.dq(runs, value.one_hot(7))
        fitted = value.lstd(runs, 7)
    np.testing.assert_allclose(found.estimate, exact, rtol=1e-5)  # propensities are float32
    np.testing.assert_allclose(dense.estimate, found.estimate, rtol=1e-6)
    values = np.asarray(fitted.values[0])
    seen = np.asarray(runs.state[0])
    np.testing.assert_allclose(values - values[0], later[seen] - later[seen[0]], atol=1e-5)
    np.testing.assert_allclose(fitted.of(3) - fitted.of(4), later[3] - later[4], atol=1e-5)
    np.testing.assert_allclose(fitted.mean_reward, np.mean(runs.reward), rtol=1e-6)


def test_naive_and_monte_carlo(runs):
    _, _, eta = by_hand(runs, 0.3)
    reward = np.asarray(runs.reward, float)
    naive, window = effects.naive(runs), effects.dq_monte_carlo(runs, 0)
    np.testing.assert_allclose(naive.estimate, np.mean(eta * reward), rtol=1e-4)
    centred = np.mean(eta * (reward - reward.mean()))
    np.testing.assert_allclose(window.estimate, centred, rtol=1e-4)
    later = np.stack([np.convolve(r, np.ones(6))[5:] for r in reward - reward.mean()])
    found = effects.dq_monte_carlo(runs, 5)
    np.testing.assert_allclose(found.estimate, np.mean(eta * later), rtol=1e-3)
    np.testing.assert_allclose(value.returns(runs, 5), later, atol=1e-4)
    arm = np.asarray(runs.arm)
    weights = np.where(arm == 1, 1 / 0.3, 1 / 0.7)
    means = [np.average(reward[arm == a], weights=weights[arm == a]) for a in (0, 1)]
    difference = effects.difference_in_means(runs)
    np.testing.assert_allclose(difference.estimate, means[1] - means[0], rtol=1e-4)


def test_blocks_that_do_not_divide_a_run_count_each_step_once(runs):
    for ask in (effects.naive, lambda d, **how: effects.dq(d, 7, **how)):
        found = [ask(runs, interval=effects.batch_means(n)) for n in (2, 14, 22)]
        np.testing.assert_allclose([f.estimate for f in found], found[0].estimate, rtol=1e-4)


def test_traces_of_scores_are_advantages(runs):
    _, _, eta = by_hand(runs, 0.3)
    fitted = value.lstd(runs, 7)
    for trace in (0.0, 0.8):
        gae = value.advantages(runs, fitted.values, trace)
        found = effects.dq(runs, 7, score_trace=trace)
        np.testing.assert_allclose(found.estimate, np.mean(eta * np.asarray(gae)), rtol=2e-3)


def test_off_policy_is_the_stationary_reward_of_each_arm(runs):
    """With the counts of one arm's steps and the closed loop."""
    state, arm, reward = (np.asarray(x) for x in (runs.state, runs.arm, runs.reward))
    means = []
    for a, p in enumerate(np.asarray(runs.propensity, float)[0, 0]):
        counts, gain = np.zeros((7, 7)), np.zeros(7)
        taken = arm == a
        np.add.at(counts, (state[:, :-1][taken], state[:, 1:][taken]), 1 / p)
        np.add.at(gain, state[:, :-1][taken], reward[taken] / p)
        pooled, seen = np.zeros((7, 7)), np.unique(state)
        np.add.at(pooled, (state[:, :-1], state[:, 1:]), 1)
        often = np.maximum(pooled.sum(1), 1)
        counts += 0.5 * pooled / often[:, None]
        gain += 0.5 * np.bincount(state[:, :-1].ravel(), reward.ravel(), 7) / often
        visits = counts.sum(1)
        np.add.at(counts, (state[:, -1], np.roll(state[:, 0], -1)), 1)
        flow = np.diag(counts.sum(1)) - counts
        _, _, vectors = np.linalg.svd(flow[np.ix_(seen, seen)].T)
        ratio = vectors[-1]
        means.append(ratio @ gain[seen] / (ratio @ visits[seen]))
    with jax.enable_x64(True):
        found = effects.off_policy_lstd(runs, 7)
        robust = effects.off_policy_lstd(runs, 7, doubly_robust=True)
    np.testing.assert_allclose(found.estimate, means[1] - means[0], rtol=1e-5)
    np.testing.assert_allclose(found.diagnostics["treated"], means[1], rtol=1e-5)
    share = found.diagnostics["control_effective_steps"] / runs.reward.size
    assert 0.3 < share < 0.71  # .7 if the law of the states were that of the experiment
    # indicators of all states leave little to mend: the half steps
    np.testing.assert_allclose(robust.estimate, found.estimate, rtol=0.02)


def test_scales_of_features_a_constant_and_padding_change_nothing(runs):
    def curve(m):
        return jnp.array([m, m**2, jnp.sqrt(m + 1.0)])

    with jax.enable_x64(True):
        found = effects.dq(runs, curve, value_trace=0.3)
        other = effects.dq(
            runs, lambda m: jnp.append(1.0, curve(m) * jnp.array([1e3, 1e-3, -2])), value_trace=0.3
        )
    np.testing.assert_allclose(other.estimate, found.estimate, rtol=1e-5)
    np.testing.assert_allclose(other.stderr, found.stderr, rtol=1e-4)
    short = jax.tree.map(lambda x: x[1:, :2000], runs)
    short = short._replace(state=runs.state[1:, :2001])
    mask = jnp.arange(3000)[None] < 2000
    padded = jax.tree.map(lambda x: x[1:], runs)._replace(mask=mask)
    for ask in (
        lambda d: effects.dq(d, 7), lambda d: effects.dq(d, curve), effects.naive,
        lambda d: effects.off_policy_lstd(d, 7), effects.difference_in_means,
    ):  # fmt: skip
        np.testing.assert_allclose(ask(padded).estimate, ask(short).estimate, rtol=2e-3)
    np.testing.assert_allclose(effects.dq(padded, 7).stderr, effects.dq(short, 7).stderr, rtol=1e-3)


def test_discounted_values(runs):
    known = value.evaluate(markov.kernel(MARKET.model, jnp.arange(7)), discount=0.8)
    long = markov.rollout(MARKET.model, 4, 60_000, key=3)
    fitted = value.lstd(long, 7, discount=0.8)
    found = np.array([float(fitted.of(jnp.asarray(m))) for m in range(2, 6)])
    np.testing.assert_allclose(found, known.state_value[2:6], atol=0.05)
    traced = value.lstd(long, 7, discount=0.8, trace=0.9)
    found = np.array([float(traced.of(jnp.asarray(m))) for m in range(2, 6)])
    np.testing.assert_allclose(found, known.state_value[2:6], atol=0.05)


# Standard errors.


def test_influence_is_the_derivative_in_the_weight_of_a_step(runs):
    """The infinitesimal jackknife, against leaving out a step; and Farias et al.'s variance."""
    asymptotic = effects.asymptotics(markov.kernel(MARKET.model, jnp.arange(7)))
    long = markov.rollout(MARKET.model, 4, 100_000, key=5)
    steps = len(long.reward[0])
    for name, found in (
        ("naive", effects.naive(long, interval=effects.batch_means(200))),
        (
            "difference in means",
            effects.difference_in_means(long, interval=effects.batch_means(200)),
        ),
        ("dq", effects.dq(long, 7)),
        ("dq", effects.dq(long, 7, interval=effects.regeneration(4))),
        ("dq", effects.dq(long, 7, interval=effects.bootstrap(0, num_blocks=200))),
        ("off-policy", effects.off_policy_lstd(long, 7)),
    ):
        np.testing.assert_allclose(
            found.stderr * np.sqrt(steps), asymptotic[name].sd, rtol=0.25, err_msg=name
        )
    exact = effects.dq(long, 7).stderr * np.sqrt(steps)
    np.testing.assert_allclose(exact, asymptotic["dq"].sd, rtol=0.02)


METHODS = {
    "dq": (lambda d: effects.dq(d, 2), "dq"),
    "dq, blocks": (lambda d: effects.dq(d, 2, interval=effects.batch_means(20)), "dq"),
    "dq, cycles": (lambda d: effects.dq(d, 2, interval=effects.regeneration(1)), "dq"),
    "dq, bootstrap": (
        lambda d: effects.dq(d, 2, interval=effects.bootstrap(1, num_replicates=200)), "dq",
    ),
    "naive": (effects.naive, "naive"),
    "difference": (effects.difference_in_means, "naive"),
    "monte carlo": (lambda d: effects.dq_monte_carlo(d, 12), "dq"),
    "off-policy": (lambda d: effects.off_policy_lstd(d, 2), "effect"),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_intervals_cover(name):
    """400 experiments of 2,000 steps; nominal 95 %, tolerated 3 % beside what chance does."""
    estimator, target = METHODS[name]

    def one(key):
        return estimator(markov.rollout(CHAIN.model, 0, 2000, key=key, burn_in=20))

    truth = getattr(CHAIN, target)()
    found = testing.coverage(one, truth, key=0, num_repetitions=400, tolerance=0.03, level=1e-6)
    assert found.passed, found.message
    assert abs(found.bias) < 0.1
    assert 0.85 < found.ratio < 1.15


# Designs.


def test_laws_that_depend_on_the_state():
    def step(x):
        treat = dp.action("treat", dist.Bernoulli(0.2 + 0.5 * x), given=x)
        dp.reward("r", 1.0 * x + treat)
        leave = jnp.where(x == 1, jnp.array([0.2, 0.4])[treat], jnp.array([0.1, 0.3])[treat])
        return dp.state("x", dist.Bernoulli(jnp.where(x == 1, 1 - leave, leave)))

    known = markov.kernel(step, jnp.arange(2))
    found = effects.dq(markov.rollout(step, 0, 50_000, key=0), 2)
    exact = effects.taylor(known).estimate
    assert abs(found.estimate - exact) < 5 * found.stderr
    np.testing.assert_allclose(
        found.stderr * np.sqrt(50_000), effects.asymptotics(known)["dq"].sd, rtol=0.03
    )


def test_several_units_a_step():
    """Clusters that are treated one by one, each of which adds to a queue that costs."""
    gain, load = np.array([1.0, 2.0, 0.5]), np.array([0.2, 0.1, 0.3])

    def step(queue):
        with numpyro.plate("clusters", 3):
            treat = dp.action("treat", dist.Bernoulli(0.5))
        come = numpyro.sample("come", dist.Bernoulli(0.1 + jnp.sum(treat * load) / 2))
        served = numpyro.sample("served", dist.Bernoulli(0.6))
        dp.reward("gain", jnp.sum(treat * gain) - 0.2 * queue)
        return dp.state("queue", jnp.clip(queue + come - served, 0, 5))

    data = markov.rollout(step, 0, 60_000, key=0)
    assert data.propensity.shape == (1, 60_000, 3, 2)
    found = effects.dq(data, 6)
    # the same design with one decision over all combinations, exactly
    grid = jnp.array(list(itertools.product([0, 1], repeat=3)))

    def joint(queue):
        treat = grid[dp.action("treat", 8)]
        come = numpyro.sample("come", dist.Bernoulli(0.1 + jnp.sum(treat * load) / 2))
        served = numpyro.sample("served", dist.Bernoulli(0.6))
        dp.reward("gain", jnp.sum(treat * gain) - 0.2 * queue)
        return dp.state("queue", jnp.clip(queue + come - served, 0, 5))

    known = value.evaluate(markov.kernel(joint, jnp.arange(6)))
    contrast = np.asarray(jnp.where(grid == 1, 2.0, -2.0).sum(1)) / 8
    exact = known.occupancy @ (contrast @ known.action_value)
    assert abs(found.estimate - exact) < 5 * found.stderr
    with pytest.raises(ValueError, match="several units"):
        effects.off_policy_lstd(data, 6)


def test_switchback_is_a_step_that_is_a_period():
    from numpyro.contrib.control_flow import scan

    def period(free):
        treat = dp.action("treat", dist.Bernoulli(0.5), given=free)

        def event(free, _):
            book = numpyro.sample("book", dist.Bernoulli((0.3 + 0.2 * treat) * free / 4))
            back = numpyro.sample("back", dist.Bernoulli(0.25 * (4 - free) / 4))
            return free - book + back * (book == 0), book

        free, booked = scan(event, free, None, length=30)
        dp.reward("booked", jnp.sum(booked))
        return dp.state("free", free)

    data = markov.rollout(period, 4, 4000, key=0)
    truth = effects.simulated(period, 4, 4000, key=0)
    found = effects.dq(data, 5)
    # periods are long: little is carried over
    assert abs(found.estimate - truth.estimate) < 5 * np.hypot(found.stderr, truth.stderr)
    assert truth.estimate > 0.5


# Forks and series.


def test_forks_have_the_mean_of_dq_and_less_noise():
    data = markov.rollout(MARKET.model, 4, 20_000, key=0)
    known = effects.taylor(markov.kernel(MARKET.model, jnp.arange(7))).estimate
    single = effects.dq(data, 7, interval=effects.batch_means())
    for horizon in (1, 10):
        found = effects.forked(MARKET.model, data, 7, key=1, horizon=horizon)
        assert abs(found.estimate - known) < 5 * found.stderr
        assert found.stderr < single.stderr
        assert 0 < found.diagnostics["differs"] < 0.2


def test_forks_replay_what_decisions_do_not_touch():
    def step(x):
        treat = dp.action("treat", dist.Bernoulli(0.5))
        weather = numpyro.sample("weather", dist.Normal(0, 1))
        dp.reward("r", weather * treat)
        return dp.state("x", (x + treat) % 2)

    data = markov.rollout(step, 0, 300, key=0)
    weather = np.linspace(-1, 2, 300)[None]
    found = effects.forked(step, data, 2, key=1, exogenous={"weather": weather})
    drawn = effects.forked(step, data, 2, key=1)
    assert abs(found.estimate - drawn.estimate) > 0.1
    change = np.asarray(value.lstd(data, 2).values[0])
    state = np.asarray(data.state[0, :-1])
    v = {s: change[np.argmax(np.asarray(data.state[0]) == s)] for s in (0, 1)}
    exact = np.mean(weather[0] + np.array([v[(s + 1) % 2] - v[s] for s in state]))
    np.testing.assert_allclose(found.estimate, exact, rtol=1e-4)
    with pytest.raises(ValueError, match="exogenous: expected values"):
        effects.forked(step, data, 2, key=1, exogenous={"weather": weather[:, :10]})


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_series_of_scores_has_the_mean_of_the_taylor_series(p):
    """Over all paths of four steps, each with its probability."""
    chain = reference.two_state_mdp(p=p)
    paths = np.array(list(itertools.product([0, 1], repeat=8)))
    arm, later = paths[:, :4], paths[:, 4:]
    state = np.concatenate([np.zeros((256, 1), int), later], 1)
    steps = chain.transition[arm, state[:, :-1], state[:, 1:]]
    chance = np.where(arm == 1, p, 1 - p)
    probability = (steps * chance).prod(1)
    reward = chain.reward[arm, state[:, :-1]] * probability[:, None] * 256
    law = np.broadcast_to([1 - p, p], (256, 4, 2))
    with jax.enable_x64(True):
        data = markov.Trajectories(
            jnp.asarray(state), jnp.asarray(arm), jnp.asarray(law), jnp.asarray(reward),
            jnp.ones((256, 4), bool),
        )  # fmt: skip
        known = markov.tabular(chain.transition, chain.reward, p)
        for order in (1, 2, 3, 4):
            exact = effects.taylor(known, order, horizon=4, initial=0)
            found = effects.score_series(data, order)
            np.testing.assert_allclose(found.estimate, exact.estimate, atol=1e-10)
    np.testing.assert_allclose(exact.bias, 0, atol=1e-10)


def test_simulated_effects_share_their_noise():
    found = effects.simulated(MARKET.model, 4, 5000, key=0, num_runs=20, burn_in=50)
    known = markov.kernel(MARKET.model, jnp.arange(7))
    assert abs(found.estimate - MARKET.effect()) < 5 * found.stderr
    alone = effects.asymptotics(known)["naive"].sd / np.sqrt(100_000)
    assert found.stderr < alone
    treated = found.diagnostics["treated"] - found.diagnostics["control"]
    np.testing.assert_allclose(treated, found.estimate, atol=1e-5)


# Errors.

never = np.tile([1.0, 0.0], (2, 3000, 1))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: effects.naive(d._replace(propensity=never)),
         "arm 1 has probability 0 in run 0 at step 0 .6000 such decisions"),
        (lambda d: effects.naive(d._replace(propensity=d.propensity[:, :-1])), "expected reward"),
        (lambda d: effects.dq(d, 4), "states are 0 to 3, but run"),
        (lambda d: effects.dq(d), "states are not vectors"),
        (lambda d: effects.dq(d, "all"), "features: expected a number of states"),
        (lambda d: effects.dq(d, lambda m: m), "a vector"),
        (lambda d: effects.dq(d, 7, value_trace=0.5), "one_hot"),
        (lambda d: effects.dq(d, 7, score_trace=1.0), "score_trace: expected"),
        (lambda d: effects.dq(d, 7, ridge=-1), "ridge: expected"),
        (lambda d: effects.dq(d, 7, arms=(0, 2)), "arms: expected"),
        (lambda d: effects.dq(d, 7, interval="blocks"), "interval: expected"),
        (lambda d: effects.dq(d, 7, level=95), "level: expected"),
        (lambda d: effects.dq(d, 7, interval=effects.regeneration(9)), "in that state 0 times"),
        (lambda d: effects.naive(d._replace(state=jnp.zeros((2, 3001, 2))),
                                 interval=effects.regeneration(0)), "states that are numbers"),
        (lambda d: effects.forked(MARKET.model, d, 7, key=0, exogenous={"treat": d.arm}),
         "'treat' is the action site"),
        (lambda d: effects.dq_monte_carlo(d, 3000), "window: expected"),
        (lambda d: effects.off_policy_lstd(d, 7, interval=effects.bootstrap(0)), "no bootstrap"),
        (lambda d: effects.forked(MARKET.model, d, 7, key=0, horizon=0), "horizon: expected"),
        (lambda d: effects.score_series(jax.tree.map(lambda x: x[:1], d)), "several independent"),
        (lambda d: effects.score_series(d, 0), "order: expected"),
        (lambda d: value.advantages(d, d.reward), "values: expected"),
        (lambda d: value.lstd(d, 7, discount=1.5), "discount: expected"),
        (lambda d: effects.batch_means(1), "num_blocks"),
        (lambda d: effects.bootstrap(0, 1), "num_replicates"),
        (lambda d: effects.simulated(MARKET.model, 4, 0, key=0), "num_steps: expected"),
    ],
)  # fmt: skip
def test_misuse_says_what_to_do(runs, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(runs)


def test_other_things_are_no_trajectories():
    with pytest.raises(TypeError, match=r"markov\.rollout"):
        effects.naive(np.zeros(3))  # pyright: ignore


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_arm_that_is_never_drawn_is_refused(share):
    def step(x):
        treat = dp.action("treat", dist.Bernoulli(share))
        dp.reward("gain", 1.0 * treat)
        return dp.state("x", dist.Bernoulli(0.5))

    arm = 1 - int(share)
    with pytest.raises(ValueError, match=f"arm {arm} has probability 0 in run 0 at step 0"):
        effects.naive(markov.rollout(step, 0, 5, key=0))
    with pytest.raises(ValueError, match="an arm has probability zero in state number 0"):
        effects.asymptotics(markov.kernel(step, jnp.arange(2)))
