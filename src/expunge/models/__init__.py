"""Load and save models, run them, and treat a checkpoint as a stream of tensors."""

from expunge.models.forward import Answers, answers, output_layer
from expunge.models.loading import Loaded, load
from expunge.models.lora import new_adapter

__all__ = ["Answers", "Loaded", "answers", "load", "new_adapter", "output_layer"]
