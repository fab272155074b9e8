"""`influence`: predictions against differences of losses and a dense solve; supports against leaving each one out."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from expunge import config
from expunge.data import Encoder
from expunge.errors import ConfigurationError, OutputExistsError
from expunge.methods import Context, method
from expunge.models import load, new_adapter
from expunge.models.saving import save_model
from expunge.request import Request
from expunge.runs import influence
from expunge.training import Finetuning
from tests.conftest import FORGET, RETAIN
from tests.oracles import slow
from tests.oracles.curvature import dense_gauss_newton

PROBES = [FORGET[0], RETAIN[0], {"prompt": "Where was Cy Dorn born?", "response": "In Selm."}]
TIGHT = {"damping": 0.5, "tolerance": 1e-6}


@pytest.fixture(scope="module")
def folder(tiny_folder, request_files, tmp_path_factory) -> Path:
    loaded, request = new_adapter(load(tiny_folder), 1, targets=("q_proj", "v_proj")), Request.read(*request_files)
    examples = (*request.forget, *request.retain)
    config.build(Finetuning, {"lr": 2e-2, "steps": 20})(loaded, examples, Encoder(loaded.tokenizer))
    out = tmp_path_factory.mktemp("influence") / "adapter"
    save_model(loaded, out)
    return out


def lines(path: Path, records: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def probes(tmp_path_factory) -> Path:
    return lines(tmp_path_factory.mktemp("probes") / "probes.jsonl", PROBES)


def test_predicts_what_the_update_does(folder, probes, request_files, tmp_path) -> None:
    settings = {"damping": 20.0, "tolerance": 1e-6}  # a small Δ, for which first order holds
    found = influence(folder, probes, *request_files, out=tmp_path / "out.json", settings=settings)
    assert json.loads((tmp_path / "out.json").read_text())["probes"] == found["probes"]
    loaded = load(folder)
    encoder = Encoder(loaded.tokenizer)
    items = encoder.examples(Request.read(probes).forget)
    before = [slow.mean_nll(slow.double(loaded.model), item).item() for item in items]
    method("llmeraser", settings)(loaded, Request.read(*request_files), Context(encoder))
    after = [slow.mean_nll(slow.double(loaded.model), item).item() for item in items]
    for row, old, new in zip(found["probes"], before, after, strict=True):
        assert row["loss"] == pytest.approx(old, abs=1e-4)
        assert row["after"] == pytest.approx(new - old, abs=1e-4)
        assert row["predicted"] == pytest.approx(new - old, rel=0.2, abs=1e-4)
    assert found["probes"][0]["predicted"] > 1e-3  # what is removed becomes less likely


def test_supports_are_the_dense_influences(folder, tmp_path) -> None:
    """(1/n) G_iᵀ(H + λI)⁻¹∇l(probe): and the probe that was trained on rests on itself."""
    answers = ("Paris.", "Una.", "ships.", "Tarn.", "Selm.", "baker.")  # short: the dense matrix has a row a logit
    records = [{"prompt": one["prompt"], "response": answer, "id": answer}
               for one, answer in zip((*FORGET[:2], *RETAIN[:4]), answers, strict=True)]  # fmt: skip
    request_files = lines(tmp_path / "forget.jsonl", records[:2]), lines(tmp_path / "retain.jsonl", records[2:])
    probes = lines(tmp_path / "probes.jsonl", [records[0], records[2], PROBES[2]])
    found = influence(folder, probes, *request_files, out=tmp_path / "out.json", supports=3, settings=TIGHT)
    loaded = load(folder)
    loaded.model.get_base_model().set_attn_implementation("eager")
    encoder, request = Encoder(loaded.tokenizer), Request.read(*request_files)
    whole = (*request.forget, *request.retain)
    items = encoder.examples(whole)
    matrix = dense_gauss_newton(loaded.model, items)
    model = slow.double(loaded.model)
    params = [param for param in model.parameters() if param.requires_grad]

    def gradient(item) -> torch.Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(slow.mean_nll(model, item), params)])

    slopes = torch.stack([gradient(item) for item in items])
    inverse = torch.linalg.inv(matrix + TIGHT["damping"] * torch.eye(len(matrix), dtype=torch.float64))
    for row, probe in zip(found["probes"], encoder.examples(Request.read(probes).forget), strict=True):
        values = slopes @ inverse @ gradient(probe) / len(items)
        order = values.argsort(descending=True)[:3].tolist()
        assert [one["prompt"] for one in row["supports"]] == [whole[index].prompt for index in order]
        assert [one["value"] for one in row["supports"]] == pytest.approx(values[order].tolist(), rel=1e-2, abs=1e-6)
    assert [row["supports"][0]["id"] for row in found["probes"][:2]] == ["Paris.", "ships."]


def test_supports_without_a_request(folder, probes, request_files, tmp_path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("".join(path.read_text() for path in request_files))
    settings = {"train": str(train), **TIGHT}
    found = influence(folder, probes, out=tmp_path / "a.json", supports=2, settings=settings)
    other = influence(folder, probes, *request_files, out=tmp_path / "b.json", supports=2, settings=TIGHT)
    for one, two in zip(found["probes"], other["probes"], strict=True):
        assert "predicted" not in one
        assert [row["prompt"] for row in one["supports"]] == [row["prompt"] for row in two["supports"]]
        values = [[row["value"] for row in each["supports"]] for each in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_bad_calls_are_explained(folder, tiny_folder, probes, request_files, tmp_path) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(ConfigurationError, match="There is nothing to predict"):
        influence(folder, probes, out=out)
    with pytest.raises(ConfigurationError, match="There is nothing to predict"):
        influence(folder, probes, out=out, supports=2)
    with pytest.raises(ConfigurationError, match="is a full model"):
        influence(tiny_folder, probes, *request_files, out=out)
    with pytest.raises(ConfigurationError, match="solver=cg or sgd"):
        settings = {"solver": "datainf", "max_ratio": 1e9}
        influence(folder, probes, *request_files, out=out, supports=1, settings=settings)
    assert not out.exists()
    out.write_text("kept")
    with pytest.raises(OutputExistsError):
        influence(folder, probes, *request_files, out=out)
    assert out.read_text() == "kept"
