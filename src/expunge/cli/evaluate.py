"""`expunge evaluate`"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from expunge.cli import options


def evaluate(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="JSON file to write; the report goes beside it as .html.")],
    suite: Annotated[
        Literal["request", "tofu", "muse", "wmdp", "mmlu", "recommendation", "sequential", "choice", "harness"],
        typer.Option("--suite", help="What to measure on."),
    ] = "request",
    data: Annotated[
        str | None, typer.Option("--data", help="A benchmark's folder or file; of tofu and muse also a hub id.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="tofu: forget01, forget05 or forget10.")] = "forget10",
    forget: options.ForgetToo = None,
    retain: options.Retain = None,
    holdout: options.Holdout = None,
    columns: options.Columns = None,
    retain_includes_forget: options.RetainIncludesForget = False,
    prefix_tokens: Annotated[
        int | None,
        typer.Option("--prefix-tokens", min=1, help="request: given of a text to go on from; default: half."),
    ] = None,
    make_wrong_answers: Annotated[
        bool, typer.Option("--make-wrong-answers", help="request: by template where none are given, for truth ratio.")
    ] = False,
    mmlu: Annotated[str | None, typer.Option("--mmlu", help="wmdp: MMLU's folder, as knowledge to keep.")] = None,
    shots: Annotated[int, typer.Option("--shots", help="mmlu, harness: solved questions before each.")] = 0,
    scoring: Annotated[
        Literal["letter", "text"], typer.Option("--scoring", help="wmdp, mmlu: by the option's letter or its text.")
    ] = "letter",
    tasks: Annotated[str, typer.Option("--tasks", help="harness: tasks of lm-eval, with commas between.")] = "",
    original: Annotated[str | None, typer.Option("--original", help="The model before unlearning.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="The model retrained without the data.")] = None,
    method: Annotated[str, typer.Option("--name", help="What to call the model in tables.")] = "unlearned",
    generate: Annotated[bool, typer.Option("--generate/--no-generate", help="Generate answers for ROUGE.")] = True,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also look inside: gradient norms, and with both controls the depth score.")
    ] = False,
    lens: Annotated[
        str | None, typer.Option("--lens", metavar="LAYERS", help="Inner layers to read, as 8,12; none; default: four.")
    ] = None,
    truth_ratio: Annotated[
        Literal["geometric", "paper", "compat", "knowledge"],
        typer.Option("--truth-ratio", help="Its form: ours, TOFU's equation 1, OpenUnlearning's, p / (p + wrong)."),
    ] = "geometric",
    tuned_on: options.TunedOn = None,
    leave_out_tuned: Annotated[
        bool, typer.Option("--leave-out-tuned", help="Report without examples settings were chosen on; else refuse.")
    ] = False,
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
    """Measure what a model still knows, beside the original and the retrained model where given."""
    from expunge.cli.console import printer
    from expunge.reporting import show_results
    from expunge.runs import evaluate_model, make_suite

    wording = options.wording(targets, chat_template, template_date)
    chosen = make_suite(
        suite,
        data=data,
        split=split,
        forget=forget,
        retain=retain,
        holdout=holdout,
        columns=options.columns(columns),
        retain_includes_forget=retain_includes_forget,
        model=model,
        max_length=max_length,
        wording=wording,
        chunk_tokens=chunk_tokens,
        prefix_tokens=prefix_tokens,
        trust_remote_code=trust_remote_code,
        mmlu_folder=mmlu,
        shots=shots,
        scoring=scoring,
        limit=limit,
        max_new_tokens=max_new_tokens,
        tasks=tasks.split(","),
        make_wrong_answers=make_wrong_answers,
    )
    with printer(quiet=quiet) as listener:
        results = evaluate_model(
            model,
            chosen,
            out=out,
            method=method,
            original=original,
            reference=reference,
            generate=generate,
            lens_layers=_layers(lens),
            deep=deep,
            form=truth_ratio,
            tuned_on=tuned_on,
            leave_out_tuned=leave_out_tuned,
            read=[path for path in (data, forget, retain, holdout, mmlu) if path is not None],
            max_length=max_length,
            wording=wording,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            listener=listener,
        )
    show_results(results)
    typer.echo(f"Written to {out} and {out.with_suffix('.html')}")


def _layers(text: str | None) -> tuple[int, ...] | None:
    """The layers of --lens: "8,12", "none", or None for the default."""
    if text is None:
        return None
    if text.strip().lower() == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"give whole numbers with commas, as 8,12, or none; not {text!r}") from None
