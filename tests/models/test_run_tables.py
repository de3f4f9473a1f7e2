"""Tables of runs from CSV files: what is read, and what is said about bad files."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from decisionppl.models._run_tables import load_runs, parse_scale

SOURCES = ["train_the_pile_arxiv", "train_the_pile_github", "train_the_pile_pile_cc"]
METRICS = ["metric/the_pile_arxiv_val_loss", "metric/the_pile_pile_cc_val_loss"]


def write(path, header, rows):
    lines = [",".join(str(cell) for cell in row) for row in [header, *rows]]
    path.write_text("\n".join(lines))  # no newline at the end, as some files have it
    return path


def write_pair(folder, scale, weights, losses, name="test", index=None, loss_index=None):
    index = list(range(1, len(weights) + 1)) if index is None else index
    loss_index = index if loss_index is None else loss_index
    mixture = write(
        folder / f"{name}_mixture_{scale}.csv",
        ["index", *SOURCES],
        [[i, *row] for i, row in zip(index, weights, strict=True)],
    )
    loss = write(
        folder / f"{name}_pile_loss_{scale}.csv",
        ["index", *METRICS],
        [[i, *row] for i, row in zip(loss_index, losses, strict=True)],
    )
    return mixture, loss


WEIGHTS = [[0.2, 0.3, 0.5], [0.0, 0.4, 0.6], [0.201, 0.301, 0.5]]
LOSSES = [[5.0, 4.0], [5.5, 3.5], [5.25, 4.25]]


@pytest.fixture
def folder(tmp_path):
    write_pair(tmp_path, "1m", WEIGHTS, LOSSES, "train")
    write_pair(tmp_path, "60m", WEIGHTS[:2], [[3.0, 2.0], [3.5, 2.5]])
    write_pair(tmp_path, "1B", WEIGHTS[1:], [[2.0, 1.0], [2.5, 1.25]], index=[0, 1])
    (tmp_path / "README.md").write_text("not a table")
    return tmp_path


# --- pairs of files ----------------------------------------------------------------------------


def test_a_folder_of_pairs(folder):
    table = load_runs(folder)
    assert table.num_runs == 7
    assert table.sources == ("the_pile_arxiv", "the_pile_github", "the_pile_pile_cc")
    assert list(table.metrics) == ["the_pile_arxiv_val_loss", "the_pile_pile_cc_val_loss"]
    assert table.scales == (1e6, 6e7, 1e9)
    assert table.scale.tolist() == [1e6] * 3 + [6e7] * 2 + [1e9] * 2
    assert table.labels[:4] == ("train_1m/1", "train_1m/2", "train_1m/3", "test_60m/1")
    np.testing.assert_allclose(table.mixtures.sum(1), 1, atol=1e-15)
    np.testing.assert_allclose(table.mixtures[2], np.array(WEIGHTS[2]) / 1.002)
    assert table.cost is None
    assert np.isnan(table.steps).all()


def test_files_by_list_and_strings(folder):
    names = [str(folder / f"test_{kind}_1B.csv") for kind in ("mixture", "pile_loss")]
    table = load_runs(names)
    assert table.scales == (1e9,)
    assert table.target().tolist() == [1.5, 1.875]


def test_rows_are_joined_on_the_index(tmp_path):
    write_pair(tmp_path, "1m", WEIGHTS, LOSSES, index=[3, 1, 2], loss_index=[1, 2, 3])
    table = load_runs(tmp_path)
    assert table.labels == ("test_1m/3", "test_1m/1", "test_1m/2")
    assert table.target("the_pile_arxiv_val_loss").tolist() == [5.25, 5.0, 5.5]
    assert table.mixtures[0].tolist() == [0.2, 0.3, 0.5]


def test_columns_in_another_order_are_joined_by_name(tmp_path):
    write_pair(tmp_path, "1m", WEIGHTS[:2], LOSSES[:2], "train")
    rows = [[1, *WEIGHTS[0][::-1]], [2, *WEIGHTS[1][::-1]]]
    write(tmp_path / "other_mixture_1m.csv", ["index", *SOURCES[::-1]], rows)
    write(tmp_path / "other_loss_1m.csv", ["index", *METRICS], [[1, 5, 4], [2, 5.5, 3.5]])
    table = load_runs(tmp_path)
    np.testing.assert_allclose(table.mixtures[:2], table.mixtures[2:])


# --- target, at, take, cost --------------------------------------------------------------------


def test_target_is_one_number_for_each_run(folder):
    table = load_runs(folder).at("1m")
    assert table.target().tolist() == [4.5, 4.5, 4.75]
    assert table.target("the_pile_pile_cc_val_loss").tolist() == [4.0, 3.5, 4.25]
    both = table.target(["the_pile_arxiv_val_loss", "the_pile_pile_cc_val_loss"])
    np.testing.assert_array_equal(both, table.target("mean"))
    with pytest.raises(ValueError, match="did you mean 'the_pile_pile_cc_val_loss'"):
        table.target("the_pile_pilecc_val_loss")
    with pytest.raises(ValueError, match="got none"):
        table.target([])


def test_a_metric_called_mean_is_that_metric(tmp_path):
    path = write(tmp_path / "runs.csv", ["w", "mean", "b"], [[1, 1, 5], [1, 2, 7]])
    table = load_runs(path, mixture=["w"], metrics=["mean", "b"])
    assert table.target().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("scale", ["1B", "1b", 1e9, 1_000_000_000])
def test_at_selects_the_runs_of_a_size(folder, scale):
    table = load_runs(folder, costs={"1m": 1, "60m": 10, "1B": 100})
    chosen = table.at(scale)
    assert chosen.labels == ("test_1B/0", "test_1B/1")
    np.testing.assert_array_equal(chosen.mixtures, table.mixtures[-2:])
    assert chosen.target("the_pile_arxiv_val_loss").tolist() == [2.0, 2.5]
    assert chosen.cost.tolist() == [100, 100]
    assert chosen.scale.tolist() == [1e9, 1e9]
    assert len(chosen.steps) == 2
    with pytest.raises(ValueError, match=r"no run has '7b'; the table has 1e\+06, 6e\+07, 1e\+09"):
        table.at("7b")


def test_the_price_is_size_times_length_unless_it_is_given(folder):
    tokens = {"1m": 1e9, "60M": 1e9, 1e9: 25e9}
    table = load_runs(folder, tokens=tokens)
    assert table.steps.tolist() == [1e9] * 5 + [25e9] * 2
    np.testing.assert_allclose(table.cost, [1] * 3 + [60] * 2 + [25_000] * 2)
    given = load_runs(folder, tokens=tokens, costs={"1m": 1, "60m": 10, "1B": 100})
    assert given.cost.tolist() == [1] * 3 + [10] * 2 + [100] * 2
    with pytest.raises(ValueError, match=r"tokens: nothing is given for the scale 6e\+07"):
        load_runs(folder, tokens={"1m": 1e9, "1B": 25e9})
    with pytest.raises(ValueError, match=r"costs: expected positive numbers, got 0.0 at 1e\+06"):
        load_runs(folder, costs={"1m": 0, "60m": 10, "1B": 100})


def test_replicates_are_kept(tmp_path):
    write_pair(tmp_path, "1m", [WEIGHTS[0]] * 3, LOSSES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = load_runs(tmp_path)
    assert table.num_runs == 3
    assert np.all(table.mixtures == table.mixtures[0])


# --- one long file -----------------------------------------------------------------------------

HEADER = ["name", "web", "code", "size", "tokens", "loss", "hellaswag", "price"]
ROWS = [
    ["a", 0.5, 0.5, "20m", 1e9, 3.5, 0.25, 4],
    ["b", 0.25, 0.75, "20m", 2e9, 3.25, 0.26, 8],
    ["c", 1, 0, "1B", 1e9, 2.5, 0.5, 300],
]
COLUMNS = {"mixture": ["web", "code"], "metrics": ["loss", "hellaswag"], "scale": "size"}


def test_a_long_file(tmp_path):
    path = write(tmp_path / "runs.csv", HEADER, ROWS)
    table = load_runs(path, **COLUMNS, steps="tokens", label="name")
    assert table.sources == ("web", "code")
    assert table.labels == ("a", "b", "c")
    assert table.scale.tolist() == [2e7, 2e7, 1e9]
    assert table.steps.tolist() == [1e9, 2e9, 1e9]
    assert table.metrics["hellaswag"].tolist() == [0.25, 0.26, 0.5]
    np.testing.assert_allclose(table.cost, [1, 2, 50])
    priced = load_runs(path, **COLUMNS, steps="tokens", cost="price")
    assert priced.cost.tolist() == [4, 8, 300]
    assert priced.labels == ("runs/2", "runs/3", "runs/4")
    with pytest.raises(ValueError, match="costs: the file has a column of the price"):
        load_runs(path, **COLUMNS, cost="price", costs={"20m": 1, "1B": 2})
    with pytest.raises(ValueError, match="tokens: the file has a column of the length"):
        load_runs(path, **COLUMNS, steps="tokens", tokens={"20m": 1, "1B": 2})


def test_several_long_files_and_a_common_size(tmp_path):
    paths = [
        write(tmp_path / f"{k}.csv", [*HEADER[1:3], "loss"], [[0.5, 0.5, k], [1, 0, k + 1]])
        for k in range(2)
    ]
    table = load_runs(paths, mixture=["web", "code"], metrics=["loss"], scale=6e7)
    assert table.target().tolist() == [0, 1, 1, 2]
    assert table.scales == (6e7,)


@pytest.mark.parametrize("nothing", [(), ""])
def test_runs_without_mixture_and_a_byte_order_mark(tmp_path, nothing):
    path = tmp_path / "runs.csv"
    path.write_text("loss:web,loss:code\n1.5,2.5\n\n1,2\n", encoding="utf-8-sig")
    table = load_runs(path, mixture=nothing, metrics="loss:")
    assert table.mixtures.shape == (2, 0)
    assert table.target().tolist() == [2.0, 1.5]
    assert table.labels == ("runs/2", "runs/4")
    assert np.isnan(table.scale).all()


@pytest.mark.parametrize(
    ("text", "size"), [("1m", 1e6), ("1B", 1e9), ("1.4b", 1.4e9), ("350K", 3.5e5), (7, 7.0)]
)
def test_sizes(text, size):
    assert parse_scale(text) == size


# --- bad files ---------------------------------------------------------------------------------


def spoilt(folder, weights=WEIGHTS, losses=LOSSES, **options):
    write_pair(folder, "1m", weights, losses, **options)
    return folder


def with_cell(rows, row, column, value):
    rows = [list(r) for r in rows]
    rows[row][column] = value
    return rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.2, 0.3, 0.4], "test_mixture_1m.csv, line 3: the weights sum to 0.9, expected 1"),
        ([0, 0, 0], "line 3: the weights sum to 0, expected 1"),
        ([20, 30, 50], "line 3: the weights sum to 100"),
        ([0.2, 0.3, 0.515], "line 3: the weights sum to 1.015"),
        ([-0.1, 0.6, 0.5], "line 3: the weight of 'the_pile_arxiv' is negative, -0.1"),
        (["x", 0.5, 0.5], "line 3, column 'train_the_pile_arxiv': 'x' is not a number"),
    ],
)
@pytest.mark.parametrize("drop_missing", [False, True])
def test_bad_weights(tmp_path, row, message, drop_missing):
    spoilt(tmp_path, weights=[WEIGHTS[0], row, WEIGHTS[1]])
    with pytest.raises(ValueError, match=message):
        load_runs(tmp_path, drop_missing=drop_missing)


def test_weights_may_miss_one_by_a_percent(tmp_path):
    spoilt(tmp_path, weights=[[0.2, 0.3, 0.51], [0.2, 0.3, 0.49], WEIGHTS[0]])
    np.testing.assert_allclose(load_runs(tmp_path).mixtures.sum(1), 1, atol=1e-15)


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "inf", "-inf", "1e999", " ", "NA"])
def test_missing_losses_are_an_error_or_dropped(tmp_path, cell):
    spoilt(tmp_path, losses=with_cell(LOSSES, 1, 0, cell))
    place = (
        r"test_pile_loss_1m.csv, line 3, column 'metric/the_pile_arxiv_val_loss': expected a fin"
    )
    with pytest.raises(ValueError, match=place):
        load_runs(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 3 runs have a missing .* left out \(test_1m/2\)"):
        table = load_runs(tmp_path, drop_missing=True)
    assert table.labels == ("test_1m/1", "test_1m/3")
    assert table.target().tolist() == [4.5, 4.75]
    np.testing.assert_allclose(table.mixtures[1], np.array(WEIGHTS[2]) / 1.002)


def test_missing_weights_are_dropped_too(tmp_path):
    spoilt(tmp_path, weights=with_cell(WEIGHTS, 0, 2, "nan"))
    with pytest.raises(ValueError, match="line 2, column 'train_the_pile_pile_cc': expected a fin"):
        load_runs(tmp_path)
    with pytest.warns(UserWarning, match="1 of 3 runs"):
        table = load_runs(tmp_path, drop_missing=True)
    assert table.num_runs == 2
    assert np.isfinite(table.mixtures).all()


def test_nothing_left_to_drop(tmp_path):
    spoilt(tmp_path, losses=[["", 1]] * 3)
    with pytest.raises(ValueError, match="every run has a missing or non-finite entry"):
        load_runs(tmp_path, drop_missing=True)


def test_duplicated_index(tmp_path):
    spoilt(tmp_path, index=[1, 2, 1])
    with pytest.raises(ValueError, match="line 4, column 'index': '1' is on line 2 already"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ([1, 2, 9], [1, 2, 3], r"mixture_1m.csv: 1 runs are not in test_pile_loss_1m.csv .index 9"),
        ([1, 2], [1, 2, 3], r"loss_1m.csv: 1 runs are not in test_mixture_1m.csv .index 3"),
    ],
)
def test_unmatched_index(tmp_path, left, right, message):
    weights = WEIGHTS[: len(left)]
    write_pair(tmp_path, "1m", weights, LOSSES, index=left, loss_index=right)
    with pytest.raises(ValueError, match=message):
        load_runs(tmp_path)


def test_a_constant_metric_is_a_warning(tmp_path):
    write_pair(tmp_path, "1m", WEIGHTS, [[5.0, 0.25], [5.5, 0.25], [5.25, 0.25]])
    write_pair(tmp_path, "1B", WEIGHTS, [[5.0, 0.5], [5.5, 0.6], [5.25, 0.7]])
    message = r"'the_pile_pile_cc_val_loss' is 0.25 in all 3 runs of scale 1e\+06"
    with pytest.warns(UserWarning, match=message) as caught:
        table = load_runs(tmp_path)
    assert len(caught) == 1
    assert table.num_runs == 6


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected pairs NAME_mixture_SCALE.csv"):
        load_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file: .*absent.csv"):
        load_runs(tmp_path / "absent.csv")
    with pytest.raises(FileNotFoundError, match="empty list"):
        load_runs([])


def test_half_a_pair(folder):
    (folder / "test_pile_loss_1B.csv").unlink()
    with pytest.raises(ValueError, match="test_mixture_1B.csv: the mixture file has no loss file"):
        load_runs(folder)


def test_sets_of_runs_with_other_columns(folder):
    write(folder / "z_mixture_2B.csv", ["index", "train_web", SOURCES[0]], [[1, 0.5, 0.5]])
    write(folder / "z_loss_2B.csv", ["index", *METRICS], [[1, 2, 3]])
    with pytest.raises(ValueError, match="same mixtures: the_pile_github, the_pile_pile_cc, web"):
        load_runs(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture": ["web", "cod"]}, "no column 'cod'; did you mean 'code'"),
        ({"metrics": ["los"]}, "no column 'los'; did you mean 'loss'"),
        ({"mixture": "train_"}, "no column begins with 'train_'; name the columns of the mixture"),
        ({"scale": "sizes"}, "no column 'sizes'; did you mean 'size'"),
        ({"scale": "name"}, "line 2, column 'name': scale: expected a number such as 60m"),
        ({"label": "nam"}, "no column 'nam'; did you mean 'name'"),
    ],
)
def test_columns_that_are_not_there(tmp_path, options, message):
    path = write(tmp_path / "runs.csv", HEADER, ROWS)
    with pytest.raises(ValueError, match=message):
        load_runs(path, **{**COLUMNS, **options})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web,loss\n1,2\n1\n", "line 3: expected 2 cells as in the header, got 1"),
        ("web,loss\n", "the file has no rows"),
        ("", "the file has no rows"),
        ("web,loss,web\n1,2,3\n", "the header has 'web' 2 times"),
        ("web,loss\n1,\xff\n", "not a CSV file in UTF-8"),
        ("web,loss,size\n1,2,3\n1,3,-3\n", "line 3: expected a positive scale, got -3"),
        ("web,loss,size\n1,2,3\n1,3,1e999\n", "line 3, column 'size': expected a finite number"),
    ],
)
def test_broken_files(tmp_path, text, message):
    path = tmp_path / "runs.csv"
    path.write_bytes(text.encode("latin-1"))
    scale = "size" if "size" in text else None
    with pytest.raises(ValueError, match=message):
        load_runs(path, mixture=["web"], metrics=["loss"], scale=scale)


def test_arguments_of_long_files_are_refused_for_pairs(folder):
    with pytest.raises(ValueError, match="scale: 'size' is for a long file"):
        load_runs(folder, scale="size")


def test_pairs_and_long_files_are_not_mixed(folder):
    path = write(folder / "runs.csv", HEADER, ROWS)
    with pytest.raises(ValueError, match="read long tables apart from pairs"):
        load_runs([*sorted(folder.glob("test_*.csv")), path])


# --- the published tables ----------------------------------------------------------------------


def test_published_tables():
    """RegMix: 768, 256 and 64 runs; facts that were computed from the files on their own."""
    root = os.environ.get("DECISIONPPL_DATA")
    if root is None or not (Path(root) / "regmix").is_dir():
        pytest.skip("DECISIONPPL_DATA does not point to a folder with regmix/")
    table = load_runs(Path(root) / "regmix", costs={"1m": 1, "60m": 60, "1B": 25_000})
    assert [table.at(s).num_runs for s in ("1m", "60m", "1B")] == [768, 256, 64]
    assert (len(table.sources), len(table.metrics)) == (17, 13)
    np.testing.assert_allclose(table.mixtures.sum(1), 1, atol=1e-12)
    target = table.at("1B").target()
    assert (target.min().round(4), target.max().round(4)) == (2.1113, 2.4442)
    assert target.std() == pytest.approx(0.0519, abs=1e-4)
    small, medium = table.at("1m"), table.at("60m")
    test = [k for k, label in enumerate(small.labels) if label.startswith("test")]
    np.testing.assert_array_equal(small.take(test).mixtures, medium.mixtures)
