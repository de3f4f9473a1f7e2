"""Every tutorial runs in smoke size, from its own folder, and its assertion holds."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.skipif(not SCRIPTS, reason="the tests run without their checkout")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_tutorial(script, tmp_path, record_property):
    environment = {**os.environ, "TUTORIAL_SMOKE": "1", "MPLBACKEND": "agg"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    record_property("seconds", round(time.perf_counter() - started, 1))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    record_property("peak_memory_mb", usage.ru_maxrss // 1024)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("*.png")), "the tutorial drew no plot"
