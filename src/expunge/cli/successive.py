"""`expunge successive`"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from expunge.cli import options


def successive(
    model: options.Model,
    forget: Annotated[
        list[Path], typer.Option("--forget", help="One request: a file or a folder; give it once for each, in order.")
    ],
    out: options.Out,
    retain: options.Retain = None,
    holdout: options.Holdout = None,
    columns: options.Columns = None,
    retain_includes_forget: options.RetainIncludesForget = False,
    growing: Annotated[
        bool,
        typer.Option("--growing", help="Each from MODEL, on all requests so far; default: each from the last result."),
    ] = False,
    method: Annotated[str | None, typer.Option("--method", help="See `expunge methods`. Default: ngdiff.")] = None,
    config: options.Config = None,
    set_: options.Settings = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Model retrained without all of it, to compare with.")
    ] = None,
    suite: Annotated[
        Literal["request", "tofu", "muse", "wmdp", "mmlu"],
        typer.Option("--suite", help="What to measure on after each; request: what was asked so far."),
    ] = "request",
    data: Annotated[str | None, typer.Option("--data", help="A benchmark's folder.")] = None,
    split: Annotated[str, typer.Option("--split", help="tofu: forget01, forget05 or forget10.")] = "forget10",
    limit: options.Limit = None,
    max_length: options.MaxLength = 512,
    chunk_tokens: options.ChunkTokens = None,
    targets: options.Targets = "last",
    chat_template: options.ChatTemplate = None,
    template_date: options.TemplateDate = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="request: longest generated answer, in tokens.")] = 64,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the finished requests of this --out, and go on.")
    ] = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Forget several requests, one after another or ever more at once, and measure after each."""
    from expunge.cli.console import printer
    from expunge.reporting import show_results
    from expunge.runs.evaluate import make_suite
    from expunge.runs.successive import successive as run

    options.refuse_both(set_, method=method)
    settings = options.settings(config, set_)
    named = settings.pop("method", None)
    chosen = None if suite == "request" else make_suite(suite, data=data, split=split, limit=limit)
    with printer(quiet=quiet) as listener:
        results = run(
            model,
            forget,
            retain,
            holdout,
            columns=options.columns(columns),
            retain_includes_forget=retain_includes_forget,
            out=out,
            kind="scalability" if growing else "sustainability",
            method=method or named or "ngdiff",
            settings=settings,
            reference=reference,
            suite=chosen,
            limit=limit,
            max_length=max_length,
            wording=options.wording(targets, chat_template, template_date),
            chunk_tokens=chunk_tokens,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            device=device,
            resume=resume,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            listener=listener,
        )
    show_results(results)
    typer.echo(f"Written to {out}: " + ", ".join(sorted(item.name for item in out.iterdir())))
