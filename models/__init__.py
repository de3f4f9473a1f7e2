"""The gallery: decision problems as NumPyro models, with exact truths where they exist."""

if not __name__.startswith("decisionppl."):
    raise ImportError(
        "this is the source folder of decisionppl.models; import it as "
        "`from decisionppl import models`."
    )

import importlib
from typing import Any

from decisionppl.models import (
    ad_load,
    bandits,
    data_mixture,
    fulfilment,
    labelling,
    network,
    nonstationary_two_state,
    potential_outcomes,
    queue_experiment,
    queueing,
    rental_marketplace,
    replenishment,
    ride_hailing,
    sequences,
    synthetic_control,
    test_functions,
    two_state,
)
from decisionppl.models._gallery import GALLERY, Entry, Problem, build

__all__ = [
    "GALLERY",
    "Entry",
    "Problem",
    "ad_load",
    "bandits",
    "build",
    "data_mixture",
    "fulfilment",
    "labelling",
    "network",
    "neural",
    "nonstationary_two_state",
    "potential_outcomes",
    "queue_experiment",
    "queueing",
    "rental_marketplace",
    "replenishment",
    "ride_hailing",
    "sequences",
    "synthetic_control",
    "test_functions",
    "two_state",
]


def __getattr__(name: str) -> Any:
    if name == "neural":  # needs flax, the extra [nn]
        return importlib.import_module("decisionppl.models.neural")
    raise AttributeError(f"module 'decisionppl.models' has no attribute {name!r}")
