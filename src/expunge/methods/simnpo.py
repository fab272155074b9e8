"""SimNPO: NPO without a reference model."""

from dataclasses import dataclass

from expunge.losses import NLL, Loss, SimNPO
from expunge.methods.descent import Descent
from expunge.training import Combination, WeightedSum


@dataclass(frozen=True, kw_only=True)
class SimpleNegativePreference(Descent):
    """γ·(−(2/β) log σ(β (S/length − δ))) on forget + αL_R (SimNPO, arXiv 2410.07163); γ .125, α 1."""

    forget: Loss = SimNPO()
    retain: Loss | None = NLL()
    combine: Combination = WeightedSum(gamma=0.125)
