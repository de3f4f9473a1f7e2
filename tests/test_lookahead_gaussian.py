"""Plans under Gaussian beliefs: closed forms, enumeration, and what a planner may not know.

Monte Carlo bounds are 5.7 standard errors: a correct program fails one with a chance of about 1e-8.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decisionppl as dp
from decisionppl import _joint as gaussian
from decisionppl import inference, kernels, lookahead
from decisionppl._joint import Joint
from decisionppl._labelling import joint_of

KEY = jax.random.key(0)
SES = 5.7


def problem_of(seed, candidates=6, targets=4, linear=False):
    """A random Gaussian belief with a random functional, as float64 NumPy."""
    rng = np.random.default_rng(seed)
    total = candidates + targets
    a = rng.normal(size=(total, total + 2)) / np.sqrt(total)
    covariance, mean = a @ a.T, rng.normal(size=total)
    noise = rng.uniform(0.2, 1.0, candidates)
    weights = np.zeros(targets) if linear else rng.uniform(-0.5, 1.0, targets)
    centre, slope = rng.normal(size=(2, targets))
    return covariance, mean, noise, weights, centre, slope


def as_joint(covariance, mean, noise):
    n = len(noise)
    return Joint(*(jnp.asarray(x)[None] for x in (
        mean[n:], covariance[n:, n:], covariance[:n, n:], mean[:n], covariance[:n, :n], noise
    )))  # fmt: skip


def as_goal(weights, centre, slope):
    return lookahead.Functional({}, *(jnp.asarray(x) for x in (weights, centre, slope, 0.3)))


def conditioned(covariance, noise, chosen):
    """Posterior covariance of the targets, and the covariance D that the labels explain."""
    n = len(noise)
    chosen = list(chosen)
    cross = covariance[n:][:, chosen]
    block = covariance[np.ix_(chosen, chosen)] + np.diag(noise[chosen] ** 2)
    through = cross @ np.linalg.solve(block, cross.T)
    return covariance[n:, n:] - through, through


def expected_variance(case, chosen):
    """The formula of the science, written with the conditional covariances."""
    covariance, mean, noise, weights, centre, slope = case
    after, through = conditioned(covariance, noise, chosen)
    w = np.diag(weights)
    h = slope + 2 * weights * (mean[len(noise) :] - centre)
    return (
        2 * np.trace(w @ after @ w @ after) + h @ after @ h + 4 * np.trace(w @ after @ w @ through)
    )


# each compiled once
SUBSET = jax.jit(gaussian.subset_explained)
NOW = jax.jit(gaussian.functional_variance)
SOFT = jax.jit(gaussian.soft_explained)
PICK = jax.jit(
    lambda joint, goal, free: gaussian.pick(joint, 3, gaussian.by_variance(joint, goal), free)
)


def padded(*chosen):
    return jnp.array([*chosen, *[-1] * (5 - len(chosen))])


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


def test_variance_of_the_functional_against_draws():
    case = problem_of(0)
    covariance, mean, noise, *goal = case
    n, goal = len(noise), as_goal(*goal)
    draws = np.random.default_rng(1).multivariate_normal(mean[n:], covariance[n:, n:], 400_000)
    values = np.asarray(goal(jnp.asarray(draws)))
    exact = float(NOW(as_joint(*case[:3]), goal))
    squares = (values - values.mean()) ** 2
    assert abs(squares.mean() - exact) < SES * squares.std() / np.sqrt(len(values))
    error = abs(values.mean() - float(gaussian.functional_mean(as_joint(*case[:3]), goal)))
    assert error < SES * values.std() / np.sqrt(len(values))


def test_expected_next_variance_against_nested_draws():
    """Labels drawn, the belief conditioned on each set, the next variance averaged."""
    case = problem_of(2)
    covariance, mean, noise, weights, centre, slope = case
    n, chosen = len(noise), [0, 3, 4]
    after, _ = conditioned(covariance, noise, chosen)
    block = covariance[np.ix_(chosen, chosen)] + np.diag(noise[chosen] ** 2)
    gain = covariance[n:][:, chosen] @ np.linalg.inv(block)
    labels = np.random.default_rng(3).multivariate_normal(mean[chosen], block, 200_000)
    moved = mean[n:] + (labels - mean[chosen]) @ gain.T
    h = slope + 2 * weights * (moved - centre)
    w = np.diag(weights)
    variances = np.einsum("st,tu,su->s", h, after, h) + 2 * np.trace(w @ after @ w @ after)
    joint, goal = as_joint(*case[:3]), as_goal(*case[3:])
    now = NOW(joint, goal)
    exact = float(now - SUBSET(joint, goal, padded(*chosen)))
    assert abs(variances.mean() - exact) < SES * variances.std() / np.sqrt(len(variances))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_explained_variance_is_what_conditioning_takes_away(seed, k):
    case = problem_of(seed)
    joint, goal = as_joint(*case[:3]), as_goal(*case[3:])
    chosen = np.random.default_rng(seed).permutation(6)[:k]
    now = float(NOW(joint, goal))
    gone = float(SUBSET(joint, goal, padded(*chosen)))
    assert now - gone == pytest.approx(expected_variance(case, chosen), rel=1e-9, abs=1e-9)
    assert gone >= -1e-12
    more = float(SUBSET(joint, goal, padded(*chosen, 5)))
    assert 5 in chosen or more >= gone - 1e-12  # a label more never hurts
    again = SUBSET(joint, goal, jnp.roll(padded(*chosen), 2))
    assert float(again) == pytest.approx(gone, rel=1e-9, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_rank_one_choice_is_the_greedy_choice_by_conditioning_anew(seed):
    case = problem_of(seed)
    joint, goal = as_joint(*case[:3]), as_goal(*case[3:])
    free = np.array([True, True, False, True, True, True])
    picks = PICK(joint, goal, jnp.asarray(free))
    chosen, left = [], [i for i in range(6) if free[i]]
    for i, best in enumerate(picks.chosen.tolist()):
        found = {j: expected_variance(case, [*chosen, j]) for j in left}
        assert found[best] == pytest.approx(min(found.values()), abs=1e-9)
        before = expected_variance(case, chosen) if chosen else float(
            NOW(joint, goal))  # fmt: skip
        assert float(picks.gains[i]) == pytest.approx(before - found[best], abs=1e-9)
        chosen.append(best)
        left.remove(best)
    whole = jax.jit(gaussian.subset_change)(joint, picks.chosen)
    np.testing.assert_allclose(whole, picks.change, atol=1e-9)


def test_other_scores_are_greedy_in_what_they_say():
    case = problem_of(5)
    covariance, _, noise = case[:3]
    joint, everything = as_joint(*case[:3]), jnp.ones(6, bool)
    chosen = gaussian.pick(joint, 3, gaussian.by_average, everything).chosen.tolist()
    by_hand = []
    for _ in range(3):
        left = [j for j in range(6) if j not in by_hand]
        traces = [np.trace(conditioned(covariance, noise, [*by_hand, j])[0]) for j in left]
        by_hand.append(left[int(np.argmin(traces))])
    assert chosen == by_hand
    chosen = gaussian.pick(joint, 3, gaussian.by_uncertainty, everything).chosen.tolist()
    by_hand = []
    for _ in range(3):
        labels = covariance[:6, :6] + np.diag(noise**2)
        if by_hand:
            block, cross = labels[np.ix_(by_hand, by_hand)], covariance[:6][:, by_hand]
            labels = labels - cross @ np.linalg.solve(block, cross.T)
        spread = np.diag(labels).copy()
        spread[by_hand] = -1
        by_hand.append(int(spread.argmax()))
    assert chosen == by_hand


@pytest.mark.parametrize("targets", [4, 9])  # fewer than the candidates, and more
def test_soft_subsets_reduce_to_hard_ones_and_are_smooth_between(targets):
    case = problem_of(7, targets=targets)
    joint, goal = as_joint(*case[:3]), as_goal(*case[3:])
    for chosen in itertools.combinations(range(6), 2):
        hard = float(SUBSET(joint, goal, padded(*chosen)))
        share = jnp.zeros(6).at[jnp.array(chosen)].set(1.0)
        assert float(SOFT(joint, goal, share)) == pytest.approx(hard, rel=1e-10)
    assert float(SOFT(joint, goal, jnp.zeros(6))) == 0
    share, step = jnp.linspace(0.1, 0.9, 6), 1e-6
    slope = jax.jit(jax.grad(gaussian.soft_explained, 2))(joint, goal, share)
    for i in range(6):
        up, down = (SOFT(joint, goal, share.at[i].add(s)) for s in (step, -step))
        assert float(slope[i]) == pytest.approx(float(up - down) / (2 * step), rel=1e-5, abs=1e-8)
    over = jnp.full(6, 1.2)  # shares above one, which the relaxation gives at high temperature
    assert np.isfinite(float(SOFT(joint, goal, over)))


# Beliefs of engines.

X = np.array([-1.0, -0.2, 0.7, 1.5, 2.0])
POOL, TARGETS = np.array([0.1, 1.1, 2.5, 3.0]), np.array([2.2, 2.8, 3.4])


def surface():
    f = numpyro.sample("f", dp.GaussianProcess(0.8 * kernels.RBF(0.9)))
    x = dp.action("x", dist.Normal(0, 3))
    dp.outcome("y", dist.Normal(f(x), 0.2 + 0.1 * jnp.abs(x)))


@functools.cache
def process():
    """One engine for all tests: it analyses and compiles once."""
    return inference.gaussian_process(surface, capacity=16)


def gram(a, b):
    return 0.8 * np.exp(-0.5 * (a[:, None] - b) ** 2 / 0.81)


def test_a_gaussian_process_says_what_labels_would_be():
    engine = process()
    y = np.sin(X)
    belief = engine.update(KEY, engine.init(KEY), dp.observe(surface, sites={"x": X, "y": y}))
    goal = lookahead.squared_loss(TARGETS, np.zeros(3))
    found = lookahead.problem(surface, engine, POOL, goal)
    joint = joint_of(found, belief)
    every = np.concatenate([POOL, TARGETS])
    noise = lambda x: 0.2 + 0.1 * np.abs(x)  # noqa: E731
    total = gram(X, X) + np.diag(noise(X) ** 2)
    mean = gram(every, X) @ np.linalg.solve(total, y)
    covariance = gram(every, every) - gram(every, X) @ np.linalg.solve(total, gram(X, every))
    exact = as_joint(covariance, mean, noise(POOL))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), joint, exact)
    estimate = lookahead.estimate(KEY, found, belief)
    assert float(estimate.variance) == pytest.approx(float(NOW(exact, goal)), rel=1e-5)


def line():
    w = numpyro.sample("w", dist.Normal(0, jnp.array([1.0, 0.5])).to_event(1))
    x = dp.action("x", dist.Normal(0, 3))
    dp.reward("y", dist.Normal(w[0] + w[1] * x, 0.3))


@pytest.mark.parametrize(
    "build", [inference.conjugate, pytest.param(inference.laplace, marks=pytest.mark.slow)]
)
def test_a_linear_model_says_the_same_in_closed_form(build):
    engine = build(line)
    belief = engine.update(KEY, engine.init(KEY), dp.observe(line, sites={"x": X, "y": X}))
    goal = lookahead.average_treatment_effect(TARGETS, TARGETS - 1)
    found = lookahead.problem(line, engine, POOL, goal)
    every = np.concatenate([POOL, TARGETS, TARGETS - 1])
    phi, seen = (np.column_stack([np.ones(len(v)), v]) for v in (every, X))
    posterior = np.linalg.inv(np.diag([1.0, 4.0]) + seen.T @ seen / 0.09)
    mean = phi @ posterior @ seen.T @ X / 0.09
    exact = as_joint(phi @ posterior @ phi.T, mean, np.full(4, 0.3))
    joint = joint_of(found, belief)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), joint, exact)
    # the effect of one unit of x is the slope
    assert float(lookahead.estimate(0, found, belief).variance) == pytest.approx(
        posterior[1, 1], rel=1e-5
    )


def test_no_closed_form_is_claimed_where_there_is_none():
    def unknown_noise():
        w = numpyro.sample("w", dist.Normal(0, 1))
        s = numpyro.sample("s", dist.LogNormal(0, 0.1))
        x = dp.action("x", dist.Normal(0, 3))
        dp.reward("y", dist.Normal(w * x, s))

    engine = inference.laplace(unknown_noise)
    goal = lookahead.mean_outcome(TARGETS)
    assert lookahead.problem(unknown_noise, engine, POOL, goal).is_gaussian is False
    exact = process()
    recall = lookahead.recall(TARGETS, np.ones(3))
    assert lookahead.problem(surface, exact, POOL, recall).is_gaussian is False


# Plans.


@pytest.fixture(scope="module")
def pool(_float64):
    """A belief that has seen the left; labels are needed on the right."""
    engine = process()
    belief = engine.update(
        KEY, engine.init(KEY), dp.observe(surface, sites={"x": X - 1, "y": np.sin(X)})
    )
    goal = lookahead.squared_loss(TARGETS, np.ones(3))
    candidates = np.linspace(-2, 4, 13)
    return lookahead.problem(surface, engine, candidates, goal), belief


def test_the_first_label_is_the_best_of_all(pool):
    found, belief = pool
    joint = joint_of(found, belief)
    plan = lookahead.greedy(0, found, belief, k=1)
    gone = [float(SUBSET(joint, found.functional, padded(i)))
            for i in range(13)]  # fmt: skip
    assert int(plan.chosen[0]) == int(np.argmax(gone))
    assert float(plan.expected[0] - plan.expected[1]) == pytest.approx(max(gone))


@pytest.mark.slow
def test_draws_agree_with_the_closed_form():
    engine = inference.conjugate(line)
    belief = engine.init(0)
    goal = lookahead.squared_loss(TARGETS, np.ones(3))
    exact = lookahead.problem(line, engine, POOL, goal)
    draws = lookahead.problem(line, engine, POOL, goal, closed_form=False)
    assert exact.is_gaussian
    assert not draws.is_gaussian
    best = lookahead.greedy(0, exact, belief, k=2)
    plans = jax.vmap(
        lambda key: lookahead.greedy(key, draws, belief, k=2, num_outcomes=50, num_worlds=1000)
    )(jax.random.split(KEY, 20))
    error = SES * np.std(plans.expected, axis=0) / np.sqrt(20)
    # the weights' own bias, of order 1 / worlds, is below 5 %
    assert (np.abs(plans.expected.mean(0) - best.expected) < error + 0.05 * best.expected).all()
    joint = joint_of(exact, belief)
    gone = jax.vmap(lambda c: gaussian.subset_explained(joint, goal, c))(plans.chosen)
    assert float(gone.min()) > 0.95 * float(best.scores.sum())
    estimate = lookahead.estimate(0, draws, belief, num_worlds=4000)
    assert float(estimate.variance) == pytest.approx(float(best.expected[0]), rel=0.3)


def test_a_campaign_never_repeats_and_ends_with_the_pool(pool):
    found, belief = pool
    planner = functools.partial(lookahead.greedy, k=5)
    labels = jnp.sin(found.candidates["x"])
    offered = jnp.ones(13, bool).at[4].set(False)
    done = lookahead.simulate(0, found, planner, belief, labels, 3, offered)
    chosen = done.chosen.ravel().tolist()
    assert sorted(chosen) == [-1, -1, -1, *(i for i in range(13) if i != 4)]
    assert not done.available.any()
    # what is not there is not learned: the belief holds twelve labels more
    assert int(done.belief.buffer.count) == 17


@pytest.mark.parametrize("name", ["greedy", "most_uncertain", "least_average_variance"])
def test_plans_do_not_depend_on_labels_that_were_not_revealed(pool, name):
    found, belief = pool
    planner = functools.partial(getattr(lookahead, name), k=2)
    labels = jnp.sin(found.candidates["x"])
    first = lookahead.simulate(0, found, planner, belief, labels, 2)
    hidden = jnp.ones(13, bool).at[first.chosen[0]].set(False)
    changed = jnp.where(hidden, labels + 100.0, labels)
    other = lookahead.simulate(0, found, planner, belief, changed, 2)
    np.testing.assert_array_equal(first.chosen, other.chosen)
    np.testing.assert_array_equal(first.estimate.mean[:2], other.estimate.mean[:2])
    assert float(first.estimate.mean[2]) != float(other.estimate.mean[2])


def test_one_compilation_serves_many_pools(compilations):
    engine = process()
    planner = functools.partial(lookahead.greedy, k=2)

    @jax.jit
    def run(key):
        candidates, targets, labels = jax.random.normal(key, (3, 7))
        goal = lookahead.squared_loss(targets, jnp.zeros(7))
        found = lookahead.problem(surface, engine, candidates, goal)
        return lookahead.simulate(key, found, planner, engine.init(0), labels, 2).estimate.variance

    run(jax.random.key(0)).block_until_ready()
    before = compilations()
    jax.block_until_ready([run(jax.random.key(i)) for i in range(1, 4)])
    assert compilations() - before <= 1  # of the keys
    mapped = jax.vmap(run)(jax.random.split(KEY, 2))
    for one, key in zip(mapped, jax.random.split(KEY, 2), strict=True):
        np.testing.assert_allclose(one, run(key), atol=1e-9)


def test_a_rollout_ends_where_conditioning_on_all_batches_does():
    """For a linear functional variances do not depend on labels, so the end is known exactly."""
    engine = process()
    belief = engine.init(0)
    goal = lookahead.mean_outcome(TARGETS)
    found = lookahead.problem(surface, engine, POOL, goal)
    planner = functools.partial(lookahead.greedy, k=1)
    worst = lambda key, found, belief, free: planner(key, found, belief)._replace(  # noqa: E731
        chosen=jnp.array([0], jnp.int32))  # fmt: skip
    plan = lookahead.rollout(
        0, found, belief, proposals=[worst, planner], base=planner, horizon=2, num_paths=2
    )
    joint = joint_of(found, belief)
    one = planner(0, found, belief)
    both = lookahead.greedy(0, found, belief, k=2)
    now = float(NOW(joint, goal))
    assert plan.chosen.tolist() == one.chosen.tolist()
    exact = now - float(SUBSET(joint, goal, padded(*both.chosen)))
    np.testing.assert_allclose(plan.expected, [now, exact], rtol=1e-4)


# Functionals and misuse.


def test_functionals_are_what_they_say():
    means = jnp.array([0.2, 0.9, 0.5])
    predicted, weights = jnp.array([0, 1, 1]), jnp.array([0.5, 0.3, 0.2])
    right = lookahead.accuracy(jnp.arange(3), predicted, weights)
    assert float(right(means)) == pytest.approx(0.5 * 0.8 + 0.3 * 0.9 + 0.2 * 0.5)
    found = lookahead.recall(jnp.arange(3), predicted, weights)
    hits = 0.3 * 0.9 + 0.2 * 0.5
    assert float(found(means)) == pytest.approx(hits / (hits + 0.5 * 0.2))
    np.testing.assert_allclose(found(jnp.stack([means, 0 * means])), [hits / (hits + 0.1), 0.0])
    loss = lookahead.squared_loss(jnp.arange(3), predicted, weights)
    slope = jax.grad(loss)(means)
    np.testing.assert_allclose(loss.gradient(means), slope, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda g: g(means))(loss), loss(means))


def two_outcomes():
    w = numpyro.sample("w", dist.Normal(0, 1))
    x = dp.action("x", dist.Normal(0, 1))
    dp.outcome("y", dist.Normal(w * x, 1.0))
    dp.outcome("z", dist.Normal(w, 1.0).expand([2]).to_event(1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, b: lookahead.greedy(0, p, b, k=14), ValueError, "from 1 to the 13 candidates"),
        (lambda p, b: lookahead.greedy(0, p, b, jnp.ones(3, bool), k=1), ValueError, "available"),
        (lambda p, b: lookahead.simulate(0, p, None, b, jnp.ones(3), 1), ValueError, "labels"),
        (lambda p, b: lookahead.rollout(0, p, b, proposals=[], base=None, horizon=1), ValueError,
         "needs proposals"),
        (lambda p, b: lookahead.problem(surface, p.inference, POOL, jnp.mean), TypeError,
         "lookahead.functional"),
        (lambda p, b: lookahead.problem(two_outcomes, p.inference, POOL, p.functional), ValueError,
         "name it with label="),
        (lambda p, b: lookahead.problem(two_outcomes, p.inference, POOL, p.functional, label="z"),
         ValueError, "expected a number"),
        (lambda p, b: lookahead.squared_loss(jnp.ones(3), jnp.ones(2)), ValueError, "predictions"),
        (lambda p, b: lookahead.functional(jnp.ones(3), 2.0), TypeError, "expected a function"),
        (lambda p, b: lookahead.mean_outcome(1.0), ValueError, "leading axis"),
        (lambda p, b: lookahead.average_treatment_effect(jnp.ones(3), jnp.ones(2)), ValueError,
         "same units"),
    ],
)  # fmt: skip
def test_misuse_says_what_to_do(pool, call, error, message):
    with pytest.raises(error, match=message):
        call(*pool)
