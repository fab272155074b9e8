"""`expunge report`"""

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[list[Path], typer.Argument(help="One results.json, or several of one experiment to merge.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write; report.md goes beside it.")] = Path(
        "report.html"
    ),
    model_card: Annotated[
        Path | None, typer.Option("--model-card", help="Write a model card in the Hugging Face hub's format here.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--name", help="Whose model card: a method of the results; default: the best.")
    ] = None,
    merged: Annotated[Path | None, typer.Option("--merged", help="Write the merged results here.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what expunge wrote there before.")] = False,
) -> None:
    """Render the report again, of one results.json or of several merged: more methods, seeds or attacks side by side."""
    from expunge.errors import ConfigurationError
    from expunge.outputs import reserved

    beside = [out.with_suffix(".md"), *(path for path in (model_card, merged) if path is not None)]
    if len({path.resolve() for path in (out, *beside)}) <= len(beside):
        raise ConfigurationError("Two of --out, its .md beside it, --model-card and --merged are the same file.")
    with reserved(out, inputs=results, folder=False, overwrite=overwrite, beside=beside):
        _write(results, out, model_card, method, merged)
    typer.echo(f"Written: {', '.join(map(str, [out, *beside]))}")


def _write(results: list[Path], out: Path, model_card: Path | None, method: str | None, merged: Path | None) -> None:
    from expunge.files import write_json, write_text
    from expunge.outputs import MARKDOWN_MARK
    from expunge.reporting import merge, model_card_of, read_results, write_report

    whole = merge([(str(path), read_results(path)) for path in results])
    card = None if model_card is None else model_card_of(whole, method)
    write_report(whole, out)
    if model_card is not None and card is not None:
        write_text(model_card, f"{card}\n{MARKDOWN_MARK}")
    if merged is not None:
        write_json(merged, whole)
