"""Quantities made of gradients."""

from expunge.gradients.fisher import Moments, moments
from expunge.gradients.mean import Losses, mean_gradient
from expunge.gradients.norms import global_norm

__all__ = ["Losses", "Moments", "global_norm", "mean_gradient", "moments"]
