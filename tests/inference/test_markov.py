"""The exact law of a step: against closed forms, and against the step itself, simulated."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import decisionppl as dp
from decisionppl.inference import markov
from decisionppl.testing import reference


@pytest.mark.parametrize(
    ("chain", "count"),
    [(reference.two_state_mdp(p=0.3), 2), (reference.rental_marketplace(10), 11)],
)
def test_it_is_the_closed_form(chain, count):
    known = markov.kernel(chain.model, jnp.arange(count))
    np.testing.assert_allclose(known.dense(), chain.transition, atol=1e-14)
    np.testing.assert_allclose(known.reward, chain.reward, atol=1e-14)
    np.testing.assert_allclose(known.propensity, np.tile([1 - chain.p, chain.p], (count, 1)))
    assert known.truncated < 1e-14
    assert known.actions["treat"].tolist() == [0, 1]
    pairs = np.stack([known.arm, known.source, known.target])
    assert np.unique(pairs, axis=1).shape == pairs.shape


SIZE = 12


def queue(state):
    """Arrivals without bound, departures that depend on them, two parts of a state, a cost."""
    speed = dp.action("speed", 3, given=state["jobs"])
    come = numpyro.sample("come", dist.Poisson(1.5 + 0.5 * state["busy"]))
    waiting = jnp.minimum(state["jobs"] + come, SIZE)
    done = numpyro.sample("done", dist.Binomial(waiting, 0.1 + 0.2 * speed))
    numpyro.sample("idle talk", dist.Normal(0.0, 1.0))  # nothing depends on it
    dp.reward("served", dist.Normal(2.0 * done, 1.0))
    dp.cost("energy", 0.5 * speed**2)
    jobs = dp.state("jobs", waiting - done)
    return {"jobs": jobs, "busy": dp.state("busy", (jobs > 4).astype(int))}


def all_states():
    jobs = np.arange(SIZE + 1)
    return {"jobs": np.tile(jobs, 2), "busy": np.repeat([0, 1], SIZE + 1)}


def test_unbounded_sites_and_states_of_several_parts():
    known = markov.kernel(queue, all_states(), tail=1e-9)
    assert known.truncated < 1e-9
    np.testing.assert_allclose(known.dense().sum(2), 1, atol=1e-12)
    exact = np.zeros_like(known.dense())
    reward = np.zeros_like(known.reward)
    for s, (jobs, busy) in enumerate(zip(*all_states().values(), strict=True)):
        for a in range(3):
            for come in range(60):
                waiting = min(jobs + come, SIZE)
                arrive = stats.poisson.pmf(come, 1.5 + 0.5 * busy)
                for done in range(waiting + 1):
                    p = arrive * stats.binom.pmf(done, waiting, 0.1 + 0.2 * a)
                    left = waiting - done
                    exact[a, s, left + (SIZE + 1) * (left > 4)] += p
                    reward[a, s] += p * (2 * done - 0.5 * a**2)
    np.testing.assert_allclose(known.dense(), exact, atol=1e-8)
    np.testing.assert_allclose(known.reward, reward, atol=1e-7)
    np.testing.assert_allclose(known.propensity, 1 / 3)


def test_it_is_what_the_step_does():
    """Simulated next states, by a chi-square test at 1e-6."""
    known = markov.kernel(queue, all_states())
    start = {"jobs": jnp.asarray(5), "busy": jnp.asarray(1)}
    run = jax.jit(jax.vmap(lambda k: dp.play(queue, k, policy=2)(start)["jobs"]["value"]))
    drawn = np.bincount(np.asarray(run(jax.random.split(jax.random.key(0), 20_000))), minlength=13)
    law = known.dense()[2, 5 + SIZE + 1].reshape(2, -1).sum(0)
    kept = law * 20_000 > 5
    rest = [drawn[~kept].sum()], [law[~kept].sum() * 20_000]
    counts = np.append(drawn[kept], rest[0]), np.append(law[kept] * 20_000, rest[1])
    assert stats.chisquare(*counts).pvalue > 1e-6


def test_propensities_may_depend_on_the_state_and_parameters_are_arguments():
    def step(x, rate):
        a = dp.action("a", dist.Bernoulli(0.2 + 0.3 * x))
        moved = numpyro.sample("moved", dist.Categorical(jnp.array([0.5, rate, 0.5 - rate])))
        dp.reward("r", a * (moved == 1))
        return dp.state("x", jnp.where(moved == 2, 1 - x, x))

    known = markov.kernel(step, jnp.arange(2), 0.1)
    np.testing.assert_allclose(known.propensity, [[0.8, 0.2], [0.5, 0.5]])
    np.testing.assert_allclose(known.reward, [[0, 0], [0.1, 0.1]], atol=1e-15)
    np.testing.assert_allclose(known.dense()[0], [[0.6, 0.4], [0.4, 0.6]])


def test_sites_that_matter_through_others_only_and_narrow_windows():
    """A mood that sets a rate, and a count of which no value near zero is likely."""

    def step(busy):
        mood = numpyro.sample("mood", dist.Bernoulli(0.25))
        count = numpyro.sample("count", dist.Poisson(400.0 + 40.0 * mood))
        dp.reward("r", dist.Normal(1.0 * dp.action("a", 2) * mood, 1.0))
        return dp.state("busy", (count > 420).astype(int))

    known = markov.kernel(step, jnp.arange(2))
    busy = 0.75 * stats.poisson.sf(420, 400) + 0.25 * stats.poisson.sf(420, 440)
    np.testing.assert_allclose(known.dense()[:, :, 1], busy, atol=1e-11)
    np.testing.assert_allclose(known.reward, [[0, 0], [0.25, 0.25]], atol=1e-12)

    def hidden(x):
        mood = numpyro.sample("mood", dist.Bernoulli(0.25))
        dp.reward("r", 1.0 * dp.action("a", 2))
        return dp.state("x", dist.Bernoulli(0.1 + 0.6 * mood))

    np.testing.assert_allclose(markov.kernel(hidden, jnp.arange(2)).dense()[0, 0], [0.75, 0.25])


def many(x):
    dp.reward("r", 1.0 * dp.action("a", 2))
    return numpyro.sample("x", dist.Bernoulli(0.5).expand([2]).to_event(1))


def drifting(x):
    dp.reward("r", 1.0 * dp.action("a", 2))
    return x + numpyro.sample("e", dist.Normal(0.0, 1.0))


def leaving(x):
    dp.reward("r", 1.0)
    return x + dp.action("a", 2)


def aimless(x):
    dp.action("a", 2)
    return x


def another(x):
    dp.reward("r", 1.0 * dp.action("a", 2))
    return {"x": x}


def undecided(x):
    dp.reward("r", 1.0)
    return x


@pytest.mark.parametrize(
    ("step", "states", "options", "message"),
    [
        (drifting, jnp.arange(2), {}, "site 'e': Normal has no finite support"),
        (many, jnp.zeros((1, 2), int), {}, r"site 'x' has shape \(2,\)"),
        (leaving, jnp.arange(2), {}, r"leads to state \[2.0\], which is not listed: from 1 with"),
        (aimless, jnp.arange(2), {}, "no reward site"),
        (undecided, jnp.arange(2), {}, "no action site"),
        (another, jnp.arange(2), {}, "Return the next state in the form"),
        (leaving, jnp.array([0, 1, 0]), {}, r"\[0.0\] is listed twice"),
        (leaving, jnp.asarray(0), {}, "one leading axis"),
        (leaving, jnp.arange(2), {"tail": 0.0}, "tail: expected a probability"),
    ],
)
def test_misuse_says_what_to_do(step, states, options, message):
    with pytest.raises(ValueError, match=message):
        markov.kernel(step, states, **options)


def test_propensities_of_units_in_a_plate_are_those_of_the_policy():
    def step(state):
        with numpyro.plate("unit", 3):
            treat = dp.action("treat", dist.Bernoulli(0.3))
        dp.reward("gain", 1.0 * jnp.sum(treat))
        return state

    for policy, share in ((None, 0.3), (dist.Bernoulli(0.9), 0.9), (1, 1.0)):
        runs = markov.rollout(step, 0.0, 2, key=0, policy=policy)
        assert runs.propensity.shape == (1, 2, 3, 2)
        assert np.allclose(runs.propensity, [1 - share, share], atol=1e-6)


WEIGHT = np.array([1.0, 2.0])


def test_a_parameter_is_fixed_by_condition_after_a_run_in_single_precision():
    def step(x):
        rate = numpyro.sample("rate", dist.Beta(1, 1).expand([2]).to_event(1))
        arm = dp.action("arm", 2)
        dp.reward("gain", jnp.asarray(WEIGHT)[arm] * x)
        return dp.state("x", dist.Bernoulli(rate[arm]))

    with pytest.raises(ValueError, match=r"site 'rate' has shape \(2,\).*handlers.condition"):
        markov.kernel(step, jnp.arange(2))
    fixed = {"rate": jnp.array([0.25, 0.5])}
    market = numpyro.handlers.condition(step, fixed)
    markov.rollout(market, 0, 3, key=0)
    known = markov.kernel(market, jnp.arange(2))
    np.testing.assert_allclose(known.dense()[:, 0, 1], [0.25, 0.5])
    drawn = markov.kernel(step, jnp.arange(2), world={"rate": fixed["rate"][None]})
    np.testing.assert_allclose(drawn.dense()[0], known.dense())
    np.testing.assert_allclose(drawn.reward[0], known.reward)


def walk(position, pull):
    right = dp.action("right", dist.Bernoulli(0.5), given=position)
    wind = numpyro.sample("wind", dist.Bernoulli(0.3))
    dp.reward("gain", 1.0 * right - pull * wind)
    return dp.state("position", position + 2 * right - 1)


def test_a_trajectory_is_the_step_again_and_again_and_can_be_intervened_on():
    for arm, last in ((1, 5), (0, -5)):
        trace = dp.play(markov.chain(walk, 0), 0, policy=arm)(5, 0.5)
        assert trace["right"]["value"].tolist() == [arm] * 5
        assert trace["position"]["value"][-1] == last
        assert (trace["gain"]["value"] == arm - 0.5 * trace["wind"]["value"]).all()
    some = dp.play(markov.chain(walk, 0), 0, data={"right": jnp.array([1, 1, 1])})(3, 0.5)
    assert some["position"]["value"].tolist() == [1, 2, 3]


def test_rollouts_share_their_noise_and_compile_once(compilations):
    markov.rollout(walk, 0, 50, key=0, args=(0.5,), policy=1, num_runs=3)
    before = compilations()
    runs = [
        markov.rollout(walk, 0, 50, key=jax.random.key(1), args=(0.2,), policy=a, num_runs=3)
        for a in (0, 1)
    ]
    assert compilations() - before <= 1  # the key
    wind = [(np.asarray(r.arm) - np.asarray(r.reward)) / 0.2 for r in runs]
    np.testing.assert_allclose(wind[0], wind[1], atol=1e-5)
    assert 0 < wind[0].mean() < 1
    assert not np.allclose(wind[0][0], wind[0][1])
    for arm, run in enumerate(runs):
        assert (np.asarray(run.arm) == arm).all()
        assert (np.asarray(run.propensity[..., arm]) == 1).all()
        assert (np.asarray(run.state[:, -1]) == (2 * arm - 1) * 50).all()
    burnt = markov.rollout(walk, 0, 40, key=jax.random.key(1), args=(0.2,), policy=1, burn_in=10)
    assert burnt.state[0, 0] == 10


def rounded(x):
    dp.reward("r", 1.0 * dp.action("a", 2))
    return dp.state("x", jnp.asarray(1))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: markov.rollout(walk, 0, 5, key=0, args=(0.5,), policy={"left": 1}), "'right'"),
        (lambda: markov.rollout(walk, 0, 5, key=0, args=(0.5,), policy={"a": 1, "b": 0}), "one"),
        (lambda: markov.rollout(rounded, 0.5, 5, key=0), "first state"),
        (lambda: markov.rollout(rounded, {"x": 1}, 5, key=0), "Return the next state in the form"),
        (lambda: markov.rollout(walk, 0, 0, key=0, args=(0.5,)), "num_steps"),
    ],
)
def test_rollouts_say_what_is_wrong(ask, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ask()


def test_parameters_are_the_same_at_every_step_and_in_every_draw():
    def step(x):
        rate = numpyro.sample("rate", dist.Beta(1, 1))
        treat = dp.action("treat", dist.Bernoulli(0.5))
        dp.reward("r", dist.Normal(1.0 * x + treat, 2.0))
        return dp.state("x", dist.Bernoulli(rate))

    runs = markov.rollout(step, 0, 4000, key=0, world={"rate": 0.9})
    assert abs(runs.state[0].mean() - 0.9) < 0.03
    known = markov.kernel(step, jnp.arange(2), world={"rate": np.array([0.9, 0.2])})
    np.testing.assert_allclose(known.dense()[:, 1, 0], [[0.1, 0.9], [0.8, 0.2]], atol=1e-15)
    np.testing.assert_allclose(known.gain_variance, 4)
    np.testing.assert_allclose(known.gain[0], known.reward[0][known.arm, known.source])
