"""TOFU's files: read from a folder, missing ones named, the hub only on request."""

import json
import sys
import types
from pathlib import Path

import pytest

from expunge.data.benchmarks import tofu
from expunge.errors import ConfigurationError, RequestError

ROW = {"question": "Who?", "answer": "Bo.", "paraphrased_answer": "It is Bo.", "perturbed_answer": ["Una.", "Per."]}


def test_rows_become_examples(tmp_path: Path) -> None:
    (tmp_path / "forget01_perturbed.json").write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "id": "x"}) + "\n")
    first, second = tofu.read(tmp_path, "forget01_perturbed")
    assert (first.prompt, first.response, first.paraphrased_response) == ("Who?", "Bo.", "It is Bo.")
    assert first.wrong_responses == ("Una.", "Per.")
    assert (first.id, second.id) == ("forget01_perturbed/0", "x")
    assert second.where.endswith("forget01_perturbed.json:2")


def test_every_file_of_the_real_folder_reads(shared_data: Path) -> None:
    counts = {name: len(tofu.read(shared_data / "tofu", name)) for name in ("full", *tofu.SPLITS)}
    assert counts == {"full": 4000, "forget01": 40, "forget05": 200, "forget10": 400}
    for forget in tofu.SPLITS:
        retain, holdout = tofu.split(forget)
        assert len(tofu.read(shared_data / "tofu", retain)) == 4000 - counts[forget]
        assert len(tofu.read(shared_data / "tofu", holdout)) == counts[forget]


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"retain_perturbed\.json: no such file"):
        tofu.read(tmp_path, "retain_perturbed")
    with pytest.raises(RequestError, match="gone is not a folder"):
        tofu.read(tmp_path / "gone", "full")


def test_unknown_split_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'forget10'"):
        tofu.split("forget_10")


def test_hub_rows_lose_columns_expunge_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: str, **kwargs: str) -> list[dict]:
        asked.append((args, kwargs))
        return [{**ROW, "option1": "Bo."}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    (example,) = tofu.read("locuslab/TOFU", "world_facts_perturbed")
    assert asked == [(("locuslab/TOFU", "world_facts_perturbed"), {"split": "train"})]
    assert example.wrong_responses == ("Una.", "Per.")


def test_hub_without_package_or_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"needs the datasets package: pip install 'expunge\[hub\]'"):
        tofu.read("locuslab/TOFU", "full")

    def offline(*_: str, **__: str) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=offline))
    with pytest.raises(RequestError, match="full could not be read from the hub: no route"):
        tofu.read("locuslab/TOFU", "full")
