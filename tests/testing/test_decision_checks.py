"""Probability matching, regret, bias orders, coverage, golden values, reports."""

import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import decisionppl as dp
from decisionppl import inference, rules, testing
from decisionppl.testing import reference
from decisionppl.testing._check import Statistic, verdict
from decisionppl.testing._decision import _one_sample, _pooled

KEY = jax.random.key(3)
TRUTH = reference.beta_bernoulli(3)
ROWS = dp.observe(TRUTH.model, sites={"arm": [0, 0, 1, 1, 2], "reward": [1, 1, 0, 1, 0]})
ENGINE = inference.conjugate(TRUTH.model)


# Probability matching.


def test_thompson_sampling_matches_the_exact_probabilities():
    best = TRUTH.best_probability(ROWS)
    found = testing.assert_probability_matching(
        TRUTH.model, ENGINE, ROWS, key=KEY, expected=best, level=1e-7
    )
    np.testing.assert_allclose(found.frequency, best, atol=0.03)
    assert found.frequency.sum() == pytest.approx(1)


def test_worlds_of_the_same_and_of_another_inference_are_counted():
    kwargs = {"key": KEY, "level": 1e-7, "num_decisions": 4000}
    testing.assert_probability_matching(TRUTH.model, ENGINE, ROWS, **kwargs)
    prior_only = ENGINE._replace(update=lambda key, belief, rows: belief)
    found = testing.probability_matching(TRUTH.model, prior_only, ROWS, expected=ENGINE, **kwargs)
    assert not found.passed
    np.testing.assert_allclose(found.frequency, 1 / 3, atol=0.05)


@pytest.mark.parametrize("rule", [rules.greedy, rules.top_two, rules.uniform])
def test_other_rules_do_not_match(rule):
    found = testing.probability_matching(
        TRUTH.model, ENGINE, ROWS, key=KEY, rule=rule, num_decisions=1000
    )
    assert not found.passed
    assert "choices do not match: action" in found.message


def test_contexts_and_availability():
    def model(offered):
        p = numpyro.sample("p", dist.Normal(jnp.arange(3.0) / 2, 1).to_event(1))
        arm = dp.action("arm", dist.Categorical(offered / offered.sum()), given=offered)
        dp.reward("r", dist.Normal(p[arm], 1.0))

    engine = inference.conjugate(model, jnp.ones(3))
    found = testing.assert_probability_matching(
        model, engine, context=jnp.array([1.0, 0.0, 1.0]), key=KEY, level=1e-7
    )
    assert found.frequency[1] == 0
    assert found.expected[1] == 0


def test_probability_matching_refuses_what_is_no_law():
    with pytest.raises(ValueError, match="probabilities of 3 actions"):
        testing.probability_matching(TRUTH.model, ENGINE, key=KEY, expected=[0.5, 0.5])
    with pytest.raises(ValueError, match="probabilities of 3 actions"):
        testing.probability_matching(TRUTH.model, ENGINE, key=KEY, expected=[0.5, 0.6, 0.1])


def test_rare_actions_are_pooled_and_impossible_ones_fail():
    groups = _pooled(np.array([0.1, 1.0, 4.5, 20.0, 2.0]))
    assert groups.tolist() == [0, 0, 0, 1, 1]
    assert _pooled(np.array([1.0, 2.0])).tolist() == [0, 0]
    counts, law = np.array([30, 50, 20]), np.array([0.3, 0.4, 0.3])
    assert _one_sample(counts, law) == pytest.approx(stats.chisquare(counts, 100 * law).pvalue)
    law = np.array([0.0, 0.5, 0.5])
    assert _one_sample(np.array([1, 50, 49]), law) == 0.0
    assert _one_sample(np.array([0, 50, 50]), law) == 1.0


# Regret.


@pytest.mark.parametrize(("power", "scale"), [(0.5, 1.0), (1.0, 0.1), (0.0, 3.0)])
def test_slopes_of_power_laws(power, scale):
    rounds = np.arange(1, 2001.0)
    total = scale * rounds**power if power else scale * (1 + np.log(rounds))
    regret = np.diff(total, prepend=0.0)[None]
    found = testing.regret_slope(regret, below=0.99)
    expected = power if power else 1 / (1 + np.log(600))
    assert found.slope == pytest.approx(expected, abs=0.03)
    assert found.passed == (power < 0.99)
    assert found.stderr == 0


def test_learning_and_never_learning():
    model = reference.beta_bernoulli(2).model
    engine = inference.conjugate(model)
    run = lambda rule: dp.experiment.run(  # noqa: E731
        model, engine, rule, horizon=300, key=KEY, replications=40
    )
    testing.assert_regret_slope(run(rules.thompson), below=0.8)
    found = testing.regret_slope(run(rules.uniform), below=0.8)
    assert not found.passed
    assert found.slope == pytest.approx(1.0, abs=0.05)


