"""The command line: parse, call the library, print. Errors a person can act on end with their exit code."""

import os
import sys
from itertools import pairwise
from pathlib import Path

import typer

from expunge import interrupts
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
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(cls=Command)(demo.demo)
app.command(cls=Command)(unlearn.unlearn)
app.command(cls=Command)(successive.successive)
app.command(cls=Command)(attribute.attribute)
app.command(cls=Command)(finetune.finetune)
app.command(cls=Command)(evaluate.evaluate)
app.command(cls=Command)(attack.attack)
app.command(cls=Command)(methods.methods)
app.command(cls=Command)(metrics.metrics)
app.command(cls=Command)(report.report)
app.command(cls=Command)(convert.convert)
app.command(cls=Command)(edit.edit)
app.command(cls=Command)(influence.influence)
app.add_typer(patch.app, name="patch")


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
