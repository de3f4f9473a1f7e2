"""Belief engines: what is known, as pure functions derived from a NumPyro model."""

if not __name__.startswith("decisionppl."):
    raise ImportError(
        "this is the source folder of decisionppl.inference; import it as "
        "`from decisionppl import inference`."
    )

from decisionppl._inference import Inference, Rows, observe
from decisionppl.inference import (
    designs,
    effects,
    markov,
    network,
    off_policy,
    panels,
    pathwise,
    picard,
    policies,
    value,
)
from decisionppl.inference.autoregressive import autoregressive, impute
from decisionppl.inference.conjugate import conjugate
from decisionppl.inference.ensemble import ensemble
from decisionppl.inference.gaussian_process import gaussian_process
from decisionppl.inference.labelling import (
    Labelled,
    Uncertainty,
    label,
    predictive_loss,
    uncertainty,
)
from decisionppl.inference.laplace import laplace
from decisionppl.inference.nuts import diagnostics, nuts, posterior
from decisionppl.inference.potential_outcomes import PotentialOutcomes, potential_outcomes
from decisionppl.inference.sequence_diagnostics import LossGap, loss_gap, sequence_loss
from decisionppl.inference.svi import svi
from decisionppl.inference.synthetic_control import synthetic_control
from decisionppl.inference.training import Trained, minibatches, train

__all__ = [
    "Inference",
    "Labelled",
    "LossGap",
    "PotentialOutcomes",
    "Rows",
    "Trained",
    "Uncertainty",
    "autoregressive",
    "conjugate",
    "designs",
    "diagnostics",
    "effects",
    "ensemble",
    "gaussian_process",
    "impute",
    "label",
    "laplace",
    "loss_gap",
    "markov",
    "minibatches",
    "network",
    "nuts",
    "observe",
    "off_policy",
    "panels",
    "pathwise",
    "picard",
    "policies",
    "posterior",
    "potential_outcomes",
    "predictive_loss",
    "sequence_loss",
    "svi",
    "synthetic_control",
    "train",
    "uncertainty",
    "value",
]
