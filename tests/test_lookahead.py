"""Rules that ask what an outcome would teach, and decisions where actions cannot be listed.

Statistics below fail by chance with a probability under 1e-7 each.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import decisionppl as dp
from decisionppl import inference, kernels, rules
from decisionppl._knowledge import log_expected_rise, log_rise, truncation_information

KEY = jax.random.key(0)
Z = np.linspace(-9, 9, 20_001)
WEIGHT = stats.norm.pdf(Z) * (Z[1] - Z[0])

numbers = st.floats(-3, 3, allow_subnormal=False, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9))
def test_the_expected_rise_is_the_integral_over_the_upper_envelope(lines):
    mean, change = (np.array(v) for v in zip(*lines, strict=True))
    exact = WEIGHT @ np.max(mean[:, None] + np.outer(change, Z), axis=0) - mean.max()
    with jax.enable_x64(True):
        got = float(jnp.exp(log_expected_rise(jnp.asarray(mean), jnp.asarray(change))))
    assert got == pytest.approx(exact, abs=1e-6)


def test_the_rise_of_two_actions_never_underflows():
    """max(0, Z - c) has the mean h(-c), far out in the tail too."""
    with jax.enable_x64(True):
        for c in (1.0, 10.0, 40.0):
            got = float(log_expected_rise(jnp.array([0.0, -c]), jnp.array([0.0, 1.0])))
            # h(-c) = phi(c) / c^2 (1 - 3 / c^2 + 15 / c^4 - ...)
            exact = np.log(stats.norm.pdf(c) - c * stats.norm.sf(c)) if c < 5 else None
            series = stats.norm.logpdf(c) - 2 * np.log(c) + np.log(1 - 3 / c**2 + 15 / c**4)
            assert got == pytest.approx(exact if exact is not None else series, abs=2e-3)


def test_slopes_of_the_rise_are_those_of_finite_differences():
    mean, change = jnp.array([0.2, -0.1, 0.3, -2.0]), jnp.array([0.5, -1.0, 0.1, 1.5])
    with jax.enable_x64(True):
        both = jnp.concatenate([mean, change]).astype(float)
        rise = lambda v: log_expected_rise(v[:4], v[4:])  # noqa: E731
        slope = jax.grad(rise)(both)
        for i in range(8):
            step = jnp.zeros(8).at[i].set(1e-6)
            difference = (rise(both + step) - rise(both - step)) / 2e-6
            assert float(slope[i]) == pytest.approx(float(difference), abs=1e-5)


def test_several_outcomes_rise_as_their_simulation_says():
    rng = np.random.default_rng(1)
    mean, change = rng.normal(size=6), rng.normal(size=(3, 6))
    noise = rng.normal(size=(400_000, 3))
    best = np.max(mean + noise @ change, axis=1) - mean.max()
    got = float(jnp.exp(log_rise(jnp.asarray(mean), jnp.asarray(change))))
    assert got == pytest.approx(best.mean(), rel=0.03)
    # one coordinate that says nothing leaves what the other says
    both = jnp.stack([jnp.asarray(change[0]), jnp.zeros(6)])
    one = float(jnp.exp(log_rise(jnp.asarray(mean), jnp.asarray(change[:1]))))
    assert float(jnp.exp(log_rise(jnp.asarray(mean), both))) == pytest.approx(one, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(st.floats(-4, 6), st.floats(0, 0.9999))
def test_what_a_bound_tells_is_the_loss_of_entropy(gamma, rho):
    y = np.linspace(-10, 10, 200_001)
    step = y[1] - y[0]
    sharp = np.sqrt(1 - rho**2)
    log_law = stats.norm.logpdf(y) + stats.norm.logcdf((gamma - rho * y) / sharp)
    log_law -= stats.norm.logcdf(gamma)
    law = np.exp(log_law)
    entropy = -step * np.sum(np.where(law > 0, law * log_law, 0.0))
    exact = 0.5 * np.log(2 * np.pi * np.e) - entropy
    with jax.enable_x64(True):
        got = float(truncation_information(jnp.asarray(gamma), jnp.asarray(rho)))
    assert got == pytest.approx(exact, abs=2e-5)


def test_a_bound_on_the_outcome_itself_has_the_published_form():
    for gamma in (-1.0, 0.3, 2.0):
        closed = gamma * stats.norm.pdf(gamma) / (2 * stats.norm.cdf(gamma))
        closed -= stats.norm.logcdf(gamma)
        got = float(truncation_information(jnp.asarray(gamma), jnp.asarray(1.0)))
        assert got == pytest.approx(closed, rel=1e-3)


def normals(mean, covariance, noise, targets=None):
    """The preposterior of independent outcomes y_a = U_a + noise, and of utilities U."""
    mean, covariance = jnp.asarray(mean), jnp.asarray(covariance)
    targets = jnp.arange(len(mean)) if targets is None else jnp.asarray(targets)
    sd = jnp.sqrt(jnp.diag(covariance) + noise**2)
    return rules.Preposterior(
        mean[targets][None], covariance[targets][:, targets][None],
        (covariance[:, targets] / sd[:, None])[None, :, None], mean[None],
        jnp.sqrt(jnp.diag(covariance))[None], (jnp.diag(covariance) / sd)[None, :, None],
    )  # fmt: skip


MEAN = np.array([0.0, 0.5, -0.3])
COVARIANCE = np.array([[1.0, 0.6, -0.4], [0.6, 0.8, 0.0], [-0.4, 0.0, 1.5]])


def test_knowledge_gradient_is_what_updating_on_simulated_outcomes_gains():
    rng = np.random.default_rng(0)
    noise = 0.7
    known = normals(MEAN, COVARIANCE, noise)
    scores = np.asarray(rules.knowledge_gradient(KEY, known).scores)
    for a in range(3):
        spread = COVARIANCE[a, a] + noise**2
        y = MEAN[a] + np.sqrt(spread) * rng.normal(size=200_000)
        updated = MEAN + np.outer(y - MEAN[a], COVARIANCE[:, a] / spread)
        gain = updated.max(1) - MEAN.max()
        assert abs(gain.mean() - scores[a]) < 5.5 * gain.std() / np.sqrt(len(gain))
    halved = rules.knowledge_gradient(KEY, known, cost=jnp.array([2.0, 1.0, 1.0])).scores
    assert float(halved[0]) == pytest.approx(scores[0] / 2, rel=1e-5)
    best = int(np.argmax(scores))
    masked = rules.knowledge_gradient(KEY, known, mask=jnp.arange(3) != best)
    assert np.isneginf(masked.scores[best])
    assert float(masked.probabilities[best]) == 0.0


def test_without_noise_at_the_target_it_is_expected_improvement():
    """Noisy expected improvement over the actions tried, all of whose values are known."""
    covariance = np.diag([0.0, 0.0, 1.5])
    known = normals(MEAN, covariance, 1e-6, targets=[0, 1])
    score = float(rules.noisy_expected_improvement(KEY, known).scores[2])
    law = dist.Normal(jnp.asarray(MEAN[2:]), jnp.sqrt(jnp.asarray([1.5])))
    exact = float(rules.expected_improvement(KEY, law, best=0.5).scores[0])
    assert score == pytest.approx(exact, rel=1e-4)


def test_entropy_search_prefers_what_tells_of_the_maximum():
    known = normals(np.zeros(3), np.diag([1.0, 1.0, 0.01]), 0.1)
    scores = np.asarray(rules.max_value_entropy(KEY, known).scores)
    assert scores[2] < 0.2 * scores[0]
    assert scores[0] == pytest.approx(scores[1], rel=0.3)
    noisy = np.asarray(rules.max_value_entropy(KEY, normals(np.zeros(3), np.eye(3), 3.0)).scores)
    assert noisy.max() < scores[0]


def test_entropy_search_draws_the_largest_of_correlated_utilities():
    """What is nearly one utility has no larger maximum than itself; twenty of their own have."""
    noise, size = 0.5, 20

    def score(covariance):
        known = normals(np.zeros(size), covariance, noise)
        many = jax.tree.map(lambda v: jnp.repeat(v, 16, axis=0), known)
        return float(jax.jit(rules.max_value_entropy)(KEY, many).scores[0])

    together = score(np.ones((size, size)))
    assert together > 2 * score(np.eye(size))
    # the largest is not below the best mean, here zero
    rho = jnp.asarray(1 / np.sqrt(1 + noise**2))
    information = truncation_information(jnp.maximum(jnp.asarray(Z[::100]), 0.0), rho)
    expected = float(100 * WEIGHT[::100] @ np.asarray(information))
    # 256 draws of something between zero and 0.4: five standard errors
    assert together == pytest.approx(expected, abs=0.04)


def test_draws_of_hyperparameters_are_averaged():
    one, other = normals(MEAN, COVARIANCE, 0.5), normals(2 * MEAN, 4 * COVARIANCE, 0.1)
    both = jax.tree.map(lambda *v: jnp.concatenate(v), one, other)
    for rule in (rules.knowledge_gradient, rules.noisy_expected_improvement):
        each = [np.asarray(rule(KEY, known).scores) for known in (one, other)]
        np.testing.assert_allclose(rule(KEY, both).scores, np.mean(each, axis=0), rtol=1e-5)


# Decisions.

SCALES = jnp.array([0.1, 1.0])


def surface():
    """Two fidelities; the cheap one shares part of the target's function."""
    f = numpyro.sample("f", dp.GaussianProcess(kernels.LinearTruncated(
        kernels.RBF(0.2), 0.3 * kernels.RBF(0.2), 1)))  # fmt: skip
    x = dp.action("x", dist.Uniform(0, 1))
    level = dp.action("level", 2)
    s = jnp.array([0.2, 1.0])[level]
    dp.cost("price", SCALES[level])
    dp.outcome("y", dist.Normal(f(x, s), 0.05))
    dp.reward("value", f(x, 1.0))


