"""Advantages by a fitted value, and training on runs that go on: enumeration, and stated biases.

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
from decisionppl.inference._advantage import (
    coefficients,
    crossed,
    moments,
    no_moments,
    renewed,
    traced,
)
from decisionppl.inference.value import one_hot

Z = 5.7
THETA = jnp.array([0.3, -0.5])


def coin(theta):
    """Stay or move, and be paid in the second state; moves may slip."""

    def step(state):
        move = dp.action("move", dist.Bernoulli(0.5), given=state)
        slip = numpyro.sample("slip", dist.Bernoulli(jax.nn.sigmoid(theta[1])))
        dp.reward("pay", 1.0 * state)
        return dp.state("state", jnp.where((move == 1) & (slip == 0), 1 - state, state))

    return step, lambda given, space: dist.Bernoulli(logits=theta[0] + 0.5 * given)


def moves(theta):
    chance = jax.nn.sigmoid(theta[0] + 0.5 * jnp.arange(2)) * jax.nn.sigmoid(-theta[1])
    return jnp.array([[1 - chance[0], chance[0]], [chance[1], 1 - chance[1]]])


def long_run(theta):
    """The average reward of the chain."""
    chance = moves(theta)
    return chance[0, 1] / (chance[0, 1] + chance[1, 0])


SHARE = float(long_run(THETA))


def stationary():
    return numpyro.sample("first", dist.Bernoulli(SHARE)).astype(int)


def gradients(mode, init, steps, runs, keys):
    def objective(theta, key):
        step, policy = coin(theta)
        return pathwise.value(
            step, init, steps, key=key, mode=mode, policy=policy, num_runs=runs
        ).mean()

    each = jax.random.split(jax.random.key(5), keys)
    found = jax.jit(lambda k: jax.lax.map(lambda k: jax.grad(objective)(THETA, k), k))(each)
    return np.asarray(found, float)


# --- the fit and the sums -----------------------------------------------------------------------


def data(seed=0, runs=6, steps=7, width=3):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(runs, steps + 1, width)) + 1.0
    return features[:, :-1], features[:, 1:], rng.normal(size=(runs, steps))


def test_sums_of_errors_are_those_of_their_definition():
    errors = data()[2]
    known = np.zeros_like(errors)
    for t in range(errors.shape[1]):
        for k in range(t, errors.shape[1]):
            known[:, t] += 0.7 ** (k - t) * errors[:, k]
    np.testing.assert_allclose(traced(jnp.asarray(errors), 0.7), known, rtol=1e-5, atol=1e-6)


def test_moments_are_those_of_their_definition():
    before, after, gain = data()
    weight = np.array([1.0, 0.0, 2.0, 1.0, 0.0, 0.0])
    traces = np.zeros_like(before)
    for t in range(gain.shape[1]):
        traces[:, t] = before[:, t] + (0.8 * traces[:, t - 1] if t else 0.0)
    rows = list(zip(weight, traces, before, after, gain, strict=True))
    mean = sum(w * z.mean(0) for w, z, *_ in rows) / weight.sum()
    matrix = sum(w * (z - mean).T @ (x - y) for w, z, x, y, _ in rows) / weight.sum() / 7
    vector = sum(w * (z - mean).T @ g for w, z, _, _, g in rows) / weight.sum() / 7
    square = sum(w * (x**2).mean(0) for w, _, x, *_ in rows) / weight.sum()
    found = moments(*(jnp.asarray(x) for x in (before, after, gain)), 0.8, jnp.asarray(weight))
    for x, known in zip(found, (matrix, vector, square), strict=True):
        np.testing.assert_allclose(x, known, rtol=1e-4, atol=1e-5)
    thin = moments(*(jnp.asarray(x) for x in (before, after, gain)), 0.8, every=4)
    traces, drop = traces[:, [2, 6]], (before - after)[:, [2, 6]]
    matrix = np.einsum("rti,rtj->ij", traces - traces.mean((0, 1)), drop) / 12
    np.testing.assert_allclose(thin[0], matrix, rtol=1e-4, atol=1e-5)
    # units of features do not matter, to the ridge, and a feature that is always zero is left out
    by = jnp.array([1, 100, 0])
    values = coefficients(*moments(before * by, after * by, jnp.asarray(gain), 0.8))
    plain = coefficients(*moments(*(jnp.asarray(x[..., :2]) for x in (before, after)), gain, 0.8))
    np.testing.assert_allclose(values * jnp.array([1, 100, 0]), [*plain, 0], rtol=2e-3, atol=1e-5)
    assert float(values[2]) == 0.0


@pytest.mark.parametrize("trace", [0.0, 0.6, 1.0])
def test_nothing_is_left_to_explain_where_nothing_is_random(trace):
    """In a cycle with an indicator of each state, the value is exact and advantages are zero."""
    states = (np.arange(4)[:, None] + np.arange(31)) % 3
    gain = np.array([1.0, -3.0, 2.0])[states[:, :-1]]
    features = jnp.asarray(np.eye(3)[states])
    found = crossed(features[:, :-1], features[:, 1:], jnp.asarray(gain), trace)
    assert float(jnp.abs(found).max()) < 0.01  # the ridge is what is left
    assert float(jnp.abs(traced(jnp.asarray(gain), trace)).max()) > 0.5


def test_the_value_of_a_run_is_fitted_to_the_other_half():
    before, after, gain = (jnp.asarray(x) for x in data(runs=4))
    one = crossed(before, after, gain, 0.5)
    other = crossed(before, after, gain.at[0].add(1.0), 0.5)
    np.testing.assert_allclose(one[2], other[2], rtol=1e-6)  # of the same half
    assert float(jnp.abs(one[1] - other[1]).max()) > 0.01


def test_the_value_of_an_update_is_fitted_to_earlier_ones():
    before, after, gain = (jnp.asarray(x) for x in data(runs=4))
    spent = jnp.ones_like(gain)
    first, kept = renewed(no_moments(3), before, after, gain, spent, 0.5)
    np.testing.assert_allclose(first, traced(gain - gain.mean(), 0.5), rtol=1e-4, atol=1e-5)
    for x, y in zip(
        kept[:2], moments(before, after, gain - gain.mean(), 0.5, every=4)[:2], strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    other = renewed(kept, before, after, gain.at[0, -1].add(5.0), spent, 0.5)[0]
    same = renewed(kept, before, after, gain, spent, 0.5)[0]
    moved = float((gain.at[0, -1].add(5.0) - gain).sum() / gain.size / (1 + 0.99))
    # of another run, by the change of the average alone
    np.testing.assert_allclose(
        same[1] - other[1], traced(jnp.full_like(gain, moved), 0.5)[1], rtol=1e-3, atol=1e-5
    )


# --- the gradient -------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [0.0, 0.8])
def test_a_complete_value_gives_the_gradient_of_the_long_run(trace):
    known = np.asarray(jax.grad(long_run)(THETA))
    found = gradients(pathwise.advantage(one_hot(2), trace), stationary, 40, 100, 60)
    error = found.std(0) / 60**0.5
    assert (np.abs(found.mean(0) - known) < Z * error + 0.01 * np.abs(known)).all()
    # with the noise of a step or a few, not of all that follow
    rough = gradients(pathwise.score(None), stationary, 40, 100, 60)
    assert (found.std(0) < 0.5 * rough.std(0)).all()


def test_without_a_value_the_bias_of_a_trace_is_what_it_says():
    """What follows a decision after k steps counts trace^k times, by enumeration."""
    steps, trace = 8, 0.5
    reward = jnp.array([0.0, 1.0])

    def surrogate(theta, trace):
        chance, now, total = jax.lax.stop_gradient(moves(THETA)), jnp.array([1.0, 0.0]), 0.0
        for t in range(steps):
            ahead = now @ moves(theta)
            for j in range(1, steps - t):
                total, ahead = total + trace**j * ahead @ reward, ahead @ chance
            now = now @ chance
        return total / steps

    known, whole = (np.asarray(jax.grad(surrogate)(THETA, x)) for x in (trace, 1.0))
    found = gradients(pathwise.advantage(lambda s: jnp.zeros(1), trace), 0, steps, 400, 100)
    error = found.std(0) / 10
    # the average comes from the same runs, a 400th of it from its own
    assert (np.abs(found.mean(0) - known) < Z * error + 0.01 * np.abs(known)).all()
    assert (np.abs(found.mean(0) - whole) > 2 * Z * error).any()


def test_a_site_that_is_summed_over_changes_no_mean_and_takes_its_noise():
    known = np.asarray(jax.grad(long_run)(THETA))[0]
    mode = pathwise.advantage(one_hot(2), 0.8, expect="slip")
    found = gradients(mode, stationary, 40, 100, 60)[:, 0]
    assert abs(found.mean() - known) < Z * found.std() / 60**0.5 + 0.01 * abs(known)
    # of one step each, as terms of a run may make up for each other
    one, other = (
        gradients(pathwise.advantage(one_hot(2), 0.8, expect=x), stationary, 1, 2000, 60)[:, 0]
        for x in ("slip", None)
    )
    assert one.std() < 0.8 * other.std()


# --- training -----------------------------------------------------------------------------------


def paid(state):
    """Moving costs something, and only the second state pays."""
    move = dp.action("move", dist.Bernoulli(0.5), given=state)
    dp.reward("pay", state - 0.3 * move)
    return dp.state("state", jnp.where(move == 1, 1 - state, state))


def _policy(w):
    return lambda given, space: dist.Bernoulli(logits=w[given])


def trained(updates=60, mode=None, **settings):
    return pathwise.train(
        paid, 0, 20, _policy, jnp.zeros(2), updates, key=0,
        mode=mode or pathwise.advantage(one_hot(2), 0.9), num_runs=10, progress=False,
        optimizer=optax.adam(0.1), **settings,
    )  # fmt: skip


fitted = functools.cache(trained)


def test_training_finds_the_policy_and_entropy_holds_it_back():
    found = fitted().params["policy"]
    assert found[0] > 1
    assert found[1] < -1
    assert fitted().losses[-1] < -0.7 < fitted().losses[0]
    held = fitted(entropy=10.0).params["policy"]
    assert np.abs(held).max() < 0.3
    # as a function of the number of the update
    late = fitted(entropy=lambda number: jnp.where(number < 30, 10.0, 0.0)).params["policy"]
    assert np.abs(held).max() < late[0] < found[0]


def test_runs_go_on_from_update_to_update():
    def count(state):
        dp.action("nothing", dist.Bernoulli(0.5), given=state)
        dp.reward("number", 1.0 * state)
        return dp.state("state", state + 1)

    fit = pathwise.train(
        count, 0, 5, lambda w: None, jnp.zeros(1), 6, key=0, burn_in=3, num_runs=2,
        mode=pathwise.advantage(lambda s: jnp.zeros(1)), progress=False,
    )  # fmt: skip
    assert np.diff(fit.losses).tolist() == [-5.0] * 5


def test_training_on_runs_that_go_on_resumes_to_the_bit(tmp_path, monkeypatch):
    from decisionppl.inference import training

    whole = fitted()
    file = tmp_path / "run.nc"
    monkeypatch.setattr(training, "_CHUNK", 8)
    monkeypatch.setattr(training, "_SECONDS_PER_CHECKPOINT", 0.0)
    original, counted = training._save, []

    def stop(*args):
        original(*args)
        counted.append(1)
        if len(counted) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", stop)
    with pytest.warns(UserWarning, match="interrupted"):
        part = trained(checkpoint=file)
    assert not part.complete
    monkeypatch.setattr(training, "_save", original)
    resumed = trained(checkpoint=file)
    assert resumed.complete
    np.testing.assert_array_equal(resumed.params["policy"], whole.params["policy"])
    np.testing.assert_array_equal(resumed.losses, whole.losses)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pathwise.advantage("all"), "features: expected a function of the state"),
        (lambda: pathwise.advantage(one_hot(2), 1.5), "trace: expected a number from 0 to 1"),
        (lambda: pathwise.advantage(one_hot(2), expect=0), "expect: expected the name of a site"),
        (lambda: trained(mode=pathwise.advantage(one_hot(2), expect="pay")),
         "expect: expected a site of the step that is drawn and no decision, got 'pay'"),
        (lambda: trained(mode=pathwise.advantage(one_hot(2), expect="move")),
         "expect: expected a site of the step that is drawn and no decision, got 'move'"),
        (lambda: trained(mode=pathwise.score(), entropy=0.1), "entropy: of advantage() alone"),
        (lambda: trained(mode=pathwise.advantage(lambda s: jnp.ones((2, 2)))),
         "features: expected a vector [features], got shape (2, 2)"),
        (lambda: trained(mode="advantage"), "mode: expected ipa(), ste(), score() or advantage()"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()
