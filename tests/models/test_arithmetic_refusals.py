"""base + α·w⊙(plus − minus): models that do not fit, numbers that leave the range, and what is noted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge.errors import ConfigurationError, ExpungeError, ModelError, OutputError, OutputExistsError
from expunge.files import mark
from expunge.patch.edit import edit
from tests.models.test_arithmetic import EMBEDDINGS, adapter, left, read, three, write
from tests.models.test_checkpoint import everything

pytestmark = pytest.mark.usefixtures("small_pieces")


def test_what_makes_no_sense_together_is_refused(
    models: tuple[Path, Path, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    base, plus, minus = models
    low_rank = adapter(tiny_folder, tmp_path / "adapter", 0)
    out = tmp_path / "out"
    cases: list[tuple[dict, str]] = [
        ({}, "Give --plus and --minus"),
        ({"minus": minus}, "give the model to compare it with as --plus"),
        ({"plus": plus}, "give the model to compare it with as --minus"),
        ({"plus": plus, "minus": plus}, "are the same folder"),
        ({"plus": plus, "minus": minus, "scale": 0}, "scale must be a number other than 0"),
        ({"plus": plus, "minus": minus, "scale": float("nan")}, "scale must be"),
        ({"plus": low_rank, "minus": minus}, "is an adapter and the other side a full model"),
        ({"base": low_rank, "plus": plus, "minus": minus}, "must both be states of the same adapter"),
    ]
    for settings, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            edit(**({"base": base, "scale": 1.0, "out": out} | settings))
    assert not out.exists()
    assert left(out) == []


def damaged(name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def apply(state: dict[str, Tensor]) -> dict[str, Tensor]:
        new = change(state.get(name, torch.zeros(3)))
        return {**{key: value for key, value in state.items() if key != name}, **({} if new is None else {name: new})}

    return apply


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[17, 5] = value
        return tensor

    return change


@pytest.mark.parametrize("which", ["b", "p", "m"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged("h.weight", with_value(float("nan"))), r"h\.weight holds NaN or infinity in .*/{}/.*\[17, 5\]"),
        (damaged("h.weight", with_value(float("-inf"))), r"h\.weight holds NaN or infinity in .*/{}/.*\[17, 5\]"),
        (damaged("h.weight", lambda tensor: tensor[:22]), r"h\.weight has shape .*\(22, 31\)"),
        (damaged(EMBEDDINGS, lambda tensor: tensor[:39]), r"\(39, 17\).*vocabularies differ"),
        (damaged("h.weight", lambda _: None), r"holds (no )?h\.weight"),
        (damaged("new", lambda tensor: tensor), r"holds (no )?new"),
        (damaged("h.weight", lambda tensor: tensor.to(torch.float8_e4m3fn)), r"h\.weight in .*F8_E4M3.*quantized"),
        (damaged("h.weight", lambda tensor: tensor.to(torch.int8)), r"h\.weight is stored as"),
    ],
    ids=["nan", "inf", "shape", "vocabulary", "missing", "extra", "fp8", "int8"],
)
def test_models_that_do_not_fit_are_refused(tmp_path: Path, which: str, change: Callable, message: str) -> None:
    base, plus, minus = three(tmp_path)
    state = change(read(tmp_path / which))
    shutil.rmtree(tmp_path / which)
    write(tmp_path / which, state)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    mark(out)
    with pytest.raises(ModelError, match=message.format(which)):
        edit(base, plus=plus, minus=minus, scale=1, out=out, overwrite=True)
    assert everything(out) == {"config.json": b"old"}
    assert left(out) == []


def test_other_refusals(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, plus, minus = models
    out = tmp_path / "out"

    def refused(message: str, error: type[ExpungeError] = ModelError, **changes: object) -> None:
        settings = {"base": base, "plus": plus, "minus": minus, "scale": 1.0, "out": out} | changes
        with pytest.raises(error, match=message):
            edit(**settings)  # type: ignore[arg-type]
        assert left(out) == []

    copy = shutil.copytree(plus, tmp_path / "copy")
    refused("plus and minus are the same weights", minus=copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    for side in ("base", "plus", "minus"):
        refused("is quantized", **{side: copy})
    (copy / "config.json").write_text(json.dumps(config))
    shard = sorted(copy.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-8])
    refused(f"{shard.name} is damaged", plus=copy)
    shard.unlink()
    refused(f"{shard.name}: no such file", plus=copy)
    refused("does not exist|no such folder", plus=tmp_path / "nothing")
    refused("less than a rounding step", scale=1e-12)
    refused("scale must be", ConfigurationError, scale=-1e39)
    refused("is, holds or lies in the input", OutputError, out=minus, overwrite=True)
    refused("is, holds or lies in the input", OutputError, out=minus / "x")
    out.mkdir()
    refused("--overwrite", OutputExistsError)
    (out / "thesis.tex").touch()
    refused("holds thesis.tex, which expunge did not make", OutputError, overwrite=True)


@pytest.mark.parametrize(
    ("dtype", "scale", "name"),
    [(torch.float16, 1e5, "F16"), (torch.bfloat16, 3e38, "BF16"), (torch.float32, 3e38, "F32")],
)
def test_overflow_is_refused(tmp_path: Path, dtype: torch.dtype, scale: float, name: str) -> None:
    base, plus, minus = three(tmp_path, dtype)
    with pytest.raises(ModelError, match=rf"too large for {name}.*smaller --scale"):
        edit(base, plus=plus, minus=minus, scale=scale, out=tmp_path / "out")


def test_large_numbers_in_range_are_not_refused(tmp_path: Path) -> None:
    """Numbers whose squares are not in the range of fp32."""
    base, plus, minus = (
        write(tmp_path / name, {"x": torch.full((700,), value)})
        for name, value in zip("bpm", (1e30, 3e25, 1e25), strict=True)
    )
    done = edit(base, plus=plus, minus=minus, scale=1, out=tmp_path / "out")
    torch.testing.assert_close(read(tmp_path / "out")["x"], torch.full((700,), 1e30 + 2e25))
    assert done.change_norm == pytest.approx(2e25 * 700**0.5, rel=1e-6)


def test_another_tokenizer_is_noted(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, plus, minus = models
    other = shutil.copytree(plus, tmp_path / "other")
    (other / "tokenizer.json").write_text('{"a": 1}')
    heard: list[str] = []
    done = edit(base, plus=other, minus=minus, scale=1, out=tmp_path / "out", note=heard.append)
    assert done.notes == tuple(heard)
    assert "another tokenizer.json" in heard[0]
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
