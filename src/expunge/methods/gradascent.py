"""GradAscent: climb the forget loss, with no thought of the rest."""

from dataclasses import dataclass

from expunge.losses import Ascent, Loss
from expunge.methods.descent import Descent


@dataclass(frozen=True, kw_only=True)
class GradAscent(Descent):
    """Gradient ascent on the forget set: F = −L_F, no retain term (TOFU, arXiv 2401.06121, §4).

    Nothing holds the rest of the model: keep `steps` few and `lr` small, or set `stop_forget_nll`.
    """

    forget: Loss = Ascent()
    retain: Loss | None = None
