"""What to evaluate on, as data: named sets of examples, and which of them say what the model can still do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from expunge.data.benchmarks.questions import Question
from expunge.errors import ConfigurationError
from expunge.request import Example

T = TypeVar("T")
Scoring = Literal["letter", "text"]


@dataclass(frozen=True)
class Quiz:
    """Multiple-choice questions, each put after the same `shots`: solved questions of the same subject."""

    questions: tuple[Question, ...]
    shots: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Choice:
    """Examples whose answer is one of a few options: the response, or one of `wrong_responses`.

    positive: of yes/no questions, the option that counts as yes (the same text in every example); None for others.
    written: whether the model also has to write its answer.
    """

    examples: tuple[Example, ...]
    positive: str | None = None
    written: bool = False

    def __post_init__(self) -> None:
        if not self.examples:
            raise ConfigurationError("A choice without examples: give at least one.")
        for example in self.examples:
            options = (example.response, *example.wrong_responses)
            named = example.where or example.id or repr(example.prompt[:60])
            if len(options) < 2 or len(set(options)) < len(options):
                raise ConfigurationError(f"{named}: give wrong_responses, all different from the response and another.")
            if self.positive is not None and (len(options) != 2 or self.positive not in options):
                raise ConfigurationError(f"{named}: a yes/no question has two options, one of them {self.positive!r}.")


@dataclass(frozen=True)
class Writing:
    """Texts a model is to go on from by itself, compared with how they should go on (see `expunge.evaluation.writing`).

    examples: the prompt, and as response what should follow. lead: stands before each prompt, such as solved questions.
    form: how a prompt is put, `{}` standing for it; no chat template is used. max_new_tokens: how long a continuation
    may be, and of a longer response how much counts. stops: what ends a continuation, and is not part of it.
    """

    examples: tuple[Example, ...]
    max_new_tokens: int
    lead: str = ""
    form: str = "{}"
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.examples:
            raise ConfigurationError("Texts to go on from, but none is there: give at least one.")


@dataclass(frozen=True)
class Tasks:
    """Tasks of lm-eval by name (see `expunge.evaluation.suites.harness`)."""

    names: tuple[str, ...]
    shots: int | None = None
    limit: int | None = None
    folder: str | None = None


@dataclass(frozen=True)
class Suite:
    """Named sets of examples to measure a model on.

    `sets`: "forget" must be one of them; "holdout", if there, is what membership attacks compare it with. `silent`: the
    sets nothing is generated for. `utility`: the sets whose probability, ROUGE-L and truth ratio make up `model_utility`.
    `with_options`: those of them whose probability is taken among the options, p_right / (p_right + Σ p_wrong).
    `max_new_tokens`: how long a generated response may be. `prefix_tokens`: of running text, how many tokens are given
    before the model has to go on by itself; None: half of each text's. `notes` are handed on to the person.
    `quizzes`: named multiple-choice questions; a suite of these alone needs no sets. `groups`: names for several
    quizzes taken together. `scoring`: see `expunge.evaluation.quiz.answer`. `choices`: named examples with options, put
    as they are trained on (see `expunge.evaluation.choice.choose`); a suite of these alone needs no sets either.
    `writings`: texts to go on from, each under the metric it gives ("forget.verbmem"); likewise. `tasks`: of lm-eval.

    Raises ConfigurationError if a set is empty or missing, an example of a `with_options` set has no options, or
    `prefix_tokens` is below 1.
    """

    name: str
    sets: Mapping[str, tuple[Example, ...]]
    utility: tuple[str, ...] = ()
    with_options: tuple[str, ...] = ()
    max_new_tokens: int = 200
    prefix_tokens: int | None = None
    notes: tuple[str, ...] = ()
    quizzes: Mapping[str, Quiz] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scoring: Scoring = "letter"
    choices: Mapping[str, Choice] = field(default_factory=dict)
    writings: Mapping[str, Writing] = field(default_factory=dict)
    tasks: Tasks | None = None
    silent: tuple[str, ...] = ("holdout",)

    def __post_init__(self) -> None:
        if self.prefix_tokens is not None and self.prefix_tokens < 1:
            raise ConfigurationError(f"prefix_tokens must be at least 1, got {self.prefix_tokens}.")
        if (self.quizzes or self.choices or self.writings or self.tasks) and not self.sets:
            return
        for name in ("forget", *self.utility, *self.with_options):
            if name not in self.sets:
                raise ConfigurationError(f"The suite {self.name} has no set {name!r}; it has {', '.join(self.sets)}.")
        for name, examples in self.sets.items():
            if not examples:
                raise ConfigurationError(f"The set {name!r} of the suite {self.name} is empty.")
        for name in self.with_options:
            bare = next((example for example in self.sets[name] if not example.wrong_responses), None)
            if bare is not None:
                raise ConfigurationError(
                    f"{bare.where or bare.id or repr(bare.prompt)} has no wrong_responses, and the probability of "
                    f"{name!r} is taken among options. Add them, or take {name!r} out of with_options."
                )


def subsample(examples: Sequence[T], limit: int | None) -> tuple[T, ...]:
    """At most `limit` examples, evenly spaced, so that every part of an ordered set is there; None keeps all.

    Raises ConfigurationError if `limit` is below 1.
    """
    if limit is None or limit >= len(examples):
        return tuple(examples)
    if limit < 1:
        raise ConfigurationError(f"limit must be at least 1, got {limit}.")
    return tuple(examples[index * len(examples) // limit] for index in range(limit))


def limit_note(sets: Mapping[str, Sequence[Any]], limit: int | None) -> tuple[str, ...]:
    """A sentence that names the sets `limit` made smaller, if it did any."""
    if limit is None:
        return ()
    cut = [f"{name} ({len(examples)})" for name, examples in sets.items() if len(examples) > limit]
    return (f"only {limit} evenly spaced examples of each of {', '.join(cut)} were used",) if cut else ()
