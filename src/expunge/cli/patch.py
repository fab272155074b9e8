"""`expunge patch`: inspect, apply, revert, diff and compose."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from expunge.cli.options import Command

app = typer.Typer(no_args_is_help=True, help="Look into a patch, put it on its base model, or take it off again.")

PatchFile = Annotated[Path, typer.Option("--patch", help="The patch file, or a folder with patch.safetensors in it.")]
Out = Annotated[Path, typer.Option("--out", help="Where to write the result.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")]


@app.command(cls=Command, epilog="Example: expunge patch inspect run/patch.safetensors")
def inspect(
    file: Annotated[Path | None, typer.Argument(metavar="PATCH", help="The patch file.")] = None,
    patch: Annotated[Path | None, typer.Option("--patch", help="The same, as an option.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many tensors to list, largest relative change first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what a patch changes, and by how much."""
    from expunge import patch as patches

    chosen = file or patch
    if chosen is None:
        raise typer.BadParameter("name the patch file", param_hint="PATCH")
    opened = patches.Patch.open(chosen)
    opened.verify()
    _note(opened)
    report = opened.inspect()
    if as_json:
        typer.echo(json.dumps(report, indent=1, allow_nan=False))
    else:
        _print(report, rows)


@app.command(
    cls=Command, epilog="Example: expunge patch apply --patch run/patch.safetensors --model MODEL --out patched"
)
def apply(
    patch: PatchFile,
    model: Annotated[Path, typer.Option("--model", "--base", help="The base model folder; it stays as it is.")],
    out: Out,
    merge: Annotated[bool, typer.Option("--merge", help="Merge a LoRA patch into a full model.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the patched model: base + patch."""
    from expunge import patch as patches

    opened = patches.Patch.open(patch)
    _note(opened)
    written = patches.apply(opened, model, out, merge=merge, overwrite=overwrite)
    typer.echo(f"Patched model written to {written}")


@app.command(
    cls=Command, epilog="Example: expunge patch revert --patch run/patch.safetensors --model run --out original"
)
def revert(
    patch: PatchFile,
    model: Annotated[Path, typer.Option("--model", help="The patched model folder; it stays as it is.")],
    out: Out,
    after: Annotated[
        list[Path] | None,
        typer.Option("--after", help="A patch made after --patch that stays on the model; repeat for more, in order."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the base model back, bit by bit: patched − patch; with --after, take an inner patch off alone."""
    from expunge import patch as patches

    opened = patches.Patch.open(patch)
    _note(opened)
    if after:
        undone = patches.undo(patch, after, model, out, overwrite=overwrite)
        typer.echo(f"Model without {patch} written to {undone}; its README.md says what was undone. Measure it again.")
        return
    written = patches.revert(opened, model, out, overwrite=overwrite)
    typer.echo(f"Base model written to {written}")


@app.command(cls=Command, epilog="Example: expunge patch diff --base MODEL --model TUNED --out tuned.safetensors")
def diff(
    base: Annotated[Path, typer.Option("--base", help="The model folder before.")],
    model: Annotated[Path, typer.Option("--model", help="The model folder after: a full model or an adapter.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Write the patch that turns one model into another."""
    from expunge import patch as patches

    patch = patches.diff(base, model, out, method="diff", overwrite=overwrite)
    _print(patch.inspect(), rows=0)


@app.command(cls=Command, epilog="Example: expunge patch compose 1.safetensors 2.safetensors --out both.safetensors")
def compose(
    patches: Annotated[
        list[Path], typer.Argument(metavar="PATCH...", help="The patches, in the order they were made.")
    ],
    out: Out,
    base: Annotated[
        Path | None, typer.Option("--base", help="The first patch's base: measures the norms of the whole change.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the one patch that does what several do in a row."""
    from expunge import patch as room

    _print(room.compose(patches, out, base=base, overwrite=overwrite).inspect(), rows=0)


def _note(patch: Any) -> None:
    for note in patch.notes:
        typer.echo(f"note: {note}", err=True)


def _print(report: dict[str, Any], rows: int) -> None:
    console = Console(highlight=False)
    totals = report["totals"]
    sparse = sum(row["sparse"] for row in report["tensors"])
    # Without markup, since a path may hold square brackets.
    console.print(
        f"{report['path']}: {report['kind']} patch, {report['bytes'] / 1e6:.2f} MB, "
        f"made by {report['method'] or 'an unnamed method'} with expunge {report['version']}",
        f"base     {report['base']} ({', '.join(report['dtypes'])})",
        f"patched  {report['patched']}",
        f"changed  {totals['tensors_changed']} of {totals['tensors']} tensors, {totals['entries_changed']:,} of "
        f"{totals['entries']:,} entries ({totals['share']:.2%})",
        f"stored   {sparse} of {len(report['tensors'])} tensors sparsely: their changed entries only"
        if report["kind"] == "dense"
        else "stored   as the adapter it is",
        f"norm     {_number(totals['change_norm'])} of {_number(totals['base_norm'])} "
        f"(relative {_number(totals['relative'])})",
        sep="\n",
        markup=False,
        soft_wrap=True,
    )
    for name in ("settings", "info"):
        if report[name]:
            console.print(f"{name:8} {json.dumps(report[name], ensure_ascii=False)}", markup=False, soft_wrap=True)
    shown = report["tensors"][:rows]
    if not shown:
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("tensor", overflow="fold")
    for column in ("dtype", "shape", "relative", "max |Δ|", "changed"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in shown:
        shape = "×".join(map(str, row["shape"]))
        numbers = (_number(row["relative"]), _number(row["max_change"]), f"{row['share']:.1%}")
        table.add_row(row["name"].removesuffix(".weight"), row["dtype"], shape, *numbers)
    console.print(table)
    if len(report["tensors"]) > rows:
        console.print(f"and {len(report['tensors']) - rows} more; --rows lists more of them")


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"
