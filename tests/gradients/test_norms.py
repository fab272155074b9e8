"""Norms over all parameters against one flat float64 vector."""

import pytest
import torch

from expunge.gradients import global_norm


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
def test_global_norm_equals_the_flat_one(scale) -> None:
    torch.manual_seed(0)
    tensors = [scale * torch.randn(shape) for shape in ((3, 5), (7,), (2, 2, 2))]
    flat = torch.cat([tensor.double().reshape(-1) for tensor in tensors])
    assert global_norm(tensors) == pytest.approx(flat.norm().item(), rel=1e-6)


def test_norm_of_bf16_is_taken_in_fp32() -> None:
    values = torch.full((10_000,), 0.01, dtype=torch.bfloat16)
    assert global_norm([values]) == pytest.approx(values.double().norm().item(), rel=1e-6)
