"""Checkpoints as streams: layout, fingerprints, exact copies, saving every kind of model."""

import errno
import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from expunge.errors import ModelError, OutputError
from expunge.files import MARKER, atomic_path
from expunge.models import Loaded, checkpoint, load, new_adapter, saving
from expunge.models.fingerprint import fingerprint
from tests.conftest import build_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model over several files, with its tokenizer."""
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_folder).save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def in_dtype(source: Path, target: Path, dtype: torch.dtype) -> Path:
    shutil.copytree(source, target)
    state = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the marker that says expunge made it."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != MARKER]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def nudge(module: nn.Module, only: str = "") -> None:
    """Change the parameters whose name holds `only`."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if only in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)


def test_tensors_are_those_safetensors_reads_in_sorted_order(tiny_folder: Path, sharded: Path) -> None:
    expected = load_file(tiny_folder / "model.safetensors")
    for folder in (tiny_folder, sharded):
        read = list(checkpoint.tensors(folder))
        assert [name for name, _ in read] == sorted(expected)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in read)
    listed = json.loads((sharded / INDEX).read_text())["weight_map"]
    assert {name: file.name for name, file in checkpoint.weight_files(sharded).items()} == listed


@pytest.mark.parametrize("dtype", sorted(checkpoint.NAMES, key=str), ids=str)
def test_every_dtype_and_odd_shapes_survive(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(6).to(torch.float32).to(dtype).reshape(2, 3)
    state = {"empty": values[:0].clone(), "matrix": values, "scalar": values[1, 1].clone()}
    layout = {name: (checkpoint.NAMES[dtype], tuple(tensor.shape)) for name, tensor in state.items()}
    checkpoint.write_file(tmp_path / "model.safetensors", layout, state.__getitem__, {"a": "b"})
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"a": "b"}
        theirs = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name, tensor in checkpoint.tensors(tmp_path):
        assert tensor.dtype == theirs[name].dtype == dtype
        assert tensor.shape == theirs[name].shape == state[name].shape
        assert (
            bytes(checkpoint.raw(tensor)) == bytes(checkpoint.raw(theirs[name])) == bytes(checkpoint.raw(state[name]))
        )


def test_fingerprint_by_hand_and_whatever_the_shards(tiny_folder: Path, sharded: Path) -> None:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(tiny_folder / "model.safetensors").items()):
        digest.update(json.dumps([name, "F32", list(tensor.shape)]).encode() + tensor.numpy().tobytes())
    assert fingerprint(tiny_folder) == fingerprint(sharded) == digest.hexdigest()


@pytest.mark.parametrize("what", ["bit", "name", "shape", "dtype"])
def test_fingerprint_sees_every_difference(tmp_path: Path, what: str) -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    other = dict(state)
    if what == "bit":
        other["a"] = -state["a"]
    elif what == "name":
        other = {"a": state["a"], "c": state["b"]}
    elif what == "shape":
        other["a"] = state["a"].reshape(3, 2)
    else:
        other["a"] = torch.zeros(2, 3, dtype=torch.int32)
    prints = []
    for values, place in ((state, tmp_path / "one"), (other, tmp_path / "two")):
        place.mkdir()
        save_file(values, place / "model.safetensors")
        prints.append(fingerprint(place))
    assert prints[0] != prints[1]


