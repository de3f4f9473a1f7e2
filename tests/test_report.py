"""The report of a saved experiment: its numbers, what it says is missing, a page that is safe."""

import functools
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import decisionppl as dp
from decisionppl import _report, cli
from decisionppl._report_numbers import by_arm, by_rounds, interval, totals
from decisionppl._result import Source
from decisionppl._storage import write_groups
from decisionppl.experiment import Experiment, Result
from decisionppl.inference import conjugate

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """What a reader of HTML5 needs: elements that close in order, and what they hold."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words, self.text = [], [], [], [], text
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [n for n, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def says(self, words):
        return words in " ".join(" ".join(self.words).replace("\xa0", " ").split())


def check_page(text):
    page = Page(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert page.tags.count("h1") == page.tags.count("title") == page.tags.count("main") == 1
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    for tag, attrs in page.attributes:
        if tag == "img":
            assert attrs["src"].startswith("data:image/svg+xml;base64,")
            assert len(attrs["alt"]) > 20
        assert not any(n.startswith("on") or n in ("href", "srcset", "style") for n in attrs)
    # nothing is fetched: no address in styles or elsewhere outside of the pictures
    rest = re.sub(r'src="data:[^"]*"', "", text)
    assert "http:" not in rest
    assert "https:" not in rest
    assert "url(" not in rest
    assert "default-src 'none'" in text
    return page


def arms():
    m = numpyro.sample("m", dist.Normal(0, 1).expand([2]).to_event(1))
    arm = dp.action("arm", 2)
    dp.reward("y", dist.Normal(m[arm], 0.5))
    dp.cost("price", 0.25 * arm)


@pytest.fixture(scope="module")
def result():
    """As `experiment.run` leaves it, with numbers known."""
    index = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]])
    axes = ("replication", "round")
    data = {
        "arm": (axes, index), "action_index": (axes, index), "y": (axes, 1.0 + 2 * index),
        "price": (axes, 0.25 * index), "regret": (axes, 1.0 - index), "propensity": (axes, index),
    }  # fmt: skip
    attrs = {
        "decisionppl": "0.1.0", "numpyro": "0.22", "jax": "0.10", "model": "arms",
        "model_hash": "ab",
        "rule": "'thompson'", "key": [0, 7], "replications": 3, "device": "cpu:cpu x1",
        "dtype": "float32", "complete": True, "horizon": 4, "compile_seconds": 1.5,
        "run_seconds": 0.25,
    }  # fmt: skip
    data = xr.Dataset(data, {"round": np.arange(4)})
    return Result(data, attrs, [np.zeros(2)], None, None, Source(arms))


@pytest.fixture
def file(result, tmp_path):
    result.save(tmp_path / "run.nc")
    return tmp_path / "run.nc"


def edited(file, change, drop=()):
    """The file with other attributes or fewer variables."""
    found = Result.load(file)
    attrs = {k: v for k, v in {**found.attrs, **change}.items() if v is not None}
    source = None if "model_sites" in change else found.source
    Result(found.data.drop_vars(list(drop)), attrs, found.state, None, None, source).save(file)
    return file


def test_the_page_holds_numbers_plots_sites_and_versions(file):
    out = _report.report(file)
    assert out == file.with_suffix(".html")
    page = check_page(out.read_text(encoding="utf-8"))
    for words in (
        "Experiment: arms; thompson", "One run of 3 replications and 4 rounds, read from run.nc.",
        "hash of the model's source ab", "key (seed) [0, 7]", "device cpu:cpu x1", "NumPyro 0.22",
        "arm action Categorical(2 equal) integers 0 to 1 scalar",
    ):  # fmt: skip
        assert page.says(words), words
    assert page.tags.count("img") == 4  # regret, reward, arms, graph of the model
    assert not page.says("The file does not say")


def test_numbers_are_means_over_replications(result, file):
    (run,) = _report.read(file)
    header, (row,) = totals([run])
    cells = dict(zip(header, (c.replace("\xa0", " ") for c in row), strict=True))
    ones = np.array([2, 3, 3])  # choices of arm 1
    half = 4.302653 * np.std(ones, ddof=1) / 3**0.5  # t law of 2 degrees
    assert cells["replications"] == "3"
    assert cells["reward y per decision"] == f"{1 + 2 * ones.mean() / 4:.2f} ± {half / 2:.2f}"
    assert cells["cost price per decision"] == f"{ones.mean() / 16:.3f} ± {half / 16:.3f}"
    assert cells["regret in total"] == f"{4 - ones.mean():.1f} ± {half:.1f}"
    header, rows = by_rounds(run)
    assert [r[0] for r in rows] == ["1", "2", "3", "4"]
    first = dict(zip(header, rows[0], strict=True))
    assert first["regret per decision"].split("\xa0")[0] == "0.7"
    (header, rows), words = by_arm(run)
    assert (header[:2], words) == (("arm", "chosen (% of decisions)"), "")
    assert [r[0] for r in rows] == ["arm 0", "arm 1"]
    assert rows[1][1].split("\xa0")[0] == "67"
    assert [r[2] for r in rows] == ["1\xa0±\xa00", "3\xa0±\xa00"]


def test_intervals_cover(result):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        mean, half = map(float, interval(rng.normal(5, 1, 6)).split("\xa0±\xa0"))
        hits += abs(mean - 5) <= half
    # 380 expected, standard deviation 4.4
    assert abs(hits - 380) < 5.7 * 4.4
    assert interval(np.array([2.0])) == "2"
    assert interval(np.array([np.nan])) == ""


def test_the_same_file_gives_the_same_page(file, tmp_path):
    first = _report.report(file, tmp_path / "a.html").read_bytes()
    assert _report.report(file, tmp_path / "b.html").read_bytes() == first


def test_runs_save_sites_and_roles(tmp_path, monkeypatch):
    done = dp.experiment.run(arms, conjugate(arms), functools.partial(dp.rules.ucb, quantile=0.9),
                             horizon=6, key=0)  # fmt: skip
    assert "model_sites" not in done.attrs  # described when saved, not when run
    done.save(tmp_path / "run.nc")
    with monkeypatch.context() as patch:  # a checkpoint describes the model no second time
        patch.setattr("decisionppl._show.show", None)
        done.save(tmp_path / "run.nc")
    (run,) = _report.read(tmp_path / "run.nc")
    assert run.model == dp.show(arms)
    page = check_page(_report.page([run], "run.nc"))
    assert page.says("Experiment: arms; ucb(quantile=0.9)")
    assert page.says("A single replication")
    # a file that was read says the same when it is written again
    Result.load(tmp_path / "run.nc").save(tmp_path / "again.nc")
    assert _report.read(tmp_path / "again.nc")[0].model == run.model


def test_what_the_file_lacks_is_said(file):
    old = {n: None for n in ("model_sites", "device", "key", "numpyro")}
    edited(file, {**old, "complete": False, "horizon": 9}, ["regret", "action_index"])
    page = check_page(_report.report(file).read_text())
    for words in (
        "The file does not say the model's sites and roles", "There is no regret in the file",
        "interrupted after 4 of 9 rounds", "key (seed) not in the file",
        "so there is no table by arm", "y per decision", "neither regret nor a known reward",
    ):  # fmt: skip
        assert page.says(words), words
    edited(file, {"model_sites": {"format": 99}})
    assert Page(_report.report(file).read_text()).says("format 99, this version reads 1")
    edited(file, {"model_sites": {**dp.show(arms).to_dict(), "arguments": 3}})
    assert Page(_report.report(file).read_text()).says("description of the model cannot be read")
    sites = dp.show(arms).to_dict()["sites"][1:]
    edited(file, {"model_sites": {"format": 1, "name": "arms", "arguments": [], "sites": sites}})
    assert Page(_report.report(file).read_text()).says("it depends on 'm', which is not described")
    edited(file, {"model_sites": {"format": 1, "error": "TypeError: no"}})
    assert Page(_report.report(file).read_text()).says("could not be described when it was saved")


def test_a_model_that_cannot_be_described_is_saved_all_the_same(result, tmp_path):
    def broken():
        raise RuntimeError("not now")

    Result(result.data, result.attrs, [], None, None, Source(broken)).save(tmp_path / "run.nc")
    (run,) = _report.read(tmp_path / "run.nc")
    assert "RuntimeError: not now" in run.lacks


def test_names_cannot_write_html(file):
    evil = "<script>alert(1)</script>"
    odd = json.dumps(dp.show(arms).to_dict()).replace('"arm"', json.dumps(evil))
    sites = json.loads(odd.replace('"Normal"', '"$\\\\frac$"'))  # which no mathematics can read
    edited(file, {"model": evil, "rule": evil, evil: evil, "model_sites": {**sites, "name": evil}})
    text = _report.report(file).read_text()
    check_page(text)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    named = file.rename(file.with_name("<img src=x>.nc"))
    check_page(_report.report(named).read_text())


def test_many_arms_vectors_and_batches(tmp_path):
    rng = np.random.default_rng(0)
    axes = ("replication", "round", "unit")
    index = rng.integers(0, 40, (3, 30, 2))
    data = {"action_index": (axes, index), "regret": (axes, index / 40.0),
            "clicks": ((*axes, "clicks_dim_0"), rng.integers(0, 2, (3, 30, 2, 4)))}  # fmt: skip
    Result(xr.Dataset(data), {"model": "m"}, []).save(tmp_path / "run.nc")
    (run,) = _report.read(tmp_path / "run.nc")
    (header, rows), words = by_arm(run)
    assert (len(rows), words) == (
        20,
        f"{len(np.unique(index)) - 20} more arms were chosen less often.",
    )
    clicks = dict(zip(header, rows[0], strict=True))["clicks per choice"]
    assert 0 <= float(clicks.split("\xa0")[0]) <= 4
    page = check_page(_report.page([run], "run.nc"))
    assert page.says("2 decisions a round")


def test_the_tour_is_one_page_of_all_players(result, tmp_path):
    named = {n: result.data.assign_attrs(player=n, **result.file_attributes())
             for n in ("Thompson", "UCB 95 %")}  # fmt: skip
    groups = {f"player_{i}": d for i, d in enumerate(named.values())}
    write_groups(tmp_path / "tour.nc", {"tour": xr.Dataset(attrs={"seed": 0}), **groups})
    page = check_page(_report.report(tmp_path / "tour.nc").read_text())
    assert page.says("2 runs, each of 3 replications")
    assert page.says("By arm: UCB 95 %")
    assert page.text.count("<h2>Model: arms</h2>") == 1  # the same model once


def test_what_is_no_experiment_is_refused(file, tmp_path, capsys):
    def fails(path):
        with pytest.raises(SystemExit) as stop:
            cli.main(["report", str(path)])
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "there is no file" in fails(tmp_path / "none.nc")
    assert "there is no file" in fails(tmp_path)
    (tmp_path / "text.nc").write_text("a,b\n1,2\n")
    assert "not a netCDF file" in fails(tmp_path / "text.nc")
    whole = file.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.95):
        (tmp_path / "cut.nc").write_bytes(whole[: int(share * len(whole))])
        assert "damaged or cut off" in fails(tmp_path / "cut.nc"), share
    write_groups(tmp_path / "other.nc", {"cmu": xr.Dataset({"time": ("run", [1.0])})})
    assert "holds no experiment (its groups: ['cmu'])" in fails(tmp_path / "other.nc")
    write_groups(tmp_path / "search.nc", {"search": xr.Dataset()})
    assert "it holds a search of a table of runs" in fails(tmp_path / "search.nc")
    write_groups(tmp_path / "empty.nc", {"experiment": xr.Dataset()})
    assert "no replications" in fails(tmp_path / "empty.nc")
    Experiment(arms, conjugate(arms), dp.rules.thompson, key=0).save(tmp_path / "ask.nc")
    assert "the state of an Experiment that asks and is told" in fails(tmp_path / "ask.nc")
    assert not list(tmp_path.glob("*.html"))
    with pytest.raises(ValueError, match="this is the file of the experiment itself"):
        _report.report(file, file)
    assert file.read_bytes() == whole


def test_the_command_says_where_the_page_is(file, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(file), "--out", str(tmp_path / "deep" / "page.html")])
    assert stop.value.code == 0
    assert "wrote" in capsys.readouterr().out
    check_page((tmp_path / "deep" / "page.html").read_text())
    # others may read it, and nothing else is left beside it
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "deep" / "page.html").stat().st_mode & 0o777 == 0o666 & ~mask
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["page.html"]
