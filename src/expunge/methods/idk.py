"""IDK, also called PO: teach the model to say that it does not know."""

from dataclasses import dataclass

from expunge.losses import NLL, Loss, Refusal
from expunge.methods.descent import Descent
from expunge.training import Combination, WeightedSum


@dataclass(frozen=True, kw_only=True)
class PreferenceOptimisation(Descent):
    """L of a refusal (or the example's new response) on the forget prompt + L_R (TOFU, arXiv 2401.06121, §4)."""

    forget: Loss = Refusal()
    retain: Loss | None = NLL()
    combine: Combination = WeightedSum()
