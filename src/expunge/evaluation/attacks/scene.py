"""What an attack is given, how a model under it is measured, and what it found.

Every attack measures the same way, so that its points can be compared with one another and between models: forget (and
retain) examples are scored and answered greedily, and each measure comes with its bootstrap interval.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from expunge.data import Encoder
from expunge.evaluation.conditions import Conditions
from expunge.evaluation.generation import generate
from expunge.evaluation.measure import Measured, known, measure, plan
from expunge.evaluation.measure import Plan as SetPlan
from expunge.evaluation.metrics import leakage
from expunge.evaluation.records import Progress, score
from expunge.evaluation.summary import canonical_weights, set_means
from expunge.models import Loaded
from expunge.request import Example

KEPT = ("extraction_strength", "probability", "exact_memorization", "rouge_l", "keywords")
WORST = 5  # examples kept for a person to read
Step = Callable[[dict[str, Any], int], None]


class SpentError(Exception):
    """The budget of an attack is used up; what it found so far stands."""


@dataclass(eq=False)
class Scene:
    """One model under attack, and the examples it is asked about.

    role: "original", "retrained" or "unlearned". sets: what is measured, "forget" and where there is one "retain".
    known: all examples of the request by set, to train on or to show. original: the model before unlearning, for attacks
    that need it. prefix_tokens: see `Suite`. progress, step: told of evaluation batches and training steps.
    """

    loaded: Loaded
    role: str
    sets: Mapping[str, tuple[Example, ...]]
    known: Mapping[str, tuple[Example, ...]]
    encoder: Encoder
    original: Loaded | None = None
    max_new_tokens: int = 64
    prefix_tokens: int | None = None
    batch_size: int = 32
    progress: Progress | None = None
    step: Step | None = None
    _untouched: dict[str, Measured] = field(default_factory=dict, repr=False)

    def conditions(self) -> Conditions:
        """How the model is measured here."""
        sizes = {"new_tokens": self.max_new_tokens, "prefix": self.prefix_tokens}
        return Conditions.of(self.loaded, self.encoder, [self.plan(*each) for each in self.sets.items()], **sizes)

    def untouched(self) -> dict[str, Measured]:
        """The sets as the model answers them before any attack; measured once."""
        if not self._untouched:
            self._untouched.update(self.measure())
        return dict(self._untouched)

    def measure(
        self, sets: Mapping[str, Sequence[Example]] | None = None, *, loaded: Loaded | None = None
    ) -> dict[str, Measured]:
        """Measure the model (or `loaded`) on the sets (default: the scene's own) as it is now."""
        chosen = self.sets if sets is None else sets
        return self.answer([self.plan(name, examples) for name, examples in chosen.items()], loaded=loaded)

    def plan(self, name: str, examples: Sequence[Example]) -> SetPlan:
        """Examples in tokens (see `expunge.evaluation.measure.plan`)."""
        sizes = {"prefix_tokens": self.prefix_tokens, "max_new_tokens": self.max_new_tokens}
        return plan(name, examples, self.encoder, **sizes)

    def answer(
        self,
        plans: Sequence[SetPlan],
        *,
        loaded: Loaded | None = None,
        asked: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, Measured]:
        """One scoring pass and one greedy generation pass over all plans.

        asked: by set the questions whose words are no key words of the answer, where the plan's prompts hold more.
        """
        model = loaded or self.loaded
        encoded = [item for each in plans for item in each.encoded]
        records = iter(score(model, encoded, batch_size=self.batch_size, progress=self.progress))
        own = {each.name: [next(records) for _ in each.encoded] for each in plans}
        prompts = [ids for each in plans for ids in each.prompts if ids is not None]
        told = [tokens for each in plans for tokens in known(each, own[each.name])]
        sizes: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        texts = iter(generate(model, prompts, known=told, progress=self.progress, **sizes))
        found = {}
        for each in plans:
            answers = [None if ids is None else next(texts) for ids in each.prompts]
            found[each.name] = _with_key_words(measure(each, own[each.name], answers), (asked or {}).get(each.name))
        return found


def _with_key_words(measured: Measured, asked: Sequence[str] | None) -> Measured:
    """With the column "keywords": 1 where the generation holds all key words of the answer, else 0."""
    column = np.full(len(measured.examples), np.nan)
    for index, (text, (prompt, response)) in enumerate(zip(measured.generations, measured.shown, strict=True)):
        if text is not None:
            question = prompt if asked is None else asked[index]
            column[index] = leakage.leaks([question], [response], [[text]])[0, 0]
    return replace(measured, columns={**measured.columns, "keywords": column})


def bare(name: str, examples: Sequence[Example]) -> tuple[Example, ...]:
    """Examples without what only the truth ratio needs, each with an id, so that it is known wherever it is measured."""
    return tuple(
        replace(example, wrong_responses=(), paraphrased_response=None, id=example.id or f"{name}/{index}")
        for index, example in enumerate(examples)
    )


def summarise(sets: Mapping[str, Measured]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The mean of each measure over each set, and its bootstrap 95 % interval: "<set>.<measure>" to numbers."""
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for stream, measured in enumerate(sets.values()):
        kept = {key: measured.columns[key] for key in KEPT if key in measured.columns}
        kept = {key: column for key, column in kept.items() if not np.isnan(column).all()}
        means, _ = set_means(replace(measured, columns=kept), canonical_weights(measured, stream))
        for key, (value, interval) in means.items():
            metrics[key], intervals[key] = value, list(interval)
    return metrics, intervals


@dataclass
class Found:
    """What an attack found on one model, point by point; the first point is the model before it.

    seconds: its budget; once it is used up, `add` raises SpentError.
    """

    seconds: float | None = None
    points: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answers: list[tuple[str, Measured]] = field(default_factory=list, repr=False)
    started: float = field(default_factory=time.perf_counter)

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.started

    def add(
        self,
        at: float,
        label: str,
        sets: Mapping[str, Measured],
        *,
        metrics: Mapping[str, float] | None = None,
        intervals: Mapping[str, Sequence[float]] | None = None,
        last: bool = False,
    ) -> None:
        """One more point: the sets' measures and further `metrics`. last: nothing follows, so no budget ends here."""
        means, bounds = summarise(sets)
        bounds |= {key: list(pair) for key, pair in (intervals or {}).items()}
        self.points.append({"at": at, "label": label, "metrics": {**means, **(metrics or {})}, "intervals": bounds})
        if "forget" in sets:
            self.answers.append((label, sets["forget"]))
        if self.seconds is not None and self.spent > self.seconds and not last:
            self.notes.append(
                f"the budget of {self.seconds:g} s was used up after {label!r}; what follows was left out"
            )
            raise SpentError

    def examples(self) -> list[dict[str, Any]]:
        """The forget examples of which the attack drew out most beyond what the model said before it, worst first."""
        if not self.answers:
            return []
        before = {row["id"]: row for row in self.answers[0][1].details()}
        worst: dict[str, dict[str, Any]] = {}
        for label, measured in self.answers[1:]:
            for row in measured.details():
                own = before.get(row["id"])
                if row["generation"] is None or own is None or row.get("rouge_l") is None:
                    continue
                entry = {
                    "id": row["id"],
                    "at": label,
                    "prompt": row["prompt"],
                    "answer": row["response"],
                    "before": own["generation"],
                    "generation": row["generation"],
                    "rouge_l": row["rouge_l"],
                    "gain": row["rouge_l"] - (own.get("rouge_l") or 0.0),
                }
                known = worst.get(row["id"])
                if known is None or entry["gain"] > known["gain"]:
                    worst[row["id"]] = entry
        ranked = sorted(worst.values(), key=lambda entry: (-entry["gain"], -entry["rouge_l"], entry["id"]))
        return ranked[:WORST]
