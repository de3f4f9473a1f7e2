"""Gradients of simulated models: exact derivatives of small cases, known biases, and training.

Statistical tests use fixed keys; each errs with probability 1e-8 at most (5.7 standard errors).
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import decisionppl as dp
from decisionppl.inference import pathwise
from decisionppl.inference._gradient_runs import baseline, log_density
from decisionppl.inference._race import handler, hard, smoothed
from decisionppl.models import queueing

Z = 5.7


def queue_length(mu, load, mode, key, steps=2000, runs=1):
    net = queueing.mm1(load).replace(service=jnp.array([[mu]]))
    model = queueing.event_model(net)
    return -pathwise.value(
        model.step, model.init, steps, key=key, mode=mode, per="elapsed", num_runs=runs,
        policy=queueing.cmu(net),
    )  # fmt: skip


def slopes(load, mode, runs=100, seed=0):
    """Derivative of the length of an M/M/1 queue over its true one, of each run."""
    keys = jax.random.split(jax.random.key(seed), runs)
    one = jax.grad(lambda mu, key: queue_length(mu, load, mode, key)[0])
    found = jax.jit(jax.vmap(one, in_axes=(None, 0)))(1.0, keys)
    return np.asarray(found, float) / (-load / (1 - load) ** 2)


# --- the race ---------------------------------------------------------------------------------

CLOCK, RATE = jnp.array([1.0, 3.0, 5.0]), jnp.array([1.0, 6.0, 0.0])


def test_the_value_of_a_race_does_not_depend_on_the_mode():
    held = np.array([False, True, True])
    one = hard(CLOCK, RATE, jnp.full(3, 7.0), held)
    other = smoothed(10.0, CLOCK, RATE, jnp.full(3, 7.0), held)
    for a, b in zip(one, other, strict=True):
        assert a.tolist() == b.tolist()
    assert float(one.time) == 0.5


def test_derivatives_of_a_race():
    fresh, held = jnp.zeros(3), np.array([False, True, True])
    slope = jax.jacobian(lambda r: hard(CLOCK, r, fresh, held))(RATE)
    assert slope.event.tolist() == np.zeros((3, 3)).tolist()
    assert slope.time.tolist() == pytest.approx([0, -3 / 36, 0])
    # w - tau r: the clock that runs on
    assert slope.clock[0].tolist() == pytest.approx([-0.5, 3 / 36, 0])
    assert slope.clock[1].tolist() == [0, 0, 0]

    beta = 2.0
    soft = jax.jacobian(lambda r: smoothed(beta, CLOCK, r, fresh, held))(RATE)
    p = np.exp(-beta * np.array([1.0, 0.5]))
    p = p / p.sum()
    # d p_1 / d r_1 = -beta p_1 (1 - p_1) d tau_1 / d r_1
    assert float(soft.event[1, 1]) == pytest.approx(beta * p[1] * p[0] * 3 / 36, rel=1e-5)
    assert float(soft.event[0, 1]) == pytest.approx(-beta * p[1] * p[0] * 3 / 36, rel=1e-5)
    assert soft.event[2].tolist() == [0, 0, 0]
    assert soft.clock[1:].tolist() == np.zeros((2, 3)).tolist()
    assert soft.clock[0].tolist() == pytest.approx([-0.5, 3 / 36, 0])


def test_rates_next_to_nothing_have_no_derivative_and_no_nan():
    rate = jnp.array([1.0, 1e-25, 0.0])
    for race in (hard, lambda *a: smoothed(10.0, *a)):
        slope = jax.jacobian(lambda r, race=race: race(CLOCK, r, jnp.zeros(3)))(rate)
        assert all(np.isfinite(np.asarray(x)).all() for x in slope)


def test_a_draw_on_the_edge_of_its_support_does_no_harm():
    def step(state):
        clock = numpyro.sample("clock", dist.Delta(0.0))
        site = numpyro.sample("zero", dist.Uniform(0.0, 1.0), sample_shape=())
        dp.action("a", dist.Bernoulli(0.5), given=state)
        dp.reward("r", clock + 0.0 * site)
        return dp.state("s", state)

    trace = {"zero": {"type": "sample", "is_observed": False, "fn": dist.Exponential(1.0),
                      "value": jnp.array(0.0)}}  # fmt: skip
    assert float(log_density(trace)) == 0.0
    assert np.isfinite(pathwise.value(step, 0.0, 3, key=0, mode=pathwise.score())[0])


def test_a_mode_holds_inside_its_handler_only():
    def event(r):
        return pathwise.race(CLOCK, r, held=np.zeros(3, bool)).event

    slope = jax.jacobian(event)
    assert not slope(RATE).any()
    with handler(1.0):
        assert slope(RATE).any()
    assert not slope(RATE).any()


def test_one_step_softmin_has_the_known_bias():
    """The bias of the expected change of a queue, by quadrature: of order beta^-2."""
    lam, mu = 0.5, 1.0
    grid = (np.arange(400) + 0.5) / 400
    a, w = -np.log(grid)[:, None] / lam, -np.log(grid)[None]  # equal weights
    truth = -2 * lam / (lam + mu) ** 2
    scaled = []
    for beta in (4.0, 8.0):
        p = 1 / (1 + np.exp(-beta * (w / mu - a)))  # of an arrival
        slope = (2 * p * (1 - p) * beta * -w / mu**2).mean()
        scaled.append((slope - truth) * beta**2)
    limit = np.pi**2 * lam * (mu**2 - lam**2 + 2 * mu * lam) / (6 * (lam + mu) ** 2)
    assert abs(scaled[1] - limit) < abs(scaled[0] - limit)
    assert scaled[1] == pytest.approx(limit, rel=0.25)


def test_one_step_softmin_of_the_library_is_that_of_the_quadrature():
    lam, beta, runs = 0.5, 4.0, 20_000
    net = queueing.mm1(lam)

    def change(mu, key):
        gap, work = jax.random.exponential(key, (2,))
        from decisionppl.models._queue_events import Draws, start

        state = start(net, gap, work)._replace(length=jnp.array([5.0]))
        moved = net.replace(service=jnp.array([[mu]]))
        with handler(beta):
            after, _ = queueing.transition(moved, state, jnp.array([[1.0]]), Draws(1.0, 1.0))
        return after.length[0]

    keys = jax.random.split(jax.random.key(0), runs)
    found = np.asarray(jax.vmap(jax.grad(change), in_axes=(None, 0))(1.0, keys), float)
    grid = (np.arange(500) + 0.5) / 500
    a, w = -np.log(grid)[:, None] / lam, -np.log(grid)[None]
    p = 1 / (1 + np.exp(-beta * (w - a)))
    known = (2 * p * (1 - p) * beta * -w).mean()
    assert abs(found.mean() - known) < Z * found.std() / runs**0.5 + 0.01


# --- a single queue -----------------------------------------------------------------------------


def test_ipa_is_right_on_a_single_queue():
    found = slopes(0.5, pathwise.ipa())
    # runs begin empty, which takes a percent off
    assert abs(found.mean() - 1) < Z * found.std() / len(found) ** 0.5 + 0.02


@pytest.mark.parametrize(("temperature", "known"), [(0.1, 1.12), (1.0, 0.89)])
def test_ste_has_its_known_bias_on_a_single_queue(temperature, known):
    """Not the value of another estimator: with work attached it would be 6.2 and 3.9."""
    found = slopes(0.5, pathwise.ste(1 / temperature))
    assert abs(found.mean() - known) < Z * found.std() / len(found) ** 0.5 + 0.02


def test_the_score_finds_the_rate_of_a_chain():
    net = queueing.mm1(0.5)

    def length(rate, key):
        moved = net.replace(service=jnp.array([[rate]]))
        model = queueing.chain_model(moved)
        # the clock of the chain speeds up with the rate; averages over ticks do not notice
        return -pathwise.value(
            model.step, model.init, 300, key=key, num_runs=40, policy=queueing.cmu(moved),
            mode=pathwise.score(model.features),
        ).mean()  # fmt: skip

    keys = jax.random.split(jax.random.key(0), 30)
    found = jax.jit(lambda k: jax.lax.map(lambda key: jax.grad(length)(1.0, key), k))(keys)
    error = float(found.std()) / 30**0.5
    # 300 ticks from empty are some 5 % short of the long run
    assert abs(float(found.mean()) + 2.0) < Z * error + 0.15
    assert error < 0.15


# --- exact cases, by enumeration ------------------------------------------------------------------


def coin(theta):
    """A step whose value and gradient are known: stay or move, and be paid in the second state."""

    def step(state):
        move = dp.action("move", dist.Bernoulli(0.5), given=state)
        slip = numpyro.sample("slip", dist.Bernoulli(jax.nn.sigmoid(theta[1])))
        dp.reward("pay", 1.0 * state)
        return dp.state("state", jnp.where((move == 1) & (slip == 0), 1 - state, state))

    return step, lambda given, space: dist.Bernoulli(logits=theta[0] + 0.5 * given)


def exact_value(theta, steps):
    p, total = jnp.array([1.0, 0.0]), 0.0
    for _ in range(steps):
        total = total + p[1]
        moves = jax.nn.sigmoid(theta[0] + 0.5 * jnp.arange(2)) * jax.nn.sigmoid(-theta[1])
        p = p * (1 - moves) + (p * moves)[::-1]
    return total / steps


@pytest.mark.parametrize(
    "baseline", [None, "mean", lambda s: jnp.array([1.0, s])], ids=["none", "mean", "features"]
)
def test_the_score_is_unbiased_with_and_without_baselines(baseline):
    theta = jnp.array([0.3, -0.5])
    known = np.asarray(jax.grad(exact_value)(theta, 8))

    def objective(theta, key):
        step, policy = coin(theta)
        return pathwise.value(
            step, 0, 8, key=key, mode=pathwise.score(baseline), policy=policy, num_runs=100
        ).mean()

    keys = jax.random.split(jax.random.key(1), 100)
    both = jax.jit(lambda k: jax.lax.map(lambda k: jax.value_and_grad(objective)(theta, k), k))
    value, found = (np.asarray(x, float) for x in both(keys))
    assert abs(value.mean() - float(exact_value(theta, 8))) < Z * value.std() / 10
    assert (np.abs(found.mean(0) - known) < Z * found.std(0) / 10).all()


# --- networks -------------------------------------------------------------------------------------


def cost(theta, key, mode, load=0.7, steps=150):
    net = queueing.multiclass([load / 2, load / 2], [1.0, 1.0], [1, 3])
    model = queueing.event_model(net)
    return -pathwise.value(
        model.step, model.init, steps, key=key, mode=mode, per="elapsed",
        policy=queueing.soft_priority(net, theta), num_runs=10,
    ).mean()  # fmt: skip


def test_the_mean_baseline_leaves_its_own_run_out():
    later = np.random.default_rng(0).normal(size=(4, 6))
    found = baseline("mean", jnp.asarray(later), ())
    expected = [np.delete(later, i, 0).mean(0) for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_gradient_check_agrees_with_the_score_and_measures_ste():
    theta = jnp.array([0.2, -0.1])
    found = pathwise.gradient_check(
        cost, theta, pathwise.score(), key=0, num_runs=100, epsilon=0.3, tolerance=0.1
    )
    assert found.passed, found.message
    assert found.cosine > 0.8
    ste = pathwise.gradient_check(
        cost, theta, pathwise.ste(5.0), key=0, num_runs=20, epsilon=0.3, tolerance=0.1
    )
    assert ste.cosine > 0.8, ste.message
    blind = pathwise.gradient_check(
        cost, theta, pathwise.ipa(relax=False), key=0, num_runs=2, epsilon=0.3
    )
    assert not blind.gradient.any()  # of a drawn choice, ipa sees nothing


def test_segments_do_not_change_the_derivative():
    def slope(segment):
        net = queueing.criss_cross()
        model = queueing.event_model(net)

        def objective(theta):
            return pathwise.value(
                model.step, model.init, 200, key=0, mode=pathwise.ste(5.0), per="elapsed",
                policy=queueing.soft_max_weight(net, theta), num_runs=3, segment=segment,
            ).mean()  # fmt: skip

        return jax.jit(jax.grad(objective))(jnp.ones(3))

    np.testing.assert_allclose(slope(200), slope(20), rtol=1e-4)


@pytest.mark.parametrize("load", [0.95, 0.99])
def test_no_gradient_is_nan_in_heavy_traffic(load):
    net = queueing.criss_cross()
    net = net.replace(arrival=jnp.asarray(net.arrival) * load / 0.9)
    model = queueing.event_model(net)

    def objective(weights):
        return pathwise.value(
            model.step, model.init, 1000, key=0, mode=pathwise.ste(10.0), per="elapsed",
            policy=queueing.neural(net, weights), num_runs=2, burn_in=1000,
        ).mean()  # fmt: skip

    weights = queueing.init_neural(jax.random.key(0), net, (8,))
    weights = jax.tree.map(lambda w: w + 0.5, weights)
    for x in jax.tree.leaves(jax.jit(jax.grad(objective))(weights)):
        assert np.isfinite(np.asarray(x)).all()


def trained(updates=24, **settings):
    net = queueing.multiclass([0.35, 0.35], 1.0, [1, 4])
    model = queueing.event_model(net)
    return pathwise.train(
        model.step, model.init, 100, lambda w: queueing.soft_priority(net, w), jnp.zeros(2),
        updates, key=0, mode=pathwise.ste(5.0), per="elapsed", progress=False,
        optimizer=optax.adam(0.1), **settings,
    )  # fmt: skip


fitted = functools.cache(trained)


def test_training_learns_the_cmu_order_and_averages(monkeypatch):
    fit = fitted()
    assert fit.complete
    assert fit.params["policy"][1] - fit.params["policy"][0] > 0.2
    last = fitted(average=0.0)
    one = fitted(average=1 / 24)  # of the last parameters alone
    np.testing.assert_allclose(one.params["policy"], last.params["policy"], rtol=1e-6)
    assert (last.params["policy"] != fit.params["policy"]).all()
    np.testing.assert_array_equal(last.losses, fit.losses)


def test_training_resumes_to_the_bit(tmp_path, monkeypatch):
    from decisionppl.inference import training

    whole = fitted()
    file = tmp_path / "run.nc"
    monkeypatch.setattr(training, "_CHUNK", 8)
    counted = []
    original = training._save

    def stop(*args):
        original(*args)
        counted.append(1)
        if len(counted) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", stop)
    monkeypatch.setattr(training, "_SECONDS_PER_CHECKPOINT", 0.0)
    with pytest.warns(UserWarning, match="interrupted"):
        part = trained(checkpoint=file)
    assert not part.complete
    monkeypatch.setattr(training, "_save", original)
    resumed = trained(checkpoint=file)
    assert resumed.complete
    np.testing.assert_array_equal(resumed.params["policy"], whole.params["policy"])
    np.testing.assert_array_equal(resumed.losses, whole.losses)


# --- what is refused ------------------------------------------------------------------------------


def _value(**changed):
    net = queueing.mm1(0.5)
    model = queueing.event_model(net)
    given = {"num_steps": 5, "key": 0, "mode": pathwise.ipa(), **changed}
    steps = given.pop("num_steps")
    return pathwise.value(model.step, model.init, steps, **given)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pathwise.ste(0.0), "beta: expected a number above zero"),
        (lambda: pathwise.score("best"), "baseline: expected None"),
        (lambda: pathwise.race(jnp.ones(2), jnp.ones(3)), "one shape [clocks]"),
        (lambda: _value(num_steps=0), "num_steps: expected an int of at least 1"),
        (lambda: _value(per="nothing"), "per: the step has no site 'nothing'"),
        (lambda: _value(mode="ste"), "mode: expected ipa(), ste(), score() or advantage()"),
        (lambda: pathwise.gradient_check(cost, jnp.ones(2), pathwise.ipa(), key=0, num_runs=1),
         "num_runs of at least 2"),
        (lambda: fitted(average=2.0), "average: expected a share"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()
