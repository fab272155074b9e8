"""The library call behind each command: read, load, work, measure, and write one self-describing folder."""

from expunge.runs.attack import attack
from expunge.runs.attribute import attribute
from expunge.runs.convert import convert
from expunge.runs.demo import demo
from expunge.runs.evaluate import evaluate_model, make_suite
from expunge.runs.finetune import Finetuning, finetune
from expunge.runs.influence import influence
from expunge.runs.record import Listener
from expunge.runs.successive import successive
from expunge.runs.unlearn import unlearn

__all__ = [
    "Finetuning",
    "Listener",
    "attack",
    "attribute",
    "convert",
    "demo",
    "evaluate_model",
    "finetune",
    "influence",
    "make_suite",
    "successive",
    "unlearn",
]
