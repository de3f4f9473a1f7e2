"""The command line: what it writes, and one line with exit code 2 for what is wrong."""

import pytest

from decisionppl import cli
from decisionppl.experiment import Result
from decisionppl.models import GALLERY


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_models_lists_the_gallery(capsys):
    code, out, _ = call(capsys, "models")
    assert code == 0
    assert all(name in out for name in GALLERY)


def test_run_writes_netcdf_and_plot(capsys, tmp_path):
    code, out, _ = call(
        capsys, "run", "gaussian", "--set", "num_arms=2", "--out", str(tmp_path), "--horizon",
        "20", "--replications", "4", "--rule", "ucb", "--seed", "3",
    )  # fmt: skip
    assert code == 0, out
    assert "ucb" in out
    assert Result.load(tmp_path / "gaussian.nc").rounds == 20
    assert (tmp_path / "gaussian.png").read_bytes().startswith(b"\x89PNG")


def test_tour_in_small(capsys, tmp_path):
    code, out, _ = call(
        capsys, "tour", "--out", str(tmp_path), "--shuffles", "2", "--images", "300"
    )
    assert code == 0, out
    assert "Thompson, logistic" in out
    assert (tmp_path / "regret.png").stat().st_size > 10_000
    assert (tmp_path / "tour.nc").exists()
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines() if "," in line}
    best = float(rows["UCB 95 %, linear"][-5])
    uniform = float(
        next(line for line in out.splitlines() if line.startswith("uniform")).split()[1]
    )
    assert best > 3 * uniform


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "no model named 'nothing'"),
        (["run", "linaer"], "Did you mean 'linear'?"),
        (["run", "linear", "--set", "size=3"], "no parameter 'size'"),
        (["run", "linear", "--set", "dim=big"], "not a number"),
        (["run", "linear", "--set", "dim"], "expected name=value"),
        (["run", "linear", "--set", "dim=2.5"], "whole number"),
        (["run", "linear", "--set", "noise=-1"], "positive"),
        (["run", "linear", "--rule", "best"], "no rule named 'best'"),
        (["run", "linear", "--horizon", "0"], "--horizon"),
        (["tour", "--images", "5000"], "--images"),
        (["fly"], "fly"),
        (["tour", "--colour", "red"], "--colour"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, arguments, message):
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_without_arguments_there_is_help(capsys):
    code, out, _ = call(capsys)
    assert code == 0
    assert "tour" in out
