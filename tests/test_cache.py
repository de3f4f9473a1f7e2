"""The persistent compilation cache: private, and used by a second process."""

import os
import subprocess
import sys

import pytest

import decisionppl as dp

SCRIPT = """
import sys, jax, jax.numpy as jnp
import decisionppl as dp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
folder = dp.enable_compilation_cache(sys.argv[1])
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(64)).block_until_ready()
print(sum("cache_hit" in name for name in hits) > 0, oct(folder.stat().st_mode & 0o777))
"""


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "cache")]
    outs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(2)]
    assert [o.stdout.split() for o in outs] == [["False", "0o700"], ["True", "0o700"]]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_folder_that_others_may_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="chmod 700"):
        dp.enable_compilation_cache(tmp_path)
