"""Every tutorial runs in smoke size, from its own folder, and its assertion holds."""

import os
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
    with open(tmp_path / "output", "w+") as output:
        done = subprocess.Popen(
            [sys.executable, script], cwd=tmp_path, env=environment, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(done.pid, 0)  # of this child alone
        done.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    record_property("seconds", round(time.perf_counter() - started, 1))
    record_property("cpu_seconds", round(usage.ru_utime + usage.ru_stime, 1))
    record_property("peak_memory_mb", usage.ru_maxrss // 1024)
    assert done.returncode == 0, said[-2000:]
    assert list(tmp_path.glob("*.png")), "the tutorial drew no plot"