@pytest.fixture(scope="module")
def engine():
    return inference.gaussian_process(surface)


def told(engine, x, level, y):
    rows = dp.observe(surface, sites={"x": x, "level": level, "y": y})
    return engine.update(KEY, engine.init(KEY), rows)


def decision(engine, rule, belief, actions=None, **options):
    trial = dp.experiment.Experiment(surface, engine, rule, key=0, actions=actions, **options)
    trial.belief = belief
    return trial.ask().action


GRID = np.linspace(0, 1, 21)
CANDIDATES = {"x": np.repeat(GRID, 2), "level": np.tile([0, 1], 21)}
SEEN = ([0.1, 0.5, 0.9], [1, 1, 1], [0.0, 1.0, 0.2])


@pytest.mark.parametrize("rule", [rules.knowledge_gradient, rules.max_value_entropy])
def test_per_unit_cost_the_cheap_fidelity_is_asked_where_it_tells(engine, rule):
    belief = told(engine, *SEEN)
    dear = decision(engine, rules.per_cost(rule), belief, CANDIDATES)
    assert int(dear["level"]) == 0
    # by hand, from the same preposterior
    surrogate = engine.surrogate
    targets = {"x": jnp.asarray(GRID), "level": jnp.ones(21, int)}
    known = surrogate.preposterior(surrogate.view(belief), CANDIDATES, targets, (), {}, False)
    price = SCALES[CANDIDATES["level"]]
    scores = np.asarray(rule(KEY, known, cost=price).scores)
    chosen = np.flatnonzero((CANDIDATES["x"] == np.asarray(dear["x"], np.float32).astype(float))
                            | np.isclose(CANDIDATES["x"], dear["x"]))  # fmt: skip
    assert scores[chosen].max() > 0.9 * scores.max()


