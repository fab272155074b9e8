"""One teacher-forced forward pass that computes logits at the labelled positions only."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import ModelError


@dataclass(frozen=True)
class Answers:
    """What a model says about the labelled tokens of a batch, all rows end to end.

    logits: [N, V] in fp32, each predicting the label of its place. labels: [N]. row: [N], the example of each, below
    `size`.
    """

    logits: Tensor
    labels: Tensor
    row: Tensor
    size: int

    @cached_property
    def token_nll(self) -> Tensor:
        """−log p of each label: [N], in nats."""
        return F.cross_entropy(self.logits, self.labels, reduction="none")

    @cached_property
    def lengths(self) -> Tensor:
        """Labelled tokens of each example: [B]."""
        return torch.bincount(self.row, minlength=self.size)

    @cached_property
    def sum_nll(self) -> Tensor:
        """S = −log p(response | prompt) of each example: [B], in nats."""
        return self.sum(self.token_nll)

    @cached_property
    def mean_nll(self) -> Tensor:
        """l = S / length of each example: [B], in nats per token."""
        return self.sum_nll / self.lengths

    def sum(self, per_token: Tensor) -> Tensor:
        """Sum a per-token quantity [N] over each example's tokens: [B]."""
        return per_token.new_zeros(self.size).index_add(0, self.row, per_token)

    def mean(self, per_token: Tensor) -> Tensor:
        """Mean of a per-token quantity [N] over each example's tokens: [B]."""
        return self.sum(per_token) / self.lengths

    def split(self, *sizes: int) -> list["Answers"]:
        """Cut a batch of several parts, laid row after row, into those parts. `sizes` sum to `size`."""
        bounds = torch.tensor([0, *sizes]).cumsum(0)
        edges = torch.searchsorted(self.row, bounds.to(self.row.device)).tolist()
        parts = []
        for size, first, start, stop in zip(sizes, bounds.tolist(), edges, edges[1:], strict=False):
            parts.append(Answers(self.logits[start:stop], self.labels[start:stop], self.row[start:stop] - first, size))
        return parts


def answers(model: nn.Module, batch: Batch) -> Answers:
    """Run `model` on `batch`; its output layer sees only the N positions that predict a labelled token.

    The vocabulary-sized logits are [N, V] instead of [B, T, V]: the prompt's and the padding's are never computed. Any
    scaling or soft cap the model applies after its output layer still applies.
    """
    inputs: dict[str, Any] = {}
    if batch.mask is not None:
        inputs["attention_mask"] = batch.mask.long()
        inputs["position_ids"] = (batch.mask.long().cumsum(-1) - 1).clamp_min(0)
    logits = logits_at(model, batch.predicts, input_ids=batch.ids, **inputs)
    return Answers(logits, batch.labels, batch.row, batch.size)


def logits_at(model: nn.Module, where: Tensor, **inputs: Any) -> Tensor:
    """The model's logits in fp32 at the N places where `where` [B, T] is true, row by row: [N, V].

    `inputs` are the model's own arguments. The other places' vocabulary-sized logits are never computed.
    """

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own = args[0][:, -where.shape[1] :]  # a prompt adapter sets virtual tokens before them
        return (own[where].unsqueeze(0), *args[1:])

    handle = output_layer(model).register_forward_pre_hook(keep)
    try:
        logits = model(**inputs, **settings_of(model), use_cache=False).logits
    finally:
        handle.remove()
    return logits.squeeze(0).float()


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Arguments of a forward pass that hold back what a configuration asks for beside the logits.

    A mixture's router logits (`output_router_logits`) only serve a loss that no one reads here, and whose computation
    fails where the output layer sees chosen places only.
    """
    config = getattr(inner(model), "config", None)
    router = getattr(config, "output_router_logits", False)
    tuples = getattr(config, "return_dict", True) is False
    return ({"return_dict": True} if tuples else {}) | ({"output_router_logits": False} if router else {})


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward pass knows an argument of this name."""
    return name in inspect.signature(inner(model).forward).parameters


@contextmanager
def last_position_only(model: nn.Module) -> Iterator[None]:
    """Let the output layer see the last position only: the prompt's vocabulary-sized logits are never computed."""
    handle = output_layer(model).register_forward_pre_hook(lambda _, args: (args[0][:, -1:], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def inner(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model or a distributed wrapper; any other model itself."""
    model = getattr(model, "module", model)
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


def output_layer(model: nn.Module) -> nn.Module:
    """The layer that turns hidden states into logits, wrappers (PEFT, DDP) taken off. Raises ModelError if none."""
    inner = getattr(model, "module", model)
    find: Any = getattr(inner, "get_output_embeddings", lambda: None)
    head = find()
    if head is None:
        raise ModelError(f"{type(inner).__name__} has no output layer: expunge needs a causal language model.")
    return head
