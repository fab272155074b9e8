"""Dense curvature of tiny models: every entry of the matrix, one example at a time, in float64, by plain autograd.

The models must be loaded with eager attention.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from expunge.data import Encoded


def dense_gauss_newton(model: nn.Module, items: Sequence[Encoded]) -> Tensor:
    """(1/n) Σ_i (1/T_i) Σ_t J_itᵀ (diag(p_it) − p_it p_itᵀ) J_it: [p, p]."""
    total: Tensor | float = 0.0
    for item in items:
        logits_of, theta = _logits(model, item)
        jacobian = torch.autograd.functional.jacobian(logits_of, theta, vectorize=True)  # [T, V, p]
        p = logits_of(theta).detach().softmax(-1)  # [T, V]
        output = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]  # [T, V, V]
        total = total + torch.einsum("tvp,tvw,twq->pq", jacobian, output, jacobian) / len(item.labels)
    return total / len(items)


def dense_hessian(model: nn.Module, items: Sequence[Encoded]) -> Tensor:
    """(1/n) Σ_i ∇²l_i: [p, p]; one row of it per entry of the gradient, all rows in one batched pass."""
    total: Tensor | float = 0.0
    for item in items:
        logits_of, theta = _logits(model, item)
        logits = logits_of(theta)
        labels = torch.tensor(item.labels)
        loss = -logits.log_softmax(-1)[torch.arange(len(labels)), labels].mean()
        (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
        every = torch.eye(len(theta), dtype=torch.float64)
        (rows,) = torch.autograd.grad(slope, theta, every, is_grads_batched=True)
        total = total + rows
    return total / len(items)


def _logits(model: nn.Module, item: Encoded) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A function θ [p] → logits [T, V] that predict the item's labels, and the model's own θ; all of it in float64."""
    model = copy.deepcopy(model).double().eval()
    shapes = {name: param.shape for name, param in model.named_parameters() if param.requires_grad}
    theta = torch.cat([param.detach().reshape(-1) for param in model.parameters() if param.requires_grad])
    sizes = [shape.numel() for shape in shapes.values()]

    def logits_of(theta: Tensor) -> Tensor:
        parts = zip(shapes.items(), theta.split(sizes), strict=True)
        named = {name: part.view(shape) for (name, shape), part in parts}
        inputs = {"input_ids": torch.tensor([item.ids]), "use_cache": False}
        return functional_call(model, named, (), inputs).logits[0, item.start - 1 : -1]

    return logits_of, theta.requires_grad_()