def test_a_fidelity_that_tells_nothing_is_never_bought(engine):
    """Not even if it costs next to nothing: the defect of projecting before scoring."""

    def unrelated():
        f = numpyro.sample("f", dp.GaussianProcess(kernels.KennedyOHagan(
            [0.0], [kernels.RBF(0.2), kernels.RBF(0.2)])))  # fmt: skip
        x = dp.action("x", dist.Uniform(0, 1))
        level = dp.action("level", 2)
        dp.cost("price", jnp.array([1e-4, 1.0])[level])
        dp.outcome("y", dist.Normal(f(level, x), 0.05))
        dp.reward("value", f(1, x))

    engine = inference.gaussian_process(unrelated)
    for rule in (rules.knowledge_gradient, rules.max_value_entropy):
        trial = dp.experiment.Experiment(
            unrelated, engine, rules.per_cost(rule), key=0, actions=CANDIDATES
        )
        assert trial.ask().action["level"] == 1


@pytest.mark.parametrize(
    "rule",
    [
        rules.log_ei,
        functools.partial(rules.ucb, quantile=0.9),
    ],
)
def test_searching_the_space_is_never_worse_than_a_grid(engine, rule):
    belief = told(engine, *SEEN)
    action = decision(engine, rule, belief)
    assert 0 <= float(action["x"]) <= 1
    grid = with_grid(action)
    law = engine.surrogate.utility(engine.surrogate.view(belief), grid, (), {}, True)
    arms = dist.Normal(law.loc[0], law.scale[0])
    scores = np.asarray(rule(KEY, arms, mask=jnp.ones(len(grid["x"]), bool)).scores)
    assert scores[-1] >= scores.max() - 0.02 * np.ptp(scores)


