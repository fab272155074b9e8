"""How the forget and the retain objective become one descent direction.

Every combination here is a·∇F + b·∇R. F is the forget loss to be minimised (for gradient ascent F = −L_F), R the retain
loss. The two numbers are `fixed`, or they depend on the step's losses or gradient norms; then the loop keeps both gradients
apart until it has measured them.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from expunge import config

Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Measured:
    """What a combination that is not `fixed` may look at: the step's mean losses and its gradients' norms."""

    forget_loss: float
    retain_loss: float
    forget_norm: float
    retain_norm: float


@dataclass(frozen=True)
class WeightedSum:
    """γF + αR, as in GradDiff; the field's default is γ = α = 1."""

    gamma: Weight = 1.0
    alpha: Weight = 1.0
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        config.check(self)

    def coefficients(self, seen: Measured | None) -> tuple[float, float]:
        return self.gamma, self.alpha


@dataclass(frozen=True)
class Scalarisation:
    """(1 − c)F + cR: the static scalarisation NGDiff is compared with (arXiv 2410.22086), c in {.9, .5, .1}."""

    c: Annotated[float, Field(ge=0, le=1)] = 0.5
    fixed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        config.check(self)

    def coefficients(self, seen: Measured | None) -> tuple[float, float]:
        return 1 - self.c, self.c


@dataclass(frozen=True)
class LossNormalised:
    """F/|F| + R/|R|, the values held fixed: each side weighs by its relative change (a baseline of arXiv 2410.22086)."""

    fixed: ClassVar[bool] = False

    def coefficients(self, seen: Measured | None) -> tuple[float, float]:
        assert seen is not None
        return _inverse(abs(seen.forget_loss)), _inverse(abs(seen.retain_loss))


@dataclass(frozen=True)
class NormalizedDifference:
    """∇F/‖∇F‖ + ∇R/‖∇R‖, with F = −L_F NGDiff's g_R/‖g_R‖ − g_F/‖g_F‖ (arXiv 2410.22086).

    Norms: L2 over all trainable parameters of the gradients accumulated over the whole step, in fp32. The direction never
    raises L_R to first order (g_R·g = ‖g_R‖(1 − cos) ≥ 0) nor lowers L_F, and ‖g‖ ≤ 2. A side whose norm is 0 gives no
    direction: the step is skipped.
    """

    fixed: ClassVar[bool] = False

    def coefficients(self, seen: Measured | None) -> tuple[float, float]:
        assert seen is not None
        return _inverse(seen.forget_norm), _inverse(seen.retain_norm)


def _inverse(value: float) -> float:
    """1/value; NaN, which makes the step be skipped, where there is none."""
    return 1 / value if value > 0 and math.isfinite(value) else math.nan


Combination = WeightedSum | Scalarisation | LossNormalised | NormalizedDifference
COMBINATIONS: dict[str, type] = config.table(
    {
        "weightedsum": WeightedSum,
        "scalarisation": Scalarisation,
        "lossnormalised": LossNormalised,
        "normalizeddifference": NormalizedDifference,
    }
)
