"""Write a decision problem once, as a NumPyro generative model; get the decision from it."""

import importlib
from typing import Any

from decisionppl import rules
from decisionppl._act import act
from decisionppl._cache import enable_compilation_cache
from decisionppl._gaussian_process import GaussianProcess, SamplePath
from decisionppl._inference import Inference, Rows, observe
from decisionppl._play import play
from decisionppl._roles import action, context, cost, outcome, reward, role_of, state
from decisionppl._space import Subsets, action_space
from decisionppl._utility import expectations, utility

__version__ = "0.1.0"

__all__ = [
    "GaussianProcess",
    "Inference",
    "Rows",
    "SamplePath",
    "Subsets",
    "act",
    "action",
    "action_space",
    "context",
    "cost",
    "enable_compilation_cache",
    "expectations",
    "experiment",
    "inference",
    "kernels",
    "lookahead",
    "means",
    "models",
    "observe",
    "outcome",
    "play",
    "plots",
    "reward",
    "role_of",
    "rules",
    "show",
    "state",
    "testing",
    "utility",
]

# Imported on first use, so that `import decisionppl` stays light.
_LAZY = (
    "cli", "experiment", "inference", "kernels", "lookahead", "means", "models", "plots", "testing",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"decisionppl.{name}")
    if name == "show":
        return importlib.import_module("decisionppl._show").show
    raise AttributeError(f"module 'decisionppl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
