"""TOFU: 200 fictitious authors with 20 questions each, of whom 1, 5 or 10 % are to be forgotten (Maini et al. 2024).

`forgetXX` are the last rows of `full`, `retainYY` the rest, `holdoutXX` authors nobody was trained on. The `_perturbed`
files, which evaluation reads, add paraphrased and wrong answers.
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.data.benchmarks import hub
from expunge.errors import ConfigurationError, RequestError
from expunge.request import ALIASES, KNOWN, Example, parse_example, read_examples

HUB = "locuslab/TOFU"
SPLITS = {  # forget: (retain, holdout)
    "forget01": ("retain99", "holdout01"),
    "forget05": ("retain95", "holdout05"),
    "forget10": ("retain90", "holdout10"),
}


def split(forget: str) -> tuple[str, str]:
    """The names of the retain and holdout files that belong to a forget split. Raises ConfigurationError if unknown."""
    if forget not in SPLITS:
        near = difflib.get_close_matches(forget, SPLITS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known splits: {', '.join(SPLITS)}."
        raise ConfigurationError(f"TOFU has no split {forget!r}. {hint}")
    return SPLITS[forget]


def read(source: Path | str, name: str) -> tuple[Example, ...]:
    """Read one of TOFU's files (`forget10_perturbed`, `retain90`, `full`, ...) from a folder or from the hub.

    `source`: a folder that holds `<name>.json` or `<name>.jsonl`, or a data set's name on the hub such as
    "locuslab/TOFU" (needs the `datasets` package and a network). Each example without an id gets "<name>/<row>".
    Raises RequestError, naming the file, if it is missing or malformed.
    """
    folder = Path(source)
    examples = _from_folder(folder, name) if hub.is_folder(folder) else _from_hub(str(source), name)
    return tuple(
        example if example.id else replace(example, id=f"{name}/{index}") for index, example in enumerate(examples)
    )


def _from_folder(folder: Path, name: str) -> tuple[Example, ...]:
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder. Give the folder that holds {name}.json, or {HUB} for the hub's.")
    for ending in (".json", ".jsonl"):
        if (folder / f"{name}{ending}").is_file():
            return read_examples(folder / f"{name}{ending}")
    raise RequestError(
        f"{folder / name}.json: no such file. A TOFU folder holds forgetXX_perturbed, retain_perturbed, "
        "real_authors_perturbed, world_facts_perturbed and holdoutXX, as .json or .jsonl."
    )


def _from_hub(source: str, name: str) -> tuple[Example, ...]:
    rows = hub.rows(source, name, benchmark="TOFU")
    return tuple(parse_example(_known(row), f"{source}/{name}:{number}") for number, row in enumerate(rows, start=1))


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """The columns expunge reads; the hub's multiple-choice sets have others besides."""
    return {column: value for column, value in row.items() if column in KNOWN or column in ALIASES}
