"""No file that others wrote ends in a traceback, in a hang, or is taken for what it is not."""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expunge import config
from expunge.data.benchmarks import mmlu, muse, tallrec, tofu, wmdp
from expunge.errors import ModelError
from expunge.evaluation import tuned
from expunge.methods.solve_record import moved_before
from expunge.models import checkpoint, load
from expunge.models.adapter_config import read_adapter_config
from expunge.models.gguf import convert
from expunge.models.lora import new_adapter
from expunge.models.mask import Mask
from expunge.models.resumable import Growing, resumable
from expunge.models.saving import save_model
from expunge.patch import Patch, create
from expunge.reporting import leaderboard, markdown_table, read_results
from expunge.request import read_examples
from expunge.training import checkpoint as training
from tests.conftest import FORGET
from tests.helpers import hostile
from tests.helpers.hostile import Case
from tests.helpers.trial import outcome, run
from tests.reporting.build import attacked


def json_cases(file: Path, seed: int, count: int = 40) -> list[Case]:
    draw = random.Random(seed)
    content = file.read_bytes()
    damaged = hostile.json_damaged(json.loads(content), draw, count)
    return [*damaged, *hostile.bytes_damaged(content, draw, count // 2), *hostile.no_regular_files()]


def weight_cases(file: Path, seed: int, count: int = 40) -> list[Case]:
    damaged = hostile.weights_damaged(file.read_bytes(), random.Random(seed), count)
    noise = hostile.bytes_damaged(file.read_bytes(), random.Random(seed), count)
    return [*damaged, *noise, *hostile.no_regular_files()]


def jsonl_cases(file: Path, seed: int, count: int = 40) -> list[Case]:
    draw = random.Random(seed)
    content = file.read_bytes()
    first, rest = content.split(b"\n", 1)
    lines = [
        Case(f"first line: {item.name}", _line(item, rest), "free" if b"[1]" in content else item.expected)
        for item in hostile.json_damaged(json.loads(first), draw, count)
        if item.name not in ("indented", "JSON b''", "JSON b'[1]'", "JSON b'null'")
    ]
    return [*lines, *hostile.bytes_damaged(content, draw, count // 2), *hostile.no_regular_files()]


def _line(item: Case, rest: bytes) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        item.apply(file)
        file.write_bytes(file.read_bytes() + b"\n" + rest)

    return apply


def test_results(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(attacked()))

    def read(path: Path) -> Any:
        value = read_results(path)
        return value, [row.label for row in leaderboard(value)], markdown_table(value)

    assert run(file, read, json_cases(file, 1, 120)).total() >= 150


def test_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    content = b"lr: 1.0e-4\nsteps: 30\nforget: {name: npo, beta: 0.1}\nnames: [a, b]\n"
    file.write_bytes(content)
    names = "abcdefghi"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(names)
    )
    bad = [
        bomb, "a: &a [*a]", "a: &a {b: *a}", "[" * 100_000, "lr: " + "9" * 5000, "d: 2026-99-99", "a: 1\na: 2", "- 1",
        "a: !!python/object/apply:os.system [x]", "a: \x00", "? [1]\n: 2", "a: *b", "a: !!int x", "a" * 300_000,
        "a: {b: " * 60 + "1" + "}" * 60,
    ]  # fmt: skip
    cases = [hostile.written(f"YAML {text[:30]!r}", text.encode(), "refused") for text in bad]
    cases += [
        hostile.written("Latin-1", b"a: \xe9", "refused"),
        hostile.written("comments", b"# first\n" + content, "same"),
        *hostile.bytes_damaged(content, random.Random(2), 120),
        *hostile.no_regular_files(),
    ]
    assert run(file, config.read_yaml, cases).total() >= 140
    assert config.parse_settings(["a=" + "[" * 5000])["a"] == "[" * 5000


def test_weights_index_and_adapters(tmp_path: Path, tiny_folder: Path) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "model")

    def layout(folder: Path) -> Any:
        return {name: (item.dtype, item.shape, item.size) for name, item in checkpoint.stored(folder).items()}

    weights = model / "model.safetensors"
    total = run(weights, layout, weight_cases(weights, 3), model)
    names = sorted(checkpoint.stored(model))
    index = model / "model.safetensors.index.json"
    weights.rename(model / "model-00001-of-00001.safetensors")
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")})
    )
    total += run(index, layout, json_cases(index, 4), model)
    for shard in ("pytorch_model.bin", "../model.safetensors", "/etc/passwd", "x.pt", "model\x00.safetensors", ""):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
        assert outcome(layout, model) == "refused"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(
        {"x.lora_A.weight": torch.zeros(4, 32), "x.lora_B.weight": torch.zeros(32, 4)},
        adapter / "adapter_model.safetensors",
    )
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(tiny_folder), "r": 4,
        "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", "use_dora": False, "rank_pattern": {},
        "alpha_pattern": {}, "init_lora_weights": True,
    }  # fmt: skip
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(settings))
    total += run(file, read_adapter_config, json_cases(file, 5, 100), adapter)
    for change in (
        {"r": 10**9}, {"r": True}, {"r": 0}, {"peft_type": "GUESS"}, {"task_type": "SEQ_CLS"}, {"lora_alpha": None},
        {"rank_pattern": {"x": 10**9}}, {"megatron_config": {"a": 1}}, {"layer_replication": [[0, 10**9]]}, {"newer": 1},
    ):  # fmt: skip
        file.write_text(json.dumps(settings | change))
        assert outcome(read_adapter_config, adapter) == "refused", change
    for name in ("lora_alpha", "r", "target_modules", "peft_type"):
        file.write_text(json.dumps({key: value for key, value in settings.items() if key != name}))
        assert outcome(read_adapter_config, adapter) == "refused", name
    assert total.total() >= 280


