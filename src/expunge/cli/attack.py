"""`expunge attack`"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli import options

SHOWN = ("leak_at_128", "leak_at_16", "leak_at_1", "forget.extraction_strength", "forget.probability")


def attack(
    model: options.Model,
    kind: Annotated[
        str, typer.Option("--kind", help="Which attacks, with commas between; all: every one that can be.")
    ] = "all",
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file, or folder for results.json; the report goes beside it.")
    ] = None,
    add_to: Annotated[
        Path | None, typer.Option("--add-to", help="Add the attacks to this results.json of an evaluation instead.")
    ] = None,
    forget: options.ForgetToo = None,
    retain: options.Retain = None,
    holdout: options.Holdout = None,
    columns: options.Columns = None,
    retain_includes_forget: options.RetainIncludesForget = False,
    suite: Annotated[str, typer.Option("--suite", help="What to ask: request (your files) or tofu.")] = "request",
    data: Annotated[str | None, typer.Option("--data", help="A benchmark's folder, or of tofu a hub id.")] = None,
    split: Annotated[str, typer.Option("--split", help="tofu: forget01, forget05 or forget10.")] = "forget10",
    original: Annotated[str | None, typer.Option("--original", help="The model before unlearning.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="The model retrained without the data.")] = None,
    method: Annotated[str | None, typer.Option("--name", help="The method, in tables and for --add-to.")] = None,
    run_seed: Annotated[int | None, typer.Option("--run-seed", help="--add-to: which of a method's runs.")] = None,
    settings: options.Settings = None,
    tuned_on: options.TunedOn = None,
    leave_out_tuned: Annotated[
        bool, typer.Option("--leave-out-tuned", help="Attack without examples settings were chosen on; else refuse.")
    ] = False,
    prefix_tokens: Annotated[
        int | None, typer.Option("--prefix-tokens", min=1, help="Given of a text to go on from; default: half.")
    ] = None,
    limit: options.Limit = None,
    max_length: options.MaxLength = 512,
    chunk_tokens: options.ChunkTokens = None,
    targets: options.Targets = "last",
    chat_template: options.ChatTemplate = None,
    template_date: options.TemplateDate = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest generated answer, in tokens.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in one pass; changes no number.")] = 32,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Try to draw forgotten content out again: train a little, round, sample, ask in other ways. `--set KIND.KEY=VALUE`."""
    from rich.console import Console

    from expunge.cli.console import printer
    from expunge.reporting import render_verdict
    from expunge.runs.attack import attack as run_attacks
    from expunge.runs.evaluate import make_suite

    wording = options.wording(targets, chat_template, template_date)
    asked: dict[str, Any] = {
        "data": data, "split": split, "forget": forget, "retain": retain, "holdout": holdout, "model": model,
        "columns": options.columns(columns), "retain_includes_forget": retain_includes_forget,
        "max_length": max_length, "chunk_tokens": chunk_tokens, "wording": wording, "prefix_tokens": prefix_tokens,
        "trust_remote_code": trust_remote_code, "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    whole = make_suite(suite, **asked)
    chosen = make_suite(suite, **asked, limit=limit) if limit else whole
    with printer(quiet=quiet) as listener:
        results = run_attacks(
            model,
            chosen,
            kind.split(","),
            out=out,
            add_to=add_to,
            settings=options.settings(None, settings),
            known=whole.sets,
            method=method,
            seed=run_seed,
            original=original,
            reference=reference,
            tuned_on=tuned_on,
            leave_out_tuned=leave_out_tuned,
            read=[path for path in (data, forget, retain, holdout) if path is not None],
            max_length=max_length,
            wording=wording,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            listener=listener,
        )
    console = Console(highlight=False)
    console.print(_table(results))
    console.print(render_verdict(results))
    typer.echo(f"Written to {out or add_to}, with its report beside it.")


def _table(results: Mapping[str, Any]) -> Any:
    """Each attack's points by model: the forget set's extraction strength, or the first measure there is."""
    from rich.table import Table

    from expunge.reporting.metrics import describe, number

    runs = [run for run in results["runs"] if run.get("attacks")]
    heads = [run["method"] if run["model"] == "unlearned" else run["model"] for run in runs]
    shown: dict[tuple[str, str], dict[int, tuple[str, float]]] = {}
    for place, run in enumerate(runs):
        for one in run["attacks"]:
            for point in one["points"]:
                keys = [key for key in SHOWN if key in point["metrics"]]
                if keys:
                    cells = shown.setdefault((one["kind"], point["label"]), {})
                    cells[place] = (keys[0], point["metrics"][keys[0]])
    table = Table("attack", "point", "measure", *heads, box=None, padding=(0, 2, 0, 0))
    last = ""
    for (kind, label), cells in shown.items():
        key = next(iter(cells.values()))[0]
        values = [number(cells[place][1]) if place in cells else "–" for place in range(len(runs))]
        table.add_row("" if kind == last else kind, label, describe(key).label, *values)
        last = kind
    return table
