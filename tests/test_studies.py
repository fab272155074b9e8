"""The studies can be started, their settings are understood, and what their tables say follows from the runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from studies.attacks.run import board_table, by_seed
from studies.llmeraser.run import ceiling, table, tuning_case

from expunge.config import read_yaml
from expunge.methods import method
from tests.reporting.build import attacked

STUDIES = Path(__file__).parents[1] / "studies"
ERASER = read_yaml(STUDIES / "llmeraser" / "study.yaml")


@pytest.mark.parametrize("script", sorted(STUDIES.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_study_says_how_it_is_run(script: Path) -> None:
    name = f"studies.{script.parent.name}.{script.stem}"
    done = subprocess.run(
        [sys.executable, "-m", name, "--help"], cwd=STUDIES.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m {name}" in done.stdout
    assert "--work" in done.stdout


def test_the_methods_of_the_llmeraser_study_are_understood() -> None:
    for label, settings in ERASER["methods"].items():
        own = {key: value for key, value in (settings or {}).items() if key not in ("name", "cases")}
        if settings and settings["name"] != "finetuning":
            shared = ERASER["llmeraser"] if settings["name"] == "llmeraser" else {}
            assert method(settings["name"], {**shared, **own}), label
    for case in ERASER["cases"].values():
        assert tuning_case(case, ERASER)["task"] == case["task"]
    for size in ERASER["sizes"].values():
        assert set(size.get("cases", [])) <= set(ERASER["cases"])
        assert set(size.get("methods", [])) <= set(ERASER["methods"])


def adapters(count: int, metric: float, test: list[float]) -> list[dict]:
    return [{"metric": metric, "cpu": 10.0, "peak_mb": 500.0, "test": test, "forget": [0.1, 0.5]} for _ in range(count)]


def test_the_table_of_an_llmeraser_case() -> None:
    faulty, right = adapters(5, 0.6, [0.0, 0.0, 0.0]), adapters(5, 0.8, [1.0, 2.0, 3.0])
    agreeing = [{**run, "cpu": 2.0} for run in adapters(1, 0.76, [0.5, 1.0, 1.5])]
    rows = {"retrained": right, "corrupted": faulty[:1], "cg": agreeing, "sgd": [{"refused": "no"}]}
    lines = table({"name": "flip", "metric": "auc", "faulty": faulty, "rows": rows}).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines[4:]}
    assert cells["corrupted"][:3] == ["corrupted", "0.600", "-25.0 %"]
    assert cells["cg"][1:4] == ["0.760", "-5.0 %", "1.00"]
    assert cells["cg"][-3:] == ["2.0", "5.0", "500"]
    assert "refused (1 of 1)" in cells["sgd"]
    assert ceiling(right, faulty, "test") == pytest.approx(1.0)


def test_the_board_of_the_attacks_agrees_with_the_report() -> None:
    runs = [run | {"seed": seed} for seed in (0, 1) for run in attacked()["runs"]]
    lines = board_table({"runs": runs}).splitlines()
    assert len(by_seed(runs)) == 2
    heads, cells = (
        line.strip("| ").split(" | ") for line in (lines[0], next(x for x in lines if x.startswith("| NPO")))
    )
    one = dict(zip(heads, cells, strict=True))
    shares = [float(value.split(" ± ")[0]) for value in cells[1:-1] if value != "–"]
    assert np.all(np.array(shares) <= 1)
    assert one["no attack"].endswith("± 0.00")  # twice the same
    assert one["withstood"].endswith(f"of {len(shares) - 1}")
