"""`expunge unlearn`"""

from typing import Annotated, Literal

import typer

from expunge.cli import options


def unlearn(
    model: options.Model,
    forget: options.Forget,
    out: options.Out,
    retain: options.Retain = None,
    holdout: options.Holdout = None,
    columns: options.Columns = None,
    retain_includes_forget: options.RetainIncludesForget = False,
    method: Annotated[str | None, typer.Option("--method", help="See `expunge methods`. Default: ngdiff.")] = None,
    config: options.Config = None,
    set_: options.Settings = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The model before it learned the data (perta, taskvector).")
    ] = None,
    forget_model: Annotated[
        str | None, typer.Option("--forget-model", help="--base fine-tuned on the forget set; default: made here.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option("--mask", metavar="NAME|FILE", help="Train only weights chosen so (wagle ...), or a mask file."),
    ] = None,
    output: Annotated[Literal["model", "patch", "both"], typer.Option("--output", help="What to write.")] = "both",
    lora: options.Lora = None,
    lora_targets: options.LoraTargets = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Model retrained without the forget set, to compare with.")
    ] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="Measure before and after.")] = True,
    tuned_on: options.TunedOn = None,
    leave_out_tuned: Annotated[
        bool, typer.Option("--leave-out-tuned/--report-all", help="Report without examples settings were chosen on.")
    ] = True,
    limit: options.Limit = None,
    max_length: options.MaxLength = 512,
    chunk_tokens: options.ChunkTokens = None,
    targets: options.Targets = "last",
    chat_template: options.ChatTemplate = None,
    template_date: options.TemplateDate = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest generated answer, in tokens.")] = 64,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a model forget: writes the new model, the patch, and the evidence."""
    from expunge.cli.console import printer
    from expunge.reporting import show_results
    from expunge.runs import unlearn as run

    options.refuse_both(set_, method=method, base=base, forget_model=forget_model, mask=mask)
    settings = options.settings(config, set_)
    named = settings.pop("method", None)
    models = {"base": base, "forget_model": forget_model}
    settings |= {name: folder for name, folder in models.items() if folder is not None}
    if mask is not None:
        settings["mask"] = {"name": "file", "path": mask} if mask.endswith(".safetensors") else mask
    with printer(quiet=quiet) as listener:
        results = run(
            model,
            forget,
            retain,
            holdout,
            columns=options.columns(columns),
            retain_includes_forget=retain_includes_forget,
            out=out,
            method=method or named or "ngdiff",
            settings=settings,
            output=output,
            lora=lora,
            lora_targets=lora_targets or (),
            reference=reference,
            evaluate_models=evaluate,
            tuned_on=tuned_on,
            leave_out_tuned=leave_out_tuned,
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
    if results["runs"]:
        show_results(results)
    typer.echo(f"Written to {out}: " + ", ".join(sorted(item.name for item in out.iterdir())))
