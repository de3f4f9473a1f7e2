"""Picard iteration gives the path of the sequential simulation, exactly."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionppl.inference import picard
from decisionppl.inference._picard_plan import make_plan
from decisionppl.models import fulfilment, replenishment

# A system in which everything is looked up in random tables, and half is not feasible. The tables
# are part of the shared state, so that all systems are one program.
LOOKED_UP = picard.System(
    lambda g, m, x: g[2][g[0], m, x],
    lambda g, m, a, x: ((g[3][g[0], m, a, x], *g[1:]), g[4][g[0], m, a, x]),
    lambda g, m, a, x: g[1][g[0], m, a, x],
    lambda g, m, x: jnp.zeros((), int),
)


def tables(seed, shared=3, own=4, actions=3, inputs=5):
    """The shared state: first state, what is feasible, the policy, what follows."""
    rng = np.random.default_rng(seed)
    may = rng.random((shared, own, actions, inputs)) < 0.5
    may[:, :, 0] = True
    wish = rng.integers(0, actions, (shared, own, inputs))
    # the policy takes the wish if it may, else the first action
    fine = np.take_along_axis(may.transpose(0, 1, 3, 2), wish[..., None], -1)[..., 0]
    later = rng.integers(0, shared, may.shape)
    mine = rng.integers(0, own, may.shape)
    return tuple(jnp.asarray(x) for x in (0, may, np.where(fine, wish, 0), later, mine))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([1, 4]), st.sampled_from([None, 7, 16]))
def test_any_system_gives_the_sequential_path(seed, units, chunk):
    """Even where units are strongly coupled and actions mostly infeasible."""
    start = tables(seed)
    rng = np.random.default_rng(seed)
    unit, inputs = rng.integers(0, units, 48), jnp.asarray(rng.integers(0, 5, 48))
    unit[: 4 * units] = np.tile(np.arange(units), 4)
    own = jnp.zeros(units, int)
    run = picard.scan(LOOKED_UP, start, own, unit, inputs, chunk=chunk, batch=3, prove=True)
    assert run.equal
    assert run.converged.all()
    assert (run.iterations <= (48 if chunk is None else chunk) + 1).all()
    _, shared, mine = picard.sequential(LOOKED_UP, start, own, unit, inputs)
    assert int(run.shared[0]) == int(shared[0])
    assert run.own.tolist() == mine.tolist()


def test_the_first_k_actions_are_right_after_k_iterations():
    rng = np.random.default_rng(1)
    unit, inputs = rng.integers(0, 5, 40), jnp.asarray(rng.integers(0, 5, 40))
    begin = (tables(3), jnp.zeros(5, int), unit, inputs)
    known = picard.sequential(LOOKED_UP, *begin)[0]
    for k in (1, 4, 9):
        run = picard.scan(LOOKED_UP, *begin, max_iterations=k)
        assert (run.actions[:k] == known[:k]).all()


@pytest.mark.parametrize("most", [1, 4])
def test_what_is_cut_short_is_a_path_all_the_same(most):
    """Actions that are not yet right are feasible, and states are what they lead to."""
    rng = np.random.default_rng(2)
    unit, inputs = rng.integers(0, 5, 40), jnp.asarray(rng.integers(0, 5, 40))
    begin = (tables(4), jnp.zeros(5, int), unit, inputs)
    run = picard.scan(LOOKED_UP, *begin, max_iterations=most, chunk=30)
    assert not run.converged.all()
    shared, own = begin[0], np.zeros(5, int)
    for u, x, a in zip(unit, np.asarray(inputs), np.asarray(run.actions), strict=True):
        assert LOOKED_UP.feasible(shared, own[u], a, x)
        shared, own[u] = LOOKED_UP.update(shared, own[u], a, x)
    assert int(run.shared[0]) == int(shared[0])
    assert run.own.tolist() == own.tolist()


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 40, 500]), st.integers(1, 9))
def test_batches_hold_every_step_once_and_after_the_one_before_it(seed, units, batch):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 60))
    unit = rng.integers(0, units, int(rng.integers(1, 150)))
    plan = make_plan(unit, units, size, batch)
    for i, valid in enumerate(plan.valid):
        here = unit[i * size : i * size + valid]
        place = np.full(size + 1, -1)
        for b, row in enumerate(plan.rows[i]):
            row = row[row < size]
            assert plan.highest[i, b] == max(row, default=-1)
            assert len(set(here[row])) == len(row)
            assert (place[row] == -1).all()
            place[row] = b
            earlier = plan.before[i][row]
            assert (place[earlier[earlier >= 0]] < b).all()
        assert (place[:valid] >= 0).all()
        for t in range(valid):
            before = np.flatnonzero(here[:t] == here[t])
            assert plan.before[i, t] == (before[-1] if len(before) else -1)
            assert plan.target[i, t] == (units if here[t] in here[t + 1 :] else here[t])
    assert sum(plan.valid) == len(unit)


def test_known_actions_are_checked_again_before_they_are_taken():
    """Taken although there is nothing left, they would spoil the states of all later steps."""
    system = picard.System(
        lambda stock, own, x: jnp.where(stock < 1, 0, 1),
        lambda stock, own, a, x: (jnp.where(a > stock, jnp.nan, stock - a), own),
        lambda stock, own, a, x: a <= stock,
        lambda stock, own, x: 0,
    )
    begin = (jnp.array(3.0), jnp.zeros(12), np.arange(12), jnp.zeros(12))
    run = picard.scan(system, *begin, prove=True)
    assert run.equal
    assert run.actions.tolist() == [1] * 3 + [0] * 9
    assert run.iterations.tolist() == [3]


def test_independent_units_need_one_iteration_and_its_confirmation():
    system = picard.System(
        lambda g, m, x: (m + x) % 3, lambda g, m, a, x: (g, m + a), lambda g, m, a, x: True,
        lambda g, m, x: jnp.zeros((), int),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    unit, inputs = rng.integers(0, 6, 100), jnp.asarray(rng.integers(0, 9, 100))
    run = picard.scan(system, jnp.array(0), jnp.zeros(6, int), unit, inputs, prove=True)
    assert run.equal
    assert run.iterations.tolist() == [2]


GREEDY = fulfilment.system()


def begun(seed):
    made = fulfilment.instance(jax.random.key(seed), 60, 5, 600)
    return made.warehouses.capacity, made.warehouses.inventory, made.orders.product, made.orders


def test_greedy_fulfilment_needs_few_iterations():
    """As many as nodes run out of capacity, and two, on 100 instances."""
    for seed in range(100):
        capacity, inventory, *orders = begun(seed)
        run = picard.scan(GREEDY, capacity, inventory, *orders, batch=64)
        assert (run.actions == picard.sequential(GREEDY, capacity, inventory, *orders)[0]).all()
        exhausted = int((run.shared == 0).sum())
        assert run.iterations[0] <= exhausted + 2
        assert (run.own >= 0).all()
        shipped = int((run.actions < 5).sum())
        assert int(inventory.sum() - run.own.sum()) == shipped
        assert int(capacity.sum() - run.shared.sum()) == shipped


def test_fulfilment_by_a_network_gives_the_sequential_path():
    """A policy that looks at capacities takes more iterations, and is as exact."""
    weights = fulfilment.init_policy(jax.random.key(0), 5, (8,))
    run = picard.scan(fulfilment.system(weights, 100.0), *begun(0), batch=64, prove=True)
    assert run.equal
    assert run.converged.all()


@pytest.mark.parametrize("chunk", [None, 50])
def test_replenishment_gives_the_sequential_path(chunk):
    days = replenishment.days(jax.random.key(0), 8, 50)
    run = picard.scan(
        replenishment.system(9), jnp.array(20), jnp.full(8, 3), np.arange(400) % 8, days,
        chunk=chunk, prove=True,
    )  # fmt: skip
    assert run.equal
    assert (run.iterations < 60).all()
    assert run.shared >= 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"chunk": 0}, "chunk: expected an int of at least 1"),
        ({"batch": 0}, "batch: expected an int of at least 1"),
        ({"unit": np.array([0, 9])}, "unit: expected numbers from 0 to 1"),
        ({"inputs": jnp.zeros(3)}, "expected inputs with 2 rows"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, says):
    given = {"unit": np.array([0, 1]), "inputs": jnp.zeros(2, int), **changed}
    unit, inputs = given.pop("unit"), given.pop("inputs")
    with pytest.raises(ValueError, match=re.escape(says)):
        picard.scan(LOOKED_UP, tables(0), jnp.zeros(2, int), unit, inputs, **given)


# --- the models -----------------------------------------------------------------------------------


def test_models_and_systems_have_the_same_dynamics():
    """The step of the model, given what was drawn and done, moves as the system does."""
    from numpyro import handlers

    made = fulfilment.instance(jax.random.key(1), 6, 3, 200)
    model, system = fulfilment.fulfilment(made), fulfilment.system()
    state = jax.tree.map(jnp.asarray, made.warehouses)

    @jax.jit
    def moved(state, data):
        return handlers.substitute(handlers.seed(model.step, 0), data=data)(state)

    for which in range(20):
        order = jax.tree.map(lambda x, i=which: x[i], made.orders)
        mine = state.inventory[order.product]
        node = system.policy(state.capacity, mine, order)
        capacity, mine = system.update(state.capacity, mine, node, order)
        after = moved(state, {"which": which, "node": node})
        assert after.capacity.tolist() == capacity.tolist()
        assert after.inventory[order.product].tolist() == mine.tolist()
        state = after

    model, system = replenishment.replenishment(3), replenishment.system(7)
    days = replenishment.days(jax.random.key(2), 3, 10)
    state = jax.tree.map(jnp.asarray, model.init)
    lot = int(model.init.warehouse)

    @jax.jit
    def stocked(state, data):
        return handlers.substitute(handlers.seed(model.step, 0), data=data)(state)

    for t in range(30):
        day = jax.tree.map(lambda x, t=t: x[t], days)
        turn = int(state.turn)
        order = system.policy(state.warehouse, state.retailer[turn], day)
        warehouse, mine = system.update(state.warehouse, state.retailer[turn], order, day)
        data = {"demand": day.demand, "order": order, "delivery": (day.delivery > 0) * 1}
        state = stocked(state, data)
        assert lot == 8
        assert int(state.warehouse) == int(warehouse)
        assert int(state.retailer[turn]) == int(mine)
