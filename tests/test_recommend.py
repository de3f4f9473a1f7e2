"""What to settle for: only what is on offer and allowed, by closed form and by draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl import inference, kernels, rules
from decisionppl._space import availability
from decisionppl.experiment import Experiment

KEY = jax.random.key(0)
EVERYTHING = np.array([1.0, 1.0, 1.0], np.float32)
# the second level is not offered, nor is a dose above 0.6
OFFERS = np.array([1.0, 0.0, 0.6], np.float32)


def doses(offers):
    """Dear doses; the second level is better, tells more and is not always offered."""
    f = numpyro.sample("f", dp.GaussianProcess(kernels.RBF(0.3)))
    x = dp.action("x", dist.Uniform(0, offers[2]), given=offers)
    level = dp.action("level", dist.Categorical(probs=offers[:2] / offers[:2].sum()), given=offers)
    dp.cost("price", 0.1 * x)
    dp.reward("y", dist.Normal(f(x) + 0.05 * level, 0.3 - 0.25 * level))


def cheap(values):
    return rules.feasible(values["price"], upper=0.045)


@pytest.fixture(scope="module")
def engine():
    return inference.gaussian_process(doses, jnp.asarray(EVERYTHING))


def settle(engine, context, **options):
    trial = Experiment(
        doses, engine, rules.log_ei, key=0, context=EVERYTHING, draws=4, **options
    )  # fmt: skip
    sites = {"x": [0.1, 0.5, 0.9], "level": [0, 1, 1], "y": [-0.5, 0.5, 2.0]}
    rows = dp.observe(doses, (np.tile(EVERYTHING, (3, 1)),), sites)
    trial.belief = engine.update(KEY, engine.init(KEY), rows)
    return trial.recommend(context)


GRID = {"x": np.repeat(np.linspace(0, 1, 21), 2), "level": np.tile([0, 1], 21)}


@pytest.fixture(scope="module")
def what_is_left(engine):
    """The recommendation where candidates that are not offered or too dear are left out."""
    left = (GRID["x"] <= 0.45) & (GRID["level"] == 0)
    return settle(engine, EVERYTHING, actions={n: a[left] for n, a in GRID.items()})


def test_candidates_that_are_not_to_be_had_count_for_nothing(engine, what_is_left):
    found = settle(engine, OFFERS, actions=GRID, constraint=cheap)
    assert found.action == what_is_left.action
    assert found.mean == pytest.approx(what_is_left.mean, abs=1e-5)
    assert found.sd == pytest.approx(what_is_left.sd, rel=1e-4)
    assert found.gain == pytest.approx(what_is_left.gain, rel=1e-3)
    assert found.regret == pytest.approx(what_is_left.regret, rel=0.15)


def test_a_search_ends_where_actions_are_to_be_had(engine, what_is_left):
    found = settle(engine, OFFERS, constraint=cheap)
    assert int(found.action["level"]) == 0
    assert float(found.action["x"]) <= 0.45 + 1e-6
    assert found.mean >= what_is_left.mean - 1e-4
    assert found.regret == pytest.approx(what_is_left.regret, rel=0.2, abs=0.01)
    assert found.gain == pytest.approx(what_is_left.gain, rel=0.1)


def bandit(offered):
    p = numpyro.sample("p", dist.Beta(1, 1).expand([4]).to_event(1))
    arm = dp.action("arm", dist.Categorical(probs=offered / offered.sum()), given=offered)
    dp.cost("price", jnp.array([0.1, 0.1, 0.2, 0.1])[arm])
    dp.reward("click", dist.Bernoulli(p[arm]))


def test_by_draws_the_same_holds():
    engine = inference.conjugate(bandit, jnp.ones(4))
    safe = lambda values: rules.feasible(values["price"], upper=0.15)  # noqa: E731
    trial = Experiment(bandit, engine, rules.thompson, key=0, context=jnp.ones(4), constraint=safe)
    arms, clicks = np.repeat([0, 1, 2, 3], 20), np.arange(80) % 20 < np.repeat([10, 4, 16, 14], 20)
    rows = dp.observe(bandit, (np.ones((80, 4), np.float32),), {"arm": arms, "click": clicks})
    trial.belief = engine.update(KEY, engine.init(KEY), rows)
    found = trial.recommend(np.array([1.0, 1.0, 1.0, 0.0]))  # the third is too dear
    assert found.action["arm"] == 0
    assert found.gain is None
    # Beta(11, 11), net of its price
    assert found.mean == pytest.approx(0.4, abs=6 * 0.104 / np.sqrt(2048))
    assert found.sd == pytest.approx(0.1042, rel=0.1)
    draws = np.random.default_rng(0).beta([11, 5], [11, 17], (200_000, 2))
    assert found.regret == pytest.approx(np.maximum(draws[:, 1] - draws[:, 0], 0).mean(), abs=0.003)
    assert trial.recommend(np.ones(4)).action["arm"] == 3


def test_by_draws_in_a_searched_space():
    def model(largest):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        x = dp.action("x", dist.Uniform(0, largest))
        dp.outcome("harm", x)
        dp.reward("y", dist.Normal(w[0] + w[1] * x, 0.1))

    engine = inference.laplace(model, jnp.ones(()))
    safe = lambda values: rules.feasible(values["harm"], upper=0.8)  # noqa: E731
    trial = Experiment(
        model, engine, rules.thompson, key=0, context=jnp.ones(()), constraint=safe, draws=64
    )
    rows = dp.observe(model, (np.ones(4),), {"x": [0.0, 0.1, 0.9, 1.0], "y": [0.0, 0.1, 0.9, 1.0]})
    trial.belief = engine.update(KEY, engine.init(KEY), rows)
    for largest, expected in ((1.0, 0.8), (0.5, 0.5)):
        found = trial.recommend(jnp.asarray(largest))
        assert float(found.action["x"]) == pytest.approx(expected, abs=0.02)
        assert found.mean == pytest.approx(expected, abs=0.1)
        assert -1e-6 <= found.regret < 0.1


def test_small_densities_are_on_offer():
    """A density is no probability: far out in the tail, and on a face, an action can be taken."""

    def model():
        x = dp.action("x", dist.Normal(0, 1))
        w = dp.action("w", dist.Dirichlet(2 * jnp.ones(2)))
        dp.reward("y", x + w[0])

    actions = {"x": jnp.array([0.0, 30.0]), "w": jnp.array([[0.0, 1.0], [0.5, 0.5]])}
    assert availability(model, actions, (), {}).tolist() == [True, True]
