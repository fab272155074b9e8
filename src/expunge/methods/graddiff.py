"""GradDiff: climb the forget loss while descending the retain loss."""

from dataclasses import dataclass

from expunge.losses import NLL, Ascent, Loss
from expunge.methods.descent import Descent
from expunge.training import Combination, WeightedSum


@dataclass(frozen=True, kw_only=True)
class GradDiff(Descent):
    """Gradient difference: γ(−L_F) + αL_R with γ = α = 1 (TOFU, arXiv 2401.06121, §4)."""

    forget: Loss = Ascent()
    retain: Loss | None = NLL()
    combine: Combination = WeightedSum()
