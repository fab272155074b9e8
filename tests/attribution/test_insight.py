"""Densities and overlaps counted by hand."""

import json

import pytest
import torch

from expunge.attribution.insight import by_place, describe, overlap, place
from expunge.errors import ConfigurationError
from expunge.models.mask import Mask

Q, K = "model.layers.3.self_attn.q_proj.weight", "model.layers.11.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (Q, (3, "q_proj")),
        ("model.layers.3.self_attn.q_proj.bias", (3, "q_proj.bias")),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", (3, "q_proj.lora_A")),
        ("model.layers.12.input_layernorm.weight", (12, "input_layernorm")),
        ("model.embed_tokens.weight", (None, "embed_tokens")),
        ("base_model.model.lm_head.modules_to_save.default.weight", (None, "lm_head")),
        ("transformer.h.0.attn.c_proj.weight", (0, "attn.c_proj")),
        ("transformer.h.0.mlp.c_proj.bias", (0, "mlp.c_proj.bias")),
        ("model.layers.2.block_sparse_moe.experts.5.w1.weight", (2, "w1")),
        ("gpt_neox.layers.7.attention.query_key_value.weight", (7, "query_key_value")),
        ("weight", (None, "weight")),
    ],
)
def test_place(name, expected) -> None:
    assert place(name) == expected


def hard(q: list[int], k: list[int]) -> Mask:
    return Mask.of({Q: torch.tensor(q).bool(), K: torch.tensor(k).bool().reshape(2, -1)})


FIRST, SECOND = hard([1, 1, 0, 0, 1], [1, 0, 0, 0]), hard([1, 0, 1, 0, 1], [0, 1, 1, 1])


def test_density_by_place() -> None:
    assert by_place(FIRST) == [
        {"layer": 3, "module": "q_proj", "value": 0.6, "entries": 5},
        {"layer": 11, "module": "k_proj", "value": 0.25, "entries": 4},
    ]
    both = {"model.layers.0.experts.0.w1.weight": torch.ones(4), "model.layers.0.experts.1.w1.weight": torch.zeros(12)}
    assert by_place(Mask.of(both)) == [{"layer": 0, "module": "w1", "value": 0.25, "entries": 16}]


def test_overlap_by_hand() -> None:
    found = {row["module"]: row for row in overlap(FIRST, SECOND)}
    assert list(found) == ["all", "q_proj", "k_proj"]
    assert found["all"]["jaccard"] == pytest.approx(2 / 8)  # 4 and 6 of 9, 2 in common
    assert found["all"]["expected"] == pytest.approx((4 / 9 * 6 / 9) / (4 / 9 + 6 / 9 - 4 / 9 * 6 / 9))
    assert found["q_proj"] == {
        "module": "q_proj",
        "jaccard": 2 / 4,
        "expected": pytest.approx(0.36 / 0.84),
        "entries": 5,
    }
    assert found["k_proj"]["jaccard"] == 0
    assert overlap(FIRST, FIRST)[0]["jaccard"] == 1


def test_overlap_by_chance_is_what_chance_gives() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = (Mask.of({Q: torch.rand(200_000, generator=draw) < share}) for share in (0.9, 0.3))
    row = overlap(first, second)[0]
    assert row["jaccard"] == pytest.approx(row["expected"], abs=0.003)


def test_overlap_of_nothing_with_nothing() -> None:
    found = overlap(hard([0] * 5, [1, 0, 0, 0]), hard([0] * 5, [1, 0, 0, 0]))
    assert found[1] == {"module": "q_proj", "jaccard": None, "expected": None, "entries": 5}


def test_masks_that_cannot_be_compared() -> None:
    with pytest.raises(ConfigurationError, match="soft mask"):
        overlap(FIRST, Mask.of({Q: torch.rand(5), K: torch.rand(2, 2)}))
    with pytest.raises(ConfigurationError, match="different models"):
        overlap(FIRST, Mask.of({Q: torch.ones(6).bool(), K: torch.ones(2, 2).bool()}))


def test_description_is_plain_json() -> None:
    found = describe(FIRST, {"other": SECOND})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["kind"] == "density"
    assert found["value"] == pytest.approx(4 / 9)
    assert found["cells"] == by_place(FIRST)
    assert found["overlap"] == [{"with": "other", **row} for row in overlap(FIRST, SECOND)]
    assert describe(FIRST)["overlap"] == []


def test_description_of_a_soft_mask() -> None:
    mask = Mask.of({Q: torch.tensor([0.0, 0.02, 0.07, 1.0]), K: torch.tensor([[0.52, 0.97]])})
    found = describe(mask)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["kind"] == "mean weight"
    assert found["value"] == pytest.approx(2.58 / 6)
    assert [cell["value"] for cell in found["cells"]] == [pytest.approx(1.09 / 4), pytest.approx(0.745)]
    counts = [2, 1, *[0] * 8, 1, *[0] * 8, 2]
    assert found["histogram"] == {"edges": pytest.approx([0.05 * edge for edge in range(21)]), "counts": counts}
