"""Where the weights fall: means by hand, the order of modules, colours that can be read, and the page's tables."""

import copy
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from expunge.attribution.insight import describe
from expunge.errors import ConfigurationError
from expunge.models.mask import Mask
from expunge.reporting import leaderboard, modules, render_report, weights
from tests.reporting.build import attributed, demo_results, run
from tests.reporting.test_html import ATTACK, Page

UNLEARNED = (0.1, 0.6, 0.2, 0.5, 1.0)


def made(attribution: dict[str, Any], method: str = "npo", seed: int = 0) -> dict[str, Any]:
    return {**run("unlearned", method, UNLEARNED, seed=seed), "attribution": attribution}


def cell(layer: int | None, module: str, value: float | None, entries: int) -> dict[str, Any]:
    return {"layer": layer, "module": module, "value": value, "entries": entries}


def grid_of(*cells: dict[str, Any], kind: str = "density", **more: Any) -> weights.Grid:
    (grid,) = weights.grids(leaderboard({"runs": [made({"kind": kind, "cells": list(cells), **more})]}))
    return grid


def values(line: weights.Line) -> list[float | None]:
    return [one.value for one in (line.whole, *line.cells)]


def test_means_are_over_the_entries_and_lines_in_the_models_order() -> None:
    grid = grid_of(
        cell(None, "norm", 1.0, 10), cell(1, "down_proj", 0.5, 300), cell(1, "q_proj", 0.1, 100),
        cell(0, "down_proj", 0.9, 300), cell(0, "q_proj", 0.3, 100), cell(None, "embed_tokens", 0.0, 190),
        cell(0, "input_layernorm", 0.2, 10),
    )  # fmt: skip
    assert grid.layers == ("0", "1")
    assert [line.name for line in grid.lines] == [
        "all", "embedding", "attention q", "MLP down", "norm before attention", "last norm"
    ]  # fmt: skip
    whole = (10 + 150 + 10 + 270 + 30 + 0 + 2) / 1010
    assert values(grid.lines[0]) == pytest.approx([whole, (270 + 30 + 2) / 410, 160 / 400])
    assert values(grid.lines[2]) == pytest.approx([0.2, 0.3, 0.1])
    assert values(grid.lines[3]) == pytest.approx([0.7, 0.9, 0.5])
    assert values(grid.lines[4]) == [0.2, 0.2, None]
    assert grid.lines[1].cells == ()  # outside the layers
    assert [line.whole.text for line in grid.lines] == ["47", "0", "20", "70", "20", "100"]
    assert grid.said == (
        "The method may change 47\u00a0% of the weights. It is highest in MLP down (70\u00a0%) and lowest in embedding "
        "(0\u00a0%). The first half of the layers has 74\u00a0%, the second 40\u00a0%."
    )


def test_even_masks_are_called_even() -> None:
    places = [(layer, kind) for layer in range(2) for kind in ("q_proj", "v_proj")]
    even = grid_of(*(cell(layer, kind, 0.05 + 0.002 * layer, 100) for layer, kind in places))
    assert even.said == (
        "The method may change 5.1\u00a0% of the weights. It is about the same in every kind of module."
    )
    assert grid_of(cell(0, "q_proj", 0.4, 10), kind="mean weight").said == "The mean weight is 0.40."


def test_seeds_are_averaged() -> None:
    runs = [
        made({"kind": "density", "cells": [cell(0, "q_proj", value, 8)],
              "overlap": [{"with": "random", "module": "all", "jaccard": jaccard, "expected": 0.1}]}, seed=seed)
        for seed, value, jaccard in ((0, 0.2, 0.5), (1, 0.6, None), (2, 0.4, 0.3))
    ]  # fmt: skip
    (grid,) = weights.grids(leaderboard({"runs": runs}))
    assert grid.runs == 3
    assert values(grid.lines[1]) == pytest.approx([0.4, 0.4])
    assert grid.overlaps[0].cells["all"] == pytest.approx((0.4, 0.1))


def test_deep_models_share_columns() -> None:
    grid = grid_of(*(cell(layer, "q_proj", layer / 100, 5) for layer in range(80)))
    assert len(grid.layers) == 27
    assert grid.layers[:2] == ("0–2", "3–5")
    assert grid.layers[-1] == "78–79"
    assert grid.lines[1].cells[1].value == pytest.approx(0.04)
    assert grid.lines[1].cells[-1].value == pytest.approx(0.785)


