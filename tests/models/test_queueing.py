"""Queueing networks: closed forms, exact path identities, and both forms of the model.

Statistical tests use fixed keys; each errs with probability 1e-8 at most (5.7 standard errors).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpyro import handlers
from scipy import stats

import decisionppl as dp
from decisionppl.inference import markov
from decisionppl.inference._trajectories import _rollout
from decisionppl.models import queueing
from decisionppl.models._queue_chain import probabilities
from decisionppl.models._queue_events import Draws, shares, start
from decisionppl.models._queue_simulate import _simulate

Z = 5.7

SINGLE = sorted(n for n in queueing.INSTANCES if n not in ("mmc", "hospital"))


def logged(net, policy, num_events, key, jobs=None):
    """States and elapsed times of one run of the NumPyro model."""
    model = queueing.event_model(net)

    def forward(state, key):
        trace = dp.play(model.step, key, policy)(state, *(() if jobs is None else (jobs,)))
        kept = {n: trace[n]["value"] for n in ("serve", "elapsed", "lost", "queue", "holding")}
        return handlers.seed(dp.act(model.step, policy), key)(state, jobs), kept

    first = handlers.seed(model.init, key)(jobs)
    keys = jax.random.split(jax.random.fold_in(key, 1), num_events)
    return jax.jit(lambda s: jax.lax.scan(forward, s, keys))(first)


def jobs_of(net, num_jobs, seed=0):
    return handlers.seed(queueing.draw_jobs, seed)(net, num_jobs)


# --- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "known"),
    [
        (queueing.mm1_length(0.5), 1.0),
        (queueing.mm1_length(0.9), 9.0),
        (queueing.erlang_c(0.9, 2), 0.852632),
        (queueing.mmc_length(0.9, 2), 9.473684),
        (queueing.erlang_c(0.8, 5), 0.554113),
        (queueing.mmc_length(0.8, 5), 6.216450),
        (queueing.erlang_c(0.9, 10), 0.668732),
        (queueing.mmc_length(0.9, 10), 15.018584),
        (queueing.mg1_length(0.9, 2.28), 14.184),
        (queueing.mg1_length(0.9, 1.0), 9.0),
        (queueing.admission_cost(17, 0.9), 7.5872),
        (queueing.admission_cost(14, 0.9), 7.7036),
        (queueing.admission_cost(6, 0.9, rejection=20.0), 4.4160),
        (queueing.criss_cross_priority(queueing.criss_cross("BH")), 18.0),
        (queueing.criss_cross_priority(queueing.criss_cross("BM")), 3.0),
        (queueing.criss_cross_priority(queueing.criss_cross("IH")), 10.5),
    ],
)
def test_closed_forms(found, known):
    assert found == pytest.approx(known, abs=6e-5 if known < 8 else 6e-4)


def test_the_best_buffer_of_a_queue():
    assert min(range(60), key=lambda b: queueing.admission_cost(b, 0.9)) == 17
    assert min(range(60), key=lambda b: queueing.admission_cost(b, 0.9, rejection=20)) == 6


def test_preemptive_priorities():
    assert queueing.priority_lengths([0.5, 0.4], [1, 1]) == pytest.approx([1, 8], abs=1e-12)
    lam, h = [0.18] * 5, np.array([5, 4, 3, 2, 1.0])
    worst = h @ queueing.priority_lengths(lam, [1] * 5, [4, 3, 2, 1, 0])
    assert worst == pytest.approx(40.472646, abs=1e-6)
    # with one service rate, the total does not depend on the order
    assert queueing.priority_lengths(lam, [1] * 5).sum() == pytest.approx(9)


@pytest.mark.parametrize(("eps", "best"), [(1.0, 11.4971), (0.1, 15.1843), (0.01, 18.3485)])
def test_the_shortest_service_first_is_best_of_ten_classes(eps, best):
    mu = 1 + eps * np.arange(1, 11)
    lam = np.full(10, 0.95 / (1 / mu).sum())
    found = queueing.priority_lengths(lam, mu, np.argsort(-mu)).sum()
    assert found == pytest.approx(best, abs=5e-5)


@given(st.lists(st.floats(0.2, 3), min_size=2, max_size=5), st.data())
def test_the_cmu_order_is_the_best_of_all_orders(mu, data):
    h = data.draw(st.lists(st.floats(0.1, 5), min_size=len(mu), max_size=len(mu)))
    lam = 0.8 / len(mu) * np.array(mu)
    _, cost = queueing.best_priorities(lam, mu, h)
    order = np.argsort(-np.array(mu) * h, kind="stable")
    assert h @ queueing.priority_lengths(lam, mu, order) == pytest.approx(cost, rel=1e-9)


def test_jackson_networks_have_geometric_queues():
    moves = [[0, 0.5, 0.2], [0.3, 0, 0.3], [0, 0, 0.1]]
    net = queueing.network([0.2, 0.1, 0.1], np.eye(3), routing=moves)
    theta = np.linalg.solve(np.eye(3) - np.array(moves).T, [0.2, 0.1, 0.1])
    assert queueing.jackson_lengths(net) == pytest.approx(theta / (1 - theta), rel=1e-6)


# --- relative value iteration -------------------------------------------------------------------


@pytest.mark.parametrize(("regime", "most", "best"), [("IL", 20, 0.6706), ("BL", 24, 0.8432)])
def test_the_optimum_of_the_criss_cross_network(regime, most, best):
    solved = queueing.relative_value_iteration(queueing.criss_cross(regime), most)
    assert solved.cost == pytest.approx(best, abs=6e-5)


def test_a_given_policy_is_evaluated():
    net = queueing.criss_cross("IL")
    solved = queueing.relative_value_iteration(net, 20, policy=queueing.cmu(net))
    assert solved.cost == pytest.approx(queueing.criss_cross_priority(net), abs=1e-4)
    lam, mu, h = [0.2, 0.3], [1.0, 1.5], [1, 2]
    net = queueing.multiclass(lam, mu, h)
    for order in ([0, 1], [1, 0]):
        rule = queueing.priority(net, -np.argsort(order))
        solved = queueing.relative_value_iteration(net, 40, policy=rule)
        known = h @ queueing.priority_lengths(lam, mu, order)
        assert solved.cost == pytest.approx(known, abs=1e-4)


def balanced(net, sizes, serve):
    """Transition matrix and costs of a policy `serve(x) -> classes`, state by state."""
    states = list(np.ndindex(*(s + 1 for s in sizes)))
    number = {x: k for k, x in enumerate(states)}
    rate = float(np.sum(net.arrival)) + float(np.max(net.service, axis=1).sum())
    moves, costs = np.zeros((len(states),) * 2), np.zeros(len(states))
    for k, x in enumerate(states):
        costs[k] = np.asarray(net.holding) @ x
        ways = []
        for j, lam in enumerate(np.asarray(net.arrival)):
            ways.append((lam, np.eye(len(x), dtype=int)[j]))
        for i, j in enumerate(serve(x)):
            if j < len(x):
                leaves = 1 - sum(net.routing[j])
                step = -np.eye(len(x), dtype=int)[j]
                ways.append((net.service[i, j] * leaves, step))
                for to, p in enumerate(net.routing[j]):
                    ways.append((net.service[i, j] * p, step + np.eye(len(x), dtype=int)[to]))
        for mu, step in ways:
            after = tuple(np.array(x) + step)
            moves[k, number.get(after, k)] += mu / rate
        moves[k, k] += 1 - moves[k].sum()
    return moves, costs, rate, number


@pytest.mark.parametrize("name", ["criss_cross", "routing"])
def test_the_solution_is_the_best_policy_of_its_grid(name):
    """A linear solve gives its cost, and no server gains by another class in any state."""
    net = queueing.criss_cross("BH")
    if name == "routing":
        net = queueing.network(
            [0.4, 0.2, 0.1], [[1.0, 1.2, 0], [0, 0.7, 1.0]], holding=[1, 3, 2],
            routing=[[0, 0.4, 0.3], [0, 0, 0.5], [0, 0, 0]],
        )  # fmt: skip
    sizes = (6, 4, 5)
    solved = queueing.relative_value_iteration(net, sizes, tolerance=1e-9)
    moves, costs, rate, number = balanced(net, sizes, lambda x: solved.choice[x])
    size = len(costs)
    system = np.block([[np.eye(size) - moves, np.ones((size, 1))], [np.eye(1, size), 0]])
    *value, cost = np.linalg.solve(system, np.append(costs / rate, 0.0))
    assert cost * rate == pytest.approx(solved.cost, abs=1e-7)
    np.testing.assert_allclose(solved.value.ravel(), value, atol=1e-4)
    for x, k in number.items():
        for i, classes in enumerate(net.served):
            gains = {net.num_classes: 0.0}
            for j in classes:
                fed = [t for t, p in enumerate(net.routing[j]) if p]
                if x[j] and all(x[t] < sizes[t] for t in fed):
                    less = np.array(x) - np.eye(3, dtype=int)[j]
                    gain = (1 - sum(net.routing[j])) * (value[number[tuple(less)]] - value[k])
                    for t in fed:
                        after = number[tuple(less + np.eye(3, dtype=int)[t])]
                        gain += net.routing[j][t] * (value[after] - value[k])
                    gains[j] = net.service[i, j] * gain
            assert gains[solved.choice[x][i]] <= min(gains.values()) + 1e-6


def test_jobs_are_not_lost_inside_the_grid():
    """A class that feeds a full queue is not served: the solution would throw its jobs away."""
    solved = queueing.relative_value_iteration(queueing.criss_cross("BH"), 6, tolerance=1e-4)
    assert (solved.choice[1:, 6, :, 0] != 0).all()
    assert (solved.choice[1:, 0, 0, 0] == 0).all()
    assert solved.policy(jnp.array([3.0, 99.0, 0.0]), None).tolist() == [3, 1]


# --- policies -----------------------------------------------------------------------------------

NETS = {n: queueing.instance(n) for n in ("criss_cross_bh", "n_model", "reentrant2_9",
                                          "five_by_five", "input_switch")}  # fmt: skip
RULES = {
    "cmu": queueing.cmu,
    "max_weight": queueing.max_weight,
    "max_pressure": queueing.max_pressure,
    "soft_priority": lambda n: queueing.soft_priority(n, jnp.full(n.num_classes, 30.0)),
    "soft_max_weight": lambda n: queueing.soft_max_weight(n, jnp.full(n.num_classes, 30.0)),
    "soft_max_pressure": lambda n: queueing.soft_max_pressure(n, jnp.full(n.num_classes, 30.0)),
    "neural": lambda n: queueing.neural(n, queueing.init_neural(jax.random.key(0), n, (8,))),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETS)
def test_no_server_rests_while_it_has_work(name, rule):
    net = NETS[name]
    policy = RULES[rule](net)
    rng = np.random.default_rng(0)
    lengths = jnp.asarray(rng.integers(0, 3, (300, net.num_classes)) * 1.0)

    def decided(x, key):
        chosen = policy(x, None)
        return chosen.sample(key) if isinstance(chosen, dist.Distribution) else chosen

    serve = np.asarray(jax.vmap(decided)(lengths, jax.random.split(jax.random.key(1), 300)))
    can = net.topology & (np.asarray(lengths)[:, None] > 0)
    works = serve < net.num_classes
    assert (works == can.any(2)).all()
    rows, servers = np.nonzero(works)
    assert can[rows, servers, serve[works]].all()


@pytest.mark.parametrize("rule", ["cmu", "max_weight", "max_pressure", "idle", "threshold"])
@pytest.mark.parametrize("name", ["reentrant2_9", "input_switch"])
def test_a_policy_of_many_runs_decides_each_alone(name, rule):
    net = NETS[name]
    policy = {
        "idle": lambda n: queueing.max_pressure(n, idle=True),
        "threshold": lambda n: queueing.threshold(n, 1, classes=(n.served[0] * 2)[:2]),
    }.get(rule, RULES.get(rule))(net)
    lengths = jnp.asarray(np.random.default_rng(1).integers(0, 4, (net.num_classes, 200)) * 1.0)
    both = jax.jit(lambda x: (policy(x, None), jax.vmap(lambda x: policy(x, None), -1, -1)(x)))
    together, one = map(np.asarray, both(lengths))
    assert (together == one).all()
    # and as its index says, pair by pair; ties to the first class
    index = np.asarray(net.holding * net.service)[..., None] * np.ones(200)
    if rule == "max_weight":
        index = index * np.asarray(lengths)
    if "max_pressure" in (rule, {"idle": "max_pressure"}.get(rule)):
        weighted = np.asarray(net.holding)[:, None] * np.asarray(lengths)
        index = np.asarray(net.service)[..., None] * (weighted - np.array(net.routing) @ weighted)
    if rule != "threshold":
        can = net.topology[..., None] & (np.asarray(lengths) > 0)
        index = np.where(can & ((rule != "idle") | (index >= 0)), index, -np.inf)
        known = np.where(np.isfinite(index).any(1), index.argmax(1), net.num_classes)
        assert (one == known).all()


def test_pressure_subtracts_what_the_next_queue_holds():
    net = queueing.network([0.1, 0, 0], np.eye(3), next_class=[1, 2, -1], holding=[1, 2, 1])
    one = queueing.network([0.1, 0, 0], [[1, 1, 1]], next_class=[1, 2, -1], holding=[1, 2, 1])
    x = jnp.array([7.0, 3.0, 4.0])  # weighted 7, 6, 4: pressures 1, 2, 4
    assert queueing.max_pressure(net)(x, None).tolist() == [0, 1, 2]
    assert queueing.max_pressure(one)(x, None).tolist() == [2]
    assert queueing.max_pressure(one)(jnp.array([7.0, 2.0, 0.0]), None).tolist() == [1]
    # weighted 2, 8, 9: the pressures of classes 0 and 1 are below zero
    x = jnp.array([2.0, 4.0, 9.0])
    assert queueing.max_pressure(net)(x, None).tolist() == [0, 1, 2]
    assert queueing.max_pressure(net, idle=True)(x, None).tolist() == [3, 3, 2]
    # at zero it works: resting there costs a third to twice as much in re-entrant networks
    x = jnp.array([4.0, 2.0, 5.0])
    assert queueing.max_pressure(net, idle=True)(x, None).tolist() == [0, 3, 2]
    pools = queueing.network([0.1, 0, 0], np.eye(3), next_class=[1, 2, -1], holding=[1, 2, 1],
                             pools=2)  # fmt: skip
    assert queueing.max_pressure(pools, idle=True)(x, None).sum(1).tolist() == [2, 0, 2]


def test_soft_policies_have_finite_gradients_whatever_is_empty():
    net = NETS["criss_cross_bh"]

    def log_prob(theta, x):
        law = queueing.soft_max_weight(net, theta)(x, None)
        return law.log_prob(jnp.argmax(law.logits, -1)).sum() + (law.probs**2).sum()

    slope = jax.jit(jax.grad(log_prob))
    for x in ([0.0, 0, 0], [1e6, 0, 0], [0, 1e6, 1e6], [1e6, 1e6, 1e6]):
        gradient = slope(jnp.array([1.0, 2.0, 3.0]), jnp.array(x))
        assert np.isfinite(np.asarray(gradient)).all(), x


def test_pools_serve_what_they_can():
    net = queueing.hospital()
    rng = np.random.default_rng(0)
    for rule in (queueing.cmu, queueing.max_weight, queueing.max_pressure):
        decide = jax.jit(lambda x, policy: policy(x, None))
        for _ in range(5):
            x = jnp.asarray(rng.integers(0, 90, 8) * 1.0)
            counts = np.asarray(decide(x, rule(net)))
            free = np.array(net.pools) - counts.sum(1)
            waiting = np.asarray(x) - counts.sum(0)
            assert (counts >= 0).all()
            assert (counts[~net.topology] == 0).all()
            assert (free >= 0).all()
            assert (waiting >= 0).all()
            assert not (net.topology & (free > 0)[:, None] & (waiting > 0)).any()


def test_threshold_switches_at_its_level():
    net = NETS["criss_cross_bh"]
    rule = queueing.threshold(net, 3)
    assert rule(jnp.array([0.0, 1.0, 2.0]), None).tolist() == [2, 1]  # none of the first class
    assert rule(jnp.array([2.0, 9.0, 0.0]), None).tolist() == [0, 1]
    assert rule(jnp.zeros(3), None).tolist() == [3, 3]


# --- exact path identities ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["criss_cross_bh", "reentrant1_6", "input_switch", "n_model"])
def test_jobs_are_conserved(name):
    net = queueing.instance(name)
    last, kept = logged(net, queueing.max_weight(net), 2000, jax.random.key(0))
    x = np.asarray(kept["queue"])
    assert (x >= 0).all()
    assert (x == np.round(x)).all()
    assert (np.asarray(kept["elapsed"]) >= 0).all()
    came, done = np.asarray(last.came), np.asarray(last.done)
    assert (x[-1] == came - done + np.array(net.routing).T @ done).all()
    assert came.sum() + done.sum() == 2000  # one event a step
    assert (came[np.asarray(net.arrival) == 0] == 0).all()


def test_littles_law_holds_on_every_path_that_ends_empty():
    net = queueing.multiclass([0.3, 0.3], [1.0, 1.0], [1, 1])
    _, kept = logged(net, queueing.max_weight(net), 3000, jax.random.key(3))
    x = np.concatenate([[[0, 0]], np.asarray(kept["queue"])])
    steps = np.asarray(kept["elapsed"], float)
    empty = np.flatnonzero(x.sum(1) == 0)[-1]
    assert empty > 1000
    time = np.concatenate([[0.0], np.cumsum(steps)])
    change = np.diff(x[: empty + 1], axis=0)
    at = time[1 : empty + 1]
    for j in range(2):
        arrivals, departures = at[change[:, j] == 1], at[change[:, j] == -1]
        assert len(arrivals) == len(departures)
        stays = (departures - arrivals).sum()  # first come, first served within a class
        area = (x[:empty, j] * steps[:empty]).sum()
        assert stays == pytest.approx(area, rel=1e-9)
        assert (departures >= arrivals).all()


def test_a_single_server_is_busy_at_the_same_times_under_every_policy():
    """The same jobs: what is unfinished does not depend on the order of work."""
    net = queueing.multiclass([0.3, 0.2, 0.2], 1.0, [1, 2, 3])
    jobs = jobs_of(net, 2000)
    ends = []
    for rule in (queueing.cmu(net), queueing.max_weight(net), queueing.priority(net, [3, 2, 1])):
        _, kept = logged(net, rule, 2000, jax.random.key(0), jobs)
        time = np.cumsum(np.asarray(kept["elapsed"], float))
        ends.append(time[np.asarray(kept["queue"]).sum(1) == 0])
    count = min(len(e) for e in ends)
    assert count > 100
    for other in ends[1:]:
        np.testing.assert_allclose(other[:count], ends[0][:count], rtol=1e-4)


def test_other_units_of_time_and_cost_change_the_units_only():
    net = queueing.criss_cross("BH")
    run = lambda n: queueing.simulate(n, queueing.max_weight(n), 1000, key=0)  # noqa: E731
    scaled = queueing.network(
        4 * net.arrival, 4 * net.service, next_class=[1, -1, -1], holding=8 * net.holding
    )
    one, other = run(net), run(scaled)
    assert other.time.sum() == pytest.approx(one.time.sum() / 4, rel=1e-6)
    assert other.average().estimate == pytest.approx(8 * one.average().estimate, rel=1e-6)


def test_the_names_of_classes_do_not_matter():
    order = np.array([2, 0, 1])
    base = queueing.criss_cross("BH")
    holding = np.array([1, 1, 1.01])  # without ties, which go to the first class
    net = queueing.network(base.arrival, base.service, next_class=[1, -1, -1], holding=holding)
    # class order[k] of the network is called k in the other one
    renamed = queueing.network(
        np.asarray(net.arrival)[order],
        np.asarray(net.service)[:, order],
        next_class=[-1, 2, -1],
        holding=holding[order],
    )
    jobs = jobs_of(net, 1000)
    one = queueing.simulate(net, queueing.max_weight(net), 500, key=0, jobs=jobs)
    other = queueing.simulate(
        renamed, queueing.max_weight(renamed), 500, key=0,
        jobs=queueing.Jobs(jobs.gap[order], jobs.work[order]),
    )  # fmt: skip
    np.testing.assert_allclose(one.queue[0, 0][order], other.queue[0, 0], rtol=1e-5)


# --- the compiled path is the model ---------------------------------------------------------------

OTHERS = {
    "criss_cross": queueing.criss_cross("BH"),
    "varying": queueing.criss_cross("varying"),
    "five_by_five": queueing.five_by_five(),
    "routing": queueing.network([0.2, 0.1], [[1, 0], [0, 1]], routing=[[0, 0.5], [0.3, 0.2]]),
    "buffers": queueing.network(
        [0.8, 0], [[1, 0], [0, 1]], next_class=[1, -1], buffer=[2, 1], rejection=5.0
    ),
    "laws": queueing.network([0.5], [[1.0]], workload=dist.Uniform(0.5, 1.5)),
    "n_model": queueing.n_model(),
    "reentrant": queueing.reentrant(5, family=2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_jobs_make_the_same_path_with_and_without_sites(name):
    net = OTHERS[name]
    jobs = jobs_of(net, 600)
    policy = queueing.max_weight(net)
    last, kept = logged(net, policy, 500, jax.random.key(0), jobs)
    runs = queueing.simulate(net, policy, 500, key=0, jobs=jobs)
    assert (runs.length[0, 0] == np.asarray(last.length)).all()
    assert (runs.came[0, 0] == np.asarray(last.came)).all()
    assert (runs.done[0, 0] == np.asarray(last.done)).all()
    assert runs.time.sum() == pytest.approx(np.asarray(kept["elapsed"], float).sum(), rel=1e-5)
    assert runs.cost.sum() == pytest.approx(-np.asarray(kept["holding"], float).sum(), rel=1e-5)


def test_policies_of_all_kinds_decide_for_each_run():
    """Written for one run, giving laws, or giving shares."""
    net = queueing.n_model()

    def split(length, space):
        can = jnp.asarray(net.topology) & (length > 0)
        return can / jnp.maximum(can.sum(1, keepdims=True), 1)

    rules = {
        "user": lambda x, space: jnp.where(x[1] > x[0], jnp.array([1, 1]), jnp.array([0, 1])),
        "law": queueing.soft_max_weight(net, jnp.ones(2)),
        "shares": split,
    }
    for name, rule in rules.items():
        runs = queueing.simulate(net, rule, 600, key=2, num_runs=3)
        jobs = queueing.simulate(net, rule, 600, key=2, num_runs=3, num_jobs=600)
        for kept in (runs, jobs):
            assert np.isfinite(kept.cost).all(), name
            assert len(np.unique(kept.time.sum(1))) == 3, name
    # half of each server for each of its classes with jobs, of the first event
    jobs = queueing.Jobs(jnp.array([[0.1, 9.0], [0.5, 9.0]]), jnp.ones((2, 2)))
    runs = queueing.simulate(net, split, 3, key=0, num_runs=2, jobs=jobs)
    first = 0.1 / 0.38, 0.5 / 1.235
    works = first[0] + 1.0  # the first job alone, until the second comes, then half of a server
    left = 1 - (first[1] - first[0])
    late = first[1] + min(1 / 1.25, 2 * left)
    assert works > first[1]
    assert runs.time.sum(1) == pytest.approx([late, late], rel=1e-5)


def test_tables_of_jobs_are_shared_between_policies():
    net = queueing.criss_cross("BH")
    one, other = (
        queueing.simulate(net, rule, 2000, key=0, num_runs=3, num_jobs=2000)
        for rule in (queueing.cmu(net), queueing.max_weight(net))
    )
    gaps = (one.average().estimate, other.average().estimate)
    assert gaps[0] != gaps[1]
    # the same arrivals: their numbers differ by what the end of a run cuts off only
    assert np.abs(one.time.sum(1) / other.time.sum(1) - 1).max() < 0.1
    short = queueing.simulate(net, queueing.cmu(net), 2000, key=0, num_jobs=100)
    assert np.isnan(short.average().estimate)


def test_events_and_chain_have_the_same_law():
    net = queueing.n_model()
    length = jnp.array([2.0, 3.0])
    share = jnp.array([[0.0, 1.0], [0.0, 1.0]])  # both servers on the second class
    draws = Draws(1.0, 1.0)

    def one(key):
        gap, work = jax.random.exponential(key, (2, 2))
        state = start(net, gap, work)._replace(length=length)
        after, event = queueing.transition(net, state, share, draws)
        return after.length - length, event.elapsed

    moved, elapsed = jax.vmap(one)(jax.random.split(jax.random.key(0), 40_000))
    law = np.asarray(probabilities(net, share))[:-1]
    moves = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    seen = [(np.asarray(moved) == m).all(1).sum() for m in moves]
    assert seen[2] == law[2] == 0
    kept = law > 0
    chance = law[kept].astype(float)
    chance /= chance.sum()
    assert stats.chisquare(np.array(seen)[kept], 40_000 * chance).pvalue > 1e-8
    rate = 0.38 + 1.235 + 1.5
    assert stats.kstest(np.asarray(elapsed) * rate, "expon").pvalue > 1e-8


# --- long runs against closed forms -----------------------------------------------------------


def close(runs, known, warm_up=0.1):
    found = runs.average(warm_up=warm_up)
    assert abs(found.estimate - known) < Z * found.stderr, (found.estimate, known)
    assert found.stderr < 0.03 * known


def test_one_queue_has_the_geometric_law():
    net = queueing.mm1(0.5)
    runs = queueing.simulate(net, queueing.cmu(net), 5000, key=0, num_runs=300, count=True)
    close(runs, 1.0)
    # just after an event, which is as likely as the rate of events: 1/2 if empty, else 3/2; and
    # even after an even number of events
    ends = runs.length[:, -1, 0].astype(int)
    law = np.append(0.5, 1.5 * 0.5 ** np.arange(1, 60))[::2]
    law /= law.sum()
    assert (ends % 2 == 0).all()
    seen = np.bincount(np.minimum(ends // 2, 3), minlength=4)
    chance = np.append(law[:3], law[3:].sum())
    assert stats.chisquare(seen, len(ends) * chance).pvalue > 1e-8


def test_general_workloads_follow_pollaczek_and_khinchine():
    net = queueing.mm1(0.7, workload=queueing.hyperexponential())
    runs = queueing.simulate(net, queueing.cmu(net), 20_000, key=1, num_runs=100)
    close(runs, queueing.mg1_length(0.7, 2.28))


def test_pools_follow_erlang():
    net = queueing.mmc(0.7, 3)
    runs = queueing.simulate(net, queueing.cmu(net), 20_000, key=2, num_runs=60)
    close(runs, queueing.mmc_length(0.7, 3))
    assert runs.busy.sum() / runs.time.sum() == pytest.approx(0.7, abs=0.01)


def test_preemptive_priorities_in_long_runs():
    net = queueing.multiclass([0.5, 0.2], 1.0, [2, 1])
    runs = queueing.simulate(net, queueing.cmu(net), 20_000, key=3, num_runs=60)
    known = queueing.priority_lengths([0.5, 0.2], [1, 1])
    close(runs, 2 * known[0] + known[1])
    assert runs.queues(0.1) == pytest.approx(known, rel=0.1)


def test_criss_cross_under_cmu():
    net = queueing.criss_cross("BM")
    runs = queueing.simulate(net, queueing.cmu(net), 20_000, key=4, num_runs=60)
    close(runs, 3.0)


def test_random_routing_follows_jackson():
    net = OTHERS["routing"]
    runs = queueing.simulate(net, queueing.cmu(net), 20_000, key=5, num_runs=60)
    close(runs, queueing.jackson_lengths(net).sum())


def test_buffers_lose_what_they_should():
    net = queueing.network([0.9], [[1.0]], buffer=5, rejection=10.0)
    runs = queueing.simulate(net, queueing.cmu(net), 20_000, key=6, num_runs=60)
    close(runs, queueing.admission_cost(5, 0.9, rejection=10.0))
    chain = queueing.chain_model(net)
    logs = markov.rollout(
        chain.step, chain.init, 4000, key=0, num_runs=60, policy=queueing.cmu(net)
    )
    found = -np.asarray(logs.reward, float).mean(1)
    known = queueing.admission_cost(5, 0.9, rejection=10.0)
    assert abs(found.mean() - known) < Z * found.std() / 60**0.5


def test_servers_work_as_much_as_is_asked_of_them():
    net = queueing.reentrant(3)
    runs = queueing.simulate(net, queueing.max_weight(net), 40_000, key=7, num_runs=60)
    share = runs.busy.sum(1) / runs.time.sum(1)[:, None]
    error = share.std(0) / 60**0.5
    assert (np.abs(share.mean(0) - 0.9) < Z * error).all()


def test_arrivals_follow_rates_that_change():
    net = queueing.network([[4.0], [0.5]], [[100.0]], switches=[20.0])
    runs = 200

    def count(key):
        model = queueing.event_model(net)

        def forward(state, key):
            after = []
            step = lambda state: after.append(model.step(state))  # noqa: E731
            trace = dp.play(step, key, policy=queueing.cmu(net))(state)
            now = after[0]
            return now, (now.phase[0], now.came[0], trace["elapsed"]["value"])

        first = handlers.seed(model.init, key)()
        phase, came, elapsed = jax.lax.scan(forward, first, jax.random.split(key, 400))[1]
        early = jnp.max(jnp.where(phase == 0, came, 0))
        return early, phase[-1], came[-1] - early, jnp.sum(elapsed) - 20.0

    keys = jax.random.split(jax.random.key(0), runs)
    early, last, later, time = map(np.asarray, jax.jit(jax.vmap(count))(keys))
    assert (np.asarray(last) == 1).all()
    # a Poisson number of arrivals with mean 80 in the first phase
    total = int(early.sum())
    assert abs(total - 80 * runs) < Z * (80 * runs) ** 0.5
    # about 120 intervals of mean 2 in the second
    assert later.sum() / time.sum() == pytest.approx(0.5, rel=Z / later.sum() ** 0.5)


def test_a_job_goes_where_its_own_row_says():
    """The k-th job done of a class follows the k-th route, not the one after it."""
    net = queueing.network([0.3, 0.0], [[1.0, 1.0]], routing=[[0.0, 0.5], [0.0, 0.0]])
    model = queueing.event_model(net)
    routes = np.array([[1, 2, 2, 1, 1, 2, 1, 2], [2] * 8])
    ones = jnp.ones((2, 8))
    jobs = queueing.Jobs(10 * ones, ones, jnp.asarray(routes))  # one job at a time
    state, went = model.init(jobs), []
    while int(state.done[0]) < 6:
        before = int(state.done[0]), float(state.length[1])
        state = handlers.seed(dp.act(model.step, queueing.cmu(net)), 0)(state, jobs)
        if int(state.done[0]) > before[0]:
            went.append(1 if float(state.length[1]) > before[1] else 2)
    assert went == routes[0, :6].tolist()


@pytest.mark.parametrize("through", ["sites", "compiled path"])
def test_policies_that_differ_in_arrays_are_one_program(through):
    net = queueing.criss_cross("BM")
    model = queueing.event_model(net)

    def run(rule):
        if through == "sites":
            found = markov.rollout(model.step, model.init, 60, key=0, policy=rule)
            return np.asarray(found.state.length)
        return queueing.simulate(net, rule, 60, key=0).queue

    count = {"sites": _rollout, "compiled path": _simulate}[through]._cache_size
    rules = [
        queueing.threshold(net, 0),
        queueing.priority(net, [1.0, 2.0, 3.0]),
        queueing.neural(net, queueing.init_neural(jax.random.key(0), net, (4,))),
    ]
    before = count()
    first = [run(rule) for rule in rules]
    assert count() == before + 3
    others = [
        queueing.threshold(net, 5),
        queueing.priority(net, [3.0, 2.0, 1.0]),
        queueing.neural(net.replace(service=2 * net.service),
                        [(w + 5 * jnp.arange(w.shape[1]), b) for w, b in rules[2].args[1]]),
    ]  # fmt: skip
    second = [run(rule) for rule in others]
    assert count() == before + 3
    # and they are other policies
    assert all((a != b).any() for a, b in zip(first, second, strict=True))
    assert (run(queueing.threshold(net, 0)) == first[0]).all()
    # what is no array belongs to the program, as it may decide about shapes
    run(queueing.threshold(net, 0, classes=(2, 0)))
    run(jax.tree_util.Partial(lambda rule, x, space: rule(x, space), queueing.cmu(net)))
    assert count() == before + 5


# --- the catalogue, and what is refused -----------------------------------------------------------


@pytest.mark.parametrize("name", sorted(queueing.INSTANCES))
def test_every_instance_is_stable_and_made_by_name(name):
    net = queueing.instance(name)
    if "reentrant" in name:
        np.testing.assert_allclose(net.load(), 0.9, rtol=1e-6)
        assert net.num_classes == int(name.split("_")[1])
    if name.startswith("criss_cross") and "varying" not in name:
        assert (net.load() < 0.91).all()
    assert net.exponential == (not any(x in name for x in ("hyper", "varying", "five")))


def test_the_hospital_has_its_wards():
    net = queueing.hospital()
    assert net.service.shape == (13, 8)
    assert net.topology.sum() == 18
    assert float(net.service[1, 7]) == pytest.approx(1 / 5.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: queueing.network([0.5], [[0.0]]), "nobody serves class 0"),
        (lambda: queueing.network([0.5], [1.0]), "service [servers, classes]"),
        (lambda: queueing.network([-1.0], [[1.0]]), "arrival: expected finite rates"),
        (lambda: queueing.network([0.5], [[1.0]], next_class=[0]), "never leave"),
        (lambda: queueing.network([0.5], [[1.0]], next_class=[3]), "next_class: expected 1 class"),
        (lambda: queueing.network([0.5], [[1.0]], workload=dist.Exponential(2.0)), "mean one"),
        (lambda: queueing.network([[0.5], [1]], [[1.0]]), "switches: expected 1 lengths"),
        (lambda: queueing.network([0.5], [[1.0]], pools=0), "pools: expected at least one"),
        (lambda: queueing.network([0.5], [[1.0]], buffer=-1), "buffer: expected"),
        (lambda: queueing.instance("criss_cros_bh"), "Did you mean 'criss_cross_bh'?"),
        (lambda: queueing.criss_cross("XX"), "regime: expected one of"),
        (lambda: queueing.reentrant(2, family=3), "family: expected 1 or 2"),
        (lambda: queueing.event_model(queueing.hospital()), "Use chain_model"),
        (lambda: queueing.chain_model(queueing.five_by_five()), "Use event_model"),
        (lambda: queueing.mm1_length(1.0), "would grow forever"),
        (lambda: queueing.jackson_lengths(queueing.criss_cross()), "one server of its own"),
        (lambda: queueing.threshold(queueing.criss_cross(), 3, classes=(0, 1)), "cannot work on"),
        (lambda: queueing.relative_value_iteration(queueing.reentrant(2), 3), "at most 3 classes"),
        (lambda: queueing.relative_value_iteration(queueing.criss_cross(), 999), "more than"),
    ],
)
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


def test_shares_read_choices_numbers_and_probabilities():
    assert shares(jnp.array([0, 2]), 2).tolist() == [[1, 0], [0, 0]]
    assert shares(jnp.array([[3, 1]]), 2).tolist() == [[3, 1]]
    assert shares(jnp.array([[0.2, 0.3, 0.5]]), 2).tolist() == pytest.approx(
        [pytest.approx([0.2, 0.3])]
    )


def test_sites_are_those_that_the_docstring_names():
    model = queueing.event_model(OTHERS["laws"])
    state = handlers.seed(model.init, 0)()
    trace = dp.play(model.step, 0)(state)
    assert set(trace) >= {"serve", "gap", "work", "elapsed", "lost", "holding", "queue"}
    model = queueing.event_model(OTHERS["routing"])
    trace = dp.play(model.step, 0)(handlers.seed(model.init, 0)())
    assert {"clock", "to"} <= set(trace)
    assert numpyro.handlers.seed(queueing.draw_jobs, 0)(OTHERS["routing"], 5).to.shape == (2, 5)
