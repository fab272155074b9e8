"""KL: gradient ascent held to the original model's predictions on the retain set."""

from dataclasses import dataclass

from expunge.losses import KL, Ascent, Loss
from expunge.methods.descent import Descent
from expunge.training import Combination, WeightedSum


@dataclass(frozen=True, kw_only=True)
class KLMinimisation(Descent):
    """−L_F + KL(p_ref ‖ p) on the retain set's answer tokens (TOFU, arXiv 2401.06121, §4).

    The reference's predictions are cached on disk before the first step; `retain.top_k` makes that cache small.
    """

    forget: Loss = Ascent()
    retain: Loss | None = KL()
    combine: Combination = WeightedSum()
