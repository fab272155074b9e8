"""The studies can be started, their settings are understood, and what their tables say follows from the runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from studies.attacks.run import board_table, by_seed
from studies.llmeraser.run import tuning_case
from studies.llmeraser.tables import ceiling, pooled, table

from expunge.config import read_yaml
from expunge.methods import method
from tests.reporting.build import attacked

STUDIES = Path(__file__).parents[1] / "studies"
ERASER = read_yaml(STUDIES / "llmeraser" / "study.yaml")
SCRIPTS = sorted(path for path in STUDIES.glob("*/*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
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


def llmeraser_case(metric: float = 0.8) -> dict:
    faulty, right = adapters(5, 0.6, [0.0, 0.0, 0.0, 0.0]), adapters(5, metric, [1.0, 2.0, 4.0, 3.0])
    agreeing = [{**run, "cpu": 2.0} for run in adapters(1, 0.76, [2.0, 3.0, 2.0, 1.0])]
    rows = {"retrained": right, "corrupted": faulty[:1], "cg": agreeing, "sgd": [{"refused": "no"}, *agreeing]}
    return {"name": "flip", "metric": "auc", "faulty": faulty, "rows": rows, "answers": ["Yes", "Yes", "No", "No"]}


def cells(table: str) -> dict[str, list[str]]:
    return {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in table.splitlines()[4:]}


def test_the_table_of_an_llmeraser_case() -> None:
    case = llmeraser_case()
    lines = table(case, 7)
    assert "world 7" in lines
    assert "r = 1.00 on test rows, 1.00 on those of one answer, 0.00 on forget rows" in lines
    found = cells(lines)
    assert found["corrupted"][:2] == ["0.600", "-25.0 %"]
    r = np.corrcoef([1, 2, 4, 3], [2, 3, 2, 1])[0, 1]
    assert found["cg"][:4] == ["0.760", "-5.0 %", f"{r:.2f}", "1.00"]  # Yes: 1, 2 and 2, 3; No: 4, 3 and 2, 1
    assert found["cg"][-3:] == ["2.0", "5.0", "500"]
    assert "refused (1 of 2)" in found["sgd"]
    assert ceiling(case["rows"]["retrained"], case["faulty"], "test") == pytest.approx(1.0)
    many = {**case, "answers": ["Ada", "Bo", "Cy", "Di", "Ed", "Flo"]}
    assert cells(table(many, 7))["cg"][3] == "–"


def test_worlds_are_pooled_each_against_its_own_truth() -> None:
    found = cells(pooled({1: llmeraser_case(), 2: llmeraser_case(0.95)}))
    assert found["cg"][:2] == ["-12.5 ± 10.6", "-5.0, -20.0"]
    assert found["sgd (2 refused)"][:2] == found["cg"][:2]
    assert found["corrupted"][2:] == ["–", "–"]


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
