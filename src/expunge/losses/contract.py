"""What a loss is: settings, what it reads, and a pure function from a model's answers to one number per example."""

from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

Version = Literal["response", "alternative"]
Reads = tuple[Version, ...]
ReferenceKind = Literal["nll", "logprobs"] | None
Reference = tuple[Tensor, ...] | None


class Loss(Protocol):
    """A loss to be minimised.

    `reads`: which versions of each example it is given, one Answers each: the "response", or the "alternative" (its new
    response, else a refusal). `reference`: what it needs of the model as it was before unlearning, computed once and
    cached: "nll", S_ref [B] for each version read; "logprobs", log p_ref over the vocabulary at the first version's
    labelled tokens, as (values [N, K], indices [N, K]), K the vocabulary or the loss's `top_k`.
    """

    reads: ClassVar[Reads]
    reference: ClassVar[ReferenceKind]

    def __call__(self, *answers: Any, **reference: Any) -> Tensor:
        """One number per example, [B], from one Answers for each version read, and `reference=...`."""
        ...
