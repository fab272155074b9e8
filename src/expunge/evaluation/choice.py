"""Examples whose answer is one of a few options, put as they are trained on: AUC, accuracy, HitRatio@1, valid ratio."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.data import Encoded, Encoder
from expunge.errors import RequestError
from expunge.evaluation.generation import generate
from expunge.evaluation.metrics import ranking
from expunge.evaluation.quiz import last_tokens
from expunge.evaluation.records import Progress, Record, score
from expunge.evaluation.statistics import Interval, interval_of_mean
from expunge.evaluation.suites.suite import Choice
from expunge.models import Loaded
from expunge.request import Example


@dataclass(frozen=True)
class Chosen:
    """What a model answers to n examples with options, the right one first.

    logp: for each example [k], what its options are compared by. texts: what it wrote, None where it was not asked to.
    picked: the option it wrote (0: the right one), None for no option.
    """

    name: str
    choice: Choice
    logp: Sequence[np.ndarray]
    texts: Sequence[str] | None = None

    @property
    def correct(self) -> np.ndarray:
        """[n] 1 where the right option is likelier than every other, else 0."""
        return np.array([float(sums[0] > sums[1:].max()) for sums in self.logp])

    @property
    def share(self) -> np.ndarray:
        """[n] the right option's probability among the options."""
        return np.array([np.exp(sums[0] - np.logaddexp.reduce(sums)) for sums in self.logp])

    @property
    def margin(self) -> np.ndarray:
        """[n] of yes/no questions: log p(yes) − log p(no)."""
        return np.array([sums[0] - sums[1] for sums in self.logp]) * np.where(self.positive, 1.0, -1.0)

    @property
    def positive(self) -> np.ndarray:
        """[n] bool: whether yes is right."""
        return np.array([example.response == self.choice.positive for example in self.choice.examples])

    @property
    def picked(self) -> list[int | None]:
        pairs = zip(self.texts or (), self.choice.examples, strict=True)
        return [ranking.written(text, _options(example)) for text, example in pairs]

    def details(self) -> list[dict[str, Any]]:
        """One dict per example for a person to read."""
        rows: list[dict[str, Any]] = []
        correct, share = self.correct, self.share
        for index, example in enumerate(self.choice.examples):
            row: dict[str, Any] = {
                "id": example.id or f"{self.name}/{index}",
                "prompt": example.prompt,
                "response": example.response,
                "likeliest": _options(example)[int(self.logp[index].argmax())],
                "option_accuracy": float(correct[index]),
                "probability_with_options": float(share[index]),
            }
            if self.texts is not None:
                row["generation"] = self.texts[index]
            rows.append(row)
        return rows


def choose(
    loaded: Loaded,
    name: str,
    choice: Choice,
    encoder: Encoder,
    *,
    new_tokens: int | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Chosen:
    """How likely a model finds each option of each example, and what it writes itself where `choice.written`.

    Yes/no questions are compared by log p at one position each, the first at which the tokens of the two answers differ
    (mostly that of " Yes" and " No"; what stands before is the same). Other options by Σ log p over all their tokens
    with the end token: how likely the model answers just that. new_tokens: how long a written answer may be; None:
    nothing is written.

    Raises RequestError for options that do not fit or become the same tokens, DivergedError if the model answers with
    NaN.
    """
    items = [_encoded(example, encoder) for example in choice.examples]
    if choice.positive is not None:
        ends = [_until_they_differ(row, example) for row, example in zip(items, choice.examples, strict=True)]
        return Chosen(name, choice, last_tokens(loaded, ends, batch_size, progress))
    records = iter(score(loaded, [item for row in items for item in row], batch_size=batch_size, progress=progress))
    found = [[next(records) for _ in row] for row in items]
    texts = None
    if choice.written and new_tokens is not None:
        texts = generate(
            loaded,
            [list(row[0].ids[: row[0].start]) for row in items],
            known=[_known(row[0], each[0]) for row, each in zip(items, found, strict=True)],
            max_new_tokens=new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
    return Chosen(name, choice, [np.array([-record.nll_sum for record in row]) for row in found], texts)


def _options(example: Example) -> tuple[str, ...]:
    return (example.response, *example.wrong_responses)


def _encoded(example: Example, encoder: Encoder) -> list[Encoded]:
    row = [encoder.pair(example, example.prompt, option) for option in _options(example)]
    if any(item.cut for item in row):
        raise RequestError(
            f"{example.where or example.id}: an option does not fit: prompt and option have more than "
            f"{encoder.max_length} tokens. Raise max_length, or shorten the prompt."
        )
    return row


def _until_they_differ(row: Sequence[Encoded], example: Example) -> list[Encoded]:
    """Both options up to and with the first token that differs, which alone is labelled."""
    places = range(row[0].start, min(map(len, row)))
    place = next((place for place in places if row[0].ids[place] != row[1].ids[place]), None)
    if place is None:
        raise RequestError(
            f"{example.where or example.id}: the tokenizer writes {example.response!r} and "
            f"{example.wrong_responses[0]!r} so that one cannot be told from the other."
        )
    return [Encoded(item.ids[: place + 1], place) for item in row]


def _known(item: Encoded, record: Record) -> tuple[int, ...]:
    """The first tokens of the right option that are the model's likeliest: greedy decoding begins with these."""
    return item.labels[: int(np.cumprod(record.correct).sum())]


def summarise(found: Iterable[Chosen]) -> tuple[dict[str, tuple[float, Interval]], list[str]]:
    """Each choice's metrics with their 95 % intervals, and notes.

    `option_accuracy`, `probability_with_options`; of yes/no questions `auc`; where the model wrote, `valid_ratio` (the
    share of answers that hold exactly one option) and `hit_ratio` (the share of these that are right; 0 without any).
    """
    summary: dict[str, tuple[float, Interval]] = {}
    notes: list[str] = []
    for each in found:
        values = {"option_accuracy": each.correct, "probability_with_options": each.share}
        if each.texts is not None:
            picked = each.picked
            valid = [option for option in picked if option is not None]
            values["hit_ratio"] = np.array([float(option == 0) for option in valid] or [0.0])
            values["valid_ratio"] = np.array([float(option is not None) for option in picked])
        summary |= {f"{each.name}.{name}": (float(row.mean()), interval_of_mean(row)) for name, row in values.items()}
        if each.choice.positive is not None and 0 < each.positive.sum() < len(each.positive):
            summary[f"{each.name}.auc"] = ranking.auc(each.margin, each.positive)
        notes += _notes(each)
    return summary, notes


def _notes(each: Chosen) -> Iterator[str]:
    count, options = len(each.choice.examples), [len(example.wrong_responses) + 1 for example in each.choice.examples]
    yield f"{each.name}: {count} questions with options; guessing gets {np.mean([1 / k for k in options]):.2f}"
    if each.choice.positive is not None and not 0 < each.positive.sum() < count:
        yield f"{each.name}: all answers are the same, so there is no AUC"
    if each.choice.written and each.texts is None:
        yield f"{each.name}: nothing was generated, so there is no hit ratio and no valid ratio"
