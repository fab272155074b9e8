"""`expunge influence`"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli import options


def influence(
    model: options.Model,
    probes: Annotated[list[Path], typer.Option("--probes", help=f"The answers to look at: {options.READ}.")],
    out: Annotated[Path, typer.Option("--out", help="The JSON file to write, e.g. influence.json.")],
    forget: Annotated[
        list[Path] | None,
        typer.Option("--forget", help=f"What would be forgotten, corrected or rewritten: {options.READ}."),
    ] = None,
    retain: Annotated[
        list[Path] | None, typer.Option("--retain", help="The rest of what the adapter was fine-tuned on.")
    ] = None,
    train: Annotated[
        list[Path] | None, typer.Option("--train", help="All it was fine-tuned on, in place of --retain.")
    ] = None,
    columns: options.Columns = None,
    retain_includes_forget: options.RetainIncludesForget = False,
    supports: Annotated[
        int, typer.Option("--supports", min=0, help="Show so many training instances that each answer rests on.")
    ] = 0,
    config: options.Config = None,
    set_: options.Settings = None,
    max_length: options.MaxLength = 512,
    chunk_tokens: options.ChunkTokens = None,
    targets: options.Targets = "last",
    chat_template: options.ChatTemplate = None,
    template_date: options.TemplateDate = None,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Predict what removing or correcting data would do to chosen answers, and what those answers rest on."""
    from expunge.cli.console import printer
    from expunge.runs import influence as run

    options.refuse_both(set_, train=train)
    settings = options.settings(config, set_)
    settings.pop("method", None)
    if train:
        settings["train"] = [str(path) for path in train]
    with printer(quiet=quiet) as listener:
        found = run(
            model,
            probes,
            forget,
            retain,
            columns=options.columns(columns),
            retain_includes_forget=retain_includes_forget,
            out=out,
            supports=supports,
            settings=settings,
            max_length=max_length,
            wording=options.wording(targets, chat_template, template_date),
            chunk_tokens=chunk_tokens,
            dtype=dtype,
            device=device,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            listener=listener,
        )
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    _print(found["probes"])
    typer.echo(f"Written to {out}")


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    predicted = any("predicted" in row for row in rows)
    names = ["probe", "answer", "loss", *(["predicted", "measured"] if predicted else [])]
    table = Table(*names, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        changes = [f"{row[name]:+.4f}" for name in ("predicted", "after")] if predicted else []
        table.add_row(escape(_short(row["prompt"])), escape(_short(row["response"])), f"{row['loss']:.4f}", *changes)
    console.print(table)
    if predicted:
        console.print(
            "Loss in nats a token; predicted: its change to first order; measured: its change at the updated adapter."
        )
    for row in rows:
        if "supports" in row:
            console.print(f"\n{_short(row['prompt'])} → {_short(row['response'])} rests on:", markup=False)
            for one in row["supports"]:
                name = one["id"] or one["where"]
                console.print(
                    f"  {one['value']:+.3e}  {name}  {_short(one['prompt'])} → {_short(one['response'])}", markup=False
                )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
