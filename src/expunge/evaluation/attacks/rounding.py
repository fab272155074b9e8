"""Quantizers: a weight matrix to whole-number codes and back. Pure torch; torchao's and bitsandbytes' where installed."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import ConfigurationError

Format = Literal["int8", "int4", "nf4"]
Backend = Literal["torch", "torchao", "bitsandbytes"]
NF4_OFFSET = 0.9677083  # QLoRA's: the mean of 1 − 1/(2·15) and 1 − 1/(2·16), so that the outer levels are finite
SUPPORTED: dict[str, tuple[str, ...]] = {
    "torch": ("int8", "int4", "nf4"),
    "torchao": ("int8", "int4"),
    "bitsandbytes": ("int8", "nf4"),
}


@dataclass(frozen=True)
class Rounded:
    """A quantized matrix. codes: [out, in] whole numbers; values: [out, in] what the codes stand for, in fp32."""

    codes: Tensor
    values: Tensor


def fake_quantize(weight: Tensor, form: Format, *, group: int = 128) -> Rounded:
    """Quantize a matrix [out, in] and back, by rounding to nearest.

    int8: each row symmetric, scale s = max|w| / 127, code round(w/s) in −127 … 127, value s · code.
    int4: each group of `group` entries of a row from its own range, s = (max − min) / 15, code round((w − min)/s) in
    0 … 15, value min + s · code (the floating zero point of torchao's int4).
    nf4: each group scaled by max|w| to [−1, 1], code the nearest of the 16 levels of `nf4_levels` (QLoRA).

    A last, shorter group of a row is one of its own. Quantizing the values again gives the same codes.
    """
    w = weight.detach().float()
    if form == "int8":
        top = w.abs().amax(1, keepdim=True)
        scale = torch.where(top > 0, top / 127, 1.0)
        codes = (w / scale).round().clamp(-127, 127)
        return Rounded(codes.to(torch.int8), codes * scale)
    columns = w.shape[1]
    groups = w.unflatten(1, (1, columns)) if columns <= group else _grouped(w, group)  # [out, groups, size]
    codes, values = _int4(groups) if form == "int4" else _nf4(groups)
    flat = codes.flatten(1)[:, :columns], values.flatten(1)[:, :columns]
    return Rounded(flat[0].contiguous(), flat[1].contiguous())


def _grouped(w: Tensor, group: int) -> Tensor:
    """[out, groups, group]; the last group is filled with its own last entry, which moves neither its range nor maximum."""
    lack = -w.shape[1] % group
    return F.pad(w.unsqueeze(0), (0, lack), mode="replicate").squeeze(0).unflatten(1, (-1, group))


def _int4(groups: Tensor) -> tuple[Tensor, Tensor]:
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = torch.where(high > low, (high - low) / 15, 1.0)
    codes = ((groups - low) / scale).round().clamp(0, 15)
    return codes.to(torch.int8), low + scale * codes


def _nf4(groups: Tensor) -> tuple[Tensor, Tensor]:
    levels = nf4_levels().to(groups)
    top = groups.abs().amax(-1, keepdim=True)
    scale = torch.where(top > 0, top, 1.0)
    borders = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(groups / scale, borders)
    return codes.to(torch.int8), levels[codes] * scale


@cache
def nf4_levels() -> Tensor:
    """The 16 levels of NF4 from −1 to 1: quantiles of the normal distribution, 8 below 0, 0, and 7 above ([16], rising).

    Source: Dettmers et al. 2023 (QLoRA, arXiv 2305.14314, appendix E).
    """
    from scipy.stats import norm

    above = norm.ppf(np.linspace(NF4_OFFSET, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(NF4_OFFSET, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([below, [0.0], above]))
    return torch.tensor(levels / levels.max(), dtype=torch.float32)


def installed(backend: str) -> bool:
    """Whether a quantizer can be used here."""
    return backend == "torch" or importlib.util.find_spec(backend) is not None


def quantize(weight: Tensor, form: Format, backend: Backend, *, group: int) -> Tensor:
    """The matrix [out, in] after a round trip through `backend`'s own quantizer, in fp32.

    Raises ConfigurationError where the backend is not installed, does not know the format or fails.
    """
    if backend == "torch":
        return fake_quantize(weight, form, group=group).values
    if form not in SUPPORTED[backend]:
        raise ConfigurationError(f"{backend} has no {form} here; it has {', '.join(SUPPORTED[backend])}.")
    if not installed(backend):
        raise ConfigurationError(f"{backend} is not installed: pip install {backend}, or use the backend torch.")
    trip = _torchao if backend == "torchao" else _bitsandbytes
    try:
        return trip(weight.detach().float().contiguous(), form, group).float()
    except (ImportError, AttributeError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigurationError(
            f"{backend} could not quantize a matrix to {form}: {reason}. Use the backend torch."
        ) from error


def _torchao(weight: Tensor, form: str, group: int) -> Tensor:
    import torchao.quantization.quant_primitives as ao  # pyrefly: ignore

    columns = weight.shape[1]
    if form == "int8":
        block, kind, span = (1, columns), ao.MappingType.SYMMETRIC, (-127, 127)
    else:
        block, kind, span = (1, min(group, columns)), ao.MappingType.ASYMMETRIC, (0, 15)
    store = torch.int8 if form == "int8" else torch.uint8
    scale, zero = ao.choose_qparams_affine(weight, kind, block, store, *span)
    codes = ao.quantize_affine(weight, block, scale, zero, store, *span)
    return ao.dequantize_affine(codes, block, scale, zero, store, *span)


def _bitsandbytes(weight: Tensor, form: str, group: int) -> Tensor:
    import bitsandbytes.functional as bnb  # pyrefly: ignore

    if form == "nf4":
        packed, state = bnb.quantize_4bit(weight, blocksize=group, quant_type="nf4")
        found: Any = bnb.dequantize_4bit(packed, state)
        return found
    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    return codes.float() * scales.view(-1, 1) / 127
