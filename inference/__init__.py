"""Belief engines: what is known, as pure functions derived from a NumPyro model."""

if not __name__.startswith("decisionppl."):
    raise ImportError(
        "this is the source folder of decisionppl.inference; import it as "
        "`from decisionppl import inference`."
    )

from decisionppl._inference import Inference, Rows, observe
from decisionppl.inference.conjugate import conjugate
from decisionppl.inference.laplace import laplace
from decisionppl.inference.nuts import diagnostics, nuts, posterior
from decisionppl.inference.svi import svi

__all__ = [
    "Inference",
    "Rows",
    "conjugate",
    "diagnostics",
    "laplace",
    "nuts",
    "observe",
    "posterior",
    "svi",
]
