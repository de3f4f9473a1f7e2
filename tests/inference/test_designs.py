"""Designs: what is randomised, whom it treats, and which design answers best."""

import re

import jax
import networkx as nx
import numpy as np
import numpyro.distributions as dist
import pytest

import decisionppl as dp
from decisionppl.inference import designs, network
from decisionppl.models import network as gallery


def test_coins_and_whom_they_treat():
    unit = designs.unit(3, [0.2, 0.5, 0.9])
    assert unit.probability.tolist() == [0.2, 0.5, 0.9]
    assert unit.treatment([1, 0, 1]).tolist() == [1, 0, 1]
    cluster = designs.cluster(["b", "a", "b"], [0.1, 0.9])
    assert cluster.probability.tolist() == [0.1, 0.9]
    assert cluster.treatment([[1, 0], [0, 1]]).tolist() == [[0, 1, 0], [1, 0, 1]]
    pairs = designs.two_sided([0, 0, 1], ["x", "y", "y"], (0.3, 0.6))
    assert pairs.probability.tolist() == [0.3, 0.3, 0.6, 0.6]
    assert pairs.treatment([1, 0, 1, 1]).tolist() == [1, 1, 0]


def test_switchbacks_count_stretches_and_zones():
    time, zone = [5.0, 61.0, 59.0, 200.0], ["n", "n", "s", "s"]
    assert designs.switchback(time, 60.0).coin[:, 0].tolist() == [0, 1, 0, 2]
    assert designs.switchback(time, 60.0, zone=zone).coin[:, 0].tolist() == [0, 2, 1, 3]
    # stretches begin at multiples of the length, whatever the first time is
    assert designs.switchback([59.0, 61.0], 60.0).coin[:, 0].tolist() == [0, 1]


def test_communities_of_a_graph_of_cliques():
    cliques = network.graph(nx.connected_caveman_graph(6, 8))
    design = designs.communities(cliques, 0.3)
    assert design.num_coins == 6
    assert all(len(set(design.coin[i * 8 : (i + 1) * 8, 0])) == 1 for i in range(6))
    assert (design.probability == 0.3).all()
    again = designs.communities(cliques, 0.3)
    assert (again.coin == design.coin).all()


def test_a_design_is_a_site_of_coins_in_the_model():
    def model(design):
        treat = design("ads", given=1.0)
        dp.reward("y", dist.Normal(treat, 1.0))

    design = designs.cluster([0, 0, 1], 0.25)
    trace = dp.play(model, 0)(design)
    site = trace["ads"]
    assert site["infer"]["role"] == "action"
    assert site["value"].shape == (2,)
    np.testing.assert_allclose(site["fn"].mean, 0.25, rtol=1e-6)
    assert dp.play(model, 0, policy=1)(design)["ads"]["value"].tolist() == [1, 1]
    # it is a pytree, and goes through compiled code
    assert jax.jit(lambda d: d.treatment(np.array([1, 0])))(design).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: designs.unit(0), "num_units: expected a whole number from 1, got 0"),
        (lambda: designs.unit(3, 1.0), "p: got 1, expected probabilities strictly between"),
        (lambda: designs.unit(3, [0.5, 0.5]), "p: expected a number or [3], got shape [2]"),
        (lambda: designs.unit(2, float("nan")), "p: got nan"),
        (lambda: designs.cluster([[0, 1]]), "labels: expected one value per unit"),
        (lambda: designs.two_sided([0, 1], [0]), "columns: expected one value per unit [2]"),
        (lambda: designs.two_sided([0], [0], 0.5), "p: expected two probabilities"),
        (lambda: designs.switchback([0.0, 1.0], 0.0), "length: expected a positive number"),
        (lambda: designs.switchback([0.0, float("inf")], 1.0), "time: expected finite numbers"),
        (lambda: designs.switchback([0.0, 1.0], 1.0, zone=[0]), "zone: expected one value"),
    ],
)
def test_designs_refuse_what_is_none(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


RING = network.graph([[i, (i + 1) % 200] for i in range(200)])
MARKET = gallery.spillovers(RING, response="linear", noise=0.5)


def test_the_study_measures_what_it_says():
    two = {"unit": designs.unit(200), "blocks": designs.cluster(np.arange(200) // 10)}
    study = designs.compare(MARKET.model, two, graph=RING, key=0, num_runs=60, truth_runs=4)
    assert study.effect[0] == pytest.approx(MARKET.effect, abs=1e-4)
    assert study.designs == ("unit", "blocks")
    means, near = (study.estimators.index(n) for n in study.estimators[:2])
    # the difference in means misses what neighbours do, in blocks but for their ends
    assert study.bias[0, means] == pytest.approx(-0.75, abs=6 * study.sd[0, means] / 60**0.5)
    assert study.bias[1, means] == pytest.approx(-0.075, abs=6 * study.sd[1, means] / 60**0.5)
    assert abs(study.bias[0, near]) < 6 * study.sd[0, near] / 60**0.5
    np.testing.assert_allclose(study.rmse**2, study.bias**2 + study.sd**2 * 59 / 60, rtol=1e-6)
    assert study.coverage[0, means] == 0.0
    assert study.coverage[0, near] > 0.75
    assert (study.power[:, near] > 0.5).all()
    best, worst = study.ranking()[0], study.ranking()[-1]
    assert best[2] == study.rmse.min()
    assert worst[2] == study.rmse.max()
    assert "differences-in-neighbors" in str(study)


def test_a_study_of_designs_with_their_own_interference():
    design = designs.unit(200)
    none = network.interference(design)
    both = {"seen": (design, network.interference(design, RING)), "blind": (design, none)}
    study = designs.compare(
        MARKET.model, both, key=0, num_runs=20, truth_runs=2, estimators={"dn": network.dn},
    )  # fmt: skip
    assert abs(study.bias[1, 0]) > abs(study.bias[0, 0])


def test_studies_refuse_what_is_none():
    with pytest.raises(ValueError, match="designs: expected at least one"):
        designs.compare(MARKET.model, {}, key=0)
    with pytest.raises(ValueError, match="num_runs: expected a whole number from 2, got 1"):
        designs.compare(MARKET.model, {"unit": designs.unit(200)}, key=0, num_runs=1)
