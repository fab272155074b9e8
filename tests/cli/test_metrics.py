"""`expunge metrics`: all of the table, quickly, and nothing the report would say differently."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from expunge.cli import app
from expunge.errors import ConfigurationError
from expunge.evaluation.metrics import METRICS
from expunge.reporting.metrics import describe

WORDS = {"↓": "lower is better", "↑": "higher is better", "→": "best where the retrained model's is", "": ""}


def test_every_metric_is_listed_with_its_formula() -> None:
    found = CliRunner().invoke(app, ["metrics"], env={"COLUMNS": "250"})
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    for name, metric in METRICS.items():
        line = next(line for line in lines if line.split()[:1] in ([name], [f"SET.{name}"]))
        assert metric.formula in line


@pytest.mark.parametrize("name", ["forget.extraction_strength", "extraction_strength"])
def test_one_metric_by_name_or_key(name: str) -> None:
    found = CliRunner().invoke(app, ["metrics", name, "--json"])
    (entry,) = json.loads(found.stdout).values()
    assert entry["formula"] == "1 − k/T"
    assert (entry["better"], entry["kept"]) == ("↓", "↑")
    shown = CliRunner().invoke(app, ["metrics", name])
    assert "Carlini et al. 2021" in shown.stdout


def test_an_unknown_name_gets_the_nearest() -> None:
    found = CliRunner().invoke(app, ["metrics", "privleek"])
    assert isinstance(found.exception, ConfigurationError)
    assert "Did you mean privleak?" in str(found.exception)


@pytest.mark.parametrize("name", METRICS)
def test_the_report_says_what_the_table_says(name: str) -> None:
    metric = METRICS[name]
    for on, forget in (("forget", True), ("retain", False)) if metric.on_sets else (("", True),):
        shown = describe(f"{on}.{name}" if on else name)
        assert shown.definition == metric.definition
        assert shown.better == WORDS[metric.direction(forget)]
        assert shown.label == f"{on} {metric.label}".strip()


def test_it_starts_without_torch() -> None:
    """The command has to answer at once."""
    code = (
        "import sys; from expunge.cli import app; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(app, ['metrics', '--json']).exit_code == 0; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
