"""`expunge finetune`"""

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli import options


def finetune(
    model: options.Model,
    data: Annotated[list[Path], typer.Option("--data", help=f"What to learn: {options.READ}.")],
    out: options.Out,
    columns: options.Columns = None,
    config: options.Config = None,
    set_: options.Settings = None,
    lora: options.Lora = None,
    lora_targets: options.LoraTargets = None,
    max_length: options.MaxLength = 512,
    chunk_tokens: options.ChunkTokens = None,
    targets: options.Targets = "last",
    chat_template: options.ChatTemplate = None,
    template_date: options.TemplateDate = None,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    trust_remote_code: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a model that knows the data, or the control retrained without part of it."""
    from expunge.cli.console import printer
    from expunge.runs import finetune as run

    with printer(quiet=quiet) as listener:
        history = run(
            model,
            data,
            columns=options.columns(columns),
            out=out,
            settings=options.settings(config, set_),
            lora=lora,
            lora_targets=lora_targets or (),
            max_length=max_length,
            wording=options.wording(targets, chat_template, template_date),
            chunk_tokens=chunk_tokens,
            dtype=dtype,
            device=device,
            resume=resume,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            listener=listener,
        )
    last = history.log[-1]
    typer.echo(f"Written to {out}: {history.steps} steps, last NLL {last['retain_nll']:.4f} nats a token")
