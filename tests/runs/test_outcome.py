"""No run writes a model that gives no answers, whatever the method."""

import json

import pytest
import torch
from safetensors.torch import load_file

from expunge.errors import DivergedError, ModelError
from expunge.models import Loaded
from expunge.models.finite import check_weights
from expunge.patch import Patch
from expunge.request import Request
from expunge.runs import finetune, unlearn
from expunge.runs.outcome import check_outcome


@pytest.mark.parametrize("lr", [1e38, 1e37, 1e20])
def test_a_step_that_overflows_ends_in_an_error_and_writes_nothing(tiny_folder, request_files, tmp_path, lr) -> None:
    settings = {"lr": lr, "steps": 3}
    out = tmp_path / "out"
    with pytest.raises(DivergedError):
        unlearn(
            tiny_folder, request_files[0], request_files[1], out=out, method="ngdiff", settings=settings,
            evaluate_models=False,
        )  # fmt: skip
    with pytest.raises(DivergedError):
        finetune(tiny_folder, request_files[0], out=out, settings={"lr": lr, "steps": 1})
    assert not out.exists()


def test_nan_in_the_weights_is_said_as_such(tiny: Loaded, small_request: Request) -> None:
    sets = (small_request.forget, small_request.retain)
    check_weights(tiny.model, tiny.folder)
    check_outcome(tiny, sets, tiny.encoder(), "NPO")
    name, param = list(tiny.model.named_parameters())[3]
    for value in (torch.nan, -torch.inf, 2e19):
        with torch.no_grad():
            param[0, 0] = value
        with pytest.raises(ModelError, match=f"{name} holds NaN.*the model is damaged"):
            check_weights(tiny.model, tiny.folder)
        with pytest.raises(DivergedError, match=f"NPO left NaN.* in {name}"):
            check_outcome(tiny, sets, tiny.encoder(), "NPO")


def test_what_a_method_chose_is_kept_without_an_evaluation(tiny_folder, request_files, tmp_path) -> None:
    """α is in run.json and in the patch, and scales the task vector that the patch holds."""
    settings = {"base": str(tiny_folder), "steps": 2, "lr": 1e-2, "batch_size": 4}
    learned = tmp_path / "learned"
    finetune(tiny_folder, request_files[0], out=learned, settings={"steps": 3, "lr": 1e-2})
    unlearn(
        learned, *request_files, out=tmp_path / "run", method="taskvector", settings=settings, evaluate_models=False
    )
    outcome = json.loads((tmp_path / "run" / "run.json").read_text())["outcome"]
    alpha = outcome["update"]["alpha"]
    assert outcome["stopped"]
    assert Patch.open(tmp_path / "run" / "patch.safetensors").manifest.info["chosen"] == {"alpha": alpha}
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (learned, tmp_path / "run"))
    moved = sum(((after[name] - before[name]).double().norm() ** 2).item() for name in before) ** 0.5
    assert moved == pytest.approx(alpha * outcome["update"]["task_vector_norm"], rel=1e-3)
