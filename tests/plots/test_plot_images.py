"""Plots beside stored images, in words, and in grey."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from plot_cases import CASES, FOLDER, draw, path, picture, profile, queues, result, taylor

from decisionppl import plots
from decisionppl._plots_style import COLOURS, DASHES, HATCHES, MARKS, colour, dash, mark

# Root mean square over the pixels, values 0 to 255. Matplotlib 3.9, 3.10 and 3.11 draw the same
# pixels (0.00), other processors may round an edge. Two dashes exchanged are 4.8 and more.
TOLERANCE = 2.0


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"), float)


@pytest.mark.parametrize("name", CASES)
def test_the_picture_is_the_stored_one(name):
    drawn = io.BytesIO()
    picture(name, drawn)
    stored, now = pixels(FOLDER / f"{name}.png"), pixels(drawn)
    assert now.shape == stored.shape
    error = np.sqrt(((now - stored) ** 2).mean())
    assert error < TOLERANCE, f"rms {error:.2f}; if this was meant: python tests/plots/make.py"


def test_no_stored_picture_is_without_its_plot():
    assert {f.stem for f in FOLDER.glob("*.png")} == set(CASES)


def test_a_changed_plot_is_noticed(monkeypatch):
    monkeypatch.setitem(
        CASES, "regret", lambda ax: plots.regret({"greedy": result(2.0), "thompson": result(1.0),
                                                  "uniform": result(3.0)}, ax=ax))  # fmt: skip
    with pytest.raises(AssertionError, match="rms"):
        test_the_picture_is_the_stored_one("regret")


# Words.

LABELS = {
    "regret": ("round", "cumulative regret (units of the reward)"),
    "beliefs": ("rounds learned from", "utility (units of the reward), 90 % interval"),
    "queue_lengths": ("time (units of the network)", "jobs in the network"),
    "acquisition": ("dose", "utility (units of the utility), ± 2 sd"),
    "fidelities_sequence": ("decision", "size"),
    "fidelities_shares": ("decision", "share of replications (%)"),
    "fidelities_continuous": ("decision", "fidelity"),
    "effects_named": ("estimator", "effect (units of the reward)"),
    "effects_by_order": ("order of the Taylor polynomial", "effect (units of the reward)"),
    "frontier": ("size of the bias (% of the effect)", "standard deviation (% of the effect)"),
    "exposure": ("", ""),
    "counterfactual": ("period", "outcome (units of the panel)"),
    "ecdf_difference": ("rank / number of draws", "ECDF difference (share of simulations)"),
    "checks": ("statistic / limit (no unit)", ""),
    "search_regret": ("spent (units of the prices)", "regret at the target (units of the loss)"),
    "mixture_slices": (
        "share of the way from the recommended mixture to one source",
        "predicted loss (units of the loss), 90 %",
    ),
}
LEGENDS = {
    "regret": ["thompson (9.37)", "greedy (18.7)", "uniform (28.1)"],
    "beliefs": ["arm 0", "arm 1", "arm 2", "truth"],
    "acquisition": ["posterior mean", "expected_improvement, scaled", "next: 0.275",
                    "asked so far"],
    "fidelities_shares": ["1", "10", "100", "1000", "10000"],
    "effects_by_order": ["truth", "posterior", "true market", "estimates"],
    "ecdf_difference": ["simultaneous band", "scale", "slope"],
    "checks": ["passed", "failed", "limit"],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_labels_and_returned_axes(name):
    figure = Figure()
    ax = figure.add_subplot()
    assert CASES[name](ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == LABELS[name]
    if name in LEGENDS:
        assert [t.get_text() for t in ax.get_legend().get_texts()] == LEGENDS[name]


def test_without_axes_there_is_a_new_figure():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    ax = plots.effects({"a": 1.0})
    assert ax.figure.number not in before
    plt.close(ax.figure)
    with pytest.raises(TypeError, match="ax: expected matplotlib axes or None, got Figure"):
        plots.effects({"a": 1.0}, ax=Figure())
    with pytest.raises(ValueError, match="expected three axes, got 2"):
        plots.mixture_search(None, None, ax=Figure().subplots(1, 2))


def test_matplotlib_comes_with_the_first_plot():
    code = (
        "import sys, decisionppl.plots, decisionppl.experiment\n"
        "assert not [m for m in sys.modules if m.startswith('matplotlib')]\n"
        "decisionppl.plots.effects({'a': 1.0})\n"
        "assert 'matplotlib' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Grey.


def lightness(value):
    """CIE L* of a colour."""
    rgb = np.array(to_rgb(value))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_series_differ_in_lightness_and_in_dash_and_mark():
    levels = np.array([lightness(c) for c in COLOURS])
    apart = np.abs(levels[:, None] - levels)[~np.eye(len(COLOURS), dtype=bool)]
    assert apart.min() >= 8
    assert levels.max() <= 85  # to be seen on white
    neighbours = np.abs(np.diff(levels))
    assert neighbours.min() >= 10
    assert len({str(d) for d in DASHES}) == len(DASHES)
    assert len(set(MARKS)) == len(MARKS)
    assert len(set(HATCHES)) == len(HATCHES)
    looks = {(colour(i), str(dash(i))) for i in range(30)}
    assert len(looks) == 30
    assert len({(colour(i), mark(i)) for i in range(42)}) == 42


@pytest.mark.parametrize(
    ("name", "labels"),
    [(n, LEGENDS[n]) for n in ("regret", "effects_by_order", "beliefs")],
)
def test_drawn_series_are_told_apart_without_hue(name, labels):
    handles, names = draw(name).get_legend_handles_labels()
    lines = [
        h if hasattr(h, "get_linestyle") else h[0]
        for h, n in zip(handles, names, strict=True)
        if n in labels and n != "truth"
    ]
    assert len(lines) == 3
    dashes = [str(line.get_linestyle()) for line in lines]
    assert len(set(dashes)) == 3
    levels = sorted(lightness(line.get_color()) for line in lines)
    assert np.diff(levels).min() >= 10


def test_areas_of_fidelities_get_darker_and_differ_in_hatch():
    areas = draw("fidelities_shares").collections
    levels = [lightness(a.get_facecolor()[0][:3]) for a in areas]
    assert np.diff(levels).max() < -8
    assert len({a.get_hatch() for a in areas}) == len(areas)


# What is drawn.


def lines(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_regret_is_the_mean_of_sums_and_bands_are_two_standard_errors():
    one = result(1.0)
    ax = plots.regret(one)
    total = one.data["regret"].values.cumsum(1)
    lower, upper, mean = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(mean, total.mean(0))
    half = 2 * total.std(0, ddof=1) / 2
    np.testing.assert_allclose(upper - lower, 2 * half)
    assert ax.get_legend() is None
    bare = one.__class__(one.data.drop_vars("regret"), {}, [])
    with pytest.raises(ValueError, match="result 'a' has no regret"):
        plots.regret({"a": bare})


def test_queues_count_jobs_or_cost():
    jobs = plots.queue_lengths({"q": queues(2)})
    cost = plots.queue_lengths({"q": queues(2)}, np.array([2.0, 2.0]))
    twice = [2 * line.get_ydata() for line in jobs.lines]
    for line, expected in zip(cost.lines, twice, strict=True):
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert cost.get_ylabel() == "holding cost per unit of time"


def test_effects_know_orders_and_names():
    series = plots.effects(taylor())
    np.testing.assert_array_equal(series.get_xticks(), range(6))
    assert series.lines[0].get_ydata()[0] == -0.95  # the exact effect
    np.testing.assert_allclose(series.lines[1].get_ydata(), taylor().by_order)
    other = plots.effects({"a": taylor()}, truth=2.0)
    assert other.lines[0].get_ydata()[0] == 2.0
    for wrong, message in ((["a"], r"effect '\[0\]'"), ({"x": object()}, "effect 'x': expected")):
        with pytest.raises(TypeError, match=message):
            plots.effects(wrong)
    with pytest.raises(ValueError, match="at least one"):
        plots.effects({})
    with pytest.raises(ValueError, match="level: expected a number between"):
        plots.effects(taylor(), level=95)


def test_the_slice_of_a_vector_is_its_way():
    ends = np.array([[1.0, 0, 0], [0, 0.5, 0.5]])
    way = np.linspace(0, 1, 41)
    actions = {"mixture": (1 - way)[:, None] * ends[0] + way[:, None] * ends[1],
               "size": np.full(41, 3.0)}  # fmt: skip
    ax = plots.acquisition(profile()._replace(actions=actions))
    np.testing.assert_allclose(lines(ax)["posterior mean"].get_xdata(), way, atol=1e-12)
    both = {"a": way, "b": way}
    with pytest.raises(ValueError, match=r"along: \['a', 'b'\] varies"):
        plots.acquisition(profile()._replace(actions=both))
    assert plots.acquisition(profile()._replace(actions=both), "b").get_xlabel() == "b"
    with pytest.raises(ValueError, match="no action site 'c'"):
        plots.acquisition(profile()._replace(actions=both), "c")


def test_a_rule_that_chooses_nothing_draws_no_score():
    ax = plots.acquisition(profile()._replace(score=np.full(41, -np.inf)))
    assert set(lines(ax)) == {"posterior mean", "asked so far"}


def test_fidelities_say_what_they_need():
    for wrong in ([], ["a", "b"], np.zeros((2, 3, 4))):
        with pytest.raises(ValueError, match="fidelity: expected numbers"):
            plots.fidelities(wrong)
    with pytest.raises(ValueError, match="say which of"):
        plots.fidelities(result(1.0))
    with pytest.raises(ValueError, match="no site 'dose'"):
        plots.fidelities(result(1.0), "dose")


def test_beliefs_refuse_a_truth_of_other_arms():
    with pytest.raises(ValueError, match=r"expected one utility per action, \[3\]"):
        plots.beliefs(path(), [1.0, 2.0])