def test_models(tmp_path: Path, tiny_folder: Path) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "model")

    def loaded(folder: Path) -> Any:
        whole = load(folder)
        with torch.inference_mode():
            logits = whole.model(torch.tensor([[3, 4, 5]])).logits
        assert bool(logits.isfinite().all())
        return whole.tokenizer("Ada Lome was")["input_ids"], round(float(logits.sum()), 4)

    total = Counter()
    for seed, name in enumerate(("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")):
        lenient = {"byte-order mark"} if name in ("config.json", "tokenizer.json") else {"byte-order mark", "nothing"}
        cases = [
            replace(item, expected="free") if item.name in lenient else item  # transformers refuses a byte-order mark
            for item in json_cases(model / name, seed, 30)
        ]
        total += run(model / name, loaded, cases, model)
    weights = model / "model.safetensors"
    total += run(weights, loaded, weight_cases(weights, 20, 30), model)
    config = json.loads((model / "config.json").read_text())
    for change in (
        {"transformers_weights": "model.bin"}, {"num_hidden_layers": 10**9}, {"vocab_size": 10**9}, {"hidden_size": 10**9},
        {"model_type": "nothing"}, {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
    ):  # fmt: skip
        (model / "config.json").write_text(json.dumps(config | change))
        assert outcome(loaded, model) == "refused", change
    (model / "config.json").write_text(json.dumps(config))
    for name in ("notes.txt", "generation_config.json"):
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to("/etc/hostname")
        assert outcome(loaded, model) == "refused", name
        (model / name).unlink()
    tensors = {name: item.read() for name, item in checkpoint.stored(model).items()}
    tensors[min(tensors)][0, 0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="holds NaN"):
        load(model)
    assert total.total() >= 300


def test_adapters(tmp_path: Path, tiny_folder: Path) -> None:
    loaded = new_adapter(load(tiny_folder), 2)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_model(loaded, folder / "model")
    folder = folder / "model"
    settings = json.loads((folder / "adapter_config.json").read_text())

    def read(path: Path) -> Any:
        with torch.inference_mode():
            return round(float(load(path).model(torch.tensor([[3, 4, 5]])).logits.sum()), 4)

    file = folder / "adapter_config.json"
    cases = [
        replace(item, expected="free") if item.name == "byte-order mark" else item  # PEFT refuses one
        for item in json_cases(file, 21, 60)
    ]
    total = run(file, read, cases, folder)
    for base in (None, "", "\x00", 5, [], "nowhere", str(tmp_path), str(file)):
        file.write_text(json.dumps(settings | {"base_model_name_or_path": base}))
        assert outcome(read, folder) == "refused", base
    for change in (
        {"target_modules": "(.*a+)+!"}, {"target_modules": "("}, {"alpha_pattern": {"(.*[a-z]+)+!": 2}},
        {"rank_pattern": {"(.*[a-z.]*)*!": 2}}, {"exclude_modules": "(.*.*)*!"}, {"use_dora": "yes"},
    ):  # fmt: skip
        file.write_text(json.dumps(settings | change))
        assert outcome(read, folder) == "refused", change
    assert total.total() >= 100


def test_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    for index, content in enumerate(
        (
            b"",
            b"GGUF",
            b"GGUF\x03\0\0\0" + b"\xff" * 16,
            b"GGUF\x03\0\0\0" + b"\0" * 16,
            b"x" * 100,
            b"GGUF" + b"\x09" * 60,
        )
    ):
        file = tmp_path / f"{index}.gguf"
        file.write_bytes(content)
        assert outcome(lambda path: convert(path, tmp_path / "out"), file) == "refused", content
        assert not (tmp_path / "out").exists()
    _fifo = tmp_path / "pipe.gguf"
    os.mkfifo(_fifo)
    assert outcome(lambda path: convert(path, tmp_path / "out"), _fifo) == "refused"


def test_masks_and_patches(tmp_path: Path, tiny_folder: Path) -> None:
    def cases(file: Path, seed: int) -> list[Case]:
        """A file with a checksum may not change at all."""
        return [
            replace(item, expected="free") if item.expected == "same" else item for item in weight_cases(file, seed)
        ]

    mask = Mask.of({"a": torch.ones(3, 5) > 0, "b": torch.ones(9) > 0}).save(tmp_path / "mask.safetensors")
    total = run(mask, lambda path: dict(Mask.open(path).shapes), cases(mask, 6))
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    tensors = {name: item.read() for name, item in checkpoint.stored(other).items()}
    changed = sorted(tensors)[1]
    save_file({**tensors, changed: tensors[changed] + 1}, other / "model.safetensors", metadata={"format": "pt"})
    create(tiny_folder, other, tmp_path / "patch.safetensors")

    def opened(path: Path) -> Any:
        patch = Patch.open(path)
        return {name: patch.tensor(name).sum().item() for name in patch.names}, patch.inspect()["tensors"]

    file = tmp_path / "patch.safetensors"
    total += run(file, opened, cases(file, 7))
    total += run(file, opened, list(_manifests(file, 60)))
    assert total.total() >= 220


def _manifests(file: Path, count: int) -> Iterable[Case]:
    """Odd values in the manifest that the header of a patch carries."""
    import struct

    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["expunge"])
    for item in hostile.json_damaged(manifest, random.Random(8), count):
        part = file.with_name("part")
        part.write_bytes(b"")
        item.apply(part)
        text = part.read_bytes().decode("utf-8", "replace")
        header["__metadata__"]["expunge"] = text
        new = json.dumps(header).encode()
        expected = "free" if item.name in ("byte-order mark", "not UTF-8") else item.expected
        yield hostile.written(
            f"manifest: {item.name}", struct.pack("<Q", len(new)) + new + content[8 + length :], expected
        )


