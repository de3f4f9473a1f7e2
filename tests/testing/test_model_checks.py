"""Findings about models: each defect is named by the finding meant for it, and by no other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import decisionppl as dp
from decisionppl import testing
from decisionppl._decision import as_context
from decisionppl._utility import utility
from decisionppl.models import GALLERY, bandits, build

KEPT = []


def noisy(mean):
    dp.reward("r", dist.Normal(mean, 1.0))


def unknown_role():
    noisy(dp.action("a", 2))
    numpyro.sample("q", dist.Normal(0, 1), infer={"role": "utility"})


def conditioned():
    noisy(dp.action("a", 2))
    numpyro.sample("z", dist.Normal(0, 1), obs=1.0)


def no_reward():
    dp.outcome("y", dist.Normal(dp.action("a", 2), 1.0))


def no_action():
    noisy(0.0)


def unbounded():
    noisy(dp.action("a", dist.Normal(0, 1)))


def ignored():
    dp.action("a", 2)
    noisy(0.0)


def infinite_cost():
    noisy(dp.action("a", 2))
    dp.cost("c", jnp.log(numpyro.sample("w", dist.Normal(0, 1))))


def on_the_edge():
    w = numpyro.sample("w", dist.Uniform(0, 1))
    dp.action("a", 2)
    dp.outcome("y", dist.Normal(0, jnp.where(w < 0.5, jnp.nan, 1.0), validate_args=False))
    noisy(dp.action("b", 2))


def kinked():
    w = numpyro.sample("w", dist.Normal(0, 1))
    noisy(dp.action("a", 2) + jnp.where(w > 0, jnp.sqrt(w), 0.0))


def branching():
    w = numpyro.sample("w", dist.Normal(0, 1))
    noisy(dp.action("a", 2) + (1.0 if w > 0 else 0.0))


def stateful():
    KEPT.append(numpyro.sample("w", dist.Normal(0, 1)))
    noisy(dp.action("a", 2) + KEPT[-1])


def traced_infer():
    w = numpyro.sample("w", dist.Normal(0, 1))
    numpyro.sample("v", dist.Normal(0, 1), infer={"start": w})
    noisy(dp.action("a", 2) + w)


def same_key_twice():
    key = numpyro.prng_key()
    shift = jax.random.normal(key) + jax.random.normal(key)
    noisy(dp.action("a", 2) + jax.lax.stop_gradient(shift))


def numpy_noise():
    noisy(dp.action("a", 2) + np.random.default_rng().normal())


def fails_in_float64():
    def body(carry, t):
        noisy(carry + dp.action("a", 2))
        return (carry + t * np.float32(0.5)).astype(jnp.result_type(float)), None

    scan(body, jnp.zeros((), jnp.float32), jnp.arange(3))


def cancels():
    # the difference of two nearly equal numbers has few digits left in float32
    w = numpyro.sample("w", dist.Uniform(0, 1))
    dp.outcome("y", dist.Normal((jnp.exp(1e-6 * w) - 1) * 1e6, 0.01))
    noisy(dp.action("a", 2))


DEFECTS = {
    "roles": [unknown_role, conditioned, no_reward, no_action],
    "action space": [unbounded],
    "reward reachable": [ignored],
    "finite utility": [infinite_cost],
    "finite density": [on_the_edge, kinked],
    "compiles": [branching],
    "no leaked tracer": [stateful, traced_infer],
    "no key reused": [same_key_twice],
    "same key, same trace": [numpy_noise],
    "float32 and float64": [fails_in_float64, cancels],
}
# a defect may show in what follows from it
FOLLOWS = {
    "infinite_cost": {"float32 and float64"},
    "numpy_noise": {"finite density", "float32 and float64"},
    "on_the_edge": {"float32 and float64"},
}


@pytest.mark.parametrize(
    ("finding", "model"), [(f, m) for f, models in DEFECTS.items() for m in models]
)
def test_each_defect_is_found_by_its_finding_alone(finding, model):
    found = testing.check_model(model)
    failed = {f.name for f in found.findings if not f.passed}
    assert finding in failed, found.message
    assert failed - {finding} <= FOLLOWS.get(model.__name__, set()), found.message
    assert not found.passed
    assert f"{finding}: " in found.message


def test_every_finding_has_a_defect():
    # what fails to run or to be traced once needs no model of its own
    names = {f.name for f in testing.check_model(bandits.gaussian(2)).findings}
    assert names - set(DEFECTS) == {"runs", "traced once"}


QUICK = ("beta_bernoulli", "linear")  # the other models of the gallery: ./check --slow


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in GALLERY]
)
def test_the_gallery_passes(name):
    problem = build(name)
    args = problem.args
    if problem.contexts is not None:
        args = as_context(problem.contexts(jax.random.key(3), 0)).args
    testing.assert_model(problem.model, *args)
    found = testing.assert_intervention(problem.model, *args, confounded=False, level=1e-7)
    assert found.observed.shape == found.confounding.shape


def test_a_model_that_does_not_run_says_what_to_give():
    found = testing.check_model(bandits.linear(2, 2))
    assert [f.name for f in found.findings] == ["runs"]
    assert "missing 1 required positional argument: 'x'" in found.message
    assert "Give example arguments after the model" in found.message


def test_messages_point_to_the_line():
    message = testing.check_model(branching).message
    assert "test_model_checks.py" in message
    assert "if w > 0 else 0.0" in message


def test_models_without_decisions_are_models_too():
    def schools(sigma):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        numpyro.sample("y", dist.Normal(mu, tau + sigma))

    testing.assert_model(schools, jnp.array(1.0))


def test_the_library_uses_no_key_twice():
    """Utilities, simulated rows, decisions: under JAX's own checker."""
    model = bandits.logistic(2, 2)
    x = jnp.ones(2)
    worlds = {"w": jnp.ones((3, 2, 2))}
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: utility(model, worlds, key=key, args=(x,), num_samples=3))(
            jax.random.key(0)
        )
        engine = dp.inference.laplace(model, x)
        testing.sbc(model, engine, (jnp.ones((3, 2)),), key=0, num_simulations=10, num_draws=10)
        dp.experiment.run(
            model, engine, dp.rules.thompson, horizon=3, key=0, replications=2,
            contexts=lambda key, t: jax.random.normal(key, (2,)),
        )  # fmt: skip


