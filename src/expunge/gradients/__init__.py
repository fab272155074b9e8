"""Quantities made of gradients, and of their derivatives."""

from expunge.gradients.datainf import DataInf, datainf
from expunge.gradients.fisher import Moments, moments
from expunge.gradients.hvp import Curvature, largest_eigenvalue, mean_eigenvalue, subset
from expunge.gradients.iterate import Budget, Point
from expunge.gradients.lanczos import FACTORS, path
from expunge.gradients.mean import Losses, mean_gradient
from expunge.gradients.norms import global_norm
from expunge.gradients.solve import Solution, cg, relative_residual, sgd

__all__ = [
    "FACTORS",
    "Budget",
    "Curvature",
    "DataInf",
    "Losses",
    "Moments",
    "Point",
    "Solution",
    "cg",
    "datainf",
    "global_norm",
    "largest_eigenvalue",
    "mean_eigenvalue",
    "mean_gradient",
    "moments",
    "path",
    "relative_residual",
    "sgd",
    "subset",
]
