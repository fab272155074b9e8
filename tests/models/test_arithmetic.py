"""base + α·w⊙(plus − minus) as a stream: the numbers, tied weights, adapters, pieces and memory."""

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
from expunge.errors import ConfigurationError, ModelError
from expunge.models import arithmetic, checkpoint, disk, load, new_adapter, saving
from expunge.patch.edit import edit
from tests.models.test_checkpoint import nudge

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
EMBEDDINGS, OUTPUT, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
WIDTHS = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-22, torch.float64: 2**-51}

pytestmark = pytest.mark.usefixtures("small_pieces")


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
    assert {item.name for item in out.iterdir()} == {item.name for item in base.iterdir()} | {"edit.json", ".expunge"}
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
    saving.save_model(loaded, out)
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


def killed(action: Callable[[], object]) -> bool:
    """Run in a process of its own; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Three models of one tensor of 160 MB, which the peak above what the process began with is well below."""
    for seed, name in enumerate("bpm"):
        write(tmp_path / name, {"x": torch.full((40_000_000,), 1.0 + seed)})
        write(tmp_path / f"small_{name}", {"x": torch.full((4,), 1.0 + seed)})

    def memory(line: str) -> float:
        status = Path("/proc/self/status").read_text()
        return float(next(item.split()[1] for item in status.splitlines() if item.startswith(line))) / 1024

    def combined(prefix: str) -> None:
        sides = {"plus": "p", "minus": "m", "out": "out"}
        edit(tmp_path / f"{prefix}b", scale=-2, **{name: tmp_path / f"{prefix}{side}" for name, side in sides.items()})

    def run() -> None:
        arithmetic.PIECE = 1 << 18
        combined("small_")  # what is imported at the first edit is not the edit's memory
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = memory("VmRSS")
        combined("")
        (tmp_path / "mib").write_text(str(memory("VmHWM") - before))

    assert not killed(run)
    assert torch.equal(read(tmp_path / "out")["x"], torch.full((40_000_000,), 3.0))
    assert 1 < float((tmp_path / "mib").read_text()) < 60
