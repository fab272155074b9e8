"""Tasks of lm-eval as a suite: general abilities beyond what expunge measures itself."""

from collections.abc import Sequence
from pathlib import Path

from expunge.errors import ConfigurationError
from expunge.evaluation.suites.suite import Suite, Tasks


def harness(
    tasks: Sequence[str], *, folder: Path | str | None = None, shots: int | None = None, limit: int | None = None
) -> Suite:
    """Tasks by the harness's names ("mmlu", "hellaswag", ...); their data come from the hub, unless `folder` says else.

    folder: of further tasks, as the harness's YAML files. shots: solved examples before each; None: the task's own
    number. limit: the first so many examples of each task. Raises ConfigurationError without a task or without lm-eval.
    """
    from expunge.evaluation.harness import check_installed

    names = tuple(dict.fromkeys(name.strip() for name in tasks if name.strip()))
    if not names:
        raise ConfigurationError("The suite `harness` runs tasks of lm-eval: name some, as --tasks mmlu,hellaswag.")
    check_installed()
    place = None if folder is None else str(folder)
    notes = (f"only the first {limit} examples of each task were used",) if limit else ()
    return Suite("harness", {}, tasks=Tasks(names, shots, limit, place), notes=notes)
