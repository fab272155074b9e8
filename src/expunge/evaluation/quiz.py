"""Multiple choice: which option a model finds likeliest, from the same teacher-forced pass all other metrics read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from expunge.data import Encoded, Encoder, collate
from expunge.data.benchmarks.questions import LETTERS, Question, letter_prompt, text_prompt
from expunge.errors import DivergedError
from expunge.evaluation.records import Progress, evaluating, passes, score
from expunge.evaluation.statistics import Interval, interval_of_mean
from expunge.evaluation.suites.suite import Quiz, Scoring, Suite
from expunge.models import Loaded, answers

LONGEST = 2048  # tokens of a prompt, or the model's positions if fewer; what the harness takes where none are known
CUE = "Answer:"  # what every prompt ends with


@dataclass(frozen=True)
class Answered:
    """What a model answers to a quiz of n questions.

    chosen: [n] index of its likeliest option. right: [n] of the right one. share: [n] the right option's probability
    among the question's options. shortened: how many prompts lost their beginning.
    """

    questions: Sequence[Question]
    chosen: np.ndarray
    right: np.ndarray
    share: np.ndarray
    shortened: int = 0

    @property
    def correct(self) -> np.ndarray:
        """[n] 1 where the likeliest option is the right one, else 0."""
        return (self.chosen == self.right).astype(np.float64)

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return float(np.mean([1 / len(question.choices) for question in self.questions]))

    def details(self, name: str) -> list[dict[str, Any]]:
        """One dict per question: no texts, since the questions lie in the benchmark's files."""
        return [
            {
                "id": f"{name}/{index}",
                "where": question.where,
                "answer": LETTERS[self.right[index]],
                "chosen": LETTERS[self.chosen[index]],
                "accuracy": float(self.correct[index]),
                "probability_with_options": float(self.share[index]),
            }
            for index, question in enumerate(self.questions)
        ]


def answer(
    loaded: Loaded, quiz: Quiz, scoring: Scoring = "letter", *, batch_size: int = 32, progress: Progress | None = None
) -> Answered:
    """The model's likeliest option of each question.

    scoring "letter": the options stand in the prompt, and the letter with the largest summed log p counts. "text": they
    do not, and an option's Σ log p is divided by its number of characters (the harness's `acc_norm`).

    A question is computed once for all of its options; with `shots`, these are computed once for many questions (see
    `expunge.data.tree`). Raises DivergedError if the model answers with NaN.
    """
    encoder = Encoder(loaded.tokenizer, min(LONGEST, loaded.positions or LONGEST))
    prompts = [(letter_prompt if scoring == "letter" else text_prompt)(each, quiz.shots) for each in quiz.questions]
    options = [_options(each, scoring) for each in quiz.questions]
    items, shortened = encode(encoder, prompts, options)
    if not quiz.shots and all(len({item.ids[:-1] for item in row}) == 1 for row in items):
        found = last_tokens(loaded, items, batch_size, progress)
    else:
        records = iter(score(loaded, [item for row in items for item in row], batch_size=batch_size, progress=progress))
        found = [np.array([-next(records).nll_sum for _ in row]) for row in items]
    if scoring == "text":
        found = [sums / [len(text) for text in row] for sums, row in zip(found, options, strict=True)]
    chosen = np.array([int(sums.argmax()) for sums in found])
    share = [np.exp(sums - np.logaddexp.reduce(sums)) for sums in found]
    right = np.array([each.answer for each in quiz.questions])
    own = np.array([shares[index] for shares, index in zip(share, right, strict=True)])
    return Answered(quiz.questions, chosen, right, own, shortened)


