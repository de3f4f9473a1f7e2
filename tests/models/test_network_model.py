"""The gallery's units on a graph: closed-form effects, responses, and what learns about them."""

import jax
import numpy as np
import pytest

import decisionppl as dp
from decisionppl import testing
from decisionppl.inference import designs, network
from decisionppl.models import network as gallery

GRAPH = network.graph([[0, 1], [1, 2], [2, 3]], num_units=6)  # 4 and 5 are alone


@pytest.mark.parametrize("response", ["linear", "saturating", "threshold"])
@pytest.mark.parametrize("interaction", [0.0, 0.4])
def test_the_effect_is_that_of_the_intervention(response, interaction):
    market = gallery.spillovers(GRAPH, response=response, interaction=interaction)
    found = network.total_effect(market.model, designs.unit(6), key=0, num_runs=2)
    assert found.estimate == pytest.approx(market.effect, abs=1e-5)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("linear", [0.5, 1.0]),
        ("saturating", [np.expm1(-0.5) / np.expm1(-1.0), 1.0]),
        ("threshold", [1.0, 1.0]),
    ],
)
def test_responses_of_half_and_all_neighbours(response, expected):
    market = gallery.spillovers(
        GRAPH, response=response, base=0.0, direct=0.0, spill=1.0, noise=1e-6
    )
    design = designs.unit(6)
    for drawn, unit, which in (([1, 0, 0, 0, 0, 0], 1, 0), ([1, 0, 1, 0, 0, 0], 1, 1)):
        trace = dp.play(market.model, 0, policy=np.array(drawn))(design)
        assert trace["outcome"]["value"][unit] == pytest.approx(expected[which], abs=1e-4)
        assert trace["outcome"]["value"][4] == pytest.approx(0.0, abs=1e-4)


def test_the_model_passes_the_checks_of_any_model():
    market = gallery.spillovers(GRAPH, unknown=True)
    assert testing.check_model(market.model, designs.unit(6)).passed


def test_unknown_coefficients_are_learned_from_one_experiment():
    """A posterior of the global effect, by the streaming Laplace engine: exact, as it is linear."""
    ring = network.graph([[i, (i + k) % 400] for i in range(400) for k in (1, 2)])
    known = gallery.spillovers(ring, response="linear")
    design = designs.unit(400)
    trace = dp.play(known.model, 5)(design)
    unknown = gallery.spillovers(ring, response="linear", unknown=True)
    engine = dp.inference.laplace(unknown.model, design)
    row = jax.tree.map(lambda x: np.asarray(x)[None], design)
    sites = {n: np.asarray(trace[n]["value"])[None] for n in ("treat", "outcome")}
    rows = dp.observe(unknown.model, (row,), sites)
    key = jax.random.key(0)
    belief = engine.update(key, engine.init(key), rows)
    draws = engine.sample(key, belief, 4000)["coefficients"]
    effect = draws[:, 1:].sum(1) - draws[:, 3] + draws[:, 3]
    assert abs(effect.mean() - known.effect) < 6 * effect.std()
    treat, y = sites["treat"][0], sites["outcome"][0]
    share = np.asarray(ring.share(treat))
    x = np.stack([np.ones(400), treat, share, treat * share], axis=1)
    precision = x.T @ x / 0.81 + np.eye(4)
    mean = np.linalg.solve(precision, x.T @ y / 0.81)
    spread = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_allclose(draws.mean(0), mean, atol=6 * spread.max() / 60)
    np.testing.assert_allclose(draws.std(0), spread, rtol=0.08)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response": "cubic"}, "response: expected one of"),
        ({"noise": 0.0}, "noise: expected a finite number more than 0"),
        ({"threshold": 2.0}, "threshold: expected a share of neighbours up to 1"),
        ({"spill": float("nan")}, "spill: expected a finite number"),
    ],
)
def test_parameters_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gallery.spillovers(GRAPH, **change)
    with pytest.raises(TypeError, match="graph: expected network.graph"):
        gallery.spillovers(np.eye(3))
