"""The pure-torch quantizer by hand, against a slow search, and against torchao and bitsandbytes where installed."""

import importlib.util

import numpy as np
import pytest
import torch

from expunge.errors import ConfigurationError
from expunge.evaluation.attacks import rounding
from expunge.evaluation.attacks.rounding import fake_quantize, nf4_levels, quantize

FORMS = ["int8", "int4", "nf4"]
# as printed in appendix E of the QLoRA paper
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def matrix(rows: int = 6, columns: int = 200) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05


def test_int8_by_hand() -> None:
    found = fake_quantize(torch.tensor([[1.27, -0.014, 0.016, -1.0], [0.0, 0.0, 0.0, 0.0]]), "int8")
    assert found.codes.tolist() == [[127, -1, 2, -100], [0, 0, 0, 0]]  # s = .01
    torch.testing.assert_close(found.values, torch.tensor([[1.27, -0.01, 0.02, -1.0], [0.0, 0.0, 0.0, 0.0]]))


def test_int4_by_hand() -> None:
    # groups of three: [0, 1.5, .74] has s = .1 from 0; [-2, 1, -.9] has s = .2 from −2; [4] stands alone
    found = fake_quantize(torch.tensor([[0.0, 1.5, 0.74, -2.0, 1.0, -0.9, 4.0]]), "int4", group=3)
    assert found.codes.tolist() == [[0, 15, 7, 0, 15, 6, 0]]  # −.9 lies 5.5 steps up: to even
    torch.testing.assert_close(found.values, torch.tensor([[0.0, 1.5, 0.7, -2.0, 1.0, -0.8, 4.0]]))


def test_nf4_by_hand() -> None:
    np.testing.assert_allclose(nf4_levels().numpy(), PUBLISHED, atol=1e-6)
    found = fake_quantize(torch.tensor([[2.0, -2.0, 0.1, 0.7, 0.0, 0.0]]), "nf4", group=4)
    assert found.codes.tolist() == [[15, 0, 8, 11, 7, 7]]
    torch.testing.assert_close(
        found.values, torch.tensor([[2.0, -2.0, 2 * PUBLISHED[8], 2 * PUBLISHED[11], 0.0, 0.0]]), rtol=1e-5, atol=1e-6
    )


def slow(row: list[float], form: str, group: int) -> list[float]:
    """Each number to the nearest level of its group, by search."""
    values = []
    for start in range(0, len(row), len(row) if form == "int8" else group):
        part = row[start : len(row) if form == "int8" else start + group]
        top = max(abs(x) for x in part)
        levels = {
            "int8": [top * level / 127 for level in range(-127, 128)],
            "int4": [min(part) + (max(part) - min(part)) * level / 15 for level in range(16)],
            "nf4": [top * level for level in PUBLISHED],
        }[form]
        values += [min(levels, key=lambda level: abs(level - x)) for x in part]
    return values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", [64, 100, 200])
def test_every_weight_goes_to_the_nearest_level_of_its_group(form: str, columns: int) -> None:
    weight = matrix(4, columns)
    expected = torch.tensor([slow(row, form, 64) for row in weight.tolist()])
    torch.testing.assert_close(fake_quantize(weight, form, group=64).values, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_quantized_stays_as_it_is(form: str) -> None:
    once = fake_quantize(matrix(), form, group=64)
    again = fake_quantize(once.values, form, group=64)
    assert torch.equal(once.codes, again.codes)
    torch.testing.assert_close(once.values, again.values, rtol=1e-6, atol=0)
    assert once.codes.shape == once.values.shape == (6, 200)
    assert int(once.codes.unique().numel()) > 10


@pytest.mark.parametrize("form", FORMS)
def test_small_edits_keep_their_codes_and_large_ones_do_not(form: str) -> None:
    weight = matrix()
    codes = fake_quantize(weight, form, group=64).codes
    assert (fake_quantize(weight * (1 + 1e-6), form, group=64).codes == codes).float().mean() > 0.999
    assert (fake_quantize(weight.flip(1), form, group=64).codes == codes).float().mean() < 0.3


def test_bf16_weights_are_quantized_in_fp32() -> None:
    weight = matrix().bfloat16()
    assert torch.equal(fake_quantize(weight, "int8").values, fake_quantize(weight.float(), "int8").values)


def test_backends_say_what_is_wrong(monkeypatch) -> None:
    with pytest.raises(ConfigurationError, match="torchao has no nf4 here; it has int8, int4"):
        quantize(matrix(), "nf4", "torchao", group=64)
    monkeypatch.setattr(rounding, "installed", lambda _: False)
    with pytest.raises(ConfigurationError, match="pip install torchao"):
        quantize(matrix(), "int8", "torchao", group=64)
    monkeypatch.setattr(rounding, "installed", lambda _: True)

    def broken(*_) -> torch.Tensor:
        raise RuntimeError("no kernel\nof this kind")

    monkeypatch.setattr(rounding, "_torchao", broken)
    with pytest.raises(ConfigurationError, match=r"could not quantize a matrix to int8: no kernel\. Use"):
        quantize(matrix(), "int8", "torchao", group=64)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_int8_equals_torchao() -> None:
    weight = matrix(6, 256)
    torch.testing.assert_close(quantize(weight, "int8", "torchao", group=128), fake_quantize(weight, "int8").values)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_nf4_equals_bitsandbytes() -> None:
    weight = matrix(6, 256)
    theirs = quantize(weight, "nf4", "bitsandbytes", group=64)
    torch.testing.assert_close(theirs, fake_quantize(weight, "nf4", group=64).values, rtol=1e-5, atol=1e-6)
