"""Losses that hold a model to what a reference model said."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expunge import config
from expunge.losses.contract import Reads, Reference, ReferenceKind
from expunge.models import Answers


@dataclass(frozen=True)
class KL:
    """KL(p_ref ‖ p), the mean over an example's answer tokens, in nats; p_ref: the model before unlearning.

    The retain term of the KL baseline of TOFU (arXiv 2401.06121, §4), there over all tokens; prompts and padding do not
    enter here. `top_k`: keep only the reference's k likeliest tokens of each place apart and lump the others into one,
    a lower bound of the full divergence that needs vocabulary/k times less cache; none: exact.
    """

    top_k: Annotated[int, Field(gt=0)] | None = None
    reads: ClassVar[Reads] = ("response",)
    reference: ClassVar[ReferenceKind] = "logprobs"

    def __post_init__(self) -> None:
        config.check(self)

    def __call__(self, response: Answers, reference: Reference = None) -> Tensor:
        logp_ref, tokens = reference or ()  # [N, K] each
        logp = response.logits.log_softmax(-1)  # [N, V]
        if logp_ref.shape[1] == logp.shape[1]:
            per_token = (logp_ref.exp() * (logp_ref - logp)).sum(-1)
        else:
            kept = logp.gather(1, tokens)  # [N, K]
            per_token = (logp_ref.exp() * (logp_ref - kept)).sum(-1)
            rest_ref, rest = _rest(logp_ref), _rest(kept)  # [N]
            per_token = per_token + rest_ref.exp() * (rest_ref - rest)
        return response.mean(per_token)


def _rest(logp: Tensor) -> Tensor:
    """log of the probability the tokens [N, K] leave to all others: [N]."""
    tiny = torch.finfo(logp.dtype).tiny
    return torch.log1p(-logp.exp().sum(-1).clamp(max=1 - 1e-7)).clamp_min(torch.log(torch.tensor(tiny)).item())
