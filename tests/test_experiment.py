"""The sequential loop: the same numbers however it is cut, stopped, batched or delayed."""

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl import _loop, experiment, inference, rules
from decisionppl.models import GALLERY, bandits, build


@pytest.fixture(scope="module")
def linear():
    return build("linear", num_arms=3, dim=2)


@pytest.fixture(scope="module")
def engine(linear):
    return linear.engine()


def go(problem, engine, horizon, **options):
    settings = {"key": 0, "replications": 3, "contexts": problem.contexts, "progress": False}
    return experiment.run(
        problem.model, engine, options.pop("rule", rules.thompson), None, horizon,
        **{**settings, **options},
    )  # fmt: skip


def test_what_a_result_holds(linear, engine):
    result = go(linear, engine, 20)
    data = result.data
    assert dict(data.sizes) == {"replication": 3, "round": 20}
    assert set(data.data_vars) == {"arm", "action_index", "reward", "regret", "propensity"}
    assert (data.regret >= 0).all()
    assert ((data.propensity > 0) & (data.propensity <= 1)).all()
    assert set(np.unique(data.arm)) <= {0, 1, 2}
    assert result.complete
    for name in ("decisionppl", "model_hash", "key", "device", "dtype", "compile_seconds"):
        assert name in result.attrs


def test_same_key_same_numbers_and_replications_differ(linear, engine):
    one, two, other = (go(linear, engine, 30, key=k) for k in (0, jax.random.key(0), 1))
    assert one.data.equals(two.data)
    assert not one.data.equals(other.data)
    rewards = one.data.reward.values
    assert not np.array_equal(rewards[0], rewards[1])


def test_no_compilation_for_another_horizon(linear, engine):
    go(linear, engine, 10)
    assert go(linear, engine, 57).attrs["compile_seconds"] == 0.0


def test_a_run_like_one_before_compiles_nothing(compilations):
    problem = build("gaussian", num_arms=4)
    engine = problem.engine()

    def again(horizon, key):
        experiment.run(
            problem.model, engine, rules.thompson, horizon=horizon, key=key, replications=2,
            progress=False,
        )  # fmt: skip
        return compilations()

    first = again(5, 0)
    assert again(9, 1) == first > 0


@pytest.mark.parametrize("options", [{}, {"delay": 3}, {"batch": 2}], ids=str)
def test_continuing_equals_running_through(linear, engine, tmp_path, options):
    whole = go(linear, engine, 40, **options)
    half = go(linear, engine, 20, **options)
    half.save(tmp_path / "half.nc")
    for source in (half, tmp_path / "half.nc", str(tmp_path / "half.nc")):
        continued = go(linear, engine, 40, resume=source, **options)
        assert continued.data.equals(whole.data)
        for a, b in zip(continued.state, whole.state, strict=True):
            np.testing.assert_array_equal(a, b)


SCRIPT = """
import sys
from decisionppl import experiment, rules
from decisionppl.models import build
problem = build("linear", num_arms=3, dim=2)
horizon, path = int(sys.argv[1]), sys.argv[2]
result = experiment.run(
    problem.model, problem.engine(), rules.thompson, None, horizon, key=0,
    replications=3, contexts=problem.contexts, checkpoint=path, progress=False)
print(len(result.belief.mean.sharding.device_set))
"""


def test_checkpoint_continues_in_a_new_process(linear, engine, tmp_path):
    path = tmp_path / "run.nc"
    for horizon in (20, 40):
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(horizon), str(path)]
        subprocess.run(command, check=True, capture_output=True)
    stored = experiment.Result.load(path)
    assert stored.data.equals(go(linear, engine, 40).data)
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


def test_replications_are_spread_over_devices(linear, engine, tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    path = tmp_path / "run.nc"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), "20", str(path)]
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(command, check=True, capture_output=True, env=environment, text=True)
    assert done.stdout.strip() == "3"
    stored = experiment.Result.load(path)
    np.testing.assert_array_equal(stored.data.arm, go(linear, engine, 20).data.arm)


@pytest.mark.parametrize(("total", "size"), [(1, 1), (10, 10), (64, 32), (1009, 1009)])
def test_groups_of_replications(total, size):
    belief = jnp.zeros((total, 1024))  # 4 KiB each, so that 32 of them fit
    nothing = jnp.zeros(0)
    carry = _loop.Carry(jnp.zeros((total, 2)), belief, (), dp.Rows((), {}, nothing), nothing)
    assert _loop._group_size(carry) == size


def test_resuming_another_experiment_is_refused(linear, engine):
    done = go(linear, engine, 5)
    with pytest.raises(ValueError, match="resume: key"):
        go(linear, engine, 10, resume=done, key=7)
    other = build("linear", num_arms=3, dim=3)
    with pytest.raises(ValueError, match="resume|state"):
        go(other, other.engine(), 10, resume=done)


