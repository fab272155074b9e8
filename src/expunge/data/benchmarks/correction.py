"""Question answering with wrong labels among the training data, for response correction.

`make` asks for facts on fictional people in two wordings, some of them with somebody else's fact as the answer, and tests
each fact in a third wording. `from_questions` does the same with multiple-choice questions such as MMLU's, whose answer is
a letter, and tests other questions.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from expunge.data.benchmarks.fictional import TOPICS, Fact, Person, people
from expunge.data.benchmarks.questions import LETTERS, Question
from expunge.data.benchmarks.task import Task, distinct, edited, flip
from expunge.errors import ConfigurationError
from expunge.request import Example

TRAINED, TESTED = (0, 1), 2  # wordings


def make(seed: int = 0, n: int = 600, *, share: float = 0.4, wrong: int = 3, pretrain: int = 150) -> Task:
    """n rows on fictional people (rounded up to whole people, 12 rows each), `share` of them learned with a wrong answer.

    A wrong answer is another learned person's fact on the topic, one of the `wrong` (3) that the fact's test question
    has as options. `pretrain`: that many further people in all three wordings, so that a small model can know before
    that the wordings ask the same.

    Raises ConfigurationError for fewer people than `wrong` + 1, more than there are names, or wrong below 1.
    """
    learned = math.ceil(n / (len(TRAINED) * len(TOPICS)))
    if not 1 <= wrong < learned:
        raise ConfigurationError(
            f"n={n} rows are {learned} people, and wrong={wrong}: give 1 to {learned - 1} for these."
        )
    everyone = people(learned + pretrain, seed) if pretrain else people(learned, seed)
    draw = random.Random(f"correction {seed}")
    rows, test = [], []
    for person in everyone[:learned]:
        for topic, fact in person.facts.items():
            others: list[Fact] = []  # two people may share a fact
            for other in everyone[:learned]:
                if other.facts[topic] != fact and other.facts[topic] not in others:
                    others.append(other.facts[topic])
            facts = draw.sample(others, wrong)
            rows += [_asked(person, topic, wording, facts) for wording in TRAINED]
            test.append(_asked(person, topic, TESTED, facts))
    return edited(rows, test, flip, share=share, seed=seed, pretrain=_all_wordings(everyone[learned:]))


def _asked(person: Person, topic: str, wording: int, wrong: Sequence[Fact] = ()) -> Example:
    return replace(person.example(topic, wording, wrong, options=True), paraphrased_prompt=None)


def _all_wordings(known: Sequence[Person]) -> list[Example]:
    return [_asked(person, topic, wording) for person in known for topic in TOPICS for wording in (*TRAINED, TESTED)]


def from_questions(train: Sequence[Question], test: Sequence[Question], seed: int = 0, *, share: float = 0.4) -> Task:
    """The questions with their options listed, answered by a letter; `share` of `train` learned with a wrong letter.

    Questions of `train` that ask the same as an earlier one or as one of `test` are left out. Raises what
    `task.edited` raises.
    """
    asked = distinct(_lettered(test, "test"), set())
    rows = distinct(_lettered(train, "train"), {example.prompt for example in asked})
    return edited(rows, asked, flip, share=share, seed=seed)


def _lettered(questions: Sequence[Question], name: str) -> list[Example]:
    return [
        Example(
            prompt="\n".join([question.question.strip(), *map("{}. {}".format, letters, question.choices)]),
            response=letters[question.answer],
            id=f"{name}/{index}",
            subject=question.subject,
            wrong_responses=tuple(letter for letter in letters if letter != letters[question.answer]),
            where=question.where,
        )
        for index, question in enumerate(questions)
        for letters in [LETTERS[: len(question.choices)]]
    ]
