"""Experiments in queues against closed forms, and beliefs about rates.

Statistical tests use fixed keys; each errs with probability 1e-8 at most (5.7 standard errors).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from decisionppl.inference import effects, markov
from decisionppl.models import queue_experiment, queueing


@pytest.fixture(scope="module")
def speed():
    model = queue_experiment.queue_experiment()
    return markov.kernel(model.step, model.states)


def test_the_effect_of_faster_service_and_its_series(speed):
    """Odd orders of the effect on L = lambda / (mu - lambda) about mu = 1.05; even ones vanish."""
    series = effects.taylor(speed, 7)
    assert series.effect == pytest.approx(4 / 3, abs=1e-6)
    known = [1.28, 1.3312, 1.33325, 4 / 3]
    assert series.by_order[1::2] == pytest.approx(known, abs=5e-5)
    assert series.by_order[2::2] == pytest.approx(series.by_order[1:-1:2], abs=1e-9)
    assert effects.taylor(speed, 0, form="kernel").estimate == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_differences_in_q_is_the_slope_at_every_share(p):
    service = (1.0, 1.2)
    model = queue_experiment.queue_experiment(service=service, p=p, buffer=100)
    found = effects.taylor(markov.kernel(model.step, model.states)).estimate
    mu = 1.0 + 0.2 * p
    assert found == pytest.approx(0.8 * 0.2 / (mu - 0.8) ** 2, rel=1e-4)


def test_an_effect_on_arrivals():
    settings = {"arrival": (0.7, 0.6), "service": (1.0, 1.0), "buffer": 90}
    model = queue_experiment.queue_experiment(**settings)
    series = effects.taylor(markov.kernel(model.step, model.states))
    truth = queue_experiment.value(1.0, **settings) - queue_experiment.value(0.0, **settings)
    assert series.effect == pytest.approx(truth, abs=1e-9)
    assert truth == pytest.approx(0.7 / 0.3 - 0.6 / 0.4, abs=1e-6)
    slope = 0.1 / (1 - 0.65) ** 2
    assert series.estimate == pytest.approx(slope, rel=1e-6)


def test_dq_from_a_log_finds_what_a_comparison_does_not():
    model = queue_experiment.queue_experiment(service=(1.0, 1.6), buffer=40)
    truth = effects.taylor(markov.kernel(model.step, model.states)).estimate
    log = markov.rollout(model.step, 3, 40_000, key=0, num_runs=4, burn_in=200)
    found = effects.dq(log, 41)
    assert abs(found.estimate - truth) < 5.7 * found.stderr
    naive = effects.naive(log)
    assert abs(naive.estimate) < 5.7 * naive.stderr
    assert found.estimate > 5 * abs(naive.estimate)


# --- beliefs about rates --------------------------------------------------------------------------

NET = queueing.criss_cross("BM")


def test_posteriors_count_events_and_exposure():
    log = queueing.log_events(NET, queueing.max_weight(NET), 400, key=0)
    states, serve, elapsed = (jax.tree.map(np.asarray, x) for x in log)
    prior = queueing.rates_prior(NET, events=2.0, exposure=0.5)
    found = queueing.update_rates(prior, NET, *log)
    change = np.diff(states.length, axis=0)
    assert np.asarray(found.arrivals)[2] == 2 + (change[:, 2] == 1).sum()
    # class 0 becomes class 1, so that it rises by arrivals from outside alone
    assert np.asarray(found.arrivals)[0] == 2 + (change[:, 0] == 1).sum()
    assert np.asarray(found.completions)[0, 2] == 2 + (change[:, 2] == -1).sum()
    assert np.asarray(found.completions)[1, 1] == 2 + (change[:, 1] == -1).sum()
    assert np.asarray(found.completions)[1, 0] == 2  # cannot be
    assert np.asarray(found.time) == pytest.approx(0.5 + elapsed.sum(), rel=1e-5)
    busy = ((serve[:, 0] == 2) * elapsed).sum()
    assert np.asarray(found.effort)[0, 2] == pytest.approx(0.5 + busy, rel=1e-5)
    # in two parts, the same
    half = [jax.tree.map(lambda x: x[:201], states), serve[:200], elapsed[:200]]
    rest = [jax.tree.map(lambda x: x[200:], states), serve[200:], elapsed[200:]]
    twice = queueing.update_rates(queueing.update_rates(prior, NET, *half), NET, *rest)
    for a, b in zip(twice, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_posteriors_cover_the_rates():
    """Ranks of the true rates, drawn from the prior, are uniform."""
    base = queueing.multiclass([0.2, 0.3], [1.0, 1.0], [1, 1])
    prior = queueing.rates_prior(base, events=4.0, exposure=4.0)

    def rank(key):
        first, second = jax.random.split(key)
        world = prior.sample(first, base)
        log = queueing.log_events(world, queueing.cmu(world), 60, key=second)
        belief = queueing.update_rates(prior, base, *log)
        from jax.scipy.special import gammainc

        return (
            gammainc(belief.arrivals, belief.time * world.arrival),
            gammainc(belief.completions, belief.effort * world.service)[0],
        )

    ranks = jax.jit(jax.vmap(rank))(jax.random.split(jax.random.key(0), 400))
    for values in ranks:
        for column in np.asarray(values, float).T:
            assert stats.kstest(column, "uniform").pvalue > 1e-8


def test_worlds_drive_policies():
    belief = queueing.rates_prior(NET)
    world = belief.sample(jax.random.key(0), NET)
    assert (np.asarray(world.service)[~NET.topology] == 0).all()
    assert float(world.arrival[1]) == 0
    serve = jax.jit(lambda k: queueing.cmu(belief.sample(k, NET))(jnp.ones(3), None))
    first = [int(serve(jax.random.key(i))[0]) for i in range(20)]
    assert {0, 2} == set(first)  # not known yet which class is faster


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: queue_experiment.queue_experiment(p=0.0), "strictly between 0 and 1"),
        (lambda: queue_experiment.queue_experiment(service=(1.0, 0.0)), "service[1]: expected"),
        (lambda: queue_experiment.queue_experiment(buffer=0), "buffer: expected"),
        (lambda: queueing.update_rates(
            queueing.rates_prior(queueing.n_model()), queueing.n_model(), None, None, None),
         "several servers work on one class"),
        (lambda: queueing.rates_prior(NET, events=0.0), "events: expected"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()
