"""Numbers that are shown are those of the committed result files."""

import datetime
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))

pytestmark = pytest.mark.skipif(not RESULTS, reason="the tests run without their checkout")


@pytest.fixture(scope="module")
def summary():
    spec = importlib.util.spec_from_file_location("summary", ROOT / "benchmarks" / "summary.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_and_evidence_show_the_result_files(summary):
    assert [p.name for p in summary.stale()] == [], "run python benchmarks/summary.py"


def test_a_changed_number_is_noticed(summary, tmp_path, monkeypatch):
    shown = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown.write_text(re.sub(r"(\d+) times", "1 times", text), encoding="utf-8")
    monkeypatch.setattr(summary, "SHOWN", (shown,))
    assert summary.stale() == [shown]


def test_a_line_names_one_row(summary):
    line = summary.LINES[0]._replace(row=".*")
    with pytest.raises(ValueError, match="rows match"):
        summary.row_of(line)


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_result_files_say_how_they_were_made(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert {"processor", "cores", "devices"} <= set(found["machine"])
    assert {"python", "jax", "numpyro", "decisionppl"} <= set(found["versions"])
    assert datetime.date.fromisoformat(found["date"])
    assert isinstance(found["seed"], int)
    assert found["smoke"] is False
    for row in found["rows"]:
        assert {"name", "value", "unit", "target", "peer", "peer_value", "passed"} <= set(row)
