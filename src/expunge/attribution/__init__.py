"""Attributions: which weights an unlearning update may touch. One file each."""

from expunge import config
from expunge.attribution.contract import Attribution, View
from expunge.attribution.file import FromFile
from expunge.attribution.magnitude import Magnitude
from expunge.attribution.perta import Importance, PerTAWeights
from expunge.attribution.random import Random
from expunge.attribution.salun import SalUn
from expunge.attribution.snip import SNIP
from expunge.attribution.wagle import Wagle
from expunge.attribution.wanda import Wanda

ATTRIBUTIONS: dict[str, type[Attribution]] = config.table(
    {
        "wagle": Wagle,
        "salun": SalUn,
        "snip": SNIP,
        "wanda": Wanda,
        "magnitude": Magnitude,
        "random": Random,
        "perta": PerTAWeights,
        "file": FromFile,
    }
)

__all__ = ["ATTRIBUTIONS", "Attribution", "Importance", "View"]