def test_interruption_keeps_what_was_done(linear, engine, monkeypatch, tmp_path):
    calls = []
    program = experiment._program

    def interrupted(plan):
        compiled, seconds = program(plan)

        def chunk(*inputs):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return compiled.chunk(*inputs)

        return compiled._replace(chunk=chunk), seconds

    monkeypatch.setattr(experiment, "_program", interrupted)
    with pytest.warns(UserWarning, match="interrupted after round"):
        part = go(linear, engine, 5000, checkpoint=tmp_path / "part.nc")
    monkeypatch.undo()
    assert not part.complete
    assert 0 < part.rounds < 5000
    whole = go(linear, engine, part.rounds + 10)
    assert go(linear, engine, part.rounds + 10, resume=tmp_path / "part.nc").data.equals(whole.data)


def test_netcdf_round_trip(linear, engine, tmp_path):
    result = go(linear, engine, 12, batch=2)
    result.save(tmp_path / "deep" / "result.nc")
    loaded = experiment.Result.load(tmp_path / "deep" / "result.nc")
    assert loaded.data.equals(result.data)
    assert loaded.attrs == result.attrs


def test_failed_write_leaves_the_old_file(linear, engine, tmp_path, monkeypatch):
    result = go(linear, engine, 5)
    path = tmp_path / "result.nc"
    result.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        result.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]


def test_to_arviz(linear, engine):
    import arviz as az

    idata = go(linear, engine, 10).to_arviz(num_worlds=40)
    assert set(idata.groups() if callable(idata.groups) else idata.groups) >= {
        "posterior", "observed_data", "sample_stats"}  # fmt: skip
    assert idata["posterior"]["w"].shape == (3, 40, 3, 2)
    assert len(az.summary(idata["posterior"])) == 6


# batches and delays


def counting():
    """Beliefs that count what has arrived, so that timing can be read off."""

    def model():
        numpyro.sample("z", dist.Normal(0, 1))
        dp.reward("y", dist.Normal(dp.action("arm", 2), 1.0))

    def update(key, belief, rows):
        return belief + jnp.sum(rows.mask)

    def sample(key, belief, num_worlds):
        return {"z": jnp.full(num_worlds, belief, float)}

    return model, inference.Inference(lambda key: jnp.zeros((), jnp.int32), update, sample)


@pytest.mark.parametrize(("batch", "delay"), [(1, 0), (1, 4), (3, 0), (3, 2)])
def test_outcomes_arrive_when_they_should(batch, delay):
    model, engine = counting()
    seen = []

    def rule(key, utility, *, mask=None):
        return rules.greedy(key, utility, mask=mask)

    for horizon in (1, 2, 5, 9):
        result = experiment.run(model, engine, rule, horizon=horizon, key=0, batch=batch,
                                delay=delay, progress=False)  # fmt: skip
        seen.append(int(result.belief[0]))
    assert seen == [batch * max(h - delay, 0) for h in (1, 2, 5, 9)]


def test_random_delays_lose_and_repeat_nothing():
    model, engine = counting()
    delay = experiment.Delay(lambda key, context, action: jax.random.poisson(key, 2.0), maximum=6)
    options = {"key": 0, "replications": 4, "delay": delay, "progress": False}
    early = experiment.run(model, engine, rules.uniform, horizon=20, **options)
    later = experiment.run(model, engine, rules.uniform, horizon=40, **options)
    assert (np.asarray(early.belief) <= 20).all()
    assert (np.asarray(later.belief) >= 40 - 6).all()
    assert (np.asarray(later.belief) > np.asarray(early.belief)).all()


def test_delay_slows_learning_but_zero_delay_object_does_not():
    problem = build("gaussian", num_arms=3)
    engine = problem.engine()
    now = go(problem, engine, 30)
    same = go(problem, engine, 30, delay=experiment.Delay(lambda key, context, action: 0, 2))
    np.testing.assert_allclose(same.data.reward, now.data.reward, rtol=1e-4, atol=1e-4)


# environments


def test_callable_environments(linear, engine):
    def environment(key, x, arm):
        return 1.0 * (arm == 1) + 0.0 * x[0]

    result = experiment.run(
        linear.model, engine, rules.greedy, environment, 60, key=0, replications=2,
        contexts=jnp.tile(jnp.array([1.0, 0.0]), (60, 1)), progress=False,
    )  # fmt: skip
    assert "regret" not in result.data
    assert float((result.data.arm.isel(round=slice(30, None)) == 1).mean()) > 0.9


