"""base + α·w⊙(plus − minus) as a stream: the numbers, what is refused, and what a kill leaves behind."""

import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import expunge
from expunge.errors import ConfigurationError, ExpungeError, ModelError, OutputError, OutputExistsError
from expunge.models import arithmetic, checkpoint, disk, load, new_adapter, resumable
from expunge.patch.edit import Edited, edit
from tests.conftest import build_model
from tests.models.test_checkpoint import everything, nudge

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
EMBEDDINGS, OUTPUT, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
WIDTHS = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-22, torch.float64: 2**-51}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that every tensor of a tiny model has several, the last one short."""
    monkeypatch.setattr(arithmetic, "PIECE", 300)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(base, plus, minus): untied fp32 models over several shards, each noise around the first."""
    folder = tmp_path_factory.mktemp("models")
    model = build_model(200, tied=False)
    model.save_pretrained(folder / "base", max_shard_size="40KB")
    assert len(list((folder / "base").glob("*.safetensors"))) > 3
    (folder / "base" / "tokenizer.json").write_text("{}")
    for seed, name in enumerate(("plus", "minus"), 1):
        torch.manual_seed(seed)
        nudge(model)
        # Another layout than the base's: what is where in plus and minus must not matter.
        model.save_pretrained(folder / name, max_shard_size="70KB" if seed == 1 else "5GB")
    return folder / "base", folder / "plus", folder / "minus"


def read(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def write(folder: Path, state: dict[str, Tensor], **config: object) -> Path:
    """One model folder with one file; `config` goes into config.json."""
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, metadata={"a": "b"})
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False, **config}))
    return folder