def test_colours_span_the_matrices_of_the_layers() -> None:
    grid = grid_of(
        cell(0, "q_proj", 0.2, 100), cell(1, "q_proj", 0.3, 100), cell(2, "q_proj", 0.4, 100),
        cell(0, "input_layernorm", 0.9, 1), cell(None, "lm_head", 0.0, 100),
    )  # fmt: skip
    assert (grid.low, grid.high) == ("≤ 20", "≥ 40")
    assert [one.heat for one in grid.lines[1].cells] == [0, 50, 100]
    assert grid.lines[2].cells[0].heat == 100
    assert grid.lines[3].whole.heat == 0


@pytest.mark.parametrize("value", [0.0, 0.001, 0.5, 0.95, 1.0])
def test_chance_differences_stay_pale(value: float) -> None:
    """A mask drawn at random: cells within 1 % of what is rarer differ by little colour."""
    noise = 0.01 * min(value, 1 - value)
    grid = grid_of(*(cell(layer, "q_proj", value + noise * (-1) ** layer, 1000) for layer in range(4)))
    heats = [one.heat for one in grid.lines[1].cells]
    assert max(heats) - min(heats) <= 5


@pytest.mark.parametrize(
    ("value", "hard", "soft"),
    [
        (0.0, "0", "0.00"), (1.0, "100", "1.00"), (0.0001, "<0.1", "1e-4"), (0.9999, ">99.9", "1.00"),
        (0.0123, "1.2", "0.01"), (0.0999, "10", "0.10"), (0.997, "99.7", "1.00"), (0.456, "46", "0.46"), (None, "–", "–"),
    ],
)  # fmt: skip
def test_written(value: float | None, hard: str, soft: str) -> None:
    assert weights.written(value, weights.HARD) == hard
    assert weights.written(value, weights.SOFT) == soft


def test_names_of_modules() -> None:
    assert modules.name("q_proj.lora_A") == "attention q, LoRA A"
    assert modules.name("mlp.c_proj") == "MLP down"
    assert modules.name("new_block") == "new_block"
    assert modules.name("new.bias") == "new, bias"
    given = ["lm_head", "norm", "input_layernorm", "new_block", "down_proj", "q_proj.lora_B", "q_proj.lora_A",
             "v_proj", "q_proj", "embed_tokens"]  # fmt: skip
    assert sorted(given, key=modules.order) == [
        "embed_tokens", "q_proj", "q_proj.lora_A", "q_proj.lora_B", "v_proj", "down_proj", "new_block",
        "input_layernorm", "norm", "lm_head",
    ]  # fmt: skip
    assert [one for one in given if not modules.is_matrix(one)] == ["norm", "input_layernorm"]


def test_what_a_mask_says_of_itself_is_understood() -> None:
    """From masks made by hand through their own description to the page."""
    names = {f"model.layers.{layer}.self_attn.{kind}_proj.weight": (4, 4) for layer in range(2) for kind in "qv"}
    first = {name: torch.arange(16).reshape(shape) < 4 for name, shape in names.items()}
    second = {name: torch.arange(16).reshape(shape) < 8 for name, shape in names.items()}
    soft = {name: torch.full(shape, 0.25 + 0.5 * ("v_proj" in name)) for name, shape in names.items()}
    hard = describe(Mask.of(first), {"other": Mask.of(second)})
    results = {"runs": [made(hard), made(describe(Mask.of(soft)), "perta")]}
    one, two = weights.grids(leaderboard(results))
    assert values(one.lines[1]) == [0.25, 0.25, 0.25]
    assert one.overlaps[0].other == "other"
    assert one.overlaps[0].cells["attention v"] == pytest.approx((0.5, 0.125 / (0.75 - 0.125)))
    assert values(two.lines[2]) == [0.75, 0.75, 0.75]
    assert [round(20 * edge) for edge, share in zip(two.edges[:-1], two.shares, strict=True) if share] == [5, 15]
    text = Page(render_report(results)).text
    for expected in ("Where the weights fall", "Overlap with other masks", "chance 0.200", "attention v", "0.75"):
        assert expected in text


