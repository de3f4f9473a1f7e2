r"""Effects on a treated unit from a panel, by units that are never treated.

A panel holds outcomes of units over periods. Controls share with the treated unit what moves both,
and so say what its outcome would have been. Classic estimators:

- `robust_synthetic_control`: ridge on controls whose small singular values are cut; `ridge`:
  on the controls as they are;
- `synthetic_did`: weights on units and on periods, for treatment that stays;
- `latent_regression`: on the controls' principal components, for treatment that comes and goes;
- `nuclear_norm`: a common effect on any cells of the panel.

They take a `Panel`, of arrays (`panel`) or from a user's table (`from_long`, `from_wide`), and work
in double precision. `inference.synthetic_control` is the belief for experiments that decide as they
go; `treatment_effect` reads its posterior of the effect. `plots.counterfactual` shows the treated
unit beside what is estimated to have been without treatment.

References:
    Amjad, Shah and Shen, arXiv 1711.06940; Arkhangelsky et al., arXiv 1812.09970; Farias, Li and
    Peng, arXiv 2106.02780; Farias, Moallemi, Peng and Zheng, arXiv 2202.07079.
"""

from decisionppl.inference._effect import Effect
from decisionppl.inference._panel import Panel, panel
from decisionppl.inference._panel_did import synthetic_did
from decisionppl.inference._panel_nuclear import nuclear_norm
from decisionppl.inference._panel_regression import (
    latent_regression,
    ridge,
    robust_synthetic_control,
)
from decisionppl.inference._panel_table import from_long, from_wide
from decisionppl.inference._treatment_effect import treatment_effect

__all__ = [
    "Effect",
    "Panel",
    "from_long",
    "from_wide",
    "latent_regression",
    "nuclear_norm",
    "panel",
    "ridge",
    "robust_synthetic_control",
    "synthetic_did",
    "treatment_effect",
]