def random(seed: int, dtype: torch.dtype = torch.float32, **more: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state = {
        EMBEDDINGS: torch.randn(40, 17),
        "h.weight": torch.randn(23, 31),
        NORM: torch.randn(9),
        "s": torch.randn(()),
    }
    return {name: tensor.to(dtype) for name, tensor in state.items()} | more


def three(tmp_path: Path, dtype: torch.dtype = torch.float32, **more: Tensor) -> tuple[Path, Path, Path]:
    base, plus, minus = (write(tmp_path / name, random(seed, dtype, **more)) for seed, name in enumerate("bpm"))
    return base, plus, minus


def shards(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}


def left(out: Path) -> list[str]:
    """What stands beside `out` under names like its own."""
    return [item.name for item in out.parent.iterdir() if out.name in item.name and item.name != out.name]


def test_sharded_models_give_the_formula_in_the_bases_layout(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, plus, minus = models
    out = tmp_path / "out"
    heard: list[tuple[int, int]] = []
    done = expunge.edit(
        base, plus=plus, minus=minus, scale=-0.7, out=out, progress=lambda moved, total: heard.append((moved, total))
    )
    b, p, m = (read(folder) for folder in models)
    result = read(out)
    assert list(result) == list(b)
    for name in b:
        torch.testing.assert_close(result[name], b[name] - 0.7 * (p[name] - m[name]), rtol=0, atol=3e-7)
    assert (out / INDEX).read_bytes() == (base / INDEX).read_bytes()
    for file in base.glob("*.safetensors"):
        ours, theirs = checkpoint.head(out / file.name), checkpoint.head(file)
        assert ours == theirs
    assert {item.name for item in out.iterdir()} == {item.name for item in base.iterdir()} | {"edit.json"}
    assert json.loads((out / "edit.json").read_text())["sha256"] == done.checksums == shards(out)
    norm = sum(float((p[name].double() - m[name].double()).square().sum()) for name in b) ** 0.5
    assert done.change_norm == pytest.approx(0.7 * norm, rel=1e-5)
    assert (done.tensors, done.changed, done.resumed) == (len(b), len(b), 0)
    size = sum(tensor.nbytes for tensor in b.values())
    assert heard[0] == (0, 4 * size)
    assert heard[-1] == (4 * size, 4 * size)
    assert done.moved == 4 * size
    assert [moved for moved, _ in heard] == sorted(moved for moved, _ in heard)
    assert left(out) == []
    AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
def test_every_dtype_is_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    base, plus, minus = three(tmp_path, dtype)
    edit(base, plus=plus, minus=minus, scale=1.5, out=tmp_path / "out")
    b, p, m = (read(folder) for folder in (base, plus, minus))
    for name, tensor in read(tmp_path / "out").items():
        exact = b[name].double() + 1.5 * (p[name].double() - m[name].double())
        assert tensor.dtype == dtype
        # Half a step of the dtype, and what fp32 arithmetic loses in the sum.
        bound = 0.5 * WIDTHS[dtype] * exact.abs() + (2**-48 if dtype == torch.float64 else 2**-21)
        assert bool(((tensor.double() - exact).abs() <= bound).all())


def test_float_dtypes_may_differ(tmp_path: Path) -> None:
    base = write(tmp_path / "b", random(0, torch.bfloat16))
    plus, minus = write(tmp_path / "p", random(1, torch.float64)), write(tmp_path / "m", random(2, torch.float16))
    edit(base, plus=plus, minus=minus, scale=0.5, out=tmp_path / "out")
    b, p, m = (read(folder) for folder in (base, plus, minus))
    for name, tensor in read(tmp_path / "out").items():
        assert torch.equal(tensor, (b[name].double() + 0.5 * (p[name] - m[name].double())).bfloat16())


@pytest.mark.parametrize("dtype", [*WIDTHS, torch.float8_e4m3fn], ids=str)
def test_weights_scale_every_entry(tmp_path: Path, dtype: torch.dtype) -> None:
    base, plus, minus = three(tmp_path)
    w = {name: tensor.abs().to(dtype) for name, tensor in random(3).items()}
    save_file(w, tmp_path / "w.safetensors")
    done = edit(base, plus=plus, minus=minus, scale=-2, weights=tmp_path / "w.safetensors", out=tmp_path / "out")
    b, p, m = (read(folder) for folder in (base, plus, minus))
    expected = {name: b[name].double() - 2 * w[name].double() * (p[name].double() - m[name].double()) for name in b}
    for name, tensor in read(tmp_path / "out").items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)
    norm = sum(float((expected[name] - b[name].double()).square().sum()) for name in b) ** 0.5
    assert done.change_norm == pytest.approx(norm, rel=1e-5)


def test_weights_may_be_missing_only_where_nothing_differs(tmp_path: Path) -> None:
    base, plus, minus = three(tmp_path)
    state = read(minus) | {NORM: read(plus)[NORM]}
    shutil.rmtree(minus)
    write(minus, state)
    file = tmp_path / "w.safetensors"
    w = {name: torch.ones_like(tensor) for name, tensor in random(0).items() if name != NORM}
    save_file(w, file)
    edit(base, plus=plus, minus=minus, scale=1, weights=file, out=tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")[NORM], read(base)[NORM])
    for change, message in [
        ({"h.weight": None}, r"no weights for h\.weight.*Store zeros"),
        ({"other": torch.ones(1)}, r"weights for other"),
        ({"h.weight": torch.ones(2)}, r"h\.weight as \(2,\)"),
        ({"h.weight": torch.ones(23, 31, dtype=torch.int32)}, r"must be floats"),
        ({"h.weight": torch.full((23, 31), torch.nan)}, r"h\.weight holds NaN or infinity in .*w\.safetensors"),
        ({name: torch.zeros_like(tensor) for name, tensor in w.items()}, "weights are 0 wherever"),
    ]:
        given = w | change
        save_file({name: value for name, value in given.items() if value is not None}, file)
        with pytest.raises((ConfigurationError, ModelError), match=message):
            edit(base, plus=plus, minus=minus, scale=1, weights=file, out=tmp_path / "other")
        assert left(tmp_path / "other") == []


def test_where_nothing_differs_the_bases_bits_stay(tmp_path: Path) -> None:
    mark = {"n": torch.arange(700), "flag": torch.tensor([True, False])}
    base, plus, minus = three(tmp_path, **mark)
    state = read(base)
    state["h.weight"][:] = -0.0  # + 0 would make it 0
    shutil.rmtree(base)
    write(base, state)
    same = read(minus) | {"h.weight": read(plus)["h.weight"]}
    shutil.rmtree(minus)
    write(minus, same)
    done = edit(base, plus=plus, minus=minus, scale=1, out=tmp_path / "out")
    result = read(tmp_path / "out")
    assert bool(torch.signbit(result["h.weight"]).all())
    assert torch.equal(result["n"], mark["n"])
    assert (done.tensors, done.changed) == (6, 3)
    with safe_open(tmp_path / "out" / WEIGHTS, "pt") as opened:
        assert opened.metadata() == {"a": "b"}


@pytest.mark.parametrize("tied", [(True, True, False), (False, True, False), (True, False, True)])
def test_tied_output_layers(tmp_path: Path, tied: tuple[bool, bool, bool]) -> None:
    """`tied`: is the base tied, does the base store both names, do plus and minus."""
    is_tied, twice, others = tied
    states = []
    for seed, name in enumerate("bpm"):
        state = random(seed)
        side_tied = is_tied if name == "b" else True
        if twice if name == "b" else others:
            state[OUTPUT] = state[EMBEDDINGS].clone() if side_tied else torch.randn(40, 17)
        write(tmp_path / name, state, tie_word_embeddings=side_tied)
        states.append(state)
    edit(tmp_path / "b", plus=tmp_path / "p", minus=tmp_path / "m", scale=2, out=tmp_path / "out")
    result, (b, p, m) = read(tmp_path / "out"), states
    assert set(result) == set(b)
    change = 2 * (p[EMBEDDINGS] - m[EMBEDDINGS])
    torch.testing.assert_close(result[EMBEDDINGS], b[EMBEDDINGS] + change)
    if twice:
        torch.testing.assert_close(result[OUTPUT], b[OUTPUT] + change)


def test_a_change_of_an_untied_output_layer_cannot_go_into_a_tied_one(tmp_path: Path) -> None:
    base, plus, minus = three(tmp_path)
    shutil.rmtree(base)
    write(base, random(0), tie_word_embeddings=True)
    for place in (plus, minus):
        state = read(place) | {OUTPUT: torch.randn(40, 17)}
        shutil.rmtree(place)
        write(place, state)
    with pytest.raises(ModelError, match=r"ties its output layer.*lm_head\.weight"):
        edit(base, plus=plus, minus=minus, scale=1, out=tmp_path / "out")


def adapter(base: Path, out: Path, seed: int, **options: object) -> Path:
    """A LoRA adapter on `base` with nothing zero."""
    loaded = new_adapter(load(base), 3, alpha=5)
    torch.manual_seed(seed)
    nudge(loaded.model, "lora_")
    checkpoint.save_model(loaded, out)
    return out


def test_adapters_stand_for_their_change(tiny_folder: Path, tmp_path: Path) -> None:
    one, two = (adapter(tiny_folder, tmp_path / name, seed) for seed, name in enumerate(("one", "two")))
    base, merged = read(tiny_folder), []
    for folder in (one, two):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), folder)
        merged.append({name: value.clone() for name, value in model.merge_and_unload().state_dict().items()})
    for sides, sign in [({"plus": one, "minus": two}, (1, -1)), ({"plus": one}, (1, 0)), ({"minus": two}, (0, -1))]:
        out = tmp_path / "-".join(sides)
        done = edit(tiny_folder, **sides, scale=-1.5, out=out)
        for name, tensor in read(out).items():
            changes = [factor * (state[name] - base[name]) for factor, state in zip(sign, merged, strict=True)]
            torch.testing.assert_close(tensor, base[name] - 1.5 * sum(changes), rtol=1e-5, atol=1e-6)
        assert done.changed == 14  # seven linear layers in each of two
        assert done.notes == ()
        assert torch.equal(read(out)[EMBEDDINGS], base[EMBEDDINGS])


