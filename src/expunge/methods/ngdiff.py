"""NGDiff: descend on the difference of the normalized gradients, with an automatic learning rate."""

from dataclasses import dataclass
from typing import Literal

from expunge.config import Positive
from expunge.losses import NLL, Ascent, Loss
from expunge.methods.descent import Descent
from expunge.training import Combination, GeN, NormalizedDifference, Rate


@dataclass(frozen=True, kw_only=True)
class NGDiff(Descent):
    """Normalized gradient difference (arXiv 2410.22086, NAACL 2025): θ ← θ − η (g_R/‖g_R‖ − g_F/‖g_F‖).

    g_R, g_F: gradients of the mean retain and forget NLL over the whole step. Norms: global, L2, fp32. η: GeN's automatic
    rate on the retain loss every 10 steps, from `lr` on. The base optimizer could not be read in the paper: plain SGD on
    the direction here, `optimizer="adamw"` as an option. The forget loss has no lower bound, so set a stop rule
    (`stop_forget_nll`) or few steps. Any other loss can take the place of −L_F: `forget="npo"`.

    lr .05: since ‖g‖ ≤ 2, lr is the distance a step moves the weights at most halved; found on models of 1 to 135 M
    parameters, not the paper's.
    """

    forget: Loss = Ascent()
    retain: Loss | None = NLL()
    combine: Combination = NormalizedDifference()
    rate: Rate = GeN()
    optimizer: Literal["adamw", "sgd"] = "sgd"
    lr: Positive = 0.05
