"""`expunge convert`"""

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli import options


def convert(
    source: Annotated[str, typer.Argument(help="A .gguf file, a package that carries one, or an adapter.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    overwrite: options.Overwrite = False,
) -> None:
    """Make an ordinary model folder of a GGUF file (fp32), or of an adapter merged into its base."""
    from expunge.runs import convert as run

    typer.echo(f"Written to {run(source, out, overwrite=overwrite)}")
