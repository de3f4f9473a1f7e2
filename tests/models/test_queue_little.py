"""Little's law: the identity, costs with controls of known mean, effects in two accounts.

Statistical tests use fixed keys; each errs with probability 1e-8 at most (5.7 standard errors).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decisionppl.inference import effects, markov
from decisionppl.models import queue_experiment, queueing
from decisionppl.models._queue_little import _controls

Z = 5.7
NOTHING = queueing.Simulated(*(np.zeros((1, 1)) for _ in range(7)))


def simulated(net, policy, num_events, num_runs, key=0):
    return queueing.simulate(net, policy, num_events, key=key, num_runs=num_runs, count=True)


NETS = {
    "criss-cross": (queueing.criss_cross("BM"), 3.0),
    "priorities": (queueing.multiclass([0.3, 0.2], 1.0, [2, 1]), None),
    "pool": (queueing.mmc(0.6, 3), queueing.mmc_length(0.6, 3)),
    "routing": (
        queueing.network([0.2, 0.1], [[1, 0], [0, 1]], routing=[[0, 0.5], [0.3, 0.2]]),
        None,
    ),
}


@pytest.fixture(scope="module", params=list(NETS))
def case(request):
    net, known = NETS[request.param]
    if request.param == "priorities":
        known = float(np.array([2, 1]) @ queueing.priority_lengths([0.3, 0.2], [1, 1]))
    elif request.param == "routing":
        known = float(queueing.jackson_lengths(net).sum())
    return net, known, simulated(net, queueing.cmu(net), 4000, 400)


def test_averages_over_time_and_over_jobs_are_joined(case):
    net, _, runs = case
    found = queueing.littles_law(net, runs)
    assert found.length == pytest.approx(runs.queues(), rel=1e-12)
    assert found.length == pytest.approx(found.flow * found.response, rel=1e-12)
    came, done = runs.came[:, -1].sum(0), runs.done[:, -1].sum(0)
    counted = came + np.array(net.routing).T @ done
    assert found.flow == pytest.approx(counted / runs.time.sum(), rel=1e-12)
    indirect = np.asarray(net.holding) * net.flow() @ found.response
    assert found.by_response.estimate == pytest.approx(indirect, rel=1e-6)
    assert found.cost == runs.average()


def test_controls_have_mean_zero(case):
    net, _, runs = case
    time, busy = runs.time.sum(1), runs.busy.sum(1)
    controls = _controls(net, time, runs.came[:, -1], runs.done[:, -1], busy)
    arrivals = (np.asarray(net.arrival) > 0).sum()
    assert controls.shape == (400, arrivals + net.num_servers)
    error = controls.std(0) / len(controls) ** 0.5
    assert (np.abs(controls.mean(0)) < Z * error).all()
    # a martingale of an exponential clock: its variance is the mean number of what it counts
    counts = runs.came[:, -1][:, np.asarray(net.arrival) > 0].mean(0)
    assert controls[:, :arrivals].var(0) == pytest.approx(counts, rel=Z * (2 / 400) ** 0.5)


def test_all_three_costs_are_those_of_the_exact_solution(case):
    net, known, runs = case
    found = queueing.littles_law(net, runs, warm_up=0.25)
    for cost in (found.cost, found.by_response, found.controlled):
        assert abs(cost.estimate - known) < Z * cost.stderr
    assert found.controlled.stderr < found.cost.stderr
    assert found.controlled.diagnostics["variance_ratio"] > 1.5


def test_what_controls_explain_of_one_queue_is_known():
    """Their coefficients are the derivatives of L in both rates, and (1 + rho) / rho the ratio."""
    net = queueing.mm1(0.5)
    runs = simulated(net, queueing.cmu(net), 10_000, 1000)
    found = queueing.littles_law(net, runs, warm_up=0.1)
    assert found.controlled.diagnostics["variance_ratio"] == pytest.approx(3.0, rel=0.25)
    # of the controls N - lambda T and D - B: mu / (mu - lambda)^2 and -lambda / (mu - lambda)^2
    # over the rates lambda of the events that they count
    known = [1 / 0.25, -0.5 / 0.25 / 0.5]
    assert found.controlled.diagnostics["coefficients"] == pytest.approx(known, rel=0.2)
    # the indirect estimate takes L / lambda = 2 of the first alone: of the variance 24 per unit of
    # time are left 24 - 2 * 2 * 2 + 2^2 / 2
    assert found.by_response.diagnostics["variance_ratio"] == pytest.approx(24 / 18, rel=0.1)


def test_intervals_of_controlled_costs_cover():
    net = queueing.mm1(0.5)
    runs = simulated(net, queueing.cmu(net), 4000, 2000, key=1)
    inside = 0
    for i in range(100):
        part = queueing.Simulated(*(x[20 * i : 20 * i + 20] for x in runs))
        low, high = queueing.littles_law(net, part, warm_up=0.25).controlled.interval
        inside += low < 1.0 < high
    assert inside >= 78  # of 100 at 95 %, with probability 1 - 1e-9


def test_servers_that_share_a_class_give_no_control():
    net = queueing.n_model()
    assert _controls(net, *np.ones((4, 5))[:1], *np.ones((3, 5, 2))).shape == (5, 2)


# --- effects ------------------------------------------------------------------------------------

SETTINGS = {
    "service": ({"arrival": (0.5, 0.5), "service": (1.0, 1.3), "buffer": 25}, 0.0),
    "arrivals": ({"arrival": (0.7, 0.6), "service": (1.0, 1.0), "buffer": 60}, -0.1 / 1.7),
}


@pytest.fixture(scope="module", params=list(SETTINGS))
def experiment(request):
    settings, known = SETTINGS[request.param]
    model = queue_experiment.queue_experiment(**settings)
    runs = markov.rollout(model.step, 1, 10_000, key=2, num_runs=100, burn_in=200)
    came = jnp.diff(runs.state, axis=1) == 1
    return markov.kernel(model.step, model.states), runs, came, known, settings["buffer"] + 1


def test_the_effect_on_arrivals_is_what_the_design_says(experiment):
    kernel, _, _, known, _ = experiment
    states = np.arange(kernel.num_states)
    up = kernel.target == kernel.source + 1
    chance = np.zeros((2, kernel.num_states))
    np.add.at(chance, (kernel.arm[up], states[kernel.source[up]]), kernel.probability[up])
    found = effects.taylor(kernel._replace(reward=chance))
    assert found.estimate == pytest.approx(known, abs=1e-6)


def test_mixtures_by_littles_law_cover_the_derivative(experiment):
    kernel, runs, came, known, size = experiment
    truth = effects.taylor(kernel).estimate

    def one(data, came):
        data = jax.tree.map(lambda x: x[None], data)
        return effects.dq_little(data, came[None], size, arrival_effect=known)

    found = jax.jit(lambda *a: jax.lax.map(lambda x: one(*x), a))(runs, came)
    low, high = found.interval
    assert ((low < truth) & (truth < high)).sum() >= 78  # of 100, as above
    estimate = np.asarray(found.estimate, float)
    assert abs(estimate.mean() - truth) < Z * estimate.std() / 10
    plain = np.asarray(found.diagnostics["by_length"], float)
    assert plain.var() / estimate.var() > 1.3
    stated = np.asarray(found.diagnostics["variance_ratio"], float).mean()
    assert stated == pytest.approx(plain.var() / estimate.var(), rel=0.5)


def test_accounts_of_a_log(experiment):
    _, runs, came, known, size = experiment
    runs, came = jax.tree.map(lambda x: x[:20], (runs, came))
    found = effects.dq_little(runs, came, size, arrival_effect=known)
    said = found.diagnostics
    plain = effects.dq(runs, size)
    assert float(said["by_length"]) == pytest.approx(float(plain.estimate), rel=1e-4)
    assert float(said["by_length_stderr"]) == pytest.approx(float(plain.stderr), rel=1e-3)
    mixed = said["by_length"] + said["weight"] * (said["by_response"] - said["by_length"])
    assert float(found.estimate) == pytest.approx(float(mixed), rel=1e-5)
    assert float(found.stderr) <= min(float(said[f"by_{n}_stderr"]) for n in ("length", "response"))
    # an effect on arrivals that is not there moves the second account by W N'
    other = effects.dq_little(runs, came, size, arrival_effect=known + 0.01).diagnostics
    charge = float(runs.reward.mean() / came.mean())
    assert float(other["by_response"] - said["by_response"]) == pytest.approx(
        0.01 * charge, rel=1e-2
    )
    blocks = effects.dq_little(runs, came, size, arrival_effect=known,
                               interval=effects.batch_means())  # fmt: skip
    assert float(blocks.stderr) == pytest.approx(float(found.stderr), rel=0.5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: queueing.littles_law(queueing.five_by_five(), NOTHING), "constant arrival rates"),
        (lambda: queueing.littles_law(queueing.mm1(), queueing.simulate(
            queueing.mm1(), queueing.cmu(queueing.mm1()), 10, key=0)), "count=True"),
        (lambda: queueing.littles_law(queueing.mm1(), simulated(
            queueing.mm1(), queueing.cmu(queueing.mm1()), 10, 5)), "12 runs at least, got 5"),
        (lambda: effects.dq_little(log(), jnp.ones((1, 3)), 3), "arrivals: expected [runs, steps]"),
        (lambda: effects.dq_little(log(), jnp.ones((1, 10)), 3, interval=effects.regeneration(0)),
         "martingale() and batch_means() only"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


def log():
    model = queue_experiment.queue_experiment(buffer=2)
    return markov.rollout(model.step, 0, 10, key=0)