def with_grid(action):
    """A fine grid over both levels, and an action at the end."""
    x, level = np.linspace(0, 1, 101), np.repeat([0, 1], 101)
    return {
        "x": np.append(np.tile(x, 2), action["x"]), "level": np.append(level, action["level"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "share"),
    [
        (rules.noisy_expected_improvement, 0.95),
        (rules.per_cost(rules.knowledge_gradient), 0.9),
        (rules.max_value_entropy, 0.7),  # by 16 draws of the largest utility
    ],
    ids=["noisy_expected_improvement", "per_cost", "max_value_entropy"],
)
def test_searching_one_step_ahead_is_never_worse_than_a_grid(engine, rule, share):
    """Under the rule's own score, with targets all over the grid."""
    belief, per_cost = told(engine, *SEEN), hasattr(rule, "rule")
    action = decision(engine, rule, belief, draws=2)
    grid = with_grid(action)
    surrogate = engine.surrogate

    @jax.jit
    def known_of(actions, targets):
        view = surrogate.view(belief)
        return surrogate.preposterior(view, actions, targets, (), {}, not per_cost)

    if rule is rules.noisy_expected_improvement:
        law = surrogate.utility(surrogate.view(belief), grid, (), {}, True)
        best = int(np.argmax(law.loc[0]))
        targets = {
            n: np.append(v, grid[n][best]) for n, v in zip(("x", "level"), SEEN, strict=False)
        }
    else:
        targets = {n: v[:-1:5] for n, v in grid.items()}
    extra = {"cost": SCALES[grid["level"]]} if per_cost else {}
    score = rule.rule if per_cost else rule
    scores = np.asarray(score(KEY, known_of(grid, targets), **extra).scores)
    assert scores[-1] >= share * scores.max()


def test_thompson_sampling_maximises_one_drawn_function(engine):
    belief = told(engine, *SEEN)
    trial = dp.experiment.Experiment(surface, engine, rules.thompson, key=3)
    trial.belief = belief
    chosen = [float(trial.ask().action["x"]) for _ in range(12)]
    assert len(set(chosen)) > 1
    assert np.median(np.abs(np.array(chosen) - 0.5)) < 0.25  # near the best that was seen


def test_constraints_hold_where_actions_are_searched(engine):
    belief = told(engine, *SEEN)
    allowed = lambda values: rules.feasible(values["price"], upper=0.5)  # noqa: E731
    action = decision(engine, rules.log_ei, belief, constraint=allowed, draws=4)
    assert action["level"] == 0


def test_open_decisions_make_a_batch_that_does_not_repeat_itself(engine):
    target = {"x": GRID, "level": np.ones(21, int)}
    trial = dp.experiment.Experiment(surface, engine, rules.log_ei, key=0, actions=target)
    trial.belief = told(engine, *SEEN)
    batch = [trial.ask() for _ in range(4)]
    assert len({float(a.action["x"]) for a in batch}) >= 3  # noise may make one worth repeating
    # by hand: the second decision is that of a belief told what was expected of the first
    surrogate = engine.surrogate
    belief = told(engine, *SEEN)
    first = {n: jnp.asarray(v) for n, v in batch[0].action.items()}
    imagined = surrogate.fantasise(belief, first)
    scores = np.asarray(rules.log_ei(KEY, engine.predict(imagined, target)).scores)
    assert scores[np.isclose(GRID, batch[1].action["x"])][0] >= scores.max() - 1e-3
    trial.tell(batch[0].token, 0.3)
    assert trial.pending == [b.token for b in batch[1:]]


def test_a_recommendation_is_the_best_mean_and_says_what_is_left(engine):
    trial = dp.experiment.Experiment(
        surface, engine, rules.per_cost(rules.knowledge_gradient), key=0, actions=CANDIDATES
    )
    trial.belief = told(engine, *SEEN)
    found = trial.recommend()
    view = engine.surrogate.view(trial.belief)
    law = engine.surrogate.utility(view, CANDIDATES, (), {}, False)
    best = int(np.argmax(law.loc[0]))
    assert float(found.action["x"]) == pytest.approx(CANDIDATES["x"][best], abs=1e-6)
    assert found.mean == pytest.approx(float(law.loc[0, best]), abs=1e-5)
    assert found.sd == pytest.approx(float(law.scale[0, best]), rel=1e-4)
    # the expected maximum of the utilities, by draws of our own
    target = {"x": GRID, "level": np.ones(21, int)}
    known = engine.surrogate.preposterior(view, CANDIDATES, target, (), {}, False)
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal(
        known.mean[0], known.covariance[0], 20_000, check_valid="ignore"
    )
    expected = draws.max(1).mean() - found.mean
    assert found.regret == pytest.approx(expected, abs=6 * draws.max(1).std() / np.sqrt(2048))
    gains = rules.knowledge_gradient(KEY, known, cost=SCALES[CANDIDATES["level"]]).scores
    assert found.gain == pytest.approx(float(gains.max()), rel=0.02)
    knows_more = dp.experiment.Experiment(surface, engine, rules.log_ei, key=0)
    knows_more.belief = told(engine, GRID, np.ones(21, int), np.sin(GRID))
    left = knows_more.recommend()
    assert left.regret < found.regret / 3
    assert left.gain < found.gain
    assert 0.8 < float(left.action["x"]) <= 1


def test_uniform_draws_from_the_law_of_the_actions(engine):
    trial = dp.experiment.Experiment(surface, engine, rules.uniform, key=0)
    xs = [trial.ask().action["x"] for _ in range(20)]
    assert 0 <= min(xs) < max(xs) <= 1


def test_what_is_open_in_a_searched_space_is_saved(engine, tmp_path):
    """With a history that has grown past the room of a new experiment."""
    make = functools.partial(dp.experiment.Experiment, surface, engine, rules.uniform, key=0)
    trial = make()
    trial.belief = told(engine, GRID, np.ones(21, int), np.sin(GRID))
    asked = [trial.ask() for _ in range(3)]
    trial.tell(asked[1].token, 0.5)
    trial.save(tmp_path / "trial.nc")
    restored = make().load(tmp_path / "trial.nc")
    assert restored.pending == trial.pending == [asked[0].token, asked[2].token]
    assert restored.history == trial.history
    for t in (trial, restored):
        t.tell(asked[2].token, 0.25)
    jax.tree.map(np.testing.assert_array_equal, trial.belief, restored.belief)
    assert restored.history["x"][-1] == pytest.approx(asked[2].action["x"])
    assert trial.ask().action == restored.ask().action
    other = dp.experiment.Experiment(surface, engine, rules.uniform, key=0, actions=CANDIDATES)
    other.belief = jax.tree.map(lambda a: jnp.asarray(a)[None], trial.belief)
    with pytest.raises(ValueError, match="state of shape"):
        other.load(tmp_path / "trial.nc")


def test_a_loop_of_searched_decisions_learns():
    engine = inference.gaussian_process(surface, capacity=16)

    def outcome(key, context, action):
        return jnp.exp(-20 * (action["x"] - 0.7) ** 2) - 0.1 * (action["level"] == 0)

    result = dp.experiment.run(
        surface, engine, rules.log_ei, outcome, 12, key=0, replications=2, draws=4
    )
    assert {"x", "level", "y"} == set(result.data.data_vars)
    view = engine.surrogate.view(jax.tree.map(lambda b: b[0], result.belief))
    grid = {"x": GRID, "level": np.ones(21, int)}
    best = GRID[np.argmax(engine.surrogate.utility(view, grid, (), {}, False).loc[0])]
    assert abs(best - 0.7) <= 0.1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: decision(e, rules.top_two, e.init(KEY)), ValueError, "compares a list"),
        (lambda e: rules.knowledge_gradient(KEY, jnp.ones((3, 2))), TypeError, "Preposterior"),
    ],
)
def test_misuse_says_what_to_do(engine, call, error, message):
    with pytest.raises(error, match=message):
        call(engine)


def test_rules_that_look_ahead_need_an_engine_that_can():
    def model():
        p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))
        dp.reward("click", dist.Bernoulli(p[dp.action("arm", 2)]))

    with pytest.raises(ValueError, match="knowledge_gradient asks what outcomes would tell"):
        dp.experiment.Experiment(model, inference.conjugate(model), rules.knowledge_gradient, key=0)
