"""DPO: prefer a refusal, or the corrected response, to what must be forgotten."""

from dataclasses import dataclass

from expunge.losses import DPO, NLL, Loss
from expunge.methods.descent import Descent
from expunge.training import Combination, WeightedSum


@dataclass(frozen=True, kw_only=True)
class DirectPreference(Descent):
    """−(2/β) log σ(β (Δ_alternative − Δ_response)) on forget + L_R (DPO, arXiv 2305.18290; IdkDPO in the field)."""

    forget: Loss = DPO()
    retain: Loss | None = NLL()
    combine: Combination = WeightedSum()
