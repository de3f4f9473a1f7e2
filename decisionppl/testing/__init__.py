"""Validate models, inferences, decisions and estimators by properties.

Every check takes a plain model (and an `Inference` where it concerns beliefs), and returns a
NamedTuple with `.passed`, `.message`, `.statistics` and what it measured. Its `assert_*` twin
takes the same arguments and raises AssertionError, for use in tests. `level` is the probability
that a check fails although nothing is wrong.
"""

from decisionppl.testing import reference
from decisionppl.testing._check import Statistic, asserting
from decisionppl.testing._consistency import Consistency, check_consistency
from decisionppl.testing._decision import (
    ProbabilityMatching,
    RegretSlope,
    probability_matching,
    regret_slope,
)
from decisionppl.testing._estimator import BiasOrder, Coverage, bias_order, coverage
from decisionppl.testing._exchangeable import Exchangeability, check_exchangeable
from decisionppl.testing._geweke import Geweke, geweke, hmc_transition
from decisionppl.testing._golden import Golden, golden
from decisionppl.testing._intervention import Intervention, check_intervention
from decisionppl.testing._martingale import Martingale, check_martingale
from decisionppl.testing._model import Finding, ModelCheck, check_model
from decisionppl.testing._report import Report, report
from decisionppl.testing._sbc import SBC, posterior_sbc, sbc
from decisionppl.testing._validate import validate

assert_model = asserting(check_model)
assert_intervention = asserting(check_intervention)
assert_exchangeable = asserting(check_exchangeable)
assert_martingale = asserting(check_martingale)
assert_consistency = asserting(check_consistency)
assert_sbc = asserting(sbc)
assert_posterior_sbc = asserting(posterior_sbc)
assert_geweke = asserting(geweke)
assert_probability_matching = asserting(probability_matching)
assert_bias_order = asserting(bias_order)
assert_coverage = asserting(coverage)
assert_regret_slope = asserting(regret_slope)
assert_golden = asserting(golden)
assert_valid = asserting(validate)

__all__ = [
    "SBC",
    "BiasOrder",
    "Consistency",
    "Coverage",
    "Exchangeability",
    "Finding",
    "Geweke",
    "Golden",
    "Intervention",
    "Martingale",
    "ModelCheck",
    "ProbabilityMatching",
    "RegretSlope",
    "Report",
    "Statistic",
    "assert_bias_order",
    "assert_consistency",
    "assert_coverage",
    "assert_exchangeable",
    "assert_geweke",
    "assert_golden",
    "assert_intervention",
    "assert_martingale",
    "assert_model",
    "assert_posterior_sbc",
    "assert_probability_matching",
    "assert_regret_slope",
    "assert_sbc",
    "assert_valid",
    "bias_order",
    "check_consistency",
    "check_exchangeable",
    "check_intervention",
    "check_martingale",
    "check_model",
    "coverage",
    "geweke",
    "golden",
    "hmc_transition",
    "posterior_sbc",
    "probability_matching",
    "reference",
    "regret_slope",
    "report",
    "sbc",
    "strategies",
    "validate",
]


def __getattr__(name: str) -> object:
    if name == "strategies":  # needs hypothesis, an optional dependency
        import importlib

        return importlib.import_module("decisionppl.testing.strategies")
    raise AttributeError(f"module 'decisionppl.testing' has no attribute {name!r}")
