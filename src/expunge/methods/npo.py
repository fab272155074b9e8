"""NPO: negative preference optimisation."""

from dataclasses import dataclass

from expunge.losses import NLL, NPO, Loss
from expunge.methods.descent import Descent
from expunge.training import Combination, WeightedSum


@dataclass(frozen=True, kw_only=True)
class NegativePreference(Descent):
    """−(2/β) log σ(−β (log p − log p_ref)) on forget + L_R (NPO with a retain term, arXiv 2404.05868)."""

    forget: Loss = NPO()
    retain: Loss | None = NLL()
    combine: Combination = WeightedSum()