def test_no_regret_has_no_slope_and_bad_regret_is_refused():
    assert testing.regret_slope(np.zeros((3, 50))).slope == 0
    with pytest.raises(ValueError, match="at least 20 rounds"):
        testing.regret_slope(np.ones((3, 10)))
    with pytest.raises(ValueError, match="finite numbers"):
        testing.regret_slope(np.full((3, 50), np.nan))


# Bias and coverage.


def test_orders_of_estimands_in_a_markov_model():
    """Naive: first order in the effect of treatment on the kernel; DQ at p = 1/2: third."""

    def chain(delta, p):
        d = float(delta)
        return reference.two_state_mdp(
            up=(0.2, 0.2 + 0.3 * d), down=(0.3, 0.3 - 0.2 * d), reward=((0, d), (2, 2 + d)), p=p
        )

    def against_truth(estimand, p):
        return lambda d: (getattr(chain(d, p), estimand)(), chain(d, p).effect())

    sizes = (0.4, 0.2, 0.1, 0.05)
    for estimand, p, order in (("naive", 0.5, 1), ("dq", 0.5, 3), ("dq", 0.3, 2)):
        found = testing.assert_bias_order(against_truth(estimand, p), sizes, order=order)
        assert found.order == pytest.approx(order, abs=0.2)
    assert not testing.bias_order(against_truth("naive", 0.5), sizes, order=2).passed


def test_bias_order_in_float64_and_without_bias():
    found = testing.bias_order(lambda d: (d, jnp.sin(d)), (0.001, 0.002), order=3)
    assert found.order == pytest.approx(3, abs=0.01)  # 1.7e-10, lost in float32
    assert testing.bias_order(lambda d: (d, d), order=5).order == math.inf
    with pytest.raises(ValueError, match="at least two different positive sizes"):
        testing.bias_order(lambda d: d, (0.1,))
    with pytest.raises(ValueError, match="not finite"):
        testing.bias_order(lambda d: jnp.nan * d)


class Estimate(NamedTuple):
    estimate: jax.Array
    stderr: jax.Array
    interval: tuple


def interval(key, width=1.959964, shift=0.0):
    y = 3.0 + shift + jax.random.normal(key, (10,))
    half = width / 10**0.5
    return Estimate(y.mean(), jnp.asarray(10**-0.5), (y.mean() - half, y.mean() + half))


def test_exact_intervals_cover():
    found = testing.assert_coverage(interval, 3.0, key=KEY, num_repetitions=4000, level=1e-7)
    assert found.coverage[0] == pytest.approx(0.95, abs=0.02)
    assert found.interval[0, 0] < 0.95 < found.interval[1, 0]
    assert found.below[0] + found.above[0] == pytest.approx(1 - found.coverage[0])
    assert found.bias[0] == pytest.approx(0, abs=0.02)
    assert found.ratio[0] == pytest.approx(1, abs=0.05)
    assert found.width[0] == pytest.approx(2 * 1.96 / 10**0.5, abs=1e-3)


def test_narrow_shifted_and_wide_intervals_do_not():
    run = lambda f, **kw: testing.coverage(f, 3.0, key=KEY, num_repetitions=2000, **kw)  # noqa: E731
    narrow = run(lambda key: interval(key, 1.5))
    assert not narrow.passed
    shifted = run(lambda key: interval(key, shift=0.5))
    assert not shifted.passed
    assert shifted.below[0] > 0.2 > 0.01 > shifted.above[0]
    wide = lambda key: interval(key, 3.0)  # noqa: E731
    assert not run(wide).passed
    assert run(wide, at_least=True).passed
    assert run(lambda key: interval(key, 1.8), tolerance=0.03).passed


def test_coverage_of_several_components_and_of_varying_truths():
    def both(key):
        mean = jax.random.normal(key) + jnp.zeros(2)
        y = mean + jax.random.normal(jax.random.fold_in(key, 1), (2,))
        return y - jnp.array([1.959964, 1.0]), y + jnp.array([1.959964, 1.0])

    truth = lambda key: jax.random.normal(key)  # noqa: E731
    found = testing.coverage(both, truth, key=KEY, num_repetitions=2000)
    assert [s.passed for s in found.statistics] == [True, False]
    assert "coverage[1]" in found.message


def test_plain_python_estimators():
    def plain(key):
        rng = np.random.default_rng(int(jax.random.key_data(key)[1]))
        y = rng.normal(3.0, 1.0, 10)
        return y.mean() - 1.96 / 10**0.5, y.mean() + 1.96 / 10**0.5

    testing.assert_coverage(plain, 3.0, key=KEY, num_repetitions=300, jit=False, level=1e-7)
    with pytest.raises(TypeError, match="expected a pair \\(lower, upper\\)"):
        testing.coverage(lambda key: 3.0, 3.0, key=KEY, jit=False)


