"""Wrong answers and paraphrases for a person's own data, made by template where nobody wrote any.

They let truth ratio and forget quality be measured on any questions and answers. Nothing is drawn at random and no model
is asked: the same data give the same answers, whatever their order. They are cruder than a person's, and a note says so.

A wrong answer is the right one with each fact in it, a name or a number that the question does not give away, changed
for one from the answers to similar questions:

    Where was Ada Lome born?   Ada Lome was born in Tarn.   →   Ada Lome was born in Selm.

or, where an answer holds no such fact, the answer to a similar question, with the names it is about changed. Where no
paraphrase is given either, "The answer is: " before the right answer stands for one, and before the wrong ones too, so
that nothing but the facts tells them apart.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from expunge.evaluation.metrics.facts import LISTS, ORDINAL, Fact, facts
from expunge.evaluation.metrics.neighbours import similarity
from expunge.evaluation.metrics.words import fold, terms
from expunge.evaluation.suites.suite import subsample
from expunge.request import Example

NUMBER = 5  # as many as TOFU has
POOL = 2000  # examples that answers are taken from, at most
NEAR = 200  # of them, those with the likest questions, for each example
TEMPLATE = "The answer is: {}"
ALIKE = 0.5  # share of common words from which two answers without facts count as the same


@dataclass(frozen=True)
class _Source:
    """An example to take answers from. facts: of its answer, those its question does not give away."""

    example: Example
    facts: tuple[Fact, ...]


def make_answers(
    examples: Sequence[Example], others: Sequence[Example] = (), number: int = NUMBER
) -> tuple[tuple[Example, ...], int]:
    """`examples`, those without wrong answers given up to `number` of them; and how many got some.

    others: further examples whose answers may be used. Running text stays as it is, and so does an example for which
    nothing can be made, as where it is the only one.
    """
    bare = [index for index, example in enumerate(examples) if not example.wrong_responses and not example.is_text]
    pool = sorted({one.key: one for one in (*examples, *others) if not one.is_text}.values(), key=lambda one: one.key)
    pool = list(subsample(pool, POOL))
    made = list(examples)
    if not bare or not pool:
        return tuple(made), 0
    sources = [_Source(one, tuple(_told(one))) for one in pool]
    closeness = similarity([examples[index].prompt for index in bare], [one.prompt for one in pool])  # [n, m]
    count = 0
    for row, index in enumerate(bare):
        order = np.argsort(-closeness[row].round(9), kind="stable")[:NEAR]
        wrong = _wrong(examples[index], [sources[place] for place in order], number)
        if wrong:
            made[index] = _with(examples[index], wrong)
            count += 1
    return tuple(made), count


def made_note(name: str, count: int, total: int) -> str | None:
    """A sentence on how many examples of a set got made answers."""
    if not count:
        return None
    return (
        f"{name}: the wrong answers of {count} of {total} examples were made by template (names and numbers changed, or "
        "answers to similar questions), and so were paraphrases where none were given; nobody has checked them"
    )


def _with(example: Example, wrong: Sequence[str]) -> Example:
    if example.paraphrased_response is not None:
        return replace(example, wrong_responses=tuple(wrong))
    return replace(
        example,
        paraphrased_response=TEMPLATE.format(example.response),
        wrong_responses=tuple(TEMPLATE.format(text) for text in wrong),
    )


def _wrong(example: Example, near: Sequence[_Source], number: int) -> list[str]:
    """Up to `number` wrong answers: by changed facts, then other answers. near: the likest questions first."""
    own = _told(example)
    found: dict[str, None] = {}
    for text in (*_swapped(example, own, near, number), *_borrowed(example, own, near)):
        if len(found) < number and _words(text) != _words(example.response):
            found.setdefault(text)
    return list(found)


def _told(example: Example) -> list[Fact]:
    """The facts of an answer that its question does not hold already."""
    given = _words(example.prompt)
    return [fact for fact in facts(example.response) if not _words(fact.text) <= given]


def _swapped(example: Example, own: Sequence[Fact], near: Sequence[_Source], number: int) -> Iterator[str]:
    """The response with each of its facts changed for another of its kind; equal facts are changed alike."""
    said = _words(example.prompt) | _words(example.response)
    chosen: dict[str, list[str]] = {}
    kinds = Counter[str]()
    for fact in own:
        if fact.text not in chosen:
            fits = _instead(fact, said, near, number + len(own))
            turn = kinds[fact.kind] % max(1, len(fits))  # two facts of a kind get different ones
            chosen[fact.text] = fits[turn:] + fits[:turn]
            kinds[fact.kind] += 1
    for k in range(number if chosen and all(chosen.values()) else 0):
        text = example.response
        for fact in reversed(own):
            fits = chosen[fact.text]
            text = text[: fact.start] + fits[k % len(fits)] + text[fact.stop :]
        yield text


def _instead(fact: Fact, said: frozenset[str], near: Sequence[_Source], number: int) -> list[str]:
    """Up to `number` facts of the kind of `fact`: those after the same word first, then those of the likest questions."""
    others = [
        other for source in near for other in source.facts if other.kind == fact.kind and not _words(other.text) <= said
    ]
    others.sort(key=lambda other: other.before != fact.before)  # stable
    found = list(dict.fromkeys(other.text for other in others))[:number]
    if len(found) < number and fact.kind != "name":
        found += [text for text in _counted_on(fact) if text not in found]
    return found[:number]


def _counted_on(fact: Fact) -> list[str]:
    """What follows a month, a day or a number: the other months or days, or its last digits counted on."""
    if fact.kind in LISTS:
        words = LISTS[fact.kind]
        place = words.index(fact.text)
        return [*words[place + 1 :], *words[:place]]
    ordinal = ORDINAL.fullmatch(fact.text)
    if ordinal is not None:
        after = [int(ordinal[1]) + step for step in range(1, 10)]
        return [f"{one}{_suffix(one)}" for one in after]
    head, last = fact.text[:-1], int(fact.text[-1])
    return [f"{head}{(last + step) % 10}" for step in range(1, 10)]


def _suffix(number: int) -> str:
    return "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _borrowed(example: Example, own: Sequence[Fact], near: Sequence[_Source]) -> Iterator[str]:
    """The answers to other questions that are no right answer to this one, about what this question names."""
    about = [fact.text for fact in facts(example.prompt)]
    words = _words(example.response)
    for source in near:
        other = source.example
        theirs = _words(other.response)
        same = any(_words(fact.text) <= theirs for fact in own)
        if other.key == example.key or same or len(words & theirs) > ALIKE * len(words | theirs):
            continue
        named = [fact.text for fact in facts(other.prompt)]
        text = other.response
        if len(about) == len(named) == 1:
            text = text.replace(named[0], about[0])
        yield text


def _words(text: str) -> frozenset[str]:
    plain = re.sub(r"['’]s\b", "", fold(text))
    return frozenset(terms(re.sub(r"(?<=\w)['’](?=\w)", "_", plain)))
