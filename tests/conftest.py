"""Settings shared by all tests."""

import os

# before JAX is imported: OpenBLAS threads spin against each other on two cores
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# tests compile many programs and run each of them briefly: compiling dominates
_FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{_FAST_COMPILE} {os.environ.get('XLA_FLAGS', '')}".strip()

import hypothesis  # noqa: E402

hypothesis.settings.register_profile(
    "decisionppl",
    deadline=None,  # the first example compiles
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("decisionppl")
