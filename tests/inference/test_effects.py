"""Exact effects: identities on random decision processes, closed forms, series, errors."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import jet

import decisionppl as dp
from decisionppl import testing
from decisionppl.inference import effects, markov, value
from decisionppl.testing import reference, strategies

CLOSE = {"rtol": 0, "atol": 1e-10}
chances = st.floats(0.1, 0.9)


def kernel_of(mdp, p=0.5):
    transition = np.asarray(mdp.transition, float)
    transition /= transition.sum(-1, keepdims=True)
    return markov.tabular(transition, mdp.reward, p)


def tables(known):
    return known.dense(), known.reward


# Identities.


@given(strategies.tabular_mdps(), chances)
def test_first_order_is_the_mean_advantage_and_its_bias_is_known(mdp, p):
    known = kernel_of(mdp, p)
    found = effects.taylor(known)
    experiment = value.evaluate(known)
    law = experiment.occupancy
    advantage = experiment.action_value[1] - experiment.action_value[0]
    arms = [value.stationary(known, a) for a in (0.0, 1.0)]
    np.testing.assert_allclose(found.estimate, law @ advantage, **CLOSE)
    np.testing.assert_allclose(found.effect, ((1 - p) * arms[1] + p * arms[0]) @ advantage, **CLOSE)
    measure = law - (1 - p) * arms[1] - p * arms[0]
    np.testing.assert_allclose(found.bias, measure @ advantage, **CLOSE)
    naive = effects.taylor(known, 0, form="kernel")
    np.testing.assert_allclose(naive.estimate, law @ (known.reward[1] - known.reward[0]), **CLOSE)


@given(strategies.tabular_mdps(), chances)
def test_values_solve_their_equations(mdp, p):
    known = kernel_of(mdp, p)
    table, gain = tables(known)
    mixed, mean = (1 - p) * table[0] + p * table[1], (1 - p) * gain[0] + p * gain[1]
    found = value.evaluate(known)
    np.testing.assert_allclose(found.occupancy @ mixed, found.occupancy, **CLOSE)
    np.testing.assert_allclose(found.occupancy.sum(), 1)
    np.testing.assert_allclose(found.occupancy @ found.state_value, 0, atol=1e-9)
    np.testing.assert_allclose(
        found.state_value + found.value, mean + mixed @ found.state_value, atol=1e-9
    )
    start = np.eye(len(mean))[-1]
    later = value.evaluate(known, discount=0.9, initial=len(mean) - 1)
    exact = np.linalg.solve(np.eye(len(mean)) - 0.9 * mixed, mean)
    np.testing.assert_allclose(later.state_value, exact, **CLOSE)
    np.testing.assert_allclose(later.value, exact[-1], **CLOSE)
    np.testing.assert_allclose(later.occupancy.sum(), 10)
    np.testing.assert_allclose(later.action_value, gain + 0.9 * table @ exact, **CLOSE)
    whole = value.evaluate(known, horizon=3, initial=start)
    total = start @ (mean + mixed @ (mean + mixed @ mean))
    np.testing.assert_allclose([whole.value, whole.occupancy @ mean], total, **CLOSE)
    np.testing.assert_allclose(whole.action_value, gain + table @ (mean + mixed @ mean), **CLOSE)


@given(strategies.tabular_mdps(), chances, st.floats(-3, 3))
def test_without_interference_all_agree(mdp, p, gap):
    same = mdp._replace(transition=np.stack([mdp.transition[0]] * 2))
    found, naive = effects.taylor(kernel_of(same, p)), effects.asymptotics(kernel_of(same, p))
    np.testing.assert_allclose(found.estimate, found.effect, **CLOSE)
    np.testing.assert_allclose(naive["naive"].estimand, found.effect, **CLOSE)
    constant = same._replace(reward=np.stack([mdp.reward[0], mdp.reward[0] + np.float32(gap)]))
    difference = float(np.mean(constant.reward[1].astype(float) - constant.reward[0]))
    np.testing.assert_allclose(
        effects.taylor(kernel_of(constant, p)).estimate, difference, atol=1e-6
    )


@given(strategies.tabular_mdps(), chances, st.floats(-3, 3))
def test_a_constant_advantage_leaves_no_bias(mdp, p, gap):
    known = kernel_of(mdp, p)
    table, gain = tables(known)
    later = value.evaluate(markov.tabular(table, np.stack([gain[0]] * 2), p)).state_value
    treated = gap - (table[1] - table[0]) @ later
    arms = np.stack([gain[0] - p * treated, gain[0] + (1 - p) * treated])
    found = effects.taylor(markov.tabular(table, arms, p))
    np.testing.assert_allclose([found.estimate, found.effect], gap, atol=1e-9)


@given(strategies.tabular_mdps(), chances, st.data())
def test_it_moves_with_units_names_and_the_order_of_arms(mdp, p, data):
    known = kernel_of(mdp, p)
    table, gain = tables(known)
    order = data.draw(st.permutations(range(gain.shape[1])))
    first = effects.taylor(known, 3).by_order
    scaled = effects.taylor(markov.tabular(table, 2 * gain + 1, p), 3).by_order
    np.testing.assert_allclose(scaled, 2 * first, atol=1e-9)
    renamed = markov.tabular(table[:, order][:, :, order], gain[:, order], p)
    np.testing.assert_allclose(effects.taylor(renamed, 3).by_order, first, atol=1e-9)
    swapped = markov.tabular(table[::-1], gain[::-1], 1 - p)
    np.testing.assert_allclose(effects.taylor(swapped, 3).by_order, -first, atol=1e-9)
    turned = effects.taylor(known, 3, arms=(1, 0)).by_order
    np.testing.assert_allclose(turned, -first, atol=1e-9)


# Series.


def derivative(fn, x):
    return jax.jvp(fn, (x,), (1.0,))[1]


@settings(max_examples=8)  # each traces several programs
@given(strategies.tabular_mdps(), chances)
def test_derivatives_by_jax_are_the_series(mdp, p):
    known = kernel_of(mdp, p)
    for how in ({}, {"discount": 0.8, "initial": 0}, {"horizon": 4, "initial": 0}):
        found = effects.taylor(known, 4, **how)
        with jax.enable_x64(True):
            value_of = effects.policy_value(known, **how)
            first = jax.jvp(value_of, (p,), (1.0,))[1]
            slope = partial(derivative, value_of)
            second = jax.jvp(slope, (p,), (1.0,))[1]
            ends = [float(value_of(float(a))) for a in (0, 1)]
            both = [float(value_of(p)), float(first), float(second) / 2]
        scale = max(1, *np.abs(found.coefficients[1] / (1 - p) ** np.arange(5)))
        terms = found.coefficients[1] / (1 - p) ** np.arange(5) / scale
        np.testing.assert_allclose(np.array(both) / scale, terms[:3], **CLOSE)
        np.testing.assert_allclose(found.effect, ends[1] - ends[0], atol=1e-9)
        # both arms are one polynomial in the probability of treatment
        control = found.coefficients[0] / (-p) ** np.arange(5) / scale
        np.testing.assert_allclose(control, terms, **CLOSE)
        if "horizon" in how:
            continue
        with jax.enable_x64(True):
            frozen = effects.policy_value(known, around=p, newton=4, **how)
            start, series = jet.jet(frozen, (p,), ((1.0, 0.0, 0.0, 0.0),))
        derivatives = np.array([start, *series]) / [math.factorial(k) for k in range(5)]
        np.testing.assert_allclose(derivatives / scale, terms, **CLOSE)


@given(strategies.tabular_mdps(), chances)
def test_a_horizon_ends_the_series(mdp, p):
    for form in ("policy", "kernel"):
        found = effects.taylor(kernel_of(mdp, p), 4, form=form, horizon=4, initial=0)
        np.testing.assert_allclose(found.bias, 0, atol=1e-9)
        assert found.converges


@given(strategies.tabular_mdps())
def test_even_orders_add_nothing_at_one_half(mdp):
    found = effects.taylor(kernel_of(mdp), 6)
    assert found.by_order[0] == 0
    scale = np.abs(found.coefficients).max()
    np.testing.assert_allclose(found.by_order[2::2], found.by_order[1::2], atol=1e-10 * scale)
    kernel_form = effects.taylor(kernel_of(mdp), 1, form="kernel")
    np.testing.assert_allclose(kernel_form.estimate, found.by_order[1], atol=1e-9)


@given(strategies.tabular_mdps(), chances)
def test_a_long_horizon_and_a_weak_discount_tend_to_the_average(mdp, p):
    known = kernel_of(mdp, p)
    average, gamma = effects.taylor(known), 1 - 1e-7
    found = effects.taylor(known, discount=gamma)
    size = max(1, float(np.abs(average.coefficients).max()))
    np.testing.assert_allclose((1 - gamma) * found.estimate, average.estimate, atol=1e-4 * size)


def test_convergence_is_geometric_and_divergence_is_said():
    chain = markov.kernel(reference.two_state_mdp().model, jnp.arange(2))
    found = effects.taylor(chain, 11)
    error = np.abs(found.by_order - found.effect)[1::2]
    np.testing.assert_allclose(error[1:] / error[:-1], found.ratio.max() ** 2, rtol=1e-6)
    assert found.converges
    np.testing.assert_allclose(found.radius, 2)
    wild = reference.two_state_mdp(up=(0.01, 0.9), down=(0.02, 0.5), p=0.2)
    lost = effects.taylor(markov.kernel(wild.model, jnp.arange(2)), 12)
    assert not lost.converges
    total = np.array([0.03, 1.4]), 0.8 * 0.03 + 0.2 * 1.4
    np.testing.assert_allclose(lost.ratio, np.abs(total[0] - total[1]) / total[1])
    assert abs(lost.bias) > 1e3 * abs(lost.by_order[1] - lost.effect) > 1


@pytest.mark.parametrize(("p", "order"), [(0.7, 2), (0.5, 3), (0.3, 2)])
def test_order_of_the_bias(p, order):
    rng = np.random.default_rng(0)
    base, other = rng.dirichlet(np.ones(6), (2, 6))
    gain, more = rng.normal(size=(2, 6))

    def pair(delta, estimator):
        delta = float(delta)
        table = np.stack([base, (1 - delta) * base + delta * other])
        known = markov.tabular(table, np.stack([gain, gain + delta * more]), p)
        found = effects.taylor(known)
        naive = effects.taylor(known, 0, form="kernel")
        return (naive if estimator == "naive" else found).estimate, found.effect

    sizes = (0.4, 0.2, 0.1, 0.05, 0.025)
    first = testing.bias_order(lambda d: pair(d, "naive"), sizes, order=1)
    assert first.passed
    assert abs(first.order - 1) < 0.2
    found = testing.bias_order(lambda d: pair(d, "dq"), sizes, order=order)
    assert found.passed
    assert abs(found.order - order) < 0.2


# Closed forms.


def test_published_numbers():
    chain = markov.kernel(reference.two_state_mdp().model, jnp.arange(2))
    found = effects.taylor(chain)
    np.testing.assert_allclose([found.effect, found.estimate], [1.55555555556, 1.41666666667])
    assert effects.asymptotics(chain)["naive"].estimand == pytest.approx(1)


@pytest.mark.parametrize(
    ("size", "effect", "naive", "dq", "sds"),
    [
        (10, 0.0153478329, 0.0187418484, 0.0153470436, (0.6562, 0.5092, 0.5095)),
        (50, 0.0154976650, 0.0188646304, 0.0154970757, (0.6574, 0.5248, 0.5255)),
    ],
)
def test_rental_marketplace(size, effect, naive, dq, sds):
    market = markov.kernel(reference.rental_marketplace(size).model, jnp.arange(size + 1))
    found = effects.asymptotics(market)
    expansion = effects.taylor(market)
    estimates = [expansion.effect, found["naive"].estimand, expansion.estimate]
    np.testing.assert_allclose(estimates, [effect, naive, dq], rtol=0, atol=6e-11)
    np.testing.assert_allclose(found["dq"].estimand, dq, rtol=0, atol=6e-11)
    measured = [found[n].sd for n in ("naive", "dq", "off-policy")]
    np.testing.assert_allclose(measured, sds, rtol=0, atol=5.1e-5)


def test_large_chains_are_sparse_and_rare_states_do_no_harm():
    """A queue of 2,000 places that is almost never long."""
    size = 2000
    up, down = np.array([0.2, 0.25]), 0.5
    rows = np.arange(size)
    parts = [
        (a, s, t, p)
        for a in range(2)
        for s, t, p in (
            (rows[:-1], rows[1:], up[a]), (rows[1:], rows[:-1], down),
            (rows[1:-1], rows[1:-1], 1 - up[a] - down), (rows[:1], rows[:1], 1 - up[a]),
            (rows[-1:], rows[-1:], 1 - down),
        )
    ]  # fmt: skip
    columns = [np.concatenate(x) for x in zip(
        *((np.full(len(s), a), s, t, np.full(len(s), p)) for a, s, t, p in parts), strict=True
    )]  # fmt: skip
    arm, source, target, probability = columns
    reward = np.stack([-rows, -rows]).astype(float)
    gain = reward[arm, source]
    known = markov.Kernel(
        rows, {"a": np.arange(2)}, arm, source, target, probability, gain, np.zeros_like(gain),
        reward, np.full((size, 2), 0.5), 0.0,
    )  # fmt: skip
    found = effects.taylor(known, 3)
    means = [(u / down) / (1 - u / down) for u in up]  # geometric law
    np.testing.assert_allclose(found.effect, means[0] - means[1], rtol=1e-9)
    slope = -down / (down - 0.225) ** 2 * 0.05
    np.testing.assert_allclose(found.by_order[1], slope, rtol=1e-9)
    assert found.converges
    assert abs(found.by_order[3] - found.effect) < 0.2 * abs(found.by_order[1] - found.effect)
    law = value.stationary(known)
    np.testing.assert_allclose(law[:900], (0.55) * 0.45 ** np.arange(900), rtol=1e-8)


# Several arms, laws that depend on the state.


def test_more_arms_and_laws_by_state():
    rng = np.random.default_rng(1)
    table, gain = rng.dirichlet(np.ones(4), (3, 4)), rng.normal(size=(3, 4))
    law = rng.dirichlet(np.ones(3), 4)
    known = markov.tabular(table, gain, law)
    found = effects.taylor(known, 30, arms=(0, 2))
    np.testing.assert_allclose(found.estimate, found.effect, atol=1e-8)
    experiment = value.evaluate(known)
    difference = experiment.action_value[2] - experiment.action_value[0]
    np.testing.assert_allclose(found.by_order[1], experiment.occupancy @ difference, **CLOSE)


def test_the_influence_of_dq_is_a_martingale_of_mean_zero():
    """Asymptotic standard deviations against those of a simulated law, exactly enumerated."""
    rng = np.random.default_rng(2)
    known = markov.tabular(rng.dirichlet(np.ones(3), (2, 3)), rng.normal(size=(2, 3)), 0.4)
    first = effects.asymptotics(known)["dq"].sd
    # a reward with noise of its own: its variance enters with the square of the weights
    noisy = known._replace(gain_variance=np.full(len(known.arm), 2.0))
    more = effects.asymptotics(noisy)["dq"].sd
    experiment = value.evaluate(known)
    change = known.dense()[1] - known.dense()[0]
    law = experiment.occupancy
    z = np.linalg.inv(np.eye(3) - (0.6 * known.dense()[0] + 0.4 * known.dense()[1]) + law)
    weight = (law @ change @ z) / law
    eta = np.array([-1 / 0.6, 1 / 0.4])
    square = (law[:, None] * [0.6, 0.4] * (eta + weight[:, None]) ** 2).sum()
    np.testing.assert_allclose(more**2 - first**2, 2 * square)


# Posteriors.


def test_a_posterior_is_the_exact_effect_draw_by_draw():
    def step(x):
        import numpyro

        up = numpyro.sample("up", dist.Uniform(0, 1).expand([2]).to_event(1))
        treat = dp.action("treat", dist.Bernoulli(0.3), given=x)
        dp.reward("r", 2.0 * x + treat)
        return dp.state("x", dist.Bernoulli(jnp.where(x == 1, 0.6, up[treat])))

    draws = {"up": np.array([[0.2, 0.5], [0.3, 0.4], [0.1, 0.9]]), "r": np.zeros(3)}
    known = markov.kernel(step, jnp.arange(2), world=draws)
    assert known.probability.shape[0] == known.reward.shape[0] == 3
    found = effects.posterior(known, order=3)
    for i, up in enumerate(draws["up"]):
        one = reference.two_state_mdp(up=tuple(up), down=(0.4, 0.4), reward=((0, 1), (2, 3)), p=0.3)
        np.testing.assert_allclose(found.effect[i], one.effect())
        np.testing.assert_allclose([found.naive[i], found.dq[i]], [one.naive(), one.dq()])
        series = effects.taylor(markov.kernel(one.model, jnp.arange(2)), 3, p=0.3)
        np.testing.assert_allclose(found.by_order[i], series.by_order, atol=1e-7)
        later = effects.posterior(known, discount=0.9, initial=0)
        exact = effects.taylor(markov.tabular(one.transition, one.reward, 0.3), discount=0.9,
                               initial=0)  # fmt: skip
        np.testing.assert_allclose(later.effect[i], exact.effect)
        np.testing.assert_allclose(later.dq[i], exact.estimate)
    saved = found.to_arviz(3)
    assert dict(saved["posterior"].sizes) == {"chain": 3, "draw": 1, "order": 4}
    np.testing.assert_allclose(saved["posterior"]["effect"].values.ravel(), found.effect)
    with pytest.raises(ValueError, match="3 draws do not divide into 2 chains"):
        found.to_arviz(2)


def test_a_dirichlet_posterior_tends_to_what_was_counted():
    chain = reference.two_state_mdp(p=0.3)
    runs = markov.rollout(chain.model, 0, 100_000, key=0)
    known = markov.dirichlet_kernel(runs, 2, key=1, num_draws=300)
    counted = np.zeros((2, 2, 2))
    state, arm = np.asarray(runs.state[0]), np.asarray(runs.arm[0])
    np.add.at(counted, (arm, state[:-1], state[1:]), 1)
    share = (counted + 0.5) / (counted + 0.5).sum(-1, keepdims=True)
    draws = known.dense()
    error = np.sqrt(share * (1 - share) / counted.sum(-1, keepdims=True))
    assert (np.abs(draws.mean(0) - share) < 5 * error / np.sqrt(300)).all()
    np.testing.assert_allclose(draws.std(0), error, rtol=0.25)
    assert (np.abs(known.reward.mean(0) - chain.reward) < 1e-2).all()
    np.testing.assert_allclose(known.propensity[0], [[0.7, 0.3]] * 2, atol=1e-6)
    found = effects.posterior(known)
    assert abs(found.effect.mean() - chain.effect()) < 5 * found.effect.std()


# Errors.


def stuck(table):
    return markov.tabular(np.stack([table] * 2), np.ones((2, len(table))))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: value.stationary(stuck(np.eye(3))), "from state 0 it never reaches state 1"),
        (lambda: effects.taylor(stuck(np.eye(2)[::-1])), "is periodic: .* multiples of 2"),
        (lambda: value.stationary(stuck(np.roll(np.eye(3), 1, 1))), "multiples of 3 steps"),
        (
            lambda: effects.taylor(
                markov.tabular([[[0.5, 0.5], [0.5, 0.5]], [[1, 0], [0, 1]]], np.ones((2, 2)))
            ),
            "the chain under arm 1 is reducible",
        ),
        (lambda: effects.taylor(two(), -1), "order: expected a whole number"),
        (lambda: effects.taylor(two(), form="other"), "form: expected"),
        (lambda: effects.taylor(two(), discount=1.0), "discount: expected"),
        (lambda: effects.taylor(two(), horizon=0), "horizon: expected"),
        (lambda: effects.taylor(two(), horizon=3, discount=0.5), "not both"),
        (lambda: effects.taylor(two(), p=1.2), "policy: expected probabilities"),
        (lambda: effects.taylor(two(), p=[0.2, 0.3, 0.5]), "policy: expected a number"),
        (lambda: effects.taylor(two(), arms=(1, 1)), "two different numbers"),
        (lambda: effects.taylor(two(), horizon=2, initial=[0.5, 0.6]), "initial: expected"),
        (lambda: effects.asymptotics(two(), p=1.0), "probability zero in state number 0"),
        (lambda: effects.posterior(two()), "several draws"),
        (lambda: markov.tabular(np.ones((2, 2, 2)), np.ones((2, 2))), "sum to one"),
        (lambda: markov.tabular(np.ones((2, 2)), np.ones((2, 2))), r"transition \[arms"),
        (lambda: markov.tabular(np.ones((2, 2, 2)) / 2, np.ones((2, 2)), [0.5] * 3), "propensity"),
    ],
)  # fmt: skip
def test_misuse_says_what_to_do(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def two():
    chain = reference.two_state_mdp()
    return markov.tabular(chain.transition, chain.reward)


def test_transient_states_are_allowed():
    """A state that is left for good weighs nothing."""
    table = np.array([[0, 0.5, 0.5], [0, 0.7, 0.3], [0, 0.4, 0.6]])
    law = value.stationary(stuck(table))
    np.testing.assert_allclose(law, [0, 4 / 7, 3 / 7])
