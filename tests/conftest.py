"""Settings shared by all tests."""

import os
from collections.abc import Callable, Iterator

# before JAX is imported: OpenBLAS threads spin against each other on two cores
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# tests compile many programs and run each of them briefly: compiling dominates
_FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{_FAST_COMPILE} {os.environ.get('XLA_FLAGS', '')}".strip()

import pytest  # noqa: E402
from jax import monitoring  # noqa: E402

from decisionppl.testing import strategies  # noqa: E402

strategies.register_profile()


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
