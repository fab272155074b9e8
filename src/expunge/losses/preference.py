"""Losses from preference optimisation: log-sigmoids of how likely an answer still is. S = −log p(response | prompt)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from expunge import config
from expunge.config import Positive
from expunge.losses.contract import Reads, Reference, ReferenceKind
from expunge.models import Answers


@dataclass(frozen=True)
class NPO:
    """−(2/β) log σ(−β (log p − log p_ref)): negative preference optimisation (arXiv 2404.05868, eq. 3).

    Bounded below by 0. `beta`: inverse temperature, .1 in the paper; β → 0 gives gradient ascent. `reduction`: "sum",
    the sequence's log-likelihood as in the paper, or "mean", per token as in WAGLE's release (arXiv 2410.17509).
    """

    beta: Positive = 0.1
    reduction: Literal["sum", "mean"] = "sum"
    reads: ClassVar[Reads] = ("response",)
    reference: ClassVar[ReferenceKind] = "nll"

    def __post_init__(self) -> None:
        config.check(self)

    def __call__(self, response: Answers, reference: Reference = None) -> Tensor:
        (nll_ref,) = reference or ()
        log_ratio = nll_ref - response.sum_nll  # [B], log p − log p_ref
        if self.reduction == "mean":
            log_ratio = log_ratio / response.lengths
        return -2 / self.beta * F.logsigmoid(-self.beta * log_ratio)


@dataclass(frozen=True)
class SimNPO:
    """−(2/β) log σ(β (S/length − δ)): NPO without a reference, length-normalised (arXiv 2410.07163, eq. 4).

    `beta` 4.5 and `delta` 0: the field's settings for TOFU; `delta` is the reward margin, in nats per token.
    """

    beta: Positive = 4.5
    delta: float = 0.0
    reads: ClassVar[Reads] = ("response",)
    reference: ClassVar[ReferenceKind] = None

    def __post_init__(self) -> None:
        config.check(self)

    def __call__(self, response: Answers, reference: Reference = None) -> Tensor:
        return -2 / self.beta * F.logsigmoid(self.beta * (response.mean_nll - self.delta))


@dataclass(frozen=True)
class DPO:
    """−(2/β) log σ(β (Δ_alternative − Δ_response)), Δ = log p − log p_ref (arXiv 2305.18290, eq. 7, scaled as in NPO).

    The alternative is the example's `new_response`, else a refusal ("IdkDPO"). `beta`: .1.
    """

    beta: Positive = 0.1
    reads: ClassVar[Reads] = ("response", "alternative")
    reference: ClassVar[ReferenceKind] = "nll"

    def __post_init__(self) -> None:
        config.check(self)

    def __call__(self, response: Answers, alternative: Answers, reference: Reference = None) -> Tensor:
        response_ref, alternative_ref = reference or ()
        lose = response_ref - response.sum_nll  # [B]
        win = alternative_ref - alternative.sum_nll  # [B]
        return -2 / self.beta * F.logsigmoid(self.beta * (win - lose))