def test_states_of_an_adapter_are_edited_in_its_own_space(tiny_folder: Path, tmp_path: Path) -> None:
    base, plus, minus = (adapter(tiny_folder, tmp_path / name, seed) for seed, name in enumerate("bpm"))
    edit(base, plus=plus, minus=minus, scale=-1, out=tmp_path / "out")
    b, p, m = (read(folder) for folder in (base, plus, minus))
    for name, tensor in read(tmp_path / "out").items():
        torch.testing.assert_close(tensor, b[name] - (p[name] - m[name]))
    assert load(tmp_path / "out").is_adapter
    config = json.loads((minus / "adapter_config.json").read_text())
    (minus / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 7}))
    with pytest.raises(ModelError, match="differ in lora_alpha"):
        edit(base, plus=plus, minus=minus, scale=-1, out=tmp_path / "other")


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
    refused(f"{shard.name} does not exist", plus=copy)
    refused("does not exist|no such folder", plus=tmp_path / "nothing")
    refused("less than a rounding step", scale=1e-12)
    refused("scale must be", ConfigurationError, scale=-1e39)
    refused("is, holds or lies in the input", OutputError, out=minus, overwrite=True)
    refused("is, holds or lies in the input", OutputError, out=minus / "x")
    out.mkdir()
    refused("--overwrite", OutputExistsError)
    (out / "thesis.tex").touch()
    refused("other things than a model", OutputError, overwrite=True)


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


