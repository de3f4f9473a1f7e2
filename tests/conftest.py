"""Settings shared by all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# before JAX is imported: OpenBLAS threads spin against each other on two cores
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# tests compile many programs and run each of them briefly: compiling dominates
_FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{_FAST_COMPILE} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from jax import monitoring  # noqa: E402

from decisionppl.testing import strategies  # noqa: E402

strategies.register_profile()

# Each compiled program holds memory maps of its process, of which Linux allows 65,530: XLA ends
# the process with a segmentation fault when it gets no more. A test file needs up to some 10,000.
_MANY_MAPS = 20_000
_MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def _few_memory_maps() -> Iterator[None]:
    """Drop compiled programs between test files before there are too many of them."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()


@pytest.fixture
def compilations() -> Iterator[Callable[[], int]]:
    """How many programs XLA has compiled since the test began: a function without arguments.

    Sizes of the caches of `jax.jit` say less: another function may own the program.
    """
    compiled = 0

    def heard(event: str, seconds: float, **_: object) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    monitoring.register_event_duration_secs_listener(heard)
    yield lambda: compiled
    monitoring.unregister_event_duration_listener(heard)
