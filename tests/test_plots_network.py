"""Plots of network experiments show what the study holds, and refuse what does not fit."""

import numpy as np
import pytest

import decisionppl as dp
from decisionppl.inference import designs, network


def study(sd):
    shape = np.shape(sd)
    zeros = np.zeros(shape)
    return designs.DesignStudy(
        ("one", "two"), ("a", "b", "c"), (-2.0, 0.0), zeros + 0.5, np.asarray(sd), zeros, zeros,
        zeros, zeros, 10,
    )  # fmt: skip


def test_the_frontier_is_in_percent_of_the_effect():
    axes = dp.plots.frontier(study([[1.0, 2.0, np.nan], [0.5, 4.0, 1.0]]), title="t")
    points = [line.get_xydata() for line in axes.lines[:3]]
    np.testing.assert_allclose(points[0], [[25, 50], [25, 25]])
    np.testing.assert_allclose(points[1], [[25, 100], [25, 200]])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b", "c"]
    assert [t.get_text() for t in axes.texts] == ["one", "two", "one", "two", "two"]
    assert "% of the effect" in axes.get_xlabel()


def test_a_frontier_without_estimates_is_empty():
    assert not dp.plots.frontier(study(np.full((2, 3), np.nan))).texts


def test_exposure_marks_arms_and_shares():
    path = network.graph([[0, 1], [1, 2], [2, 3]])
    shown = dp.plots.exposure(path, [1, 0, 1, 0], positions=np.arange(8.0).reshape(4, 2))
    axes, bar = shown.figure.axes
    assert shown is axes
    control, treated = axes.collections[1:]
    np.testing.assert_allclose(control.get_array(), [1.0, 1.0])
    np.testing.assert_allclose(treated.get_array(), [0.0, 0.0])
    np.testing.assert_allclose(treated.get_offsets(), [[0, 1], [4, 5]])
    assert "share of treated neighbours" in bar.get_ylabel()
    for change, name in (({"treated": [1, 0]}, "treated"), ({"positions": [[0, 0]]}, "positions")):
        with pytest.raises(ValueError, match=f"{name}: expected shape"):
            dp.plots.exposure(path, **{"treated": [1, 0, 1, 0], **change})
