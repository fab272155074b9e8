"""The step loop: gradients of both sides, their combination, learning rates, checkpoints."""

from expunge.training.combine import (
    COMBINATIONS,
    Combination,
    LossNormalised,
    NormalizedDifference,
    Scalarisation,
    WeightedSum,
)
from expunge.training.finetuning import Finetuning
from expunge.training.history import History
from expunge.training.loop import Plan, descend
from expunge.training.rates import RATES, Constant, GeN, Linear, Rate
from expunge.training.sides import Side

__all__ = [
    "COMBINATIONS",
    "RATES",
    "Combination",
    "Constant",
    "Finetuning",
    "GeN",
    "History",
    "Linear",
    "LossNormalised",
    "NormalizedDifference",
    "Plan",
    "Rate",
    "Scalarisation",
    "Side",
    "WeightedSum",
    "descend",
]