def test_a_full_disk_is_seen_before_and_during(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, plus, minus = models
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=12_000_000)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OutputError, match=r"needs 0\.07 GB and the disk has 0\.01 GB free"):
            edit(base, plus=plus, minus=minus, scale=1, out=out)
    calls = []

    real = disk.Target.write

    def full(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(disk.Target, "write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        edit(base, plus=plus, minus=minus, scale=1, out=out)
    assert list(tmp_path.iterdir()) == []


def killed(action: Callable[[], object]) -> bool:
    """Run in a process of its own; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill_at(owner: object, name: str, call: int) -> None:
    """From now on, `name` kills this process when it is called for the `call`-th time."""
    real, count = getattr(owner, name), [0]

    def dying(*arguments: object, **more: object) -> object:
        count[0] += 1
        if count[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)

    setattr(owner, name, dying)


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (disk.Target, "write", (1, 40, 90)),
        (resumable, "write_json", (1, 3)),
        (resumable, "sync", (2, 6)),
        (resumable, "_swap", (1,)),
        (resumable.shutil, "rmtree", (1,)),
    ],
    ids=["write", "journal", "sync", "swap", "after"],
)
def test_a_kill_leaves_the_old_output_or_the_new(
    models: tuple[Path, Path, Path], tmp_path: Path, owner: object, name: str, calls: tuple[int, ...], exists: bool
) -> None:
    base, plus, minus = models
    expected = tmp_path / "expected"
    edit(base, plus=plus, minus=minus, scale=-1, out=expected)
    whole = everything(expected)
    for call in calls:
        out = tmp_path / f"out{call}"
        old = everything(shutil.copytree(base, out)) if exists else {}

        def run(out: Path = out, **more: object) -> Edited:
            return edit(base, plus=plus, minus=minus, scale=-1, out=out, overwrite=True, **more)  # type: ignore[arg-type]

        def die(call: int = call, run: Callable = run) -> None:
            kill_at(owner, name, call)
            run()

        assert killed(die)
        assert (everything(out) if out.exists() else {}) in (old, whole)
        done = run()
        assert everything(out) == whole
        assert left(out) == []
        assert done.resumed <= len(shards(base))
        if (name, call) == ("write_json", 3):
            assert done.resumed == 2
            assert f"{done.resumed} of {len(shards(base))} shards were finished" in done.notes[0]
            size = sum(tensor.nbytes for tensor in read(base).values())
            assert done.moved < 4 * size
        if name == "_swap":
            assert done.resumed == len(shards(base))
        shutil.rmtree(out)


def test_another_request_starts_over_and_so_does_a_damaged_shard(
    models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, plus, minus = models
    out = tmp_path / "out"

    def die() -> None:
        kill_at(resumable, "_swap", 1)
        edit(base, plus=plus, minus=minus, scale=-1, out=out)

    assert killed(die)
    other = edit(base, plus=plus, minus=minus, scale=1, out=out)
    assert other.resumed == 0
    assert other.checksums == shards(out)
    shutil.rmtree(out)
    assert killed(die)
    assert edit(base, plus=plus, minus=minus, scale=-1, out=out, resume=False).resumed == 0
    right = everything(out)
    shutil.rmtree(out)
    assert killed(die)
    shard = sorted(resumable.place_of(out).glob("model/*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert edit(base, plus=plus, minus=minus, scale=-1, out=out).resumed == len(shards(base)) - 1
    assert everything(out) == right


def test_an_interrupt_keeps_what_is_finished_and_only_that(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, plus, minus = models
    out = tmp_path / "out"

    def interrupted(owner: object, name: str) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                edit(base, plus=plus, minus=minus, scale=-1, out=out)

    interrupted(arithmetic.Stream, "shard")
    assert left(out) == []
    interrupted(resumable, "_swap")
    interrupted(resumable, "sha256")  # while it looks through what is there
    assert edit(base, plus=plus, minus=minus, scale=-1, out=out).resumed == len(shards(base))


def test_two_runs_do_not_write_the_same_output(models: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, plus, minus = models
    out = tmp_path / "out"
    with (
        resumable.resumable(out, {}) as growing,
        pytest.raises(OutputError, match="Another process is writing"),
    ):
        growing.model.joinpath("x").touch()
        edit(base, plus=plus, minus=minus, scale=1, out=out)
    assert everything(out) == {"x": b""}


def test_without_an_exchange_the_old_output_steps_aside(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "_exchange", lambda one, other: False)
    base, plus, minus = models
    out = shutil.copytree(base, tmp_path / "out")
    done = edit(base, plus=plus, minus=minus, scale=1, out=out, overwrite=True)
    assert shards(out) == done.checksums != shards(base)
    assert left(out) == []


@pytest.mark.parametrize("direct", [False, True])
def test_reads_give_the_files_bytes_cached_or_not(tmp_path: Path, direct: bool) -> None:
    content = os.urandom(3 * disk.BLOCK + 100)
    (tmp_path / "file").write_bytes(content)
    handle = os.open(tmp_path / "file", os.O_RDONLY)
    past = disk._direct(tmp_path / "file") if direct else None
    if direct and past is None:
        pytest.skip("no direct reads on this file system")
    room = disk.mmap(-1, len(content) + 2 * disk.BLOCK)
    source = disk.Source(tmp_path / "file", handle, past)
    for start, size in [(0, 8), (8, 5000), (4090, 20), (4096, 4096), (12300, 88), (3, 9), (0, len(content))]:
        first = source.read(room, start, size, 4)
        assert first % 4 == 0
        assert room[first : first + size] == content[start : start + size]
    with pytest.raises(ModelError, match="ends early"):
        source.read(room, 12300, 89, 4)
    os.close(handle)
    if past is not None:
        os.close(past)


@pytest.mark.parametrize("direct", [False, True])
def test_writes_land_where_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    if not direct:
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    block, content = disk.BLOCK, os.urandom(5 * disk.BLOCK + 77)
    with disk.created(tmp_path / "file", len(content)) as target:
        if direct and target.direct is None:
            pytest.skip("no direct writes on this file system")
        room = disk.mmap(-1, len(content) + 2 * block)
        for start, end in [(2 * block, 4 * block), (0, 8), (8, 2 * block), (4 * block, 4 * block + 5)]:
            room[start % block : start % block + end - start] = content[start:end]
            target.write(memoryview(room), start % block, end - start, start)
        start = 4 * block + 5  # not at the same place of a block in memory
        room[: len(content) - start] = content[start:]
        target.write(memoryview(room), 0, len(content) - start, start)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("piece", [7, 5000, 1 << 14, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, dtype: torch.dtype) -> None:
    """Large enough that most bytes are read and written past the page cache, the edges of tensors through it."""
    monkeypatch.setattr(arithmetic, "PIECE", piece)
    sizes = (1, 9000, 30011, 3, 40000) if piece > 7 else (1, 50, 3)
    states = []
    for seed, name in enumerate("bpm"):
        torch.manual_seed(seed)
        states.append({f"t{size}": torch.randn(size).to(dtype) for size in sizes})
        write(tmp_path / name, states[-1])
        handle = os.open(tmp_path / name / WEIGHTS, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    done = edit(tmp_path / "b", plus=tmp_path / "p", minus=tmp_path / "m", scale=0.25, out=tmp_path / "out")
    result = read(tmp_path / "out")
    for name, b, p, m in ((name, *(state[name].double() for state in states)) for name in states[0]):
        torch.testing.assert_close(result[name], (b + 0.25 * (p - m)).to(dtype), rtol=WIDTHS[dtype], atol=1e-6)
    assert done.checksums == shards(tmp_path / "out")


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Three models of one tensor of 160 MB, which the peak above what the process began with is well below."""
    for seed, name in enumerate("bpm"):
        write(tmp_path / name, {"x": torch.full((40_000_000,), 1.0 + seed)})

    def memory(line: str) -> float:
        status = Path("/proc/self/status").read_text()
        return float(next(item.split()[1] for item in status.splitlines() if item.startswith(line))) / 1024

    def run() -> None:
        arithmetic.PIECE = 1 << 18
        before = memory("VmRSS")
        edit(tmp_path / "b", plus=tmp_path / "p", minus=tmp_path / "m", scale=-2, out=tmp_path / "out")
        (tmp_path / "mib").write_text(str(memory("VmHWM") - before))

    assert not killed(run)
    assert torch.equal(read(tmp_path / "out")["x"], torch.full((40_000_000,), 3.0))
    assert 1 < float((tmp_path / "mib").read_text()) < 100
