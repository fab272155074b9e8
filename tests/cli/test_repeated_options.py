"""Every option of every command takes each value it is given, or refuses a second: none is dropped in silence."""

import json
import sys
from pathlib import Path

import pytest
import typer

from expunge.cli import app, main
from expunge.request import Request
from tests.conftest import FORGET, RETAIN

FILES = {"--forget", "--retain", "--holdout", "--train", "--probes", "--tuned-on", "--compare", "--set", "--columns"}


def leaves(command, name: str = ""):
    """Every command by its full name."""
    if hasattr(command, "commands"):
        for key, child in command.commands.items():
            yield from leaves(child, f"{name} {key}".strip())
    else:
        yield name, command


COMMANDS = dict(leaves(typer.main.get_command(app)))
OPTIONS = [(name, param) for name, command in COMMANDS.items() for param in command.params if param.opts[0][0] == "-"]


@pytest.mark.parametrize(("name", "param"), OPTIONS, ids=[f"{name} {param.opts[0]}" for name, param in OPTIONS])
def test_a_second_value_is_kept_or_refused(name: str, param) -> None:
    command = COMMANDS[name]
    option = param.opts[0]
    context = command.make_context(name, [], resilient_parsing=True)
    if param.is_flag:
        for other in param.secondary_opts:
            with pytest.raises(typer.BadParameter, match="takes one value"):
                command.parse_args(command.context_class(command), [option, other])
        return
    if param.multiple:
        values, _, _ = command.make_parser(context).parse_args([option, "a", option, "b"])
        assert values[param.name] == ["a", "b"]
    else:
        assert option not in FILES
        assert (name, option) != ("finetune", "--data")
        with pytest.raises(typer.BadParameter, match="takes one value and is given 2 times"):
            command.parse_args(command.context_class(command), [option, "1", option, "2"])
    with pytest.raises(typer.BadParameter, match="empty value"):
        command.parse_args(command.context_class(command), [option, ""])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


def test_two_files_of_a_set_are_both_forgotten(run, tiny_folder: Path, tmp_path: Path) -> None:
    """The results list every row of both files, in the order given, and run.json names both."""
    paths = []
    for number, row in enumerate((*FORGET[:2], RETAIN[0])):
        paths.append(tmp_path / f"{number}.jsonl")
        paths[-1].write_text(json.dumps(row) + "\n")
    out = tmp_path / "run"
    code, _, said = run(
        "unlearn", "--model", tiny_folder, "--forget", paths[0], "--forget", paths[1], "--retain", paths[2],
        "--set", "steps=1", "--max-new-tokens", 2, "--out", out, "--quiet",
    )  # fmt: skip
    assert code == 0, said
    rows = json.loads((out / "results.json").read_text())["runs"][0]["examples"]["forget"]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in FORGET[:2]]
    assert Request.read(paths[:2]).sources.keys() == {"forget"}


def test_the_command_line_refuses_a_second_model(run, tiny_folder: Path, request_files, tmp_path: Path) -> None:
    base = ["unlearn", "--model", tiny_folder, "--forget", request_files[0], "--out", tmp_path / "run"]
    for more in (["--model", tiny_folder], ["--method", "npo", "--method", "ngdiff"]):
        code, _, said = run(*base, *more)
        assert code == 2
        assert "takes one value" in " ".join(said.split())
    assert not (tmp_path / "run").exists()
