"""Options that several commands share, each declared once."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

READ = "JSONL, CSV, Parquet, .txt, or a folder of such; may be repeated"


PANELS = {  # of --help; every other option is in the first
    "Data": "--forget --retain --holdout --data --train --probes --columns --retain-includes-forget --targets "
    "--chat-template --template-date --max-length --chunk-tokens --limit --tuned-on "
    "--leave-out-tuned --prefix-tokens --suite --split",
    "Output": "--out --add-to --output --resume --overwrite --quiet --json",
    "Machine": "--batch-size --dtype --device --trust-remote-code",
}


class Command(TyperCommand):
    """A command that refuses a second value for an option that takes one, and an empty value for any.

    Without this the last value wins and the first is dropped without a word. Its help shows options by PANELS.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options: list[Any] = self.params
        for param in options:
            panel = next((panel for panel, names in PANELS.items() if param.opts[0] in names.split()), None)
            if panel is not None:
                param.rich_help_panel = panel

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # a shell completes what is not whole yet
            return super().parse_args(ctx, args)
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        counts: Counter[Any] = Counter(order)
        for param, count in counts.items():
            if param.param_type_name != "option":
                continue
            name = param.opts[0]
            switch = param.is_flag and not param.secondary_opts  # the same again changes nothing
            if count > 1 and not (param.multiple or param.count or switch):
                names = "/".join((*param.opts, *param.secondary_opts))
                raise typer.BadParameter(f"{names} takes one value and is given {count} times.", ctx, param)
            given = values.get(param.name)
            if "" in (given if isinstance(given, list | tuple) else [given]):
                raise typer.BadParameter(f"{name} is given an empty value. Is a variable not set?", ctx, param)
        return super().parse_args(ctx, args)


if TYPE_CHECKING:
    from expunge.data import Wording

Model = Annotated[str, typer.Option("--model", help="Model folder (or hub id): a causal LM or a PEFT adapter.")]
Forget = Annotated[list[Path], typer.Option("--forget", help=f"What to forget, correct or rewrite: {READ}.")]
ForgetToo = Annotated[list[Path] | None, typer.Option("--forget", help=f"request: the forget set: {READ}.")]
Retain = Annotated[list[Path] | None, typer.Option("--retain", help=f"What to keep: {READ}.")]
Holdout = Annotated[list[Path] | None, typer.Option("--holdout", help=f"What was never trained on: {READ}.")]
RetainIncludesForget = Annotated[
    bool,
    typer.Option(
        "--retain-includes-forget", help="--retain is the whole training set: take the forget set's rows out."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns", metavar="FIELD=COLUMN,...", help="Columns of your files, as prompt=input,response=output."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write the run to.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be given many times.")
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; --set goes over it.")]
Lora = Annotated[int | None, typer.Option("--lora", min=1, help="Train a new LoRA adapter of this rank.")]
LoraTargets = Annotated[
    list[str] | None,
    typer.Option(
        "--lora-targets", help="A layer to adapt, such as q_proj; repeat for more. Default: every linear layer."
    ),
]
MaxLength = Annotated[int, typer.Option("--max-length", help="Cap on prompt + response, in tokens.")]
ChunkTokens = Annotated[
    int | None, typer.Option("--chunk-tokens", help="Longer running text is cut so; default: --max-length.")
]
Targets = Annotated[
    Literal["last", "assistant", "all"],
    typer.Option("--targets", help="Turns of a conversation that count: its last answer, every answer, all turns."),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option("--chat-template", metavar="FILE|none", help="Another chat template; none: Question/Answer lines."),
]
TemplateDate = Annotated[
    str | None, typer.Option("--template-date", metavar="YYYY-MM-DD", help="Today, to templates that write it.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Evaluate at most so many examples of each set.")]
TunedOn = Annotated[
    list[Path] | None,
    typer.Option(
        "--tuned-on",
        help="Examples settings were chosen on, or a run's results.json or run.json; may be repeated.",
    ),
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


def wording(targets: Literal["last", "assistant", "all"], chat_template: str | None, day: str | None) -> "Wording":
    """How examples are put to the models."""
    from expunge.data.template import DATE, Wording

    return Wording.read(targets, chat_template, day or DATE)


def settings(config: Path | None, assignments: list[str] | None) -> dict[str, Any]:
    """The settings of a YAML file with those of --set over them."""
    from expunge.config import parse_settings, read_yaml

    return {**(read_yaml(config) if config else {}), **parse_settings(assignments or ())}


def refuse_both(assignments: list[str] | None, **options: object) -> None:
    """Raise ConfigurationError where a setting is given by its own option and by --set."""
    from expunge.config import parse_settings
    from expunge.errors import ConfigurationError

    names = {name.replace("-", "_") for name in parse_settings(assignments or ())}
    for name, value in options.items():
        if value is not None and name in names:
            option = name.replace("_", "-")
            raise ConfigurationError(f"--{option} and --set {name}= both give {name}. Leave one of the two out.")


def columns(words: list[str] | None) -> dict[str, str]:
    """The mapping of --columns."""
    from expunge.request import parse_columns

    return parse_columns(words or ())