def test_context_sites_are_drawn_from_the_model():
    def model():
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2, 3]).to_event(2))
        x = dp.context("x", dist.Normal(0, 1).expand([3]).to_event(1))
        dp.reward("y", dist.Normal(w[dp.action("arm", 2, given=x)] @ x, 0.1))

    engine = inference.conjugate(model)
    result = experiment.run(model, engine, rules.thompson, horizon=60, key=0, replications=4,
                            progress=False)  # fmt: skip
    regret = result.data.regret.mean("replication")
    assert float(regret[30:].mean()) < 0.3 * float(regret[:5].mean()) + 0.05


def test_unavailable_actions_are_never_chosen():
    problem = build("items", num_items=6, dim=2)

    def offers(key, t):  # three of the items, in turn
        return jax.random.normal(key, (6, 2)), (jnp.arange(6) + t) % 2 == 0

    for rule in (rules.thompson, rules.ucb, rules.epsilon_greedy, rules.information_directed):
        result = experiment.run(problem.model, problem.engine(), rule, horizon=30, key=0,
                                replications=2, contexts=offers, progress=False)  # fmt: skip
        assert ((result.data.item + result.data["round"]) % 2 == 0).all()


def priced():
    def model():
        p = numpyro.sample("p", dist.Beta(1, 1).expand([3]).to_event(1))
        arm = dp.action("arm", 3)
        dp.outcome("harm", dist.Bernoulli(jnp.array([0.0, 0.0, 0.9])[arm]))
        dp.reward("click", dist.Bernoulli(p[arm]))
        dp.cost("price", jnp.array([1.0, 4.0, 1.0])[arm])

    return model


@pytest.mark.parametrize(
    "rule",
    [
        rules.thompson,
        functools.partial(rules.top_two, beta=0.9),  # at 1/2 the challenger is played as often
        rules.greedy,
        rules.ucb,
        rules.expected_improvement,
        rules.log_ei,
        rules.information_directed,
        rules.probability_of_best,
    ],
    ids=lambda rule: getattr(rule, "__name__", "top_two"),
)
def test_constraints_and_costs_work_with_every_rule(rule):
    model = priced()
    safe = lambda values: rules.feasible(values["harm"], upper=0.5)  # noqa: E731
    result = experiment.run(
        model, inference.conjugate(model), rules.per_cost(rule), horizon=40, key=0, draws=64,
        replications=8, constraint=safe, progress=False,
    )  # fmt: skip
    assert not (result.data.arm == 2).any()
    assert float((result.data.arm == 0).mean()) > 0.5


def test_thompson_sampling_agrees_with_enumeration():
    """Simulated expected reward of the whole pipeline against the exact value."""
    model = bandits.beta_bernoulli(2)
    result = experiment.run(model, inference.conjugate(model), rules.thompson, horizon=12, key=3,
                            replications=20_000, regret=False, progress=False)  # fmt: skip
    totals = result.data.reward.sum("round").values
    error = totals.std() / np.sqrt(len(totals))
    # six standard errors: false alarm 2e-9; greedy would be 20 standard errors away
    assert abs(totals.mean() - bandits.two_armed_value(12)) < 6 * error
    assert abs(totals.mean() - bandits.two_armed_value(12, "optimal")) > 6 * error


QUICK = ("gaussian", "linear")  # the other models of the gallery: ./check --slow


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in sorted(GALLERY)]
)
def test_learning_beats_guessing_on_every_gallery_model(name):
    problem = build(name)
    engine = problem.engine()
    options = {"replications": 20, "regret": True}
    learned = go(problem, engine, 80, **options).data.regret
    guessed = go(problem, engine, 80, rule=rules.uniform, **options).data.regret
    # paired worlds; the difference is far outside noise
    difference = (guessed - learned).isel(round=slice(40, None)).sum("round").values
    assert difference.mean() > 4 * difference.std() / np.sqrt(20)


# ask and tell


def test_ask_and_tell_in_any_order(tmp_path):
    problem = build("linear", num_arms=3, dim=2)
    make = functools.partial(
        experiment.Experiment, problem.model, problem.engine(), rules.thompson, key=0,
        context=jnp.zeros(2),
    )  # fmt: skip
    trial, again = make(), make()
    contexts = [np.array([1.0, float(i)]) for i in range(4)]
    asked = [trial.ask(x) for x in contexts]
    twins = [again.ask(x) for x in contexts]
    assert [a.action for a in asked] == [a.action for a in twins]
    assert all(0 < a.propensity <= 1 for a in asked)
    for i in (2, 0, 3, 1):
        trial.tell(asked[i].token, float(i))
    for i in range(4):
        again.tell(twins[i].token, {"reward": float(i)})
    np.testing.assert_allclose(trial.belief.mean, again.belief.mean, atol=1e-5)
    assert trial.pending == []
    pending = trial.ask(contexts[0])
    trial.save(tmp_path / "trial.nc")
    restored = make().load(tmp_path / "trial.nc")
    assert restored.pending == [pending.token]
    assert restored.history == trial.history
    for t in (trial, restored):
        t.tell(pending.token, 0.5)
    np.testing.assert_array_equal(trial.belief.mean, restored.belief.mean)
    assert trial.ask(contexts[1]).action == restored.ask(contexts[1]).action


