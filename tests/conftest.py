"""Settings shared by all tests."""

import os

# before JAX is imported: OpenBLAS threads spin against each other on two cores
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# tests compile many programs and run each of them briefly: compiling dominates
_FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{_FAST_COMPILE} {os.environ.get('XLA_FLAGS', '')}".strip()

from decisionppl.testing import strategies  # noqa: E402

strategies.register_profile()
