"""Fluid models of queueing networks: known optima, an independent program, the policy."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from decisionppl.models import queueing
from decisionppl.models._queue_fluid import _control

BH = queueing.criss_cross("BH")


def by_cumulative_effort(net, start, time):
    """The least cost on a grid, from a program in the effort that was spent until each point."""
    pairs = [(i, j) for i in range(net.num_servers) for j in net.served[i]]
    count, steps = len(pairs), len(time) - 1
    change = np.zeros((net.num_classes, count))
    for p, (i, j) in enumerate(pairs):
        change[:, p] += float(net.service[i, j]) * np.array(net.routing[j])
        change[j, p] -= float(net.service[i, j])
    weight = np.zeros(steps + 1)
    weight[:-1] += np.diff(time) / 2
    weight[1:] += np.diff(time) / 2
    straight = np.asarray(start, float) + np.outer(time, net.arrival)  # without any work
    rows, limits = [], []
    for k in range(steps):
        spent = np.zeros((count, steps, count))
        spent[np.arange(count), k, np.arange(count)] = 1
        if k:
            spent[np.arange(count), k - 1, np.arange(count)] = -1
        spent = spent.reshape(count, -1)
        rows += [-spent, *(sum(spent[p] for p, (i, _) in enumerate(pairs) if i == server)[None]
                           for server in range(net.num_servers))]  # fmt: skip
        limits += [np.zeros(count), np.full(net.num_servers, time[k + 1] - time[k])]
        level = np.zeros((net.num_classes, steps, count))
        level[:, k] = -change
        rows.append(level.reshape(net.num_classes, -1))
        limits.append(straight[k + 1])
    last = np.zeros((net.num_classes, steps, count))
    last[:, -1] = change
    paid = np.outer(weight[1:], np.asarray(net.holding) @ change).ravel()
    found = linprog(
        paid, A_ub=np.vstack(rows), b_ub=np.concatenate(limits),
        A_eq=last.reshape(net.num_classes, -1), b_eq=-straight[-1],
    )  # fmt: skip
    assert found.status == 0
    return found.fun + weight @ (straight @ np.asarray(net.holding))


NETS = {
    "criss-cross": (BH, [3.0, 1.0, 4.0]),
    "two servers on a class": (queueing.n_model(), [2.0, 5.0]),
    "reentrant": (queueing.reentrant(2), [1.0, 0.0, 2.0, 0.0, 3.0, 1.0]),
    "random routing": (
        queueing.network([0.2, 0.1], [[1, 0], [0, 1]], routing=[[0, 0.5], [0.3, 0.2]]),
        [2.0, 1.0],
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_costs_are_those_of_an_independent_program(name):
    net, start = NETS[name]
    plan = queueing.fluid_plan(net, start, steps=25)
    known = by_cumulative_effort(net, start, plan.time)
    assert plan.cost == pytest.approx(known, rel=1e-7)
    # what is called a control is one
    moved = np.einsum("smn,mn->sn", plan.effort, net.service)
    drift = np.asarray(net.arrival) - moved + moved @ np.array(net.routing)
    steps = np.diff(plan.time)[:, None]
    np.testing.assert_allclose(np.diff(plan.length, axis=0), steps * drift, atol=1e-7)
    assert (plan.length > -1e-9).all()
    assert (plan.effort > -1e-9).all()
    assert (plan.effort.sum(2) < 1 + 1e-9).all()
    assert plan.length[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("start", [[1, 2, 3], [4, 0, 1], [0, 5, 0]])
def test_one_server_empties_its_classes_by_cmu(start):
    lam, mu, h = np.array([0.2, 0.1, 0.3]), np.array([1.0, 0.5, 2.0]), np.array([1.0, 3.0, 1.0])
    plan = queueing.fluid_plan(queueing.multiclass(lam, mu, h), start, steps=300)
    # by hand: each class in its turn, those before it held at zero
    x, cost, share = np.array(start, float), 0.0, 1.0
    for j in np.argsort(-h * mu, kind="stable"):
        time = x[j] / (share * mu[j] - lam[j])
        waiting = np.argsort(-h * mu, kind="stable")
        waiting = waiting[list(waiting).index(j) + 1 :]
        cost += h[j] * x[j] * time / 2 + h[waiting] @ (
            x[waiting] * time + lam[waiting] * time**2 / 2
        )
        x[waiting] += lam[waiting] * time
        share -= lam[j] / mu[j]
    assert cost * (1 - 1e-9) <= plan.cost < cost * 1.002


@pytest.mark.parametrize(
    ("start", "cost"), [([1, 0, 1], 10.0), ([2, 0, 1], 25.0), ([1, 0, 2], 22.5), ([0, 1, 0], 5.0)]
)
def test_the_second_station_of_the_criss_cross_network_is_kept_fed(start, cost):
    """Server 1 feeds it at its rate 1 and works on class 2 otherwise, each at net rate 1/10."""
    plan = queueing.fluid_plan(BH, start, steps=300)
    assert cost * (1 - 1e-9) <= plan.cost < cost * 1.002
    if start == [2, 0, 1]:  # here nothing else is best
        busy = plan.length[1:, 0] > 1e-6
        assert plan.effort[busy, 1, 1] == pytest.approx(1.0)


def test_costs_scale_with_the_square_and_prices_are_their_derivatives():
    start = np.array([3.0, 1.0, 4.0])
    one, three = (queueing.fluid_plan(BH, c * start, steps=30) for c in (1, 3))
    assert three.cost == pytest.approx(9 * one.cost, rel=1e-7)
    np.testing.assert_allclose(three.length, 3 * one.length, atol=1e-6)
    grid = {"steps": 30, "horizon": float(one.time[-1]), "first": float(one.time[1])}
    for j in range(3):
        near = [
            queueing.fluid_plan(BH, start + e * np.eye(3)[j], **grid).cost for e in (-0.01, 0.01)
        ]
        below, above = (one.cost - near[0]) / 0.01, (near[1] - one.cost) / 0.01
        assert below - 1e-6 <= one.price[j] <= above + 1e-6  # convex: between the two


def test_the_time_to_empty():
    assert queueing.emptying_time(BH, [1, 0, 1]) == pytest.approx(10.0)
    assert queueing.emptying_time(BH, [0, 3, 0]) == pytest.approx(30.0)
    # the second server helps nobody: 2 / (1 - .38) alone, or the first one gives a share away
    assert queueing.emptying_time(queueing.n_model(), [0, 0]) == pytest.approx(0.0, abs=1e-12)
    empty = queueing.fluid_plan(BH, [0, 0, 0], steps=5)
    assert empty.cost == 0
    assert empty.effort.shape == (5, 2, 3)


@pytest.fixture(scope="module")
def rule():
    return queueing.fluid(BH, num_states=40)


def test_the_policy_is_the_control_of_the_plan(rule):
    network, places, _ = rule.args
    assert network is BH
    assert len(set(map(tuple, np.asarray(places)))) == 40
    for place in np.expm1(np.asarray(places, float))[::4]:
        state = np.round(place)
        known = _control(BH, state, 3.0, 20) * (state > 0)
        law = np.asarray(rule(jnp.asarray(state, jnp.float32), None).probs)
        for i in range(2):
            if known[i].sum() > 1e-3:
                np.testing.assert_allclose(law[i, :3], known[i] / known[i].sum(), atol=1e-4)


def test_the_policy_keeps_the_station_fed_before_it_is_empty():
    fed = [_control(BH, np.array([20.0, x, 5.0]), 3.0, 20)[0, 0] for x in (0, 1, 2, 3, 30)]
    # what leaves station 2 in three units of time is there, or comes
    np.testing.assert_allclose(fed, np.array([3, 2, 1, 0, 0]) / 6, atol=1e-6)


def test_the_policy_works_whenever_it_can(rule):
    rng = np.random.default_rng(0)
    for x in rng.integers(0, 3, (30, 3)) * 1.0:
        law = np.asarray(rule(jnp.asarray(x), None).probs)
        can = BH.topology & (x > 0)
        assert (law[:, :-1][~can] == 0).all()
        np.testing.assert_allclose(law[:, -1], ~can.any(1), atol=1e-6)


def test_one_server_follows_cmu_where_queues_are_long():
    net = queueing.multiclass()
    policy = queueing.fluid(net, num_states=40)
    places = np.expm1(np.asarray(policy.args[1], float)).round()
    first = np.argmax(places > 0, axis=1)
    long = places[np.arange(40), first] > 3 / 0.82  # not done within a review
    assert long.sum() > 5
    for x, j in zip(places[long], first[long], strict=True):
        law = np.asarray(policy(jnp.asarray(x, jnp.float32), None).probs)[0]
        assert law[j] == pytest.approx(1.0, abs=1e-5), x


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: queueing.fluid(queueing.hospital()), "expected single servers"),
        (lambda: queueing.fluid_plan(queueing.five_by_five(), [1] * 5), "constant arrival rates"),
        (lambda: queueing.fluid_plan(BH, [1, 1]), "length: expected 3 numbers"),
        (lambda: queueing.fluid_plan(BH, [1, 0, 1], horizon=5.0), "cannot be emptied in 5"),
        (lambda: queueing.fluid_plan(queueing.mm1(1.2), [1.0]), "every load is below one"),
        (lambda: queueing.fluid(BH, review=0.0), "review: expected"),
    ],
)
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()
