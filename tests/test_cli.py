"""The command line: what it writes, and one line with exit code 2 for what is wrong."""

import re
import sys

import numpy as np
import pytest
import xarray as xr

from decisionppl import _report, _tour, cli
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


def write_runs(folder):
    """A folder of training runs in pairs of files, as RegMix has them."""
    rng = np.random.default_rng(0)
    for scale, count, extra in (("1m", 24, 1.0), ("1B", 8, 0.0)):
        mixtures = rng.dirichlet(np.ones(3), count)
        loss = 2 + extra + ((mixtures - np.array([0.2, 0.3, 0.5])) ** 2).sum(1)
        lines = [f"{i},{','.join(f'{w:.4f}' for w in row)}" for i, row in enumerate(mixtures)]
        header = "index,train_the_pile_arxiv,train_the_pile_github,train_the_pile_pile_cc"
        (folder / f"train_mixture_{scale}.csv").write_text("\n".join([header, *lines]))
        lines = [f"{i},{value:.6f},9.0" for i, value in enumerate(loss)]
        header = "index,metric/the_pile_pile_cc_val_loss,metric/the_pile_arxiv_val_loss"
        (folder / f"train_pile_loss_{scale}.csv").write_text("\n".join([header, *lines]))


METRIC = "the_pile_pile_cc_val_loss"


def test_run_buys_training_runs_within_a_budget(capsys, tmp_path):
    runs, out_folder = tmp_path / "runs", tmp_path / "out"
    runs.mkdir()
    write_runs(runs)
    code, out, err = call(
        capsys, "run", "data_mixture", "--runs", str(runs), "--budget", "70", "--set", "1m=1",
        "--set", "1B=20", "--out", str(out_folder), "--metric", METRIC,
    )  # fmt: skip
    assert code == 0, err
    assert "recommended: " in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("1e+0")}
    assert [rows["1e+06"][1], rows["1e+06"][3]] == ["1", "24"]
    assert [rows["1e+09"][1], rows["1e+09"][3]] == ["20", "8"]
    cheap, dear = int(rows["1e+06"][2]), int(rows["1e+09"][2])
    assert f"spent {cheap + 20 * dear} of 70 on {cheap + dear} runs" in out
    assert ("extrapolated by a scaling law alone" in out) == (dear == 0)
    numbers = re.search(rf"predicted {METRIC} loss .*: (\S+) \(90 % (\S+) to (\S+)\)", out)
    assert numbers is not None
    mean, low, high = map(float, numbers.groups())
    # not the mean of all metrics, of which the other is 9
    assert 1.5 < low < mean < high < 3.5
    with xr.open_dataset(out_folder / "data_mixture.nc", group="search", engine="h5netcdf") as data:
        assert float(data.spent[-1]) <= 70
        assert data.sizes["source"] == 3
    assert (out_folder / "data_mixture.png").read_bytes().startswith(b"\x89PNG")


def test_levels_that_no_run_has_shown_are_not_to_be_trusted(capsys, tmp_path):
    write_runs(tmp_path)
    code, out, err = call(
        capsys, "run", "data_mixture", "--runs", str(tmp_path), "--budget", "19", "--set", "1m=1",
        "--set", "1B=20", "--out", str(tmp_path / "out"), "--metric", METRIC,
    )  # fmt: skip
    assert code == 0, err
    assert "spent 19 of 19 on 19 runs" in out
    assert "extrapolated by a scaling law alone" in out


def test_tour_in_small(capsys, tmp_path):
    code, out, _ = call(
        capsys, "tour", "--out", str(tmp_path), "--shuffles", "2", "--images", "300"
    )
    assert code == 0, out
    assert "Thompson, logistic" in out
    assert (tmp_path / "regret.png").stat().st_size > 10_000
    table = out
    players = _report.read(tmp_path / "tour.nc")
    assert [p.label for p in players] == [p.name for p in _tour.players()]
    assert [n.role for n in players[0].model.sites] == ["latent", "action", "reward"]
    code, out, _ = call(capsys, "report", str(tmp_path / "tour.nc"))
    assert code == 0
    assert "Thompson, logistic" in (tmp_path / "tour.html").read_text()
    rows = {line.split("  ")[0]: line.split() for line in table.splitlines() if "," in line}
    best = float(rows["UCB 95 %, linear"][-5])
    uniform = float(
        next(line for line in table.splitlines() if line.startswith("uniform")).split()[1]
    )
    assert best > 3 * uniform