def last_tokens(
    loaded: Loaded, items: Sequence[Sequence[Encoded]], batch_size: int, progress: Progress | None
) -> list[np.ndarray]:
    """log p of each option's last token, for options that differ in it alone: one row and one position a question.

    What the options have in common adds the same to each, so it is left out.
    """
    device = next(loaded.model.parameters()).device
    shared = [row[0] for row in items]
    found: list[np.ndarray] = [np.empty(0)] * len(items)
    batches = passes(loaded, shared, batch_size)
    with evaluating(loaded.model), torch.inference_mode():
        for done, rows in enumerate(batches, start=1):
            last = [Encoded(shared[row].ids, len(shared[row]) - 1) for row in rows]
            logp = answers(loaded.model, collate(last, loaded.pad).to(device)).logits.log_softmax(-1).cpu()  # [B, V]
            for place, row in enumerate(rows):
                found[row] = logp[place, [item.ids[-1] for item in items[row]]].double().numpy()
            if progress is not None:
                progress("score", done, len(batches))
    if not all(np.isfinite(sums).all() for sums in found):
        raise DivergedError(
            "The model answers with NaN or infinite numbers: its weights are damaged, or its precision is too low."
        )
    return found


def encode(
    encoder: Encoder, prompts: Sequence[str], options: Sequence[Sequence[str]]
) -> tuple[list[list[Encoded]], int]:
    """Each prompt with each of its options, whose tokens are labelled; and how many prompts were too long.

    An option is split into tokens as it would be after "Answer:" alone, so that all options follow the same prompt. A
    prompt that does not fit loses tokens at its beginning, but not the beginning token.
    """
    spelled: dict[str, tuple[int, ...]] = {}
    for option in dict.fromkeys(text for row in options for text in row):
        spelled[option] = tuple(encoder.split(CUE, f" {option}")[1])
    rows, shortened = [], 0
    begin = encoder.begin
    for prompt, row in zip(prompts, options, strict=True):
        ids = [*begin, *encoder.words(prompt)]
        room = encoder.max_length - max(len(spelled[option]) for option in row)
        if len(ids) > room:
            ids = [*begin, *ids[len(ids) - room + len(begin) :]]
            shortened += 1
        rows.append([Encoded((*ids, *spelled[option]), len(ids)) for option in row])
    return rows, shortened


def summarise(suite: Suite, found: Mapping[str, Answered]) -> tuple[dict[str, tuple[float, Interval]], list[str]]:
    """Accuracy of each quiz and of each group's questions together, the groups' mean probability, and notes."""
    measure = "accuracy" if suite.scoring == "letter" else "accuracy_text"
    summary = {f"{name}.{measure}": _mean(each.correct) for name, each in found.items()}
    for group, names in suite.groups.items():
        members = [found[name] for name in names]
        summary[f"{group}.{measure}"] = _mean(np.concatenate([each.correct for each in members]))
        summary[f"{group}.probability_with_options"] = _mean(np.concatenate([each.share for each in members]))
    return summary, list(_notes(suite, found))


def _notes(suite: Suite, found: Mapping[str, Answered]) -> Iterator[str]:
    chance = np.mean(np.concatenate([np.full(len(each.questions), each.chance) for each in found.values()]))
    shots = sorted({len(quiz.shots) for quiz in suite.quizzes.values()})
    ways = {"letter": "by the letters of the options", "text": "by the options' texts, per character"}
    yield (
        f"multiple choice: {sum(len(each.questions) for each in found.values())} questions, guessing gets {chance:.2f}; "
        f"scored {ways[suite.scoring]}, with {' or '.join(map(str, shots))} solved questions before each"
    )
    cut = sum(each.shortened for each in found.values())
    if cut:
        yield f"{cut} question(s) were longer than {LONGEST} tokens or the model's positions and lost their beginning"


def _options(question: Question, scoring: Scoring) -> Sequence[str]:
    return LETTERS[: len(question.choices)] if scoring == "letter" else [text.strip() for text in question.choices]


def _mean(values: Iterable[float]) -> tuple[float, Interval]:
    values = np.asarray(values)
    return float(values.mean()), interval_of_mean(values)