def test_records_of_runs(tmp_path: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    record = tmp_path / "run.json"
    record.write_text(
        json.dumps({"command": "unlearn", "tuned_on": ["a", "b"], "configuration": {"method": {"lr": 1}}})
    )
    nothing = {"nothing", "a folder", "a pipe", "a device", "a broken link"}  # no record beside the model
    cases = [item for item in json_cases(record, 9, 60) if item.name not in nothing]
    total = run(record, lambda path: tuned.beside(path.parent / "model"), cases)
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 0, "moved": 0.25}\n')
    cases = [item for item in json_cases(log, 10, 60) if item.name not in {*nothing, "indented", "JSON b''"}]
    total += run(log, lambda path: moved_before(path.parent / "model"), cases)
    growing = {"request": {"a": 1}, "finished": {"x.safetensors": {"sha256": "0" * 64}}}
    folder = tmp_path / ".out.partial"

    def journal(path: Path) -> Any:
        with resumable(tmp_path / "out", {"a": 1}) as unfinished:
            assert isinstance(unfinished, Growing)
            return sorted(unfinished.finished)

    for item in json_cases(tmp_path / "run.json", 11, 30):
        folder.mkdir(exist_ok=True)
        (folder / "journal.json").write_text(json.dumps(growing))
        item.apply(folder / "journal.json")
        assert outcome(journal, folder) in ([], "refused")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert total.total() >= 180


