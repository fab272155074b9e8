"""Norms over all parameters at once."""

from collections.abc import Sequence

import torch
from torch import Tensor


def global_norm(tensors: Sequence[Tensor]) -> float:
    """L2 norm over all entries of all tensors; each tensor's in fp32 or better, their sum in fp64."""
    norms = torch._foreach_norm([tensor.float() for tensor in tensors])
    return torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms])).item()
