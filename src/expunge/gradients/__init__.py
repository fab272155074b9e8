"""Quantities made of gradients."""

from expunge.gradients.norms import global_norm

__all__ = ["global_norm"]
