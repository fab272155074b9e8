"""PerTA's weights: how much more a parameter matters for forgetting than for retaining."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge import config
from expunge.attribution.contract import Attribution, Scores, View
from expunge.errors import ConfigurationError
from expunge.gradients import Moments
from expunge.models.mask import Mask


@dataclass(frozen=True, kw_only=True)
class Importance:
    """w_i = a_f^p / (a_f^p + ρ a_r^p) in [0, 1], a the size of the mean gradient (arXiv 2601.22030).

    p: 1 is PerTA-grad (|ḡ|), 2 PerTA-fisher (ḡ²; it minimises ½F_f(1−w)²τ² + ½F_r w²τ² over w), 0 makes w constant,
    `.inf` a hard mask |ḡ_f| > |ḡ_r|. rho: ρ ≥ 0, the weight of retaining. The general form is ours; p = 1 and 2 with
    ρ = 1 are the paper's.
    fisher: "mean", a² = ḡ², the square of the mean gradient as in the paper; or "per_example", a² = mean of the
    per-example squared gradients, the diagonal of the empirical Fisher matrix (ours).
    debias: subtract the sampling noise, a² = max(ḡ² − s²/N, 0) with s² the variance over the N examples: without it,
    unequal counts of forget and retain examples pull w towards the smaller set (ours).
    retain_fraction: share of the retain examples the estimate uses, drawn by the seed (the paper also tries .2).
    hard: w ← 1 where w > .5, else 0. shuffle: permute w within each tensor (an ablation: same values, wrong places).

    0/0 gives w = 0 (for p = 0 too: a parameter no example reaches stays). No ε is added: squared gradients lie at
    1e-10 to 1e-14, where any ε would decide.
    """

    p: Annotated[float, Field(ge=0)] = 1.0
    rho: Annotated[float, Field(ge=0)] = 1.0
    fisher: Literal["mean", "per_example"] = "mean"
    debias: bool = False
    retain_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    hard: bool = False
    shuffle: bool = False

    def __post_init__(self) -> None:
        config.check(self)
        if self.debias and self.fisher == "per_example":
            raise ConfigurationError(
                "debias removes the noise of a mean gradient; with fisher=per_example leave it out."
            )

    @property
    def needs_squares(self) -> bool:
        """Whether per-example squared gradients are needed, not the mean gradient alone."""
        return self.debias or self.fisher == "per_example"

    def weights(self, forget: Moments, retain: Moments, seed: int = 0) -> dict[str, Tensor]:
        """w by parameter name, fp32 in the parameter's shape."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for name in forget.mean:
            weight = self.ratio(self.size(forget, name), self.size(retain, name))
            if self.hard:
                weight = (weight > 0.5).float()
            if self.shuffle:
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight = weight.reshape(-1)[order].reshape(weight.shape)
            found[name] = weight
        return found

    def size(self, moments: Moments, name: str) -> Tensor:
        """a: |ḡ|, its debiased version, or the root of the mean squared gradient."""
        mean = moments.mean[name]
        if not self.needs_squares:
            return mean.abs()
        square = moments.square[name]
        if self.fisher == "per_example":
            return square.sqrt()
        count = moments.count
        if count < 2:
            raise ConfigurationError(
                f"debias needs at least 2 examples on each side to know the noise; one has {count}."
            )
        noise = (square - mean.square()).clamp_min(0) / (count - 1)  # s²/N, s² with N − 1
        return (mean.square() - noise).clamp_min(0).sqrt()

    def ratio(self, forget: Tensor, retain: Tensor) -> Tensor:
        """1 / (1 + ρ (a_r/a_f)^p): the same as the definition, without powers that underflow."""
        quotient = retain / forget  # inf where only a_f is 0, nan where both are
        power = torch.ones_like(quotient) if self.p == 0 else quotient.pow(self.p)
        if math.isinf(self.p):
            power = torch.where(quotient == 1, 1.0, power)
        weight = 1 / (1 + self.rho * power) if self.rho else torch.ones_like(quotient)
        return torch.where(forget == 0, torch.where((retain == 0) | (self.p > 0), 0.0, weight), weight)


@dataclass(frozen=True, kw_only=True)
class PerTAWeights(Attribution):
    """PerTA's weights (arXiv 2601.22030) as a mask: soft, w ⊙ update; or hard, the largest w (`soft=false`).

    The settings are those of `Importance`, see there; the gradients are taken at the model before unlearning, of the
    NLL. With `soft`, ratio and scope have no say.
    """

    soft: bool = True
    p: Annotated[float, Field(ge=0)] = 1.0
    rho: Annotated[float, Field(ge=0)] = 1.0
    fisher: Literal["mean", "per_example"] = "mean"
    debias: bool = False

    def weights(self, view: View) -> dict[str, Tensor]:
        importance = Importance(p=self.p, rho=self.rho, fisher=self.fisher, debias=self.debias)
        forget, retain = (view.moments(which, squares=importance.needs_squares) for which in ("forget", "retain"))
        return importance.weights(forget, retain, view.seed)

    def scores(self, view: View) -> Scores:
        found = self.weights(view)
        return lambda name: found[name]

    def mask(self, view: View) -> Mask:
        if not self.soft:
            return super().mask(view)
        self.eligible(view)  # refuses an exclude that fits nothing
        found = self.weights(view)
        weights = {name: torch.zeros_like(w) if self.excluded(name) else w for name, w in found.items()}
        return Mask.of(weights, self.info(view))

    def info(self, view: View) -> dict[str, Any]:
        return super().info(view) | {"forget_loss": "NLL"}