def test_histogram_shows_every_bin() -> None:
    edges = [index / 20 for index in range(21)]
    counts = [0, 30, 10] + [0] * 17
    grid = grid_of(cell(0, "q_proj", 0.1, 40), kind="mean weight", histogram={"edges": edges, "counts": counts})
    text = weights.histogram(grid)
    assert text is not None
    root = ElementTree.fromstring(text)
    said = root.get("aria-label") or ""
    assert "0.05 to 0.1: 75 %" in said
    assert "0.1 to 0.15: 25 %" in said
    assert said.count(": 0 %") == 18
    assert set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", text))) == set()
    assert weights.histogram(grid_of(cell(0, "q_proj", 0.1, 40))) is None


def test_one_method_and_several_on_the_page() -> None:
    results = attributed()
    text = Page(render_report(results)).text
    for expected in ("Where the weights fall", "NPO by layer", "PerTA by layer", "Overlap with other masks"):
        assert expected in text
    alone = {"runs": [one for one in results["runs"] if one.get("method") == "npo"]}
    page = Page(render_report(alone))
    assert "Which weights were trained" in page.text
    assert "by layer" not in page.text
    assert weights.grids(leaderboard(demo_results())) == []


def test_the_darkest_cells_can_be_read() -> None:
    """WCAG's contrast of the text on the strongest colour and on none is at least 4.5, in light and in dark."""
    css = (Path(weights.__file__).parent / "report.css").read_text(encoding="utf-8")
    style = re.findall(r"--(card|ink|heat): (#[0-9a-f]{6})", css)
    light, dark = dict(style[:3]), dict(style[3:])
    assert light.keys() == dark.keys() == {"card", "ink", "heat"}
    assert light != dark
    for theme in (light, dark):
        for ground in (theme["card"], theme["heat"]):
            low, high = sorted(map(luminance, (theme["ink"], ground)))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_names_are_escaped() -> None:
    found = {
        "kind": "density", "cells": [cell(0, ATTACK, 0.5, 4)],
        "overlap": [{"with": ATTACK, "module": ATTACK, "jaccard": 0.1, "expected": None}],
    }  # fmt: skip
    text = render_report({"runs": [made(found), made(found, "kl")]})
    assert not {"script", "img"} & {tag for tag, _ in Page(text).tags}
    assert "<script" not in text


FAULTS = {
    "kind": ("attribution", "hard", r"runs\[0\]\.attribution\.kind must be one of density, mean weight"),
    "no cells": ("attribution.cells", [], r"attribution\.cells must be a list of objects, at least one"),
    "layer": ("cells.layer", -1, r"attribution\.cells\[1\]\.layer must be a whole number from 0 or null, not -1"),
    "module": ("cells.module", 3, r"cells\[1\]\.module must name a kind of module"),
    "value": ("cells.value", 1.5, r"cells\[1\]\.value must lie between 0 and 1, not 1\.5"),
    "entries": ("cells.entries", None, r"cells\[1\]\.entries must be a whole number"),
    "edges": ("histogram.edges", [0, 0, 1], r"attribution\.histogram\.edges must be a list of rising numbers"),
    "counts": ("histogram.counts", [1], r"histogram\.counts must be a list of numbers from 0, one fewer"),
    "with": ("overlap.with", "", r"overlap\[0\]\.with must be a name"),
    "jaccard": ("overlap.jaccard", "0.1", r"overlap\[0\]\.jaccard must lie between 0 and 1, or be null"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_malformed_attributions_are_explained(name: str) -> None:
    found = {
        "kind": "mean weight", "cells": [cell(0, "q_proj", 0.5, 4), cell(1, "q_proj", 0.5, 4)],
        "histogram": {"edges": [0.0, 0.5, 1.0], "counts": [1, 2]},
        "overlap": [{"with": "random", "module": "all", "jaccard": 0.1, "expected": 0.2}],
    }  # fmt: skip
    place, value, message = FAULTS[name]
    leaderboard({"runs": [made(copy.deepcopy(found))]})  # whole, it is fine
    part, _, key = place.partition(".")
    if part == "attribution":
        found[key or "kind"] = value
    elif part == "histogram":
        found[part][key] = value
    else:
        found[part][-1][key] = value
    with pytest.raises(ConfigurationError, match=message):
        leaderboard({"runs": [made(found)]})
