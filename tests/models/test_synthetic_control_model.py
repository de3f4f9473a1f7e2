"""The factor-model panel: designs, paired simulation, a user's panel as an experiment."""

import jax
import numpy as np
import pytest

import decisionppl as dp
from decisionppl import inference
from decisionppl.inference import panels
from decisionppl.models import synthetic_control


def test_equal_keys_differ_by_the_effect_alone():
    problem = synthetic_control.synthetic_control(5, 2, pre_periods=4, periods=8)
    path = np.arange(12) >= 4
    none, some = (problem.simulate(3, a, 0.4) for a in (0 * path, path))
    np.testing.assert_array_equal(none.sites["controls"], some.sites["controls"])
    difference = np.asarray(some.sites["outcome"] - none.sites["outcome"])
    np.testing.assert_allclose(difference, 0.4 * path, atol=1e-6)
    assert problem.regret(path, 0.4) == 0
    np.testing.assert_allclose(problem.regret(0 * path, 0.4), 3.2)
    np.testing.assert_allclose(problem.regret(path, -0.4), 3.2)


def test_the_model_is_well_formed_and_logs_what_it_says():
    problem = synthetic_control.synthetic_control(5, 2, pre_periods=4, periods=8)
    rows = problem.simulate(3, np.zeros(12), 0.4)
    checked = dp.observe(problem.model, rows.args, rows.sites)
    assert set(checked.sites) == {"controls", "treat", "outcome"}
    before = dp.play(problem.model, 0)(3)["treat"]["fn"].probs
    after = dp.play(problem.model, 0)(4)["treat"]["fn"].probs
    assert before.tolist() == [1, 0]
    assert after.tolist() == [0.5, 0.5]


def test_switchbacks_flip_a_coin_per_block():
    path = synthetic_control.switchback(0, 3, 4001, block=4)
    assert path.shape == (4004,)
    assert path[:3].sum() == 0
    blocks = path[3:4003].reshape(-1, 4)
    assert (blocks == blocks[:, :1]).all()
    # a share of 1/2 in 1000 coins, five standard errors and more
    assert abs(blocks[:, 0].mean() - 0.5) < 5.7 * 0.5 / 1000**0.5


def user_panel(treated=True):
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(1, 40)).cumsum(1)
    y = 300 + 20 * rng.uniform(0.5, 1.5, (7, 1)) @ walk + 5 * rng.normal(size=(7, 40))
    path = np.zeros((7, 40))
    path[2, 30:] = treated
    return panels.panel(y, path, units="abcdefg")


def test_a_users_panel_becomes_an_experiment():
    data = user_panel()
    ours = synthetic_control.from_panel(data, "a", 1, pre_periods=20)
    problem = ours.problem
    assert (problem.num_periods, problem.pre_periods) == (40, 20)
    assert ours.rows.sites["controls"].shape == (40, 5)  # neither "a" nor the treated "c"
    again = synthetic_control.from_panel(
        data._replace(outcome=10 * data.outcome + 5), "a", 1, pre_periods=20
    )
    np.testing.assert_allclose(again.scale, 10 * ours.scale)
    for name in ("controls", "outcome"):
        np.testing.assert_allclose(again.rows.sites[name], ours.rows.sites[name], atol=1e-5)
    environment = ours.replay(30.0)
    steps = [environment.step(jax.random.key(0), (), 25, None, {"treat": a}) for a in (0, 1)]
    difference = ours.scale * float(steps[1]["outcome"] - steps[0]["outcome"])
    np.testing.assert_allclose(difference, 30, rtol=1e-4)
    np.testing.assert_array_equal(steps[0]["outcome"], ours.rows.sites["outcome"][25])


def test_history_of_a_users_panel_is_learned():
    data = user_panel()
    ours = synthetic_control.from_panel(data, "c", 1, pre_periods=20, prior=(0.0, 5.0))
    engine = inference.synthetic_control(ours.problem.model, 0)
    trial = dp.experiment.Experiment(
        ours.problem.model, engine, dp.rules.thompson, key=0, context=0
    )
    trial.learn(ours.rows)
    found = panels.treatment_effect(engine, trial.belief, (0,))
    classic = panels.latent_regression(data, 1)
    # nothing was treated in truth: both intervals hold zero, and agree
    assert abs(float(found.estimate)) < 3 * float(found.stderr)
    gap = ours.scale * float(found.estimate) - classic.estimate
    assert abs(gap) < classic.stderr
    with pytest.raises(ValueError, match="'c' was treated in 10 recorded periods"):
        ours.replay(1.0)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("rank: expected 1 to num_controls=2", {"num_controls": 2, "rank": 3}),
        ("rank: expected 1 to num_controls=0", {"num_controls": 0, "rank": 1}),
        ("noise: expected a finite number more than 0, got 0", {"noise": 0}),
        ("periods: expected an int of at least 1, got 0", {"periods": 0}),
        ("prior's scale", {"prior": (0.0, -1.0)}),
    ],
)
def test_parameters_out_of_range_are_refused(message, change):
    with pytest.raises(ValueError, match=message):
        synthetic_control.synthetic_control(**change)


def test_panels_that_make_no_experiment_are_refused():
    data = user_panel()
    make = synthetic_control.from_panel
    with pytest.raises(ValueError, match="unit: no 'z'; the panel has .'a'"):
        make(data, "z", 1, pre_periods=20)
    with pytest.raises(ValueError, match="'c' is treated within the first 35 periods. Lower it"):
        make(data, "c", 1, pre_periods=35)
    with pytest.raises(ValueError, match="6 controls and 40 periods.*too few for a rank of 6"):
        make(data, "c", 6, pre_periods=20)
    flat = data._replace(outcome=np.ones((7, 40)))
    with pytest.raises(ValueError, match="controls do not vary"):
        make(flat, "c", 1, pre_periods=20)
    with pytest.raises(ValueError, match="treat: expected 0 or 1 for each of 250 periods"):
        synthetic_control.synthetic_control().simulate(0, [1, 0])