def test_ask_and_tell_errors():
    problem = build("linear", num_arms=3, dim=2)
    trial = experiment.Experiment(problem.model, problem.engine(), rules.thompson, key=0,
                                  context=jnp.zeros(2))  # fmt: skip
    with pytest.raises(ValueError, match="shapes"):
        trial.ask(np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        trial.ask(np.array([np.nan, 0.0]))
    asked = trial.ask(np.zeros(2))
    with pytest.raises(KeyError, match="not open"):
        trial.tell(99, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        trial.tell(asked.token, float("nan"))
    with pytest.raises(ValueError, match="no value for"):
        trial.tell(asked.token, {})
    with pytest.raises(ValueError, match=r"unknown sites \['arm'\]"):
        trial.tell(asked.token, {"arm": 1})
    with pytest.raises(ValueError, match=r"unknown sites \['extra'\]"):
        trial.tell(asked.token, {"reward": 1.0, "extra": 2.0})
    trial.tell(asked.token, 1.0)
    with pytest.raises(KeyError, match="has been"):
        trial.tell(asked.token, 1.0)


# bad input


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"horizon": 0}, ValueError, "horizon"),
        ({"horizon": 2.5}, ValueError, "horizon"),
        ({"replications": 0}, ValueError, "replications"),
        ({"batch": 0}, ValueError, "batch"),
        ({"delay": -1}, ValueError, "delay"),
        ({"draws": 0}, ValueError, "draws"),
        ({"key": "zero"}, TypeError, "PRNG key"),
        ({"rule": "thompson"}, TypeError, "rule"),
        ({"environment": 3}, TypeError, "environment"),
        ({"contexts": jnp.zeros((5, 2))}, ValueError, "contexts: 5 given"),
        ({"actions": {"leg": jnp.arange(3)}}, ValueError, "leg"),
        ({"inference": None}, TypeError, "Inference"),
    ],
)
def test_bad_input_to_run(linear, engine, change, error, match):
    options = {
        "inference": engine, "rule": rules.thompson, "environment": None, "horizon": 10,
        "key": 0, "contexts": linear.contexts, **change,
    }  # fmt: skip
    with pytest.raises(error, match=match):
        experiment.run(linear.model, **options)


def test_outcomes_of_another_shape_or_name():
    problem = build("gaussian", num_arms=2)
    engine = problem.engine()
    with pytest.raises(ValueError, match="shape"):
        experiment.run(
            problem.model, engine, rules.greedy, lambda key, x, a: jnp.zeros(2), 5, key=0
        )
    with pytest.raises(ValueError, match="does not have"):
        experiment.run(problem.model, engine, rules.greedy, lambda key, x, a: {"y": 1.0}, 5, key=0)


@pytest.mark.parametrize(
    ("args", "sites", "match"),
    [
        ((np.zeros((2, 2)),), {"arm": [0, 1], "rewards": [1.0, 2.0]}, "rewards"),
        ((np.zeros((2, 2)),), {"arm": [0, 1, 2], "reward": [1.0, 2.0]}, "row counts disagree"),
        ((np.zeros((2, 2)),), {"arm": [0, 7], "reward": [1.0, 2.0]}, "'arm'.*outside"),
        ((np.zeros((2, 2)),), {"arm": [0, 0.5], "reward": [1.0, 2.0]}, "discrete"),
        ((np.zeros((2, 2)),), {"arm": [0, 1], "reward": [1.0, np.nan]}, "NaN in row 1"),
        ((np.zeros((2, 2)),), {"reward": [1.0, 2.0]}, "action site 'arm' is not in the data"),
        ((np.zeros((2, 2)),), {}, "sites is empty"),
        ((np.zeros((2, 2)),), {"arm": 1, "reward": 2.0}, "scalar"),
        ((np.zeros((2, 2)),), {"arm": [0, 1], "reward": [[1.0], [2.0]]}, "expected shape"),
    ],
)
def test_bad_logged_rows(linear, args, sites, match):
    with pytest.raises(ValueError, match=match):
        dp.observe(linear.model, args, sites)


def test_masked_rows_may_hold_nan(linear):
    rows = dp.observe(linear.model, (np.zeros((2, 2)),), {"arm": [0, 1], "reward": [1.0, np.nan]},
                      mask=[True, False])  # fmt: skip
    assert rows.mask.tolist() == [True, False]
