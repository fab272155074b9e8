"""Static scalarisation: NGDiff's baseline with fixed weights."""

from dataclasses import dataclass

from expunge.losses import NLL, Ascent, Loss
from expunge.methods.descent import Descent
from expunge.training import Combination, Scalarisation


@dataclass(frozen=True, kw_only=True)
class StaticScalarisation(Descent):
    """cL_R − (1 − c)L_F with a fixed c (arXiv 2410.22086); the paper compares c in {.9, .5, .1}."""

    forget: Loss = Ascent()
    retain: Loss | None = NLL()
    combine: Combination = Scalarisation()