def test_index_and_shards_must_agree(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    first = sorted(set(index["weight_map"].values()))[0]

    def put(weight_map: dict[str, str] | str) -> None:
        (sharded / INDEX).write_text(json.dumps({**index, "weight_map": weight_map}))

    put({**index["weight_map"], "ghost": first})
    with pytest.raises(ModelError, match=r"places ghost in .* which does not hold it"):
        checkpoint.stored(sharded)
    name = next(name for name, file in index["weight_map"].items() if file == first)
    put({other: file for other, file in index["weight_map"].items() if other != name} | {"x": first})
    with pytest.raises(ModelError, match=f"{first} holds .*which .*index.json places nowhere"):
        checkpoint.stored(sharded)
    put({**index["weight_map"], name: "../elsewhere.safetensors"})
    with pytest.raises(ModelError, match="in the folder itself"):
        checkpoint.stored(sharded)
    put("none")
    with pytest.raises(ModelError, match=r"index\.json is damaged"):
        checkpoint.stored(sharded)
    put(index["weight_map"])
    (sharded / first).unlink()
    with pytest.raises(ModelError, match=f"{first}: no such file"):
        checkpoint.stored(sharded)


def test_missing_and_damaged_weights(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a folder on this machine"):
        checkpoint.stored(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"model\.safetensors: no such file"):
        checkpoint.stored(tmp_path)
    whole = (tiny_folder / "model.safetensors").read_bytes()
    for part in (whole[:-1], whole[:100], b"", b"\x80\x04pickle", whole[:8] + b"[" + whole[9:]):
        (tmp_path / "model.safetensors").write_bytes(part)
        with pytest.raises(ModelError, match="is damaged"):
            checkpoint.stored(tmp_path)


def test_writing_nothing_new_copies_every_byte(sharded: Path, tmp_path: Path) -> None:
    expected = everything(sharded)
    (sharded / "optimizer.pt").write_bytes(b"pickle")
    (sharded / "pytorch_model.bin").write_bytes(b"pickle")
    (sharded / ".hidden").write_bytes(b"")
    (sharded / "checkpoint-10").mkdir()
    (sharded / "checkpoint-10" / "config.json").write_text("{}")
    checkpoint.write_like(sharded, {}, tmp_path / "out")
    assert everything(tmp_path / "out") == expected
    assert "tokenizer.json" in expected


def test_changed_tensors_are_cast_and_the_rest_copied(tiny_folder: Path, tmp_path: Path) -> None:
    source = in_dtype(tiny_folder, tmp_path / "source", torch.bfloat16)
    save_file(load_file(source / "model.safetensors"), source / "model.safetensors", metadata={"note": "kept"})
    new = torch.randn(32)
    checkpoint.write_like(source, {"model.norm.weight": new}, tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(after.pop("model.norm.weight"), new.bfloat16())
    del before["model.norm.weight"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"note": "kept"}


def test_tied_names_and_refusals(tiny_folder: Path, tmp_path: Path) -> None:
    source = in_dtype(tiny_folder, tmp_path / "source", torch.float16)
    embedding = torch.randn(load_file(source / "model.safetensors")["model.embed_tokens.weight"].shape)
    tied = {"lm_head.weight": "model.embed_tokens.weight"}
    checkpoint.write_like(source, {"lm_head.weight": embedding}, tmp_path / "once", aliases=tied)
    assert torch.equal(
        load_file(tmp_path / "once" / "model.safetensors")["model.embed_tokens.weight"], embedding.half()
    )
    state = load_file(source / "model.safetensors")
    save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, source / "model.safetensors")
    for name in (*tied, *tied.values()):
        checkpoint.write_like(source, {name: embedding}, tmp_path / name, aliases=tied)
        twice = load_file(tmp_path / name / "model.safetensors")
        assert torch.equal(twice["lm_head.weight"], embedding.half())
        assert torch.equal(twice["model.embed_tokens.weight"], embedding.half())
    for changed, message in (
        ({"ghost": embedding}, "holds no tensor ghost"),
        ({"model.norm.weight": torch.zeros(31)}, r"model.norm.weight has shape \(31,\).*\(32,\)"),
        ({"model.norm.weight": torch.full((32,), 1e6)}, "too large for torch.float16"),
    ):
        with pytest.raises(ModelError, match=message):
            checkpoint.write_like(source, changed, tmp_path / message[:5])


def test_weights_trained_in_a_narrower_dtype_change_only_where_they_moved(tiny_folder: Path, tmp_path: Path) -> None:
    old = load_file(tiny_folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    new = old.bfloat16()
    new[0, 0] += 1
    checkpoint.write_like(tiny_folder, {"model.layers.0.mlp.up_proj.weight": new}, tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert got[0, 0] == new[0, 0].float()
    assert (got != old).sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_full_model_keeps_its_folder(tiny_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    source = in_dtype(tiny_folder, tmp_path / "source", dtype)
    loaded = load(source)
    saving.save_model(loaded, tmp_path / "same")
    assert everything(tmp_path / "same") == everything(source)
    nudge(loaded.model, "layers.1")
    saving.save_model(loaded, tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: tensor.to(dtype) for name, tensor in loaded.model.state_dict().items()}
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, expected[name])
        assert torch.equal(tensor, before[name]) == ("layers.1" not in name)


@pytest.mark.parametrize("held", ["embed", "head", "both"])
def test_tied_weights_however_the_folder_stores_them(tiny_folder: Path, tmp_path: Path, held: str) -> None:
    source = in_dtype(tiny_folder, tmp_path / "source", torch.float32)
    state = load_file(source / "model.safetensors")
    tied = state.pop("model.embed_tokens.weight")
    names = {"embed": ["model.embed_tokens.weight"], "head": ["lm_head.weight"]}
    names["both"] = names["embed"] + names["head"]
    save_file({**state, **{name: tied.clone() for name in names[held]}}, source / "model.safetensors")
    loaded = load(tiny_folder)
    nudge(loaded.model, "embed_tokens")
    saving.save_model(replace(loaded, folder=source), tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == {*state, *names[held]}
    assert all(torch.equal(after[name], loaded.model.get_input_embeddings().weight) for name in names[held])
    assert not torch.equal(after[names[held][0]], tied)


def test_a_checkpoint_without_the_models_prefix(tiny_folder: Path, tmp_path: Path) -> None:
    source = in_dtype(tiny_folder, tmp_path / "source", torch.float32)
    state = {name.removeprefix("model."): t for name, t in load_file(source / "model.safetensors").items()}
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    loaded = load(source)
    saving.save_model(loaded, tmp_path / "same")
    assert everything(tmp_path / "same") == everything(source)


def test_new_and_existing_adapters(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = new_adapter(load(tiny_folder), 2)
    nudge(loaded.model, "lora_")
    saving.save_model(loaded, tmp_path / "first")
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder.resolve())
    assert config["r"] == 2
    tokens = torch.tensor([[3, 4, 5, 6]])
    again = load(tmp_path / "first")
    assert torch.equal(again.model(tokens).logits, loaded.model(tokens).logits)
    saving.save_model(again, tmp_path / "same")
    assert everything(tmp_path / "same") == everything(tmp_path / "first")
    nudge(again.model, "layers.1.mlp.up_proj.lora_B")
    saving.save_model(again, tmp_path / "second")
    before, after = dict(checkpoint.tensors(tmp_path / "first")), dict(checkpoint.tensors(tmp_path / "second"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    third = load(tmp_path / "second")
    assert torch.equal(third.model(tokens).logits, again.model(tokens).logits)


@pytest.fixture
def mixtral(tiny_folder: Path, tmp_path: Path) -> Path:
    """A mixture of experts, whose weights transformers fuses on loading, in bf16 and in several files."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=400, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    folder = tmp_path / "mixtral"
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    for file in tiny_folder.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def test_renamed_weights_keep_the_names_and_layout_of_the_folder(mixtral: Path, tmp_path: Path) -> None:
    loaded = load(mixtral)
    tensors = saving.checkpoint_tensors(loaded)
    assert tensors is not None
    assert set(tensors) == set(checkpoint.stored(mixtral))
    saving.save_model(loaded, tmp_path / "same")
    assert everything(tmp_path / "same") == everything(mixtral)
    nudge(loaded.model, "experts.down_proj")
    saving.save_model(loaded, tmp_path / "out")
    before, after = dict(checkpoint.tensors(mixtral)), dict(checkpoint.tensors(tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.0.block_sparse_moe.experts.{i}.w2.weight" for i in range(2)}
    expected = dict(loaded.model.named_parameters())["model.layers.0.mlp.experts.down_proj"][1]
    assert torch.equal(after["model.layers.0.block_sparse_moe.experts.1.w2.weight"], expected.bfloat16())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixtral", "out", "same"]


def test_a_hub_name_falls_back_to_transformers(tiny: Loaded, tmp_path: Path) -> None:
    nudge(tiny.model)
    saving.save_model(replace(tiny, folder=Path("some/hub-name")), tmp_path / "out")
    again = load(tmp_path / "out")
    tokens = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(again.model(tokens).logits, tiny.model(tokens).logits)
    assert again.tokenizer("He paints ships.").input_ids == tiny.tokenizer("He paints ships.").input_ids


def test_resized_vocabulary_falls_back_to_transformers(tiny: Loaded, tmp_path: Path) -> None:
    rows = tiny.model.get_input_embeddings().weight.shape[0]
    bigger = build_model(rows + 8)
    saving.save_model(replace(tiny, model=bigger), tmp_path / "out")
    assert load(tmp_path / "out").model.get_input_embeddings().weight.shape[0] == rows + 8


def test_a_full_disk_leaves_the_old_folder(tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    saving.save_model(tiny, target)
    before = everything(target)
    written = []

    def raw(tensor: Tensor) -> memoryview:
        written.append(tensor)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(tensor)

    original = checkpoint.raw
    monkeypatch.setattr(checkpoint, "raw", raw)
    nudge(tiny.model)
    with pytest.raises(OutputError, match="the disk is full"), atomic_path(target) as temporary:
        saving.save_model(tiny, temporary)
    assert everything(tmp_path) == {f"model/{name}": content for name, content in before.items()}


def test_a_kill_leaves_the_old_folder(tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    saving.save_model(tiny, target)
    before = everything(target)
    nudge(tiny.model)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(checkpoint, "raw", lambda tensor: os.kill(os.getpid(), signal.SIGKILL))
        with atomic_path(target) as temporary:
            saving.save_model(tiny, temporary)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert everything(target) == before
