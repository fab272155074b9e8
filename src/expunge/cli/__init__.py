"""The command line: parse, call the library, print. Errors a person can act on end with their exit code."""

import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from expunge import __version__, interrupts
from expunge.cli import (
    attack,
    attribute,
    convert,
    demo,
    edit,
    evaluate,
    finetune,
    influence,
    methods,
    metrics,
    patch,
    report,
    successive,
    unlearn,
)
from expunge.cli.options import Command
from expunge.errors import ExpungeError

app = typer.Typer(
    name="expunge",
    help="Remove data from a trained language model, and show how well it worked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
SETS = "--forget forget.jsonl --retain retain.jsonl"
COMMANDS: dict[str, tuple[tuple[Callable[..., None], str], ...]] = {  # by panel: the command, and an example of it
    "Forget": (
        (unlearn.unlearn, f"expunge unlearn --model MODEL {SETS} --method npo --out run"),
        (successive.successive, "expunge successive --model MODEL --forget first.csv --forget second.csv --out run"),
        (attribute.attribute, f"expunge attribute --model MODEL {SETS} --method wagle --out mask.safetensors"),
    ),
    "Show how well it worked": (
        (evaluate.evaluate, f"expunge evaluate --model run {SETS} --original MODEL --out results.json"),
        (attack.attack, f"expunge attack --model run {SETS} --original MODEL --kind relearn --out attacks.json"),
        (influence.influence, f"expunge influence --model ADAPTER --probes probes.jsonl {SETS} --out influence.json"),
        (report.report, "expunge report run/results.json attacks.json --out report.html"),
    ),
    "Make and change models": (
        (finetune.finetune, "expunge finetune --model MODEL --data train.jsonl --set epochs=5 --out tuned"),
        (convert.convert, "expunge convert model.gguf --out MODEL"),
        (edit.edit, "expunge edit --base MODEL --plus TUNED --minus MODEL --scale -1 --out edited"),
    ),
    "Learn more": (
        (demo.demo, "expunge demo --out demo"),
        (methods.methods, "expunge methods ngdiff"),
        (metrics.metrics, "expunge metrics forget.rouge_l"),
    ),
}
for panel, commands in COMMANDS.items():
    for command, example in commands:
        app.command(cls=Command, rich_help_panel=panel, epilog=f"Example: {example}")(command)
app.add_typer(patch.app, name="patch", rich_help_panel="Make and change models")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"expunge {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    """Remove data from a trained language model, and show how well it worked."""


def main() -> None:
    """Run the command line; exit code 2 for a bad request or configuration, 1 for a run that failed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow down many times on a busy machine
    interrupts.install()
    try:
        app()
    except ExpungeError as error:
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit):  # typer turns an interrupt into an exit
        if not interrupts.received() or "edit" in sys.argv[1:2]:  # which says for itself what it keeps
            raise
        typer.echo(f"stopped; nothing half-written was left.{_resumable(sys.argv)}", err=True)
        sys.exit(128 + interrupts.received())


def _resumable(arguments: list[str]) -> str:
    """How to go on, if the run that was stopped left a checkpoint."""
    outs = [value for name, value in pairwise(arguments) if name == "--out"]
    outs += [value.removeprefix("--out=") for value in arguments if value.startswith("--out=")]
    left = next(
        (Path(out + end) for out in outs for end in (".parts", ".checkpoint") if Path(out + end).is_dir()), None
    )
    return f" What is finished is kept in {left}; the same command with --resume goes on from there." if left else ""
