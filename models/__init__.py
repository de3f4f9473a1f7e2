"""The gallery: decision problems as NumPyro models, with exact truths where they exist."""

if not __name__.startswith("decisionppl."):
    raise ImportError(
        "this is the source folder of decisionppl.models; import it as "
        "`from decisionppl import models`."
    )

from decisionppl.models import bandits
from decisionppl.models._gallery import GALLERY, Entry, Problem, build

__all__ = ["GALLERY", "Entry", "Problem", "bandits", "build"]
