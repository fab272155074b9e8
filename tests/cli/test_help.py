"""The help: every command in a group and with an example that the command line itself can parse."""

import shlex

import pytest
import typer
from typer.testing import CliRunner

import expunge
from expunge.cli import app
from tests.cli.test_repeated_options import COMMANDS

RUNNER = CliRunner()


def test_version() -> None:
    result = RUNNER.invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"expunge {expunge.__version__}\n")


def test_commands_are_grouped_and_completion_is_offered() -> None:
    output = RUNNER.invoke(app, ["--help"]).output
    group = typer.main.get_command(app)
    for words in ("Forget", "Show how well it worked", "Make and change models", "Learn more", "--install-completion"):
        assert words in output
    for name in group.commands:  # type: ignore[attr-defined]
        assert name in output


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example_that_parses(name: str) -> None:
    command = COMMANDS[name]
    words = shlex.split((command.epilog or "").removeprefix("Example: "))
    prefix = ["expunge", *name.split()]
    assert words[: len(prefix)] == prefix
    command.make_context(name, words[len(prefix) :])
    assert "Example: expunge" in " ".join(RUNNER.invoke(app, [*name.split(), "--help"]).output.split())


def test_the_options_of_a_run_are_grouped() -> None:
    output = RUNNER.invoke(app, ["unlearn", "--help"]).output
    assert all(f" {panel} " in output for panel in ("Options", "Data", "Machine", "Output"))
