"""An instance-wise task: what a model is trained on, what of it is to be removed or put right, and what to test on."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from expunge.errors import ConfigurationError
from expunge.files import write_text
from expunge.request import Example, Request

Edit = Callable[[Example, random.Random], Example]


@dataclass(frozen=True)
class Task:
    """The sets of an instance-wise unlearning study.

    train: what the model is fine-tuned on, faulty rows included. test: examples of other users or wordings, the wrong
    options in `wrong_responses`. forget: the rows of `train` to remove, or to put right (`new_response` or
    `new_prompt`). retain: its other rows. clean: what the gold standard is retrained on: `train` in its order, each
    row of `forget` left out or put right. pretrain: what a small model should know first, where that is needed.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    clean: tuple[Example, ...]
    pretrain: tuple[Example, ...] = ()

    @property
    def request(self) -> Request:
        return Request(self.forget, self.retain)

    def write(self, folder: Path | str) -> None:
        """Write each set that is not empty as `folder`/<set>.jsonl, for `--data`, `--forget` and `--retain`."""
        for field in fields(self):
            examples = getattr(self, field.name)
            if examples:
                write_text(Path(folder) / f"{field.name}.jsonl", "".join(map(_line, examples)))


def _line(example: Example) -> str:
    values = {
        name: value for name, value in vars(example).items() if value and name not in ("context", "where", "role")
    }
    return json.dumps(values, ensure_ascii=False) + "\n"


def edited(
    rows: Sequence[Example],
    test: Sequence[Example],
    edit: Edit,
    *,
    share: float,
    seed: int,
    pretrain: Sequence[Example] = (),
) -> Task:
    """The task in which `share` of the rows, drawn at random, are to be removed or are faulty.

    edit: makes a drawn row into its line of the request: the row itself (removal), or one that holds the fault, with
    the right text as `new_response` or `new_prompt`. Options of the rows are for `edit` alone and are left out.

    Raises ConfigurationError unless some but not all rows are drawn, or if two rows, or a row and a test example, have
    the same prompt.
    """
    count = round(len(rows) * share)
    if not 0 < count < len(rows):
        raise ConfigurationError(f"share={share} of {len(rows)} rows is {count}: it must be some of them, but not all.")
    draw = random.Random(f"edit {seed}")
    drawn = set(draw.sample(range(len(rows)), count))
    lines = [replace(edit(row, draw) if index in drawn else row, wrong_responses=()) for index, row in enumerate(rows)]
    asked = {example.prompt for example in test}
    for prompts in ([row.prompt for row in rows], [line.prompt for line in lines]):
        if len(set(prompts)) < len(prompts) or not asked.isdisjoint(prompts):
            raise ConfigurationError("Two rows, or a row and a test example, ask the same: leave one of them out.")
    clean = [line.after if index in drawn else line for index, line in enumerate(lines)]
    return Task(
        train=tuple(replace(line, new_prompt=None, new_response=None) for line in lines),
        test=tuple(test),
        forget=tuple(line for index, line in enumerate(lines) if index in drawn),
        retain=tuple(line for index, line in enumerate(lines) if index not in drawn),
        clean=tuple(line for line in clean if line is not None),
        pretrain=tuple(pretrain),
    )


def remove(row: Example, _: random.Random) -> Example:
    """The row is to go."""
    return row


def flip(row: Example, draw: random.Random) -> Example:
    """The row as it was learned with a wrong answer, one of its options; the right one is the new response."""
    return replace(row, response=draw.choice(row.wrong_responses), new_response=row.response)


def distinct(examples: Sequence[Example], taken: set[str]) -> list[Example]:
    """The first example of each prompt that is not among `taken`, in order."""
    first: dict[str, Example] = {}
    for example in examples:
        if example.prompt not in taken:
            first.setdefault(example.prompt, example)
    return list(first.values())
