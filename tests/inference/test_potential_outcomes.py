"""Decisions by generation: matched to the posterior of the best policy, for every policy class."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import decisionppl as dp
from decisionppl import inference
from decisionppl.inference import policies
from decisionppl.models import sequences

KEY = jax.random.key(0)
URN = sequences.polya_urn(1.0, 1.0).sequence
# each statistic below fails by chance once in 10^7
DRAWS, Z = 20_000, 5.3


def told(problem, arms, ys, *context):
    engine = problem.inference
    rows = dp.Rows(
        context, {"arm": jnp.asarray(arms), "y": jnp.asarray(ys)}, jnp.ones(len(arms), bool)
    )
    return engine.update(KEY, engine.init(KEY), rows)


def scores(problem, belief, draws, *context):
    worlds = problem.inference.sample(KEY, belief, draws)
    return np.asarray(dp.utility(problem.model, worlds, key=0, args=context))


@pytest.mark.parametrize("history", [[], [(0, 1)], [(0, 1), (1, 0), (0, 0)]])
@pytest.mark.parametrize("num_arms", [2, 3])
def test_choices_match_the_probability_of_being_best(num_arms, history):
    """P(A = a | history) = P(arm a has the best mean of the whole table | history), enumerated."""
    horizon = 6
    problem = inference.potential_outcomes(URN, horizon, arms=num_arms)
    belief = (told(problem, *zip(*history, strict=True)) if history
              else problem.inference.init(KEY))  # fmt: skip
    values = scores(problem, belief, DRAWS)
    best = values == values.max(axis=1, keepdims=True)
    found = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)

    totals = []
    for arm in range(num_arms):
        ys = [y for a, y in history if a == arm]
        left = horizon - len(ys)
        law = stats.betabinom(left, 1 + sum(ys), 1 + len(ys) - sum(ys))
        totals.append([(sum(ys) + n, law.pmf(n)) for n in range(left + 1)])
    truth = np.zeros(num_arms)
    for cells in itertools.product(*totals):
        total, mass = np.asarray([c[0] for c in cells]), np.prod([c[1] for c in cells])
        winners = total == total.max()
        truth += mass * winners / winners.sum()
    error = np.sqrt(truth * (1 - truth) / DRAWS)
    assert (np.abs(found - truth) < Z * error).all()


def test_with_everything_seen_the_world_is_the_data():
    problem = inference.potential_outcomes(URN, 2, arms=1)
    values = scores(problem, told(problem, [0, 0], [1, 0]), 5)
    assert values.tolist() == [[0.5]] * 5


def test_relabelling_the_arms_relabels_the_scores():
    features = jnp.asarray([0.2, 1.0, 3.0])

    def model(scale, length):
        return sequences.normal_normal(0.0, scale, 0.5).sequence(length)

    order = jnp.asarray([2, 0, 1])
    plain = inference.potential_outcomes(model, 5, arms=features)
    turned = inference.potential_outcomes(model, 5, arms=features[order])
    one = scores(plain, told(plain, [0, 2], [1.0, -1.0]), DRAWS)
    other = scores(turned, told(turned, [1, 0], [1.0, -1.0]), DRAWS)
    for a, b in zip(one[:, np.asarray(order)].T, other.T, strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-7


def test_an_experiment_against_tables_of_its_own():
    problem = inference.potential_outcomes(URN, 30, arms=3)
    settings = {"key": 0, "replications": 100, "propensities": False, "progress": False}
    result = dp.experiment.run(*problem[:2], dp.rules.thompson, problem.environment, 30, **settings)
    regret = result.data.regret.mean("replication").values
    assert (result.data.regret.values >= 0).all()
    assert regret[-5:].mean() < 0.5 * regret[:5].mean()
    with pytest.raises(ValueError, match="population of 31"):
        dp.experiment.run(*problem[:2], dp.rules.thompson, problem.environment, 31, key=0)


def test_ask_and_tell():
    problem = inference.potential_outcomes(URN, 4, arms=2)
    trial = dp.experiment.Experiment(problem.model, problem.inference, dp.rules.thompson, key=0)
    for _ in range(3):
        ask = trial.ask()
        trial.tell(ask.token, 1)
    assert int(trial.belief.count) == 3
    assert trial.history["y"] == [1, 1, 1]


def regions(x):
    return sequences.regions(jnp.asarray([1.0, 1.0]), jnp.asarray([0.1, 0.1])).sequence(x[:, 0])


X = jax.random.uniform(jax.random.key(3), (24, 1), minval=-5, maxval=5)


def thresholds(x, y):
    """A policy class of one's own: the mean outcome of each arm on either side of zero."""
    right = (x[:, 0] > 0).astype(float)
    side = jnp.stack([1 - right, right])
    return side @ y / jnp.maximum(side.sum(1, keepdims=True), 1.0)


