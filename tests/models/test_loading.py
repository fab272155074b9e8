"""Loading: what a folder is, what is refused, what a loaded model knows of itself."""

import json
import shutil
import warnings

import pytest
import torch

from expunge.errors import ModelError
from expunge.models import load, new_adapter
from expunge.models.saving import save_model
from tests.conftest import build_model


def test_loads_in_the_asked_dtype(tiny_folder) -> None:
    assert load(tiny_folder).model.dtype == torch.float32
    assert load(tiny_folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_an_encoder_is_capped_by_the_models_positions(tiny) -> None:
    assert tiny.encoder(512).max_length == 256
    assert tiny.encoder(100).max_length == 100
    assert new_adapter(tiny, 2).encoder(512).max_length == 256


def test_a_pad_token_is_not_needed(tiny) -> None:
    assert tiny.tokenizer.pad_token_id is None
    assert tiny.pad == tiny.tokenizer.eos_token_id


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_folder, tmp_path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(tiny_folder, folder)
    build_model(300).save_pretrained(folder)
    with pytest.raises(ModelError, match="knows 400 tokens, the model only 300"):
        load(folder)


def test_a_quantized_model_is_refused(tiny_folder, tmp_path) -> None:
    folder = tmp_path / "quantized"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is quantized"):
        load(folder)


def test_a_second_adapter_and_unknown_targets_are_refused(tiny_folder) -> None:
    adapted = new_adapter(load(tiny_folder), 2)
    with pytest.raises(ModelError, match="is an adapter already"):
        new_adapter(adapted, 2)
    with pytest.raises(ModelError, match="takes no such LoRA adapter"):
        new_adapter(load(tiny_folder), 2, targets=("nothing",))


def test_a_new_adapter_changes_nothing_yet(tiny_folder) -> None:
    ids = torch.tensor([[5, 6, 7]])
    plain = load(tiny_folder).model(ids).logits
    torch.testing.assert_close(new_adapter(load(tiny_folder), 2).model(ids).logits, plain, rtol=0, atol=0)


def test_an_adapter_is_made_and_loaded_without_a_warning(tiny_folder, tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(new_adapter(load(tiny_folder), 2), tmp_path / "adapter")
        assert load(tmp_path / "adapter").is_adapter
