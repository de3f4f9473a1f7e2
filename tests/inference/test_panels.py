"""Panels and classic estimators: tables, closed forms, invariances, independent solutions."""

import csv
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from decisionppl import plots
from decisionppl.inference import panels
from decisionppl.inference._panel_did import simplex_fit

STAYS = np.arange(40) >= 28
MIXED = STAYS & (np.arange(40) % 3 != 2)

ESTIMATORS = {
    "robust": functools.partial(panels.robust_synthetic_control, rank=2),
    "robust, rank found": panels.robust_synthetic_control,
    "ridge": panels.ridge,
    "latent": functools.partial(panels.latent_regression, rank=2),
    "did": panels.synthetic_did,
}
every = pytest.mark.parametrize("name", list(ESTIMATORS))


def series(seed=0, units=9, periods=40, noise=0.3, rank=2):
    """Outcomes [units, periods] of a factor model with levels of their own."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(size=(rank, periods)).cumsum(1)
    common = rng.dirichlet(np.ones(rank), units) @ walk
    return common + rng.normal(size=(units, 1)) + noise * rng.normal(size=(units, periods))


def path(name):
    return STAYS if name == "did" else MIXED


def both(found):
    return np.array([found.estimate, found.stderr])


# Tables.


def rows_of(y, treated):
    return [
        {"shop": f"s{i}", "week": t + 1, "sales": y[i, t], "promo": int(treated[i, t])}
        for i in range(len(y)) for t in range(y.shape[1])
    ]  # fmt: skip


NAMES = {"unit": "shop", "period": "week", "outcome": "sales", "treated": "promo"}


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def long_file(tmp_path):
    y = series(units=4, periods=12)
    treated = np.zeros(y.shape, int)
    treated[2, 8:] = 1
    rows = rows_of(y, treated)
    np.random.default_rng(0).shuffle(rows)
    return write(tmp_path / "shops.csv", rows), y, treated.astype(bool)


def test_a_long_file_is_read(long_file):
    file, y, treated = long_file
    for given_as in (file, str(file)):
        data = panels.from_long(given_as, **NAMES)
        np.testing.assert_array_equal(data.outcome, y)
        np.testing.assert_array_equal(data.treated, treated)
        assert data.units == ("s0", "s1", "s2", "s3")
        assert data.periods == tuple(range(1, 13))
    with file.open() as lines:
        table = list(csv.DictReader(lines))
    columns = {n: [row[n] for row in table] for n in table[0]}
    columns["sales"] = [float(x) for x in columns["sales"]]
    columns["week"] = [int(x) for x in columns["week"]]
    columns["promo"] = ["TRUE" if x == "1" else "False" for x in columns["promo"]]
    same = panels.from_long(columns, **NAMES)
    np.testing.assert_array_equal(same.outcome, y)
    np.testing.assert_array_equal(same.treated, treated)
    found = panels.robust_synthetic_control(data, 1)
    assert found.diagnostics["counterfactual"].shape == (12,)


def test_data_frames_are_read(long_file):
    pandas = pytest.importorskip("pandas")
    file, y, treated = long_file
    data = panels.from_long(pandas.read_csv(file), **NAMES)
    np.testing.assert_allclose(data.outcome, y)
    np.testing.assert_array_equal(data.treated, treated)
    assert data.units == ("s0", "s1", "s2", "s3")


@pytest.mark.parametrize("when", [9, [9, 10, 11, 12]])
def test_a_wide_file_is_the_same_panel(long_file, tmp_path, when):
    _, y, treated = long_file
    rows = [
        {"week": t + 1, **{f"s{i}": y[i, t] for i in range(4)}} for t in (*range(5, 12), *range(5))
    ]
    data = panels.from_wide(write(tmp_path / "wide.csv", rows), period="week", treated={"s2": when})
    np.testing.assert_array_equal(data.outcome, y)
    np.testing.assert_array_equal(data.treated, treated)
    assert data.units == ("s0", "s1", "s2", "s3")
    some = panels.from_wide(
        tmp_path / "wide.csv", period="week", treated={"s2": when}, units=["s2", "s0"]
    )
    np.testing.assert_array_equal(some.outcome, y[[2, 0]])


def changed(change):
    y = series(units=3, periods=6)
    rows = rows_of(y, np.zeros(y.shape))
    return change(rows) or rows


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("no column 'sales'; the table has .*Did you mean 'sale'",
         lambda rows: [{("sale" if k == "sales" else k): v for k, v in r.items()} for r in rows]),
        ("column 'sales': expected numbers, got <U\\d+ such as .*many.* in row 0",
         lambda rows: rows[0].update(sales="many")),
        ("column 'sales': got nan in row 2 .1 rows in all., expected a value",
         lambda rows: rows[2].update(sales="")),
        ("column 'promo': got 2 in row 1 .1 rows in all., expected 0 or 1",
         lambda rows: rows[1].update(promo=2)),
        ("'shop' and 'week': unit 's0' has period 2 in no row .1 such cells.*Fill in",
         lambda rows: rows.pop(1) and None),
        ("'shop' and 'week': unit 's1' has period 1 twice", lambda rows: rows.append(rows[6])),
        ("column 'shop': got None in row 3", lambda rows: rows[3].update(shop="")),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused(tmp_path, message, change):
    file = write(tmp_path / "table.csv", changed(change))
    with pytest.raises(ValueError, match=message):
        panels.from_long(file, **NAMES)


def test_wide_tables_that_do_not_fit_are_refused(tmp_path):
    table = {"week": [1, 2, 3], "a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]}
    wide = functools.partial(panels.from_wide, period="week")
    with pytest.raises(ValueError, match="unit 'a' has period 9, which column 'week' does not"):
        wide(table, treated={"a": 9})
    with pytest.raises(ValueError, match="no column 'c'; the units are .'a', 'b'."):
        wide(table, treated={"c": 2})
    with pytest.raises(ValueError, match="expected a dict from unit to first treated period"):
        wide(table, treated=[2])
    with pytest.raises(ValueError, match="column 'week': got 2 in several rows"):
        wide({**table, "week": [1, 2, 2]}, treated={"a": 2})
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("week,a\n1,2\n\n2\n")
    with pytest.raises(ValueError, match=r"ragged.csv, line 4: got 1 values, the header has 2"):
        wide(ragged, treated={"a": 2})


def test_panels_that_do_not_fit_are_refused():
    y = series(units=4, periods=12)
    with pytest.raises(ValueError, match="outcome: got nan for unit 'b' in period 3"):
        panels.panel(np.where(np.arange(48).reshape(4, 12) == 15, np.nan, y), np.zeros((4, 12)),
                     units="abcd")  # fmt: skip
    with pytest.raises(ValueError, match="treated: got 2 for unit 0 in period 1, expected 0 or 1"):
        panels.panel(y, [0, 2] * 6)
    with pytest.raises(ValueError, match=r"treated: expected shape \[4, 12\].*got \[3\]"):
        panels.panel(y, [0, 1, 1])
    with pytest.raises(ValueError, match="units: expected 4 different names, got 1"):
        panels.panel(y, [0, 1] * 6, units="aaaa")
    none = panels.panel(y, np.zeros(12))
    with pytest.raises(ValueError, match="expected one treated unit, got none"):
        panels.ridge(none)
    two = panels.panel(y, np.arange(48).reshape(4, 12) % 24 > 8)
    with pytest.raises(ValueError, match=r"expected one treated unit, got \d: .*unit="):
        panels.ridge(two)
    with pytest.raises(ValueError, match="first treated in period 1, number 1 from 0; expected at"):
        panels.ridge(panels.panel(y, np.arange(12) >= 1))
    with pytest.raises(ValueError, match="at least 3 units that are never treated, got 2"):
        panels.synthetic_did(panels.panel(y[:3], np.arange(12) >= 6))
    back = panels.panel(y, np.arange(12) == 6)
    with pytest.raises(ValueError, match="treated from 6 on, but not in 7; expected"):
        panels.synthetic_did(back)
    with pytest.raises(TypeError, match="panel: expected a Panel, got ndarray"):
        panels.ridge(y)
    with pytest.raises(ValueError, match="rank: expected an int from 1 to 3"):
        panels.latent_regression(back, 4)
    with pytest.raises(ValueError, match="penalty: expected a positive number, got -1"):
        panels.ridge(back, penalty=-1)
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1"):
        panels.synthetic_did(panels.panel(y, np.arange(12) >= 6), level=95)


# Exact.


@pytest.mark.parametrize("name", ["robust", "robust, rank found", "ridge", "did"])
def test_the_first_treated_period_is_not_before_treatment(name):
    y = series()
    other = y.copy()
    other[0, 28] += 1000
    ours, theirs = (ESTIMATORS[name](panels.panel(x, path(name))) for x in (y, other))
    np.testing.assert_allclose(theirs.estimate - ours.estimate, 1000 / path(name).sum())
    for key in ("counterfactual", "weights", "unit_weights"):
        if key in ours.diagnostics:
            np.testing.assert_allclose(theirs.diagnostics[key], ours.diagnostics[key], atol=1e-9)


@every
def test_without_noise_the_effect_is_found(name):
    y = series(noise=0.0, units=30)
    y[0] = 0.5 * (y[1] + y[2])
    found = ESTIMATORS[name](panels.panel(y + 0.7 * path(name) * (np.arange(30) == 0)[:, None],
                                          path(name)))  # fmt: skip
    # a penalty, however small, moves weights a little
    np.testing.assert_allclose(found.estimate, 0.7, atol=1e-4 if name != "did" else 0.05)


def test_ridge_solves_its_normal_equations():
    y = series(3)
    data = panels.panel(y, MIXED)
    found = panels.ridge(data, penalty=0.01)
    x = y[1:, :28] - y[1:, :28].mean(1, keepdims=True)
    own = y[0, :28] - y[0, :28].mean()
    penalty = 0.01 * np.linalg.norm(x, 2) ** 2
    inverse = np.linalg.inv(x @ x.T + penalty * np.eye(8))
    weights = inverse @ x @ own
    hat = np.trace(x.T @ inverse @ x)
    noise2 = ((own - weights @ x) ** 2).sum() / (27 - hat)
    away = y[1:, MIXED].mean(1) - y[1:, :28].mean(1)
    estimate = y[0, MIXED].mean() - y[0, :28].mean() - weights @ away
    variance = noise2 * (1 / MIXED.sum() + 1 / 28 + away @ inverse @ away)
    np.testing.assert_allclose(found.diagnostics["weights"], weights)
    np.testing.assert_allclose(both(found), [estimate, variance**0.5])
    whole = panels.robust_synthetic_control(data, 8, penalty=0.01)
    np.testing.assert_allclose(both(whole), both(found))


def test_robust_control_uses_the_best_approximation_of_its_rank():
    y = series(4)
    controls = y[1:] - y[1:, :28].mean(1, keepdims=True)
    left, values, right = np.linalg.svd(controls, full_matrices=False)
    cut = (left[:, :2] * values[:2]) @ right[:2]
    x, own = cut[:, :28] - cut[:, :28].mean(1, keepdims=True), y[0, :28] - y[0, :28].mean()
    weights = np.linalg.pinv(x @ x.T, rcond=1e-9) @ x @ own
    gap = y[0] - y[0, :28].mean() - weights @ (cut - cut[:, :28].mean(1, keepdims=True))
    found = panels.robust_synthetic_control(panels.panel(y, MIXED), 2, penalty=1e-12)
    np.testing.assert_allclose(found.estimate, gap[MIXED].mean(), atol=1e-7)
    np.testing.assert_allclose(found.diagnostics["weights"], weights, atol=1e-7)
    assert panels.robust_synthetic_control(panels.panel(y, MIXED)).diagnostics["rank"] == 2


def test_latent_regression_is_least_squares_on_principal_components():
    y = series(5)
    controls = y[1:].T - y[1:].mean(1)
    scores = np.linalg.svd(controls, full_matrices=False)[0][:, :2]
    design = np.column_stack([MIXED, np.ones(40), scores])
    weights, rest = np.linalg.lstsq(design, y[0], rcond=None)[:2]
    variance = rest[0] / 36 * np.linalg.inv(design.T @ design)[0, 0]
    found = panels.latent_regression(panels.panel(y, MIXED), 2)
    np.testing.assert_allclose(both(found), [weights[0], variance**0.5])
    np.testing.assert_allclose(found.interval[1] - found.estimate, 2.0280940 * variance**0.5)
    turned = panels.panel(np.concatenate([y[:1], np.linalg.qr(np.ones((8, 8)) + np.eye(8))[0] @
                                          y[1:]]), MIXED)  # fmt: skip
    np.testing.assert_allclose(both(panels.latent_regression(turned, 2)), both(found))


def shares(gram, cross):
    """Least squares over the simplex by another method."""
    n = len(cross)
    found = optimize.minimize(
        lambda w: w @ gram @ w - 2 * cross @ w, np.full(n, 1 / n), method="SLSQP",
        jac=lambda w: 2 * (gram @ w - cross), bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(n)},
        options={"ftol": 1e-14, "maxiter": 1000},
    )  # fmt: skip
    return found.x


def did(own, controls, pre):
    """Synthetic difference-in-differences of one series, step by step."""
    post = controls.shape[1] - pre
    zeta2 = np.sqrt(post) * np.diff(controls[:, :pre], axis=1).var(ddof=1)
    x = controls[:, :pre] - controls[:, :pre].mean(1, keepdims=True)
    y = own[:pre] - own[:pre].mean()
    units = shares(x @ x.T + zeta2 * pre * np.eye(len(x)), x @ y)
    x = controls[:, :pre] - controls[:, :pre].mean(0)
    y = controls[:, pre:].mean(1) - controls[:, pre:].mean()
    # a small penalty, without which fewer controls than periods leave them open
    spread = np.diff(controls[:, :pre], axis=1).var(ddof=1)
    times = shares(x.T @ x + 1e-4 * spread * len(x) * np.eye(pre), x.T @ y)
    gap = own - units @ controls
    return gap[pre:].mean() - times @ gap[:pre], units, times


def test_synthetic_did_agrees_with_another_solver_and_its_placebos():
    y = series(6, units=14, periods=18)
    found = panels.synthetic_did(panels.panel(y, np.arange(18) >= 12))
    estimate, units, times = did(y[0], y[1:], 12)
    np.testing.assert_allclose(found.estimate, estimate, atol=1e-4)
    np.testing.assert_allclose(found.diagnostics["unit_weights"], units, atol=1e-4)
    np.testing.assert_allclose(found.diagnostics["time_weights"], times, atol=1e-4)
    assert found.diagnostics["gap"] < 1e-9
    placebos = [did(y[i], np.delete(y, [0, i], 0), 12)[0] for i in range(1, 14)]
    np.testing.assert_allclose(found.diagnostics["placebos"], placebos, atol=1e-3)
    np.testing.assert_allclose(found.stderr, np.std(placebos), atol=1e-3)


def test_synthetic_did_of_equal_controls_is_difference_in_differences():
    y = np.repeat(series(7)[:1], 6, 0)
    y[0] = series(8)[0]
    found = panels.synthetic_did(panels.panel(y, STAYS))
    gap = y[0] - y[1]
    expected = gap[28:].mean() - found.diagnostics["time_weights"] @ gap[:28]
    np.testing.assert_allclose(found.estimate, expected, atol=1e-9)
    np.testing.assert_allclose(found.diagnostics["unit_weights"], 1 / 5, atol=1e-9)
    counterfactual = y[1] + found.diagnostics["time_weights"] @ gap[:28]
    np.testing.assert_allclose(found.diagnostics["counterfactual"], counterfactual, atol=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_shares_are_shares_and_optimal(seed, n):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(15, n)), rng.normal(size=15)
    penalty = rng.choice([0.0, 0.3])
    w, gap = simplex_fit(x, y, penalty)
    assert gap < 1e-9
    assert (w >= 0).all()
    np.testing.assert_allclose(w.sum(), 1)
    # no vertex lies downhill
    slope = x.T @ (x @ w - y) + penalty * w
    assert (slope - slope @ w > -1e-6 * max(1, np.abs(slope).max())).all()


# Invariances.


@settings(max_examples=8)
@given(st.integers(0, 1000), st.floats(0.01, 1000), st.floats(-1e4, 1e4), st.floats(-5, 5))
@every
def test_units_of_measurement_levels_and_effects(name, seed, scale, level, shift):
    y, treated = series(seed), path(name)
    ours = ESTIMATORS[name](panels.panel(y, treated))
    own = np.arange(len(y)) == 0
    levels = level * np.random.default_rng(seed).normal(size=(len(y), 1))
    other = scale * (y + shift * np.outer(own, treated)) + levels
    theirs = ESTIMATORS[name](panels.panel(other, treated))
    expected = scale * (both(ours) + np.array([shift, 0]))
    # the stderr of least squares sees the residual alone, of the others periods before treatment
    np.testing.assert_allclose(both(theirs), expected, atol=1e-6 * scale + 1e-8 * abs(level))


@settings(max_examples=10)
@given(st.integers(0, 1000), st.floats(0.01, 1000), st.floats(-5, 5))
def test_units_of_measurement_and_effects_by_the_nuclear_norm(seed, scale, shift):
    rng = np.random.default_rng(seed)
    treated = rng.integers(0, 2, (9, 40))
    ours = panels.nuclear_norm(panels.panel(series(seed), treated))
    other = scale * (series(seed) + shift * treated) + 7
    theirs = panels.nuclear_norm(panels.panel(other, treated))
    np.testing.assert_allclose(
        both(theirs), scale * (both(ours) + np.array([shift, 0])), atol=1e-6 * scale
    )


@given(st.integers(0, 1000))
@settings(max_examples=5)
def test_the_order_of_controls_does_not_matter(seed):
    y = series(seed)
    order = np.random.default_rng(seed).permutation(8) + 1
    for name, estimator in ESTIMATORS.items():
        ours = estimator(panels.panel(y, path(name)))
        theirs = estimator(panels.panel(y[[0, *order]], path(name)))
        np.testing.assert_allclose(both(theirs), both(ours), atol=1e-5)


# Statistics.


@pytest.mark.parametrize("name", ["robust", "latent", "did", "nuclear"])
def test_estimates_centre_on_the_effect(name):
    estimator = ESTIMATORS.get(name, panels.nuclear_norm)
    treated = STAYS if name == "did" else np.arange(40) % 2 * STAYS
    if name == "nuclear":
        treated = np.random.default_rng(0).integers(0, 2, (9, 40))
    effect = treated if treated.ndim == 2 else np.outer(np.arange(9) == 0, treated)
    found = np.array([
        both(estimator(panels.panel(series(seed) + effect, treated))) for seed in range(100)
    ])  # fmt: skip
    # 5.7 standard errors, false alarm below 2e-8 each, and a bias of a tenth of the spread
    sd = found[:, 0].std()
    assert abs(found[:, 0].mean() - 1) < 5.7 * sd / 10 + 0.1 * sd
    # ratios of standard deviations: 100 give them to 7 %
    assert 0.6 < found[:, 1].mean() / sd < 1.7


# The plot.


def test_the_plot_shows_series_band_and_treated_periods():
    data = panels.panel(series(), MIXED, periods=range(1980, 2020))
    found = panels.robust_synthetic_control(data, 2)
    axes = plots.counterfactual(data, found, title="shops")
    assert axes.get_title() == "shops"
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["0"], data.outcome[0])
    middle = found.diagnostics["counterfactual"]
    np.testing.assert_array_equal(lines["without treatment, estimated"], middle)
    band = axes.collections[0].get_paths()[0].vertices
    half = 1.959964 * found.diagnostics["counterfactual_sd"]
    np.testing.assert_allclose(band[:, 1].max(), (middle + half).max(), rtol=1e-4)
    blocks = (np.diff(np.append(0, MIXED.astype(int))) == 1).sum()
    assert len(axes.patches) == blocks
    assert axes.patches[0].get_x() == 2008 - 0.5
    named = panels.panel(series(), STAYS, periods=[f"w{i:02d}" for i in range(40)])
    plots.counterfactual(named, panels.synthetic_did(named))
    with pytest.raises(ValueError, match="have no counterfactual"):
        plots.counterfactual(data, panels.nuclear_norm(data))
    with pytest.raises(ValueError, match="has 40 periods, the panel 20"):
        plots.counterfactual(panels.panel(series()[:, 20:], MIXED[20:]), found)


def test_the_nuclear_norm_knows_its_error_where_half_of_all_cells_are_treated():
    """A level that the low-rank part half takes must not be taken for an effect.

    Of 60 errors in units of their standard errors: the mean square is within 5.7 times its own
    standard error of one, and a half for what linearising leaves out.
    """
    scores = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = np.outer(rng.normal(size=20), rng.normal(size=30)) + 0.1 * rng.normal(size=(20, 30))
        treated = rng.integers(0, 2, (20, 30))
        found = panels.nuclear_norm(panels.panel(y + 2 * treated, treated))
        scores.append((found.estimate - 2) / found.stderr)
    assert np.mean(np.square(scores)) < 1.5 + 5.7 * (2 / 60) ** 0.5
    assert abs(np.mean(scores)) < 5.7 / 60**0.5
