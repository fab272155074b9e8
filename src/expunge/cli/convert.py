"""`expunge convert`"""

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli import options


def convert(
    source: Annotated[str, typer.Argument(help="A .gguf file, or an installed package that carries one.")],
    out: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    overwrite: options.Overwrite = False,
) -> None:
    """Turn a GGUF file into an ordinary model folder (fp32 safetensors)."""
    from expunge.models.gguf import convert as run

    typer.echo(f"Written to {run(source, out, overwrite=overwrite)}")