# Interventions.


def chain():
    def step(state, t):
        a = dp.action("a", dist.Bernoulli(0.5), given=state)
        noise = numpyro.sample("noise", dist.Normal(0, 1))
        state = dp.state("s", 0.5 * state + a + noise)
        dp.reward("r", state)
        return state, None

    scan(step, 0.0, jnp.arange(4))


def confounded():
    ill = numpyro.sample("ill", dist.Bernoulli(0.5))
    treat = dp.action("treat", dist.Bernoulli(0.1 + 0.8 * ill))
    dp.reward("recovery", 0.3 * treat - ill)


def randomised():
    ill = numpyro.sample("ill", dist.Bernoulli(0.5))
    dp.reward("recovery", 0.3 * dp.action("treat", dist.Bernoulli(0.5)) - ill)


def test_interventions_reach_every_step_of_a_scan_and_nothing_else():
    found = testing.assert_intervention(chain)
    assert found.descendants == ("a", "r", "s")
    assert found.observed is None  # an action in every step: seeing is not one thing


def test_an_intervention_that_does_nothing_inside_scan_is_caught():
    found = testing.check_intervention(
        chain, intervene=lambda model, values: handlers.do(model, data=values)
    )
    assert not found.passed
    assert "share of 'a' that is not the action" in found.message


def test_an_intervention_that_disturbs_other_sites_is_caught():
    def careless(model, values):
        def run():
            dp.act(lambda: numpyro.sample("extra", dist.Normal(0, 1)), values)()
            return dp.act(model, values)()

        return run

    found = testing.check_intervention(randomised, intervene=careless)
    assert not found.passed
    assert "'ill' moved, which does not descend" in found.message


def test_seeing_and_doing():
    found = testing.assert_intervention(confounded, confounded=True)
    # among the treated, nine in ten are ill; do(treat) treats one ill in two
    np.testing.assert_allclose(found.observed, [-0.1, 0.3 - 0.9], atol=0.05)
    np.testing.assert_allclose(found.intervened, [-0.5, -0.2], atol=0.05)
    testing.assert_intervention(randomised, confounded=False)
    assert not testing.check_intervention(confounded, confounded=False).passed
    assert not testing.check_intervention(randomised, confounded=True).passed


def test_actions_without_effect_and_actions_that_bypass_the_language():
    assert not testing.check_intervention(ignored).passed

    def bypass():
        a = numpyro.sample("a", dist.Bernoulli(0.5), infer={"role": "action"})
        dp.reward("r", 1.0 * a)

    assert not testing.check_intervention(bypass).passed


def test_interventions_on_continuous_and_several_actions():
    def model():
        a, b = dp.action("a", dist.Uniform(0, 1)), dp.action("b", 3)
        noise = numpyro.sample("noise", dist.Normal(0, 1))
        dp.reward("r", a * b + noise)

    found = testing.assert_intervention(model)
    assert found.descendants == ("a", "b", "r")
    assert found.actions["b"].shape == found.actions["a"].shape
    given = {"a": [0.1, 0.7], "b": [0, 2]}  # no float32 equals the Python float 0.1
    testing.assert_intervention(model, actions=given)
    with pytest.raises(ValueError, match="confounded: seeing and doing can be compared only"):
        testing.check_intervention(model, confounded=True)
    with pytest.raises(ValueError, match="actions names"):
        testing.check_intervention(model, actions={"a": [0.0, 1.0]})
    with pytest.raises(ValueError, match="no action site"):
        testing.check_intervention(no_action)


def test_a_plate_is_no_site_that_must_have_a_value():
    def plated():
        with numpyro.plate("units", 3):
            treat = dp.action("treat", dist.Bernoulli(0.5))
            numpyro.sample("z", dist.Normal(0, 1))
        dp.reward("r", dist.Normal(treat.sum(), 1.0))

    assert testing.check_model(plated).passed
