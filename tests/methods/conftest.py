"""An adapter that has learned the small request."""

from pathlib import Path

import pytest

from expunge import config
from expunge.data import Encoder
from expunge.models import Loaded, load, new_adapter
from expunge.models.saving import save_model
from expunge.request import Request
from expunge.training import Finetuning

RECIPE = {"lr": 2e-2, "steps": 30, "batch_size": 5}


@pytest.fixture(scope="module")
def folder(tiny_folder, request_files, tmp_path_factory) -> Path:
    """A LoRA adapter (r 1 on q and v: p = 224) that has learned the forget and the retain set somewhat."""
    request = Request.read(*request_files)
    loaded = new_adapter(load(tiny_folder), 1, targets=("q_proj", "v_proj"))
    examples = (*request.forget, *request.retain)
    config.build(Finetuning, RECIPE)(loaded, examples, Encoder(loaded.tokenizer))
    out = tmp_path_factory.mktemp("llmeraser") / "adapter"
    save_model(loaded, out)
    return out


@pytest.fixture
def adapter(folder) -> Loaded:
    return load(folder)
