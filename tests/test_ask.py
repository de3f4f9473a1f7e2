"""Experiments by hand: begun anew, taught by runs made before, decisions given up."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp


def model():
    p = numpyro.sample("p", dist.Beta(1, 1).expand([3]).to_event(1))
    dp.reward("click", dist.Bernoulli(p[dp.action("arm", 3)]))


@pytest.fixture(scope="module")
def trial():
    return dp.experiment.Experiment(model, dp.inference.conjugate(model), dp.rules.thompson, key=0)


def arms(experiment, rounds=4):
    chosen = []
    for _ in range(rounds):
        ask = experiment.ask()
        chosen.append(ask.action)
        experiment.tell(ask.token, ask.action == 1)
    return chosen


def test_a_restart_repeats_an_experiment_of_its_key_and_compiles_nothing(trial, compilations):
    first = arms(trial.restart(7))
    before = compilations()
    again = trial.restart(7)
    assert arms(again) == first
    assert compilations() == before
    fresh = dp.experiment.Experiment(model, dp.inference.conjugate(model), dp.rules.thompson, key=7)
    assert arms(fresh) == first


def test_a_restart_leaves_the_experiment_as_it_was(trial):
    one = trial.restart(1)
    arms(one)
    other = one.restart(2)
    assert len(one.history["token"]) == 4
    assert other.history == {}
    assert other.pending == []
    arms(other, 2)
    assert len(one.history["token"]) == 4


def test_runs_made_before_count_as_if_they_had_been_told(trial):
    logged = {"arm": [0, 1, 1], "click": [1, 0, 1]}
    taught = trial.restart(3)
    taught.learn(dp.observe(model, sites=logged))
    engine = dp.inference.conjugate(model)
    belief = engine.update(0, engine.init(0), dp.observe(model, sites=logged))
    same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), taught.belief, belief)
    assert all(jax.tree.leaves(same))
    assert taught.history == {}


def test_a_dropped_decision_is_closed_and_teaches_nothing(trial):
    one = trial.restart(4)
    ask = one.ask()
    before = jax.tree.leaves(one.belief)
    one.drop(ask.token)
    assert one.pending == []
    for a, b in zip(before, jax.tree.leaves(one.belief), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(KeyError, match="not open"):
        one.drop(ask.token)
    with pytest.raises(KeyError, match="not open"):
        one.tell(ask.token, 1)


def test_an_outcome_of_an_unknown_site_is_refused_by_name(trial):
    one = trial.restart(5)
    ask = one.ask()
    with pytest.raises(ValueError, match=r"unknown sites \['clicks'\]; the model logs \['click'\]"):
        one.tell(ask.token, {"clicks": 1})
    one.tell(ask.token, 1)  # still open


def test_an_outcome_that_is_no_number_is_refused_by_name(trial):
    one = trial.restart(6)
    with pytest.raises(TypeError, match="'click': expected numbers, got 'yes'"):
        one.tell(one.ask().token, "yes")


def dosing():
    effect = numpyro.sample("effect", dist.Normal(0, 1))
    dose = dp.action("dose", dist.Uniform(0, 1))
    dp.cost("price", 2.0 * dose)
    dp.reward("y", dist.Normal(effect * dose, 1.0))


def test_uniform_draws_meet_the_constraint():
    engine = dp.inference.laplace(dosing)
    uniform = dp.experiment.Experiment(
        dosing, engine, dp.rules.uniform, key=0, draws=1,
        constraint=lambda values: values["price"].mean(0) <= 0.5,
    )  # fmt: skip
    doses = [uniform.ask().action for _ in range(40)]
    assert max(doses) <= 0.25
    # the largest of 40 draws from [0, 0.25] is below 0.2 with probability 1e-4
    assert max(doses) > 0.2
    assert min(doses) < 0.05


def mixing():
    theta = numpyro.sample("theta", dist.Normal(0, 1).expand([2]).to_event(1))
    w = dp.action("w", dist.Dirichlet(jnp.ones(2)))
    dp.reward("y", dist.Normal(w @ theta, 1.0))


def test_weights_that_miss_one_by_rounding_are_divided_by_their_sum():
    rows = dp.observe(mixing, sites={"w": [[0.333, 0.664], [0.25, 0.75]], "y": [0.0, 1.0]})
    np.testing.assert_allclose(rows.sites["w"], [[0.333 / 0.997, 0.664 / 0.997], [0.25, 0.75]],
                               rtol=1e-6)  # fmt: skip


@pytest.mark.parametrize("weights", [[0.2, 0.3], [20.0, 80.0], [0.0, 0.0]])
def test_weights_that_do_not_sum_to_one_are_refused_with_their_sum(weights):
    total = f"{sum(weights):g}"
    with pytest.raises(ValueError, match=f"'w': the weights of row 1 sum to {total} .*expected 1"):
        dp.observe(mixing, sites={"w": [[0.5, 0.5], weights], "y": [0.0, 1.0]})


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="'w'.*row 0.*outside its support"):
        dp.observe(mixing, sites={"w": [[-0.5, 1.5]], "y": [0.0]})
