"""Slow exact versions: one example at a time, whole logits, float64, formulas as the papers write them."""

import copy
import math

import torch
from torch import Tensor, nn

from expunge.data import Encoded


def double(model: nn.Module) -> nn.Module:
    """A float64 copy."""
    return copy.deepcopy(model).double().eval()


def logprobs(model: nn.Module, item: Encoded) -> Tensor:
    """log p over the vocabulary at each labelled token of one unpadded example: [T, V]."""
    logits = model(torch.tensor([item.ids])).logits[0]
    return logits[item.start - 1 : len(item) - 1].log_softmax(-1)


def token_nll(model: nn.Module, item: Encoded) -> Tensor:
    """−log p of each labelled token: [T]."""
    return torch.stack([-row[token] for row, token in zip(logprobs(model, item), item.labels, strict=True)])


def mean_nll(model: nn.Module, item: Encoded) -> Tensor:
    return token_nll(model, item).mean()


def log_sigmoid(value: Tensor) -> Tensor:
    return -torch.log(1 + torch.exp(-value))


def gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """The gradient with respect to every parameter, as one vector."""
    params = list(model.parameters())
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params)])


def moments(model: nn.Module, items: list[Encoded]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and mean square of the examples' gradients, one after another; for each parameter that requires grad."""
    exact = double(model)
    params = {name: param for name, param in exact.named_parameters() if param.requires_grad}
    each = []
    for item in items:
        found = torch.autograd.grad(mean_nll(exact, item), list(params.values()), allow_unused=True)
        each.append([torch.zeros_like(p) if g is None else g for p, g in zip(params.values(), found, strict=True)])
    stacks = {name: torch.stack(rows) for name, rows in zip(params, zip(*each, strict=True), strict=True)}
    return {n: rows.mean(0) for n, rows in stacks.items()}, {n: rows.square().mean(0) for n, rows in stacks.items()}


def flat(model: nn.Module) -> Tensor:
    return torch.cat([param.detach().reshape(-1).double() for param in model.parameters()])


def mean_over(model: nn.Module, items: list[Encoded]) -> Tensor:
    """Mean over examples of the mean NLL per token."""
    return torch.stack([mean_nll(model, item) for item in items]).mean()


def close(value: float, expected: float, rel: float = 1e-5) -> bool:
    return math.isclose(value, expected, rel_tol=rel, abs_tol=1e-12)
