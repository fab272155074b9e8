"""Learning rates: fixed schedules, and GeN, which measures the best one on the retain loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from expunge import config

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Constant:
    """η = lr at every step."""

    every: ClassVar[int] = 0

    def at(self, step: int, steps: int) -> float:
        """The factor on lr at `step` (from 0) of `steps`."""
        return 1.0


@dataclass(frozen=True)
class Linear:
    """Rises linearly over the first `warmup` share of the steps, then falls linearly to 0 (the field's default)."""

    warmup: Share = 0.1
    every: ClassVar[int] = 0

    def __post_init__(self) -> None:
        config.check(self)

    def at(self, step: int, steps: int) -> float:
        """The factor on lr at `step` (from 0) of `steps`."""
        warm = max(1, round(self.warmup * steps)) if self.warmup else 0
        if step < warm:
            return (step + 1) / warm
        return (steps - step) / max(1, steps - warm)


@dataclass(frozen=True)
class Fit:
    """The parabola L(θ + k·η·d) ≈ L₀ + kηB + ½(kη)²A through the probes, and the rate that follows from it.

    `curvature` A = dᵀHd, `slope` B = g·d, `best` η* = B/A, `accepted` if A > 0 and B > 0; `r2` of the fit (1 with three
    probes, which any parabola meets).
    """

    curvature: float
    slope: float
    best: float
    accepted: bool
    r2: float


@dataclass(frozen=True)
class GeN:
    """Automatic learning rate of GeN (arXiv 2407.02772) on the retain loss, as NGDiff uses it (arXiv 2410.22086).

    Every `every` steps, with d the direction the base optimizer would step in at rate 1 (SGD: the gradient itself), the
    retain loss is probed on one batch at θ + kηd, k in {−1, 0, 1} (`probes` 3) or {−2 … 2} (`probes` 5):
    A = (L₊ − 2L₀ + L₋)/η², B = (L₊ − L₋)/(2η), η* = B/A; with five probes by least squares. Accepted only if A > 0 and
    B > 0 (and with five probes R² > `min_r2`), clipped to [η/`clip`, η·`clip`], then smoothed: η ← sη + (1 − s)η*, s =
    `smoothing`.

    Defaults: every 10 steps (NGDiff); smoothing .9 and clip 2 from GeN's release; whether NGDiff smooths could not be
    read, so both stay settings (0 and a large clip turn them off). `probe_size`: examples in the probe batch, at least.
    """

    every: Annotated[int, Field(gt=0)] = 10
    probes: Literal[3, 5] = 3
    probe_size: Annotated[int, Field(gt=0)] = 32
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip: Annotated[float, Field(gt=1)] = 2.0
    min_r2: Share = 0.99

    def __post_init__(self) -> None:
        config.check(self)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The k of the probes: θ + kηd."""
        reach = self.probes // 2
        return tuple(range(-reach, reach + 1))

    def at(self, step: int, steps: int) -> float:
        """The factor on the current η: 1, as η itself is what the probes change."""
        return 1.0

    def fit(self, losses: Sequence[float], eta: float) -> Fit:
        """Fit the parabola to the losses at `offsets` (in fp64)."""
        k = np.array(self.offsets, dtype=float)
        values = np.array(losses, dtype=float)
        design = np.stack([np.ones_like(k), k, k**2 / 2], axis=1)  # [probes, 3]: L₀, ηB, η²A
        if not np.isfinite(values).all():
            return Fit(math.nan, math.nan, math.nan, False, math.nan)
        centred = values - values[len(k) // 2]  # the differences carry the signal: keep their digits
        coefficients, *_ = np.linalg.lstsq(design, centred, rcond=None)
        residual = float(((design @ coefficients - centred) ** 2).sum())
        spread = float(((centred - centred.mean()) ** 2).sum())
        r2 = 1 - residual / spread if spread > 0 else 1.0
        slope, curvature = float(coefficients[1]) / eta, float(coefficients[2]) / eta**2
        best = slope / curvature if curvature else math.nan
        accepted = curvature > 0 and slope > 0 and (self.probes == 3 or r2 > self.min_r2)
        return Fit(curvature, slope, best, accepted, r2)

    def update(self, eta: float, fit: Fit) -> float:
        """The next η; unchanged if the fit was not accepted."""
        if not fit.accepted:
            return eta
        clipped = min(max(fit.best, eta / self.clip), eta * self.clip)
        return self.smoothing * eta + (1 - self.smoothing) * clipped


Rate = Constant | Linear | GeN
RATES: dict[str, type] = config.table({"constant": Constant, "linear": Linear, "gen": GeN})
