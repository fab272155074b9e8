"""DataInf: the inverse of the curvature in closed form, one parameter tensor at a time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.gradients.hvp import Operator
from expunge.gradients.iterate import Meter
from expunge.gradients.solve import Indices, Solution, relative_residual


@dataclass(frozen=True)
class DataInf:
    """b ↦ (1/n) Σ_i (λ_l I + g_il g_ilᵀ)⁻¹ b_l for each parameter tensor l: the closed form of arXiv 2310.00902.

    It stands for ((1/n) Σ_i g_il g_ilᵀ + λ_l I)⁻¹ with sum and inverse exchanged, g_il being the gradient of example i:
    (1/λ_l)(b_l − (1/n) Σ_i g_il ⟨g_il, b_l⟩ / (λ_l + ‖g_il‖²)). gradients: gives all g_i in blocks [B, p], anew at each
    call.
    sizes: entries of each of the L tensors, p in all. dampings: λ_l, [L]; where it is 0, so is the result.
    """

    gradients: Callable[[], Iterable[Tensor]]
    sizes: Sequence[int]
    dampings: Tensor

    @classmethod
    def fit(cls, gradients: Callable[[], Iterable[Tensor]], sizes: Sequence[int], factor: float = 0.1) -> "DataInf":
        """With λ_l = `factor` × (1/n) Σ_i ‖g_il‖²/d_l, d_l the entries of tensor l; 0.1 is the paper's."""
        norms = torch.cat([_square_norms(block, sizes) for block in gradients()])  # [n, L]
        return cls(gradients, sizes, factor * norms.double().mean(0).float() / torch.tensor(sizes, device=norms.device))

    def __call__(self, b: Tensor) -> Tensor:
        count, total = 0, torch.zeros_like(b)
        parts = b.split(self.sizes)
        for block in self.gradients():
            weights = 1 / (self.dampings + _square_norms(block, self.sizes)).clamp_min(
                torch.finfo(b.dtype).tiny
            )  # [B, L]
            pairs = zip(block.split(self.sizes, 1), parts, weights.T, strict=True)
            total += torch.cat([(weight * (g @ part)) @ g for g, part, weight in pairs])
            count += len(block)
        spread = self.spread()
        return torch.where(spread > 0, (b - total / count) / spread, 0.0)

    def spread(self) -> Tensor:
        """λ of each entry: [p]."""
        return self.dampings.repeat_interleave(torch.tensor(self.sizes, device=self.dampings.device))


def datainf(operator: Operator, b: Tensor, inverse: DataInf, *, indices: Indices = None) -> Solution:
    """`inverse` applied to b, with its residual in (H + diag λ_l)Δ = b: a baseline, so a residual over 1 is no error.

    Exchanging sum and inverse leaves the large eigenvalues nearly undamped, so that 1/λ_l is far too long a step there.
    """
    meter = Meter(operator)
    delta, begun = inverse(b), meter.point(1.0 if b.any() else 0.0)
    residual = relative_residual(meter, delta, inverse.spread(), b, indices)
    return Solution(delta, inverse.spread(), (begun, meter.point(residual)), meter.products, False, "closed form")


def _square_norms(block: Tensor, sizes: Sequence[int]) -> Tensor:
    """‖g_il‖² of gradients [B, p]: [B, L]."""
    return torch.stack([part.square().sum(1) for part in block.split(list(sizes), 1)], 1)
