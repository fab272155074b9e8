"""Losses made of the likelihood of an answer. l = S / length: mean −log p per answer token, in nats."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.losses.contract import Reads, Reference, ReferenceKind
from expunge.models import Answers


@dataclass(frozen=True)
class NLL:
    """l(z): the mean negative log-likelihood of the response's tokens. The usual retain loss."""

    reads: ClassVar[Reads] = ("response",)
    reference: ClassVar[ReferenceKind] = None

    def __call__(self, response: Answers, reference: Reference = None) -> Tensor:
        return response.mean_nll


@dataclass(frozen=True)
class Ascent:
    """−l(z): descending it is gradient ascent on the response's likelihood loss. Unbounded below."""

    reads: ClassVar[Reads] = ("response",)
    reference: ClassVar[ReferenceKind] = None

    def __call__(self, response: Answers, reference: Reference = None) -> Tensor:
        return -response.mean_nll


@dataclass(frozen=True)
class Refusal:
    """l of an alternative answer to the forget prompt: the example's `new_response`, else a refusal.

    Preference optimisation ("PO", "IDK") of TOFU (arXiv 2401.06121, §4): the model is taught to say it does not know.
    """

    reads: ClassVar[Reads] = ("alternative",)
    reference: ClassVar[ReferenceKind] = None

    def __call__(self, alternative: Answers, reference: Reference = None) -> Tensor:
        return alternative.mean_nll
