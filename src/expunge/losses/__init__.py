"""Losses: frozen settings and a pure function from a model's answers to one number per example, to be minimised."""

from expunge import config
from expunge.losses.contract import Loss, Reference, Version
from expunge.losses.distillation import KL
from expunge.losses.likelihood import NLL, Ascent, Refusal
from expunge.losses.preference import DPO, NPO, SimNPO

LOSSES: dict[str, type] = config.table(
    {
        "nll": NLL,
        "ascent": Ascent,
        "refusal": Refusal,
        "npo": NPO,
        "simnpo": SimNPO,
        "dpo": DPO,
        "kl": KL,
    }
)

__all__ = ["DPO", "KL", "LOSSES", "NLL", "NPO", "Ascent", "Loss", "Reference", "Refusal", "SimNPO", "Version"]