def test_run_queue_compares_policies(capsys, tmp_path):
    code, out, _ = call(
        capsys, "run", "queue", "--instance", "criss_cross_bm", "--policy", "cmu,threshold:3",
        "--events", "4000", "--replications", "20", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0, out
    line = next(x for x in out.splitlines() if x.startswith("cmu"))
    assert float(line.split()[1]) == pytest.approx(3.0, abs=0.5)
    assert "threshold:3" in out
    assert (tmp_path / "queue.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "queue.nc").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "no model named 'nothing'"),
        (["run", "data_mixture", "--budget", "3"], "needs --runs FOLDER and --budget"),
        (["run", "linear", "--budget", "3"], "belong to data_mixture, not to linear"),
        (["run", "queue", "--instance", "criss_cros_bh"], "Did you mean 'criss_cross_bh'?"),
        (["run", "queue", "--policy", "best"], "no policy named 'best'"),
        (["run", "linear", "--policy", "cmu"], "belong to queue, not to linear"),
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


USER_FILE = """
import jax, numpyro, numpyro.distributions as dist
import decisionppl as dp
from decisionppl.inference import conjugate

def model(x):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    dp.reward("r", dist.Normal(w[dp.action("arm", 2, given=x)] * x, 1.0))

def contexts(key, t):
    return jax.random.normal(key)

def unbounded():
    dp.reward("r", dp.action("dose", dist.Normal(0, 1)))

prior = conjugate(model, 1.0)._replace(update=lambda key, belief, rows: belief)
"""


@pytest.fixture
def user_file(tmp_path, monkeypatch):
    (tmp_path / "users_model.py").write_text(USER_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("users_model", None)


def test_validate_passes_a_right_model_and_draws_it(capsys, user_file):
    code, out, _ = call(
        capsys, "validate", "users_model:model", "--args", "users_model:contexts",
        "--simulations", "60", "--rows", "5", "--plot", "all.png",
    )  # fmt: skip
    assert code == 0, out
    assert "4 of 4 checks passed." in out
    assert (user_file / "all.png").read_bytes().startswith(b"\x89PNG")


def test_validate_exits_with_1_when_a_check_fails(capsys, user_file):
    code, out, _ = call(capsys, "validate", "users_model.py:unbounded")
    assert code == 1
    assert "Normal has unbounded support" in " ".join(out.split())
    code, out, _ = call(
        capsys, "validate", "users_model:model", "--args", "0.5", "--engine", "users_model:prior",
        "--simulations", "100", "--rows", "8",
    )  # fmt: skip
    assert code == 1
    assert "failed: sbc" in out


def test_show_prints_a_table_and_draws_the_graph(capsys, user_file):
    code, out, _ = call(capsys, "show", "users_model.py:model", "--args", "0.5", "--plot", "g.svg",
                        "--dot", "g.dot")  # fmt: skip
    assert code == 0, out
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["r"])
    assert row[:3] == ["r", "reward", "Normal"]
    assert row[-4:] == ["w,", "arm,", "argument", "x"]
    assert "<svg" in (user_file / "g.svg").read_text()
    assert (user_file / "g.dot").read_text().startswith("digraph")
    code, out, _ = call(capsys, "show", "users_model:model", "--args", "users_model:contexts")
    assert code == 0
    code, out, _ = call(capsys, "show", "slate")
    assert "subsets, 2 of" in " ".join(out.split()) or "slate" in out
    code, _, err = call(capsys, "show", "users_model:unbounded", "--plot", "g.doc")
    assert (code, "ends in .png, .svg or .pdf" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("users_model:nothing",), "users_model has no 'nothing'; it has"),
        (("absent_module:model",), "importing failed: ModuleNotFoundError"),
        (("absent.py:model",), "there is no file absent.py"),
        (("users_model",), "expected module:name or file.py:name"),
        (("users_model:model", "--args", "1.0 +"), "expected a Python literal"),
        (("users_model:model", "--args", "1.0", "--engine", "exact"), "got 'exact'"),
        (("users_model:USER",), "has no 'USER'"),
    ],
)
def test_validate_says_in_one_line_what_is_wrong(capsys, user_file, arguments, says):
    code, _, err = call(capsys, "validate", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1
