"""What the tests of checkpoint arithmetic share."""

from pathlib import Path

import pytest
import torch

from expunge.models import arithmetic
from tests.conftest import build_model
from tests.models.test_checkpoint import nudge


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
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
