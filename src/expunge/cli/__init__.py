"""The command line: parse, call the library, print. Errors a person can act on end with their exit code."""

import os
import sys

import typer

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
    try:
        app()
    except ExpungeError as error:
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("stopped; nothing half-written was left. --resume goes on from the last checkpoint.", err=True)
        sys.exit(130)
