"""Optimizers, and the direction one would step in, without stepping."""

from collections.abc import Sequence

import torch
from torch import Tensor

OPTIMIZERS = ("adamw", "sgd")


def make(name: str, params: Sequence[Tensor], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay (β .9, .999, ε 1e-8), or plain SGD without momentum."""
    if name == "adamw":
        return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=True)
    return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay, fused=True)


@torch.no_grad()
def direction(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """d such that a step at rate η would be θ ← θ − ηd, one tensor a parameter; neither weights nor moments move."""
    found = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            gradient = torch.zeros_like(param) if param.grad is None else param.grad
            if isinstance(optimizer, torch.optim.AdamW):
                found.append(_adamw(optimizer.state.get(param, {}), gradient, param, group))
            else:
                found.append(gradient.add(param, alpha=group["weight_decay"]) if group["weight_decay"] else gradient)
    return found


def _adamw(state: dict, gradient: Tensor, param: Tensor, group: dict) -> Tensor:
    """m̂/(√v̂ + ε) + λθ with the moments as they would be after this gradient (arXiv 1711.05101, algorithm 2)."""
    beta1, beta2 = group["betas"]
    step = float(state.get("step", 0)) + 1
    first = state.get("exp_avg", torch.zeros_like(param)).lerp(gradient, 1 - beta1)
    second = (beta2 * state.get("exp_avg_sq", torch.zeros_like(param))).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
    return (first / (1 - beta1**step)).div_(denominator).add_(param, alpha=group["weight_decay"])
