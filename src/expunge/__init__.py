"""Remove data from a trained language model, and show how well it worked."""

__version__ = "0.1.0"
