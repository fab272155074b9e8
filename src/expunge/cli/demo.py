"""`expunge demo`"""

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli import options


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds; about two minutes each.")] = 1,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Only this method; may be given many times.")
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """A small model learns fictional people, then forgets some: several methods side by side, and a report."""
    from expunge.cli.console import printer
    from expunge.config import lookup
    from expunge.reporting import show_results
    from expunge.runs import demo as run
    from expunge.runs.demo import METHODS

    chosen = {name: lookup(METHODS, name, "method of the demo") for name in method} if method else None
    with printer(quiet=quiet) as listener:
        results = run(out, seeds=range(seed, seed + seeds), methods=chosen, overwrite=overwrite, listener=listener)
    show_results(results)
    typer.echo(f"Written to {out}; open {out / 'report.html'} in a browser.")