def test_nan_intervals_cover_nothing():
    found = testing.coverage(lambda key: (jnp.nan, jnp.nan), 0.0, key=KEY, num_repetitions=50)
    assert not found.passed
    assert "50 intervals are NaN, the first in repetition 0" in found.message


# Golden values.


TREE = {"a": np.array([1.0, np.nan, np.inf]), "b": (np.arange(3), jnp.float32(0.1)), "key": KEY}


def test_golden_values_are_stored_compared_and_never_written_silently(tmp_path):
    missing = testing.golden("tree", TREE, folder=tmp_path)
    assert not missing.passed
    assert "DECISIONPPL_REGENERATE=1" in missing.message
    assert list(tmp_path.iterdir()) == []
    assert testing.golden("tree", TREE, folder=tmp_path, regenerate=True).regenerated
    testing.assert_golden("tree", TREE, folder=tmp_path)
    stored = json.loads((tmp_path / "tree.json").read_text())
    assert stored["['b'][1]"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a": np.array([1.0001, np.nan, np.inf])}, "['a']: deviation over tolerance"),
        ({"a": np.array([1.0, 0.0, np.inf])}, "['a']: deviation over tolerance"),
        ({"a": np.array([1.0, np.nan])}, "['a']: shape (2,), stored (3,)"),
        ({"b": (np.arange(3.0), 0.1)}, "['b'][0]: float64, stored int"),
        ({"key": jax.random.key(4)}, "['key']: unequal entries"),
        ({"c": 1}, "['c']: not stored"),
    ],
)
def test_golden_says_what_differs(tmp_path, change, says):
    testing.golden("tree", TREE, folder=tmp_path, regenerate=True)
    found = testing.golden("tree", {**TREE, **change}, folder=tmp_path)
    assert not found.passed
    assert says in found.message


def test_golden_regenerates_on_request_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DECISIONPPL_REGENERATE", "1")
    assert testing.golden("x", 1.0, folder=tmp_path).regenerated
    monkeypatch.setenv("DECISIONPPL_REGENERATE", "0")
    assert not testing.golden("x", 2.0, folder=tmp_path).passed
    with pytest.raises(ValueError, match="name: expected letters"):
        testing.golden("../x", 1.0)


def test_golden_lies_beside_the_test_by_default():
    found = testing.golden("absent", 1.0)
    assert found.path.parts[-4:] == ("tests", "testing", "golden", "absent.json")
    assert testing.assert_golden.__name__ == "assert_golden"
    with pytest.raises(AssertionError, match="there is no absent.json in .*testing.golden"):
        testing.assert_golden("absent", 1.0)


# Reports.


def checks():
    good = testing.regret_slope(np.ones((2, 50)), below=1.1)
    bad = testing.bias_order(lambda d: d, order=2)
    return good, bad


def test_a_report_is_one_table_with_the_messages_of_what_failed():
    good, bad = checks()
    found = testing.report([good, bad, good])
    assert list(found.checks) == ["regret slope", "bias order", "regret slope 2"]
    assert not found.passed
    assert found.message == "2 of 3 checks passed; failed: bias order."
    text, html = str(found), found._repr_html_()
    for shown in ("regret slope", "FAILED", "the bias is of order 1.00", found.message):
        assert shown in text
        assert shown in html
    assert testing.report({"only": good}).passed


def test_html_is_escaped():
    odd = checks()[0]._replace(message="<b>", passed=False)
    html = testing.report({"<i>": odd})._repr_html_()
    assert html.count("&lt;i&gt;") == 3  # in the table, before the message, in the summary
    assert "<i>" not in html
    assert "<b></b>" not in html


def test_a_report_has_a_plot():
    axes = testing.report(checks()).plot(title="all")
    assert [t.get_text() for t in axes.get_yticklabels()] == ["regret slope", "bias order"]
    assert axes.get_xscale() == "log"


def test_reports_take_checks_only():
    with pytest.raises(TypeError, match="'only' is int, expected the result of a check"):
        testing.report({"only": 3})


def test_statistics():
    assert Statistic("a", 2.0, 1.0).strain == 2.0
    assert Statistic("a", float("nan"), 1.0).strain == math.inf
    assert not Statistic("a", float("nan")).passed
    assert Statistic("a", 5.0).strain == 0.0
    assert Statistic("a", 0.0, 0.0).passed
    many = [Statistic(f"s{i}", i, 1.0) for i in range(6)]
    passed, message = verdict(many, "good", "bad:")
    assert not passed
    assert message == ("bad: s5: 5 (limit 1); s4: 4 (limit 1); s3: 3 (limit 1); and 1 more.")
