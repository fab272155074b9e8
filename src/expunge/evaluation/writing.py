"""Texts a model goes on from by itself: how much of what should follow does it write? MUSE's VerbMem and KnowMem."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.data.encoding import spelling
from expunge.evaluation.generation import generate
from expunge.evaluation.metrics.similarity import rouge_l
from expunge.evaluation.records import Progress
from expunge.evaluation.statistics import Interval, interval_of_mean
from expunge.evaluation.suites.suite import Writing
from expunge.models import Loaded

LONGEST = 4096  # tokens of a prompt, where the model names no limit of its own
SHOWN = 600  # characters of a prompt that are kept for a person to read


@dataclass(frozen=True)
class Written:
    """What a model wrote after n prompts. targets: what should have followed, as far as it counts. values: [n] ROUGE-L
    F1 of the one against the other. shortened: how many prompts lost their beginning, since they were too long. compat:
    [n] the same of words of a–z and 0–9, as published.
    """

    key: str
    writing: Writing
    targets: list[str]
    texts: list[str]
    values: np.ndarray
    shortened: int
    compat: np.ndarray

    @property
    def name(self) -> str:
        """What its examples are called: "forget_verbmem" of the metric "forget.verbmem"."""
        return self.key.replace(".", "_")

    def details(self) -> list[dict[str, Any]]:
        """One dict per example for a person to read, its number under the metric's whole name."""
        rows = []
        for index, example in enumerate(self.writing.examples):
            prompt = example.prompt if len(example.prompt) <= SHOWN else f"…{example.prompt[-SHOWN:]}"
            rows.append({
                "id": example.id or f"{self.name}/{index}",
                "prompt": prompt,
                "response": self.targets[index],
                "generation": self.texts[index],
                self.key: float(self.values[index]),
            })  # fmt: skip
        return rows


def write(
    loaded: Loaded, key: str, writing: Writing, *, batch_size: int = 32, progress: Progress | None = None
) -> Written:
    """Let the model go on greedily after each prompt, and compare by ROUGE-L F1, unstemmed as in MUSE's code.

    A prompt of more tokens than the model has positions for loses its first ones (but not a beginning-of-text token).
    Raises ConfigurationError for a model without room for a prompt and `writing.max_new_tokens` tokens.
    """
    most, encoder = writing.max_new_tokens, loaded.encoder()
    room = min(LONGEST, (loaded.positions or LONGEST + most) - most)
    texts = [writing.lead + writing.form.format(example.prompt) for example in writing.examples]
    prompts, shortened = [], 0
    begin = encoder.begin
    for text in texts:
        ids = [*begin, *encoder.words(text)]
        if len(ids) > room:
            ids = [*begin, *ids[len(ids) - max(0, room - len(begin)) :]]
            shortened += 1
        prompts.append(ids)
    settings: dict[str, Any] = {"max_new_tokens": most, "batch_size": batch_size, "progress": progress}
    found = generate(loaded, prompts, stops=writing.stops, **settings)
    follow = [encoder.words(example.response) for example in writing.examples]
    targets = [spelling(loaded.tokenizer, ids[:most]).strip() for ids in follow]
    values, compat = (rouge_l(targets, found, stemmed=False, compat=compat)[1] for compat in (False, True))
    return Written(key, writing, targets, found, values, shortened, compat)


def summarise(found: Mapping[str, Written]) -> tuple[dict[str, tuple[float, Interval]], list[str]]:
    """Each metric's mean with its 95 % interval, and notes."""
    columns = {key: each.values for key, each in found.items()}
    columns |= {f"{key}_compat": each.compat for key, each in found.items()}
    summary = {key: (float(values.mean()), interval_of_mean(values)) for key, values in columns.items()}
    notes = [
        f"{key}: {each.shortened} of {len(each.texts)} prompts did not fit the model and lost their beginning"
        for key, each in found.items()
        if each.shortened
    ]
    return summary, notes
