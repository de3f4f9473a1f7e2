"""What every Markov model of the gallery promises."""

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

import decisionppl as dp
from decisionppl import models, testing
from decisionppl.inference import effects, markov
from decisionppl.models import (
    fulfilment,
    nonstationary_two_state,
    queue_experiment,
    queueing,
    rental_marketplace,
    replenishment,
    ride_hailing,
    two_state,
)
from decisionppl.models._markov import MarkovModel

KEY = jax.random.key(0)


class Member(NamedTuple):
    """A model of the gallery, small.

    Attributes:
        factory: what makes it.
        make: makes a small one.
        policy: a value of the action site.
        truth: average reward when every step is treated with a probability, or None.
    """

    factory: Callable
    make: Callable
    policy: Any = 1
    truth: Callable | None = None


def orders():
    return fulfilment.fulfilment(fulfilment.instance(KEY, 6, 3, 20))


TANDEM = queueing.network([0.3, 0.0], [[1.0, 0.0], [0.0, 1.0]], next_class=[1, -1])
MEMBERS = {
    "two_state": Member(two_state.two_state, two_state.two_state, 1, two_state.value),
    "nonstationary_two_state": Member(
        nonstationary_two_state.nonstationary_two_state,
        lambda: nonstationary_two_state.nonstationary_two_state(0.5, num_steps=50),
    ),
    "rental_marketplace": Member(
        rental_marketplace.rental_marketplace,
        lambda: rental_marketplace.rental_marketplace(5),
        1,
        lambda theta: rental_marketplace.value(theta, 5),
    ),
    "queue_experiment": Member(
        queue_experiment.queue_experiment,
        lambda: queue_experiment.queue_experiment(buffer=30),
        1,
        lambda theta: queue_experiment.value(theta, buffer=30),
    ),
    "ride_hailing": Member(
        ride_hailing.ride_hailing, lambda: ride_hailing.ride_hailing(side=2, num_drivers=4)
    ),
    "replenishment": Member(replenishment.replenishment, lambda: replenishment.replenishment(3)),
    "fulfilment": Member(fulfilment.fulfilment, orders),
    "event_model": Member(
        queueing.event_model, lambda: queueing.event_model(TANDEM), queueing.cmu(TANDEM)
    ),
    "chain_model": Member(
        queueing.chain_model, lambda: queueing.chain_model(TANDEM), queueing.cmu(TANDEM)
    ),
}


class Prepared(NamedTuple):
    member: Member
    model: MarkovModel
    state: Any  # a few steps after the first one
    runs: markov.Trajectories


@functools.cache
def prepared(name):
    member = MEMBERS[name]
    model = member.make()
    runs = markov.rollout(model.step, model.init, 12, key=3, num_runs=2)
    return Prepared(member, model, jax.tree.map(lambda x: x[0, 6], runs.state), runs)


@pytest.fixture(params=list(MEMBERS))
def case(request):
    return prepared(request.param)


QUICK = ("event_model",)  # the checks of the toolkit on others: ./check --slow
CHECKED = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MEMBERS]


def test_every_factory_of_the_gallery_is_here():
    found = set()
    for part in pkgutil.iter_modules(models.__path__):
        module = importlib.import_module(f"decisionppl.models.{part.name}")
        for name, value in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(value):
                continue
            if inspect.signature(value).return_annotation in (MarkovModel, "MarkovModel"):
                found.add(value)
    assert found == {m.factory for m in MEMBERS.values()}


def test_docstrings_have_an_example_and_modules_a_source(case):
    text = inspect.getdoc(case.member.factory) or ""
    module = inspect.getmodule(case.member.factory).__doc__
    for part in ("Args:", "Returns:", "Example:"):
        assert part in text or (part == "Args:" and not inspect.signature(
            case.member.factory).parameters)  # fmt: skip
    assert re.search(r"References:|arXiv \d{4}\.\d{4,5}", f"{text}\n{module}")


@pytest.mark.parametrize("name", CHECKED)
def test_the_step_is_a_model_as_it_should_be(name):
    case = prepared(name)
    testing.assert_model(case.model.step, case.state)


@pytest.mark.parametrize("name", CHECKED)
def test_interventions_reach_it(name):
    case = prepared(name)
    # in a single step the action may be without effect
    trajectory = lambda: markov.chain(case.model.step, case.state)(12)  # noqa: E731
    found = testing.check_intervention(trajectory, num_samples=64, level=1e-8)
    assert found.passed, found.message


def test_states_keep_their_form(case):
    first = jax.tree.map(lambda x: x[0, 0], case.runs.state)
    after = handlers.seed(case.model.step, 0)(first)
    assert jax.tree.structure(after) == jax.tree.structure(first)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(first), strict=True):
        assert jnp.shape(x) == jnp.shape(y)
        assert jnp.asarray(x).dtype == jnp.asarray(y).dtype
    roles = {dp.role_of(s) for s in dp.play(case.model.step, 0)(first).values()}
    assert {"action", "state", "reward"} <= roles


def test_trajectories_are_whole_and_repeat(case):
    runs = case.runs
    assert runs.reward.shape == runs.mask.shape == (2, 12)
    leaves = [np.asarray(x) for x in jax.tree.leaves(runs.state)]
    assert all(x.shape[:2] == (2, 13) for x in leaves)
    assert all(np.isfinite(x).all() for x in (*leaves, np.asarray(runs.reward)))
    np.testing.assert_allclose(runs.propensity.sum(-1), 1, rtol=1e-5)
    taken = jnp.take_along_axis(runs.propensity, runs.arm[..., None], -1)
    assert (np.asarray(taken) > 0).all()
    again = markov.rollout(case.model.step, case.model.init, 12, key=3, num_runs=2)
    for x, y in zip(jax.tree.leaves(runs), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)


def test_policies_share_all_other_random_numbers(case):
    policy = case.member.policy
    other = markov.rollout(case.model.step, case.model.init, 12, key=3, num_runs=2, policy=policy)
    for x, y in zip(*(jax.tree.leaves(r.state) for r in (case.runs, other)), strict=True):
        np.testing.assert_array_equal(np.asarray(x)[:, 0], np.asarray(y)[:, 0])
    if not callable(policy):
        assert (np.asarray(other.arm) == policy).all()
        assert (np.asarray(other.propensity)[..., policy] == 1).all()


def test_values_can_be_listed_or_fitted(case):
    model = case.model
    assert model.states is not None or model.features is not None
    if model.features is not None:
        shown = model.features(case.state)
        assert shown.ndim == 1
        assert np.isfinite(np.asarray(shown)).all()
    if model.states is not None:
        kernel = markov.kernel(model.step, model.states)  # refuses steps out of the list
        total = np.zeros((2, kernel.num_states))
        np.add.at(total, (kernel.arm, kernel.source), kernel.probability)
        np.testing.assert_allclose(total, 1, atol=1e-12)


@pytest.mark.parametrize("name", [n for n, m in MEMBERS.items() if m.truth is not None])
def test_exact_values_are_those_of_the_chain(name):
    member = MEMBERS[name]
    model = member.make()
    kernel = markov.kernel(model.step, model.states)
    for theta in (0.0, 0.3, 1.0):
        found = float(effects.policy_value(kernel)(theta))
        assert found == pytest.approx(member.truth(theta), rel=1e-4, abs=1e-4)
    series = effects.taylor(kernel)
    assert series.effect == pytest.approx(member.truth(1.0) - member.truth(0.0), abs=1e-8)