def test_data(tmp_path: Path) -> None:
    file = tmp_path / "forget.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in FORGET))
    total = run(file, read_examples, jsonl_cases(file, 12, 80))
    question = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 1}
    bio = tmp_path / "bio-questions.json"
    bio.write_text(json.dumps([question, question]))
    total += run(bio, lambda path: wmdp.read(path.parent, "bio"), _data_cases(bio, 13))
    (tmp_path / "knowmem").mkdir()
    for name in ("forget_qa", "forget_qa_icl"):
        (tmp_path / "knowmem" / f"{name}.json").write_text(json.dumps([{"question": "Who?", "answer": "Ada."}] * 2))
    asked = tmp_path / "knowmem" / "forget_qa.json"
    total += run(asked, lambda path: muse.knowmem(tmp_path, "forget"), _data_cases(asked, 14))
    row = {"instruction": "Like it?", "input": "A film.", "output": "Yes."}
    films = tmp_path / "test.json"
    films.write_text(json.dumps([row, {**row, "output": "No."}]))
    total += run(films, tallrec.read, _data_cases(films, 15))
    people = tmp_path / "forget10_perturbed.json"
    people.write_text("".join(json.dumps({"question": "Who?", "answer": text}) + "\n" for text in ("Ada.", "Bo.")))
    total += run(people, lambda path: tofu.read(path.parent, "forget10_perturbed"), jsonl_cases(people, 16))
    (tmp_path / "test").mkdir()
    table = tmp_path / "test" / "law_test.csv"
    table.write_text("Which?,a,b,c,d,B\nWhich now?,a,b,c,d,C\n")
    cases = [
        *hostile.bytes_damaged(table.read_bytes(), random.Random(17), 60),
        hostile.written("a quote", b'"' * 9, "refused"),
    ]
    total += run(table, lambda path: mmlu.read(tmp_path, "law"), [*cases, *hostile.no_regular_files()])
    assert total.total() >= 400


def _data_cases(file: Path, seed: int) -> list[Case]:
    """A benchmark's file may be JSON lines as well, of which some texts are none."""
    return [item for item in json_cases(file, seed) if item.name not in ("JSON b'[1]'",)]


def test_checkpoints(tmp_path: Path) -> None:
    params = {"w": torch.nn.Parameter(torch.ones(3))}
    optimizer = torch.optim.SGD(list(params.values()), lr=0.1)
    from expunge.identity import Identity

    state = training.State(5, 0.1, [{"step": 4, "loss": 1.0}], torch.get_rng_state(), Identity())
    training.save(tmp_path / "at", state, params, optimizer)

    def restored(_: Path) -> Any:
        with torch.no_grad():
            params["w"].fill_(7)
        back = training.restore(tmp_path / "at", Identity(), params, optimizer)
        assert torch.equal(params["w"].detach(), torch.ones(3)), "other weights, and no word"
        return back.step, back.eta, back.log

    total = Counter()
    for name in ("state.json", "state.safetensors"):
        file = tmp_path / "at" / name
        cases = json_cases(file, 18) if name.endswith("json") else weight_cases(file, 19)
        exists = {"a pipe", "a folder", "a device", "a broken link", "nothing"}
        cases = [
            Case(item.name, item.apply, "free") for item in cases if name != "state.json" or item.name not in exists
        ]
        total += run(file, restored, cases)
    assert total.total() >= 130
