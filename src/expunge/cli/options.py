"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Model = Annotated[str, typer.Option("--model", help="Model folder (or hub id): a causal LM or a PEFT adapter.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write the run to.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be given many times.")
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; --set goes over it.")]
Lora = Annotated[int | None, typer.Option("--lora", min=1, help="Train a new LoRA adapter of this rank.")]
MaxLength = Annotated[int, typer.Option("--max-length", help="Cap on prompt + response, in tokens.")]
ChunkTokens = Annotated[
    int | None, typer.Option("--chunk-tokens", help="Longer running text is cut so; default: --max-length.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Evaluate at most so many examples of each set.")]
TunedOn = Annotated[
    Path | None,
    typer.Option("--tuned-on", help="Examples settings were chosen on: JSONL, or a run's results.json or run.json."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of this --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the model folder's own code run.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option("--dtype", help="Dtype of the weights in memory; the update itself is always fp32."),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")]


def settings(config: Path | None, assignments: list[str] | None) -> dict[str, Any]:
    """The settings of a YAML file with those of --set over them."""
    from expunge.config import parse_settings, read_yaml

    return {**(read_yaml(config) if config else {}), **parse_settings(assignments or ())}
