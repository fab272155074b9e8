"""`expunge attribute`"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli import options


def attribute(
    model: options.Model,
    forget: options.Forget,
    out: Annotated[Path, typer.Option("--out", help="The mask file to write, e.g. mask.safetensors.")],
    retain: options.Retain = None,
    columns: options.Columns = None,
    retain_includes_forget: options.RetainIncludesForget = False,
    method: Annotated[str | None, typer.Option("--method", help="See `expunge methods`. Default: wagle.")] = None,
    ratio: Annotated[float | None, typer.Option("--ratio", help="Share of the weights to train, in (0, 1].")] = None,
    loss: Annotated[
        str, typer.Option("--loss", help="Forget loss of the descent to come: nll, npo, refusal ...")
    ] = "nll",
    config: options.Config = None,
    set_: options.Settings = None,
    compare: Annotated[
        list[Path] | None, typer.Option("--compare", help="Another mask file, to show how far the two agree.")
    ] = None,
    lora: options.Lora = None,
    max_length: options.MaxLength = 512,
    chunk_tokens: options.ChunkTokens = None,
    targets: options.Targets = "last",
    chat_template: options.ChatTemplate = None,
    template_date: options.TemplateDate = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Examples run together; changes no number.")
    ] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Draws the retain examples, refusals and random masks.")] = 0,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print where the weights lie as JSON.")] = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Choose the weights that unlearning may change: writes a mask for `expunge unlearn --mask`."""
    from expunge.cli.console import printer
    from expunge.runs import attribute as run

    options.refuse_both(set_, method=method, ratio=ratio)
    settings = options.settings(config, set_)
    named = settings.pop("method", None)
    if ratio is not None:
        settings["ratio"] = ratio
    with printer(quiet=quiet) as listener:
        mask = run(
            model,
            forget,
            retain,
            columns=options.columns(columns),
            retain_includes_forget=retain_includes_forget,
            out=out,
            method=method or named or "wagle",
            settings=settings,
            loss=loss,
            lora=lora,
            compare={str(path): path for path in compare or ()},
            max_length=max_length,
            wording=options.wording(targets, chat_template, template_date),
            chunk_tokens=chunk_tokens,
            batch_size=batch_size,
            seed=seed,
            dtype=dtype,
            device=device,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            listener=listener,
        )
    insight = mask.info["insight"]
    if as_json:
        typer.echo(json.dumps(insight, indent=1))
        return
    _print(insight, sum(mask.kept.values()), mask.entries)
    typer.echo(f"Written to {out}")


def _print(insight: dict[str, Any], kept: float, entries: int) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    if insight["kind"] == "density":
        console.print(f"{kept:,} of {entries:,} weights may change ({kept / entries:.2%}). In percent, by place:\n")
    else:
        console.print(f"The mean weight is {kept / entries:.4f} over {entries:,}. In percent, by place:\n")
    console.print(_table(insight["cells"], insight["value"]))
    for row in insight["overlap"]:
        if row["module"] == "all":
            chance = f"{row['jaccard']:.3f}, by chance {row['expected']:.3f}"
            console.print(f"\nOverlap with {row['with']} (Jaccard): {chance}", markup=False)


def _table(cells: list[dict[str, Any]], whole: float) -> Any:
    """A row a layer and a column a kind of module, with the means of both; what lies outside the layers is below."""
    from rich.table import Table

    inside = [cell for cell in cells if cell["layer"] is not None]
    modules = list(dict.fromkeys(cell["module"] for cell in inside))
    table = Table("layer", *(module.replace(".", "\n.") for module in modules), "all", box=None, padding=(0, 2, 0, 0))
    for layer in dict.fromkeys(cell["layer"] for cell in inside):
        row = [cell for cell in inside if cell["layer"] == layer]
        table.add_row(str(layer), *(_mean(row, module) for module in modules), _mean(row))
    if inside:
        table.add_row("layers", *(_mean(inside, module) for module in modules), _mean(inside))
    for cell in cells:
        if cell["layer"] is None:
            table.add_row(cell["module"], *[""] * len(modules), _mean([cell]))
    table.add_row("whole", *[""] * len(modules), f"{100 * whole:.1f}")
    return table


def _mean(cells: list[dict[str, Any]], module: str | None = None) -> str:
    """The mean over the entries of the cells, of one kind of module or of all."""
    chosen = [cell for cell in cells if module in (None, cell["module"])]
    entries = sum(cell["entries"] for cell in chosen)
    return f"{100 * sum(cell['value'] * cell['entries'] for cell in chosen) / entries:.1f}" if entries else ""