def on_its_side(params, x):
    return params[(x[0] > 0).astype(int)]


def test_contexts_and_a_policy_class_of_ones_own():
    problem = inference.potential_outcomes(regions, X, arms=2, policy=(thresholds, on_its_side))
    seen = jnp.asarray([[-3.0], [-2.0], [3.0], [2.0]])
    belief = told(problem, [0, 1, 0, 1], [1.0, -1.0, -1.0, 1.0], seen)
    left = scores(problem, belief, 200, jnp.asarray([-1.0]))
    right = scores(problem, belief, 200, jnp.asarray([1.0]))
    assert (left.argmax(1) == 0).mean() > 0.95
    assert (right.argmax(1) == 1).mean() > 0.95


def test_contexts_that_were_seen_are_those_that_policies_are_fitted_to():
    drawn = lambda key, t: (jnp.full(1, 4.0),)  # noqa: E731
    keep = lambda x, y: x[:, 0]  # noqa: E731
    score = lambda params, x: params[:2]  # noqa: E731
    problem = inference.potential_outcomes(regions, X, arms=2, policy=(keep, score), contexts=drawn)
    belief = told(problem, [0, 1], [0.0, 0.0], jnp.asarray([[-3.0], [-2.0]]))
    fitted = problem.inference.sample(KEY, belief, 3)["policy"]
    assert fitted[:, :4].tolist() == [[-3.0, -2.0, 4.0, 4.0]] * 3


def test_policies_are_linear_in_contexts_unless_told_otherwise():
    problem = inference.potential_outcomes(regions, X, arms=2)
    belief = problem.inference.init(KEY)
    worlds = problem.inference.sample(KEY, belief, 1)
    at = lambda x: np.asarray(dp.utility(problem.model, worlds, key=0, args=(x,)))  # noqa: E731
    left, middle, right = (at(jnp.asarray([x])) for x in (-1.0, 0.0, 1.0))
    np.testing.assert_allclose(left + right, 2 * middle, atol=1e-5)
    assert np.abs(right - left).max() > 1e-3


def test_the_law_of_what_may_be_seen_is_that_of_the_context_at_hand():
    """In place of the first context of the table, whatever the table ends with."""

    def noisy(x):
        def step(carry, x):
            return carry, dp.outcome("y", dist.Normal(10 * x[0], 1.0))

        return scan(step, 0.0, x)

    problem = inference.potential_outcomes(noisy, X, arms=2)
    trace = dp.play(problem.model, 0)(jnp.asarray([7.0]))
    assert float(trace["y"]["fn"].mean) == pytest.approx(70.0)


@pytest.mark.parametrize("one_step", [False, True])
def test_a_budget_holds_on_every_completed_table(one_step):
    def fits(policy):
        problem = inference.potential_outcomes(regions, X, arms=2, policy=policy, one_step=one_step)
        worlds = problem.inference.sample(KEY, problem.inference.init(KEY), 50)["policy"]
        chosen = jax.vmap(lambda p: jax.vmap(lambda x: policy.score(p, x).argmax())(X))(worlds)
        return np.asarray((chosen == 0).mean(axis=1))

    free = policies.PolicyClass(thresholds, on_its_side)
    shares = fits(policies.budget(free, arm=0, share=0.25))
    assert shares.max() <= 0.25
    assert fits(free).max() > 0.5


def test_selection_rates_are_equal_across_groups():
    group = lambda x: (x[0] > 0).astype(int)  # noqa: E731
    free = policies.linear()
    fair = policies.equal_selection(free, 0, group, 2)
    problem = inference.potential_outcomes(regions, X, arms=2, policy=fair)
    worlds = problem.inference.sample(KEY, problem.inference.init(KEY), 50)["policy"]
    chosen = jax.vmap(lambda p: jax.vmap(lambda x: fair.score(p, x).argmax() == 0)(X))(worlds)
    right = np.asarray(X[:, 0] > 0)
    gap = np.abs(chosen[:, right].mean(1) - chosen[:, ~right].mean(1))
    assert gap.max() <= 0.5 / min(right.sum(), (~right).sum()) + 0.5 / max(
        right.sum(), (~right).sum()
    )


def test_misuse_says_what_to_do():
    with pytest.raises(ValueError, match="arms"):
        inference.potential_outcomes(URN, 5, arms=None)
    with pytest.raises(TypeError, match="fit"):
        inference.potential_outcomes(URN, 5, arms=2, policy=3)
