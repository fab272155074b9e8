"""--resume goes on from a checkpoint of the same model, data and settings only, and names what differs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge import runs
from expunge.errors import ConfigurationError
from expunge.runs import Listener
from tests.conftest import FORGET, RETAIN, build_model

TRAINING = {"steps": 4, "lr": 1e-3, "batch_size": 2, "checkpoint_every": 1}


class Stopping(Listener):
    """Interrupts a run in its third step, as Ctrl-C does."""

    def step(self, entry: dict[str, Any], steps: int) -> None:
        if entry["step"] == 2:
            raise KeyboardInterrupt


@dataclass
class Case:
    """A run's inputs, all in one folder, so that a test may change any of them."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "unlearn"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def run(self, **changes: Any) -> Any:
        options = {**self.options, **changes}
        out = self.folder / "out"
        if self.kind == "finetune":
            data = options.pop("data", [self.folder / "forget.jsonl", self.folder / "retain.jsonl"])
            return runs.finetune(options.pop("model", self.model), data, out=out, **options)
        sets = [self.folder / f"{name}.jsonl" for name in ("forget", "retain", "holdout")]
        return runs.unlearn(options.pop("model", self.model), *sets, out=out, evaluate_models=False, **options)


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def case(tiny_folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    """An interrupted run: descent on all weights, a masked one, on a new adapter, or fine-tuning."""
    kind = getattr(request, "param", "unlearn")
    shutil.copytree(tiny_folder, tmp_path / "model")
    write(tmp_path / "forget.jsonl", FORGET)
    write(tmp_path / "retain.jsonl", RETAIN[:4])
    write(tmp_path / "holdout.jsonl", RETAIN[4:])
    options: dict[str, Any] = {"settings": dict(TRAINING), "max_length": 64}
    if kind == "finetune":
        made = Case(tmp_path, options, "finetune")
    else:
        if kind == "lora":
            options["lora"] = 4
        if kind == "mask":
            runs.attribute(
                tmp_path / "model", tmp_path / "forget.jsonl", out=tmp_path / "mask.safetensors", method="random",
                settings={"ratio": 0.5},
            )  # fmt: skip
            options["settings"] |= {"mask": {"name": "file", "path": str(tmp_path / "mask.safetensors")}}
        made = Case(tmp_path, {**options, "method": "graddiff"})
    with pytest.raises(KeyboardInterrupt):
        made.run(listener=Stopping())
    assert (tmp_path / "out.checkpoint" / "state.json").is_file()
    return made


def swap_words(path: Path) -> None:
    """Other data with as many rows of as many words."""
    path.write_text(path.read_text().replace("Ada", "Ida").replace("Bo ", "Jo "))


def turn_around(path: Path) -> None:
    path.write_text("".join(sorted(path.read_text().splitlines(keepends=True), reverse=True)))


def other_weights(case: Case) -> None:
    build_model(
        load_file(case.model / "model.safetensors")["model.embed_tokens.weight"].shape[0], seed=5
    ).save_pretrained(case.model)


def one_bit(case: Case) -> None:
    tensors = load_file(case.model / "model.safetensors")
    name = sorted(tensors)[-1]
    tensors[name].view(-1).view(dtype=torch.int32)[0] ^= 1
    save_file(tensors, case.model / "model.safetensors", {"format": "pt"})


def other_rope(case: Case) -> None:
    config = json.loads((case.model / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (case.model / "config.json").write_text(json.dumps(config))


def template(case: Case) -> None:
    config = json.loads((case.model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (case.model / "tokenizer_config.json").write_text(json.dumps(config))


CHANGES: dict[str, tuple[Callable[[Case], Any], dict[str, Any], str]] = {
    "forget data of equal count": (lambda case: swap_words(case.folder / "forget.jsonl"), {}, "forget data"),
    "retain data of equal count": (lambda case: swap_words(case.folder / "retain.jsonl"), {}, "retain data"),
    "other order": (lambda case: turn_around(case.folder / "retain.jsonl"), {}, "retain data"),
    "other holdout": (lambda case: turn_around(case.folder / "holdout.jsonl"), {}, "holdout data"),
    "model overwritten": (other_weights, {}, "model"),
    "one bit of the model": (one_bit, {}, "model"),
    "configuration": (other_rope, {}, "model configuration"),
    "chat template": (template, {}, "forget examples, as encoded"),
    "max length": (lambda case: None, {"max_length": 65}, r"max length \(64 then, 65 now\)"),
    "chunk tokens": (lambda case: None, {"chunk_tokens": 50}, "chunk tokens"),
    "dtype": (lambda case: None, {"dtype": "bfloat16"}, "dtype"),
    "lr": (lambda case: None, {"settings": {**TRAINING, "lr": 2e-3}}, r"lr \(0.001 then, 0.002 now\)"),
    "lora": (lambda case: None, {"lora": 2}, "lora"),
    "method": (lambda case: None, {"method": "gradascent"}, "method"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_unlearn_refuses_to_go_on_with(change: str, case: Case) -> None:
    act, options, named = CHANGES[change]
    act(case)
    with pytest.raises(ConfigurationError, match=f"What differs: .*{named}"):
        case.run(resume=True, **options)
    assert not (case.folder / "out").exists()


def test_what_changes_no_number_may_differ(case: Case) -> None:
    moved = case.folder / "elsewhere"
    case.model.rename(moved)
    for name in ("forget", "retain", "holdout"):
        (case.folder / f"{name}.jsonl").touch()
    resumed = case.run(resume=True, model=moved, device="cpu", settings={**TRAINING, "checkpoint_every": 3})
    whole = Case(case.folder, case.options).run(model=moved, overwrite=True)
    assert resumed["hashes"]["models"] == whole["hashes"]["models"]


@pytest.mark.parametrize("case", ["finetune"], indirect=True)
@pytest.mark.parametrize(
    "change", ["retain data of equal count", "other order", "model overwritten", "max length", "dtype", "lora"]
)
def test_finetune_refuses_to_go_on_with(change: str, case: Case) -> None:
    act, options, named = CHANGES[change]
    act(case)
    with pytest.raises(ConfigurationError, match=f"What differs: .*{named.replace('retain data', 'training data')}"):
        case.run(resume=True, **options)


@pytest.mark.parametrize("case", ["lora"], indirect=True)
def test_a_new_adapter_refuses_another_base_and_other_targets(case: Case) -> None:
    with pytest.raises(ConfigurationError, match=r"What differs: lora targets .*adapter configuration"):
        case.run(resume=True, lora_targets=("q_proj",))
    one_bit(case)
    with pytest.raises(ConfigurationError, match="What differs: model; base weights"):
        case.run(resume=True)


@pytest.mark.parametrize("case", ["mask"], indirect=True)
def test_another_mask_under_the_same_name_is_refused(case: Case) -> None:
    runs.attribute(
        case.model, case.folder / "forget.jsonl", out=case.folder / "mask.safetensors", method="random",
        settings={"ratio": 0.5}, seed=9, overwrite=True,
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"What differs: .*mask"):
        case.run(resume=True)


def test_every_bit_of_a_checkpoint_counts(case: Case) -> None:
    """A bit is turned in each of 40 places, spread over every file of the checkpoint; none is taken."""
    folder = case.folder / "out.checkpoint"
    for file in sorted(file for file in folder.iterdir() if file.name != ".expunge"):  # the marker decides nothing
        content = file.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 13)):
            damaged = bytearray(content)
            damaged[place] ^= 1
            file.write_bytes(damaged)
            with pytest.raises(ConfigurationError, match=r"damaged|checksums\.json"):
                case.run(resume=True)
        file.write_bytes(content[:-1])
        with pytest.raises(ConfigurationError):
            case.run(resume=True)
        file.write_bytes(content)
    case.run(resume=True)
