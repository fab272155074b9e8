"""Which turns of a conversation are trained, forgotten and measured, and what the others still hold."""

import re
from collections.abc import Iterable, Iterator, Sequence

from expunge.data.template import Targets
from expunge.request import Example

SHOWN = 5  # words named in a warning
WORD = re.compile(r"[^\W_](?:[\w@.+'’-]*[^\W_])?")
SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")


def units(examples: Iterable[Example], targets: Targets) -> tuple[Example, ...]:
    """The examples, one for each turn that is a target; of equal ones, the first.

    An earlier turn becomes an example of its own, whose context is what comes before it. Where an example is corrected
    or rewritten, only its last answer is a target: what the others would become is not known.
    """
    rows = [turn for example in examples for turn in _turns(example, targets)]
    seen: set[tuple[str, ...]] = set()
    return tuple(row for row, last in rows if last or not (row.key in seen or seen.add(row.key)))


def earlier(examples: Iterable[Example], targets: Targets) -> set[tuple[str, ...]]:
    """The keys of all targets of the examples but their last answers."""
    return {row.key for example in examples for row, last in _turns(example, targets) if not last}


def _turns(example: Example, targets: Targets) -> Iterator[tuple[Example, bool]]:
    turns = [*example.context, ("user", example.prompt)] if example.prompt or example.context else []
    if targets != "last" and example.kind == "remove" and example.role == "assistant":
        for number, (role, text) in enumerate(turns):
            if text.strip() and (targets == "all" or role == "assistant"):
                asks = number and turns[number - 1][0] == "user" and role == "assistant"
                before = turns[: number - 1] if asks else turns[:number]
                yield (
                    Example(
                        prompt=turns[number - 1][1] if asks else "",
                        response=text,
                        context=tuple(before),
                        role=role,
                        subject=example.subject,
                        id=f"{example.id}/turn {number + 1}" if example.id else "",
                        where=f"{example.where} (turn {number + 1})" if example.where else "",
                    ),
                    False,
                )
    yield example, True


def without(rows: Sequence[Example], others: set[tuple[str, ...]]) -> tuple[Example, ...]:
    """The rows whose key is not among `others`."""
    return tuple(row for row in rows if row.key not in others)


def left_over(forget: Sequence[Example], retain: Sequence[Example], targets: Targets) -> str | None:
    """A warning on names and numbers of the forget set that are in turns which are no target, or None.

    A name is a capitalised word within a sentence, a number a word with a digit; words that the retain set uses too are
    not the forget set's own. Of a question that begins a conversation no word counts: it is how one asks. What scripts
    without capital letters call a name is not found.
    """
    common = {word for example in retain for word in _words(_texts(example))}
    rows: list[Example] = []
    words: dict[str, None] = {}
    for example in forget:
        own = [word for text in _untouched(example, targets) for word in _rare(text) if word not in common]
        rows += [example] if own else []
        words |= dict.fromkeys(own)
    if not words:
        return None
    shown = ", ".join(repr(word) for word in list(words)[:SHOWN]) + (", …" if len(words) > SHOWN else "")
    first = rows[0].where or rows[0].id or repr(rows[0].prompt[:60])
    other = {"last": "--targets assistant or --targets all includes", "assistant": "--targets all includes"}[targets]
    return (
        f"forget: names or numbers ({shown}) are in turns that are no target, in {len(rows)} of {len(forget)} examples, "
        f"the first {first}: they are not forgotten there. {other} more turns."
    )


def _untouched(example: Example, targets: Targets) -> Iterator[str]:
    """The texts of a conversation's turns that are no target; of its last question, what is no question."""
    if targets == "all" and example.kind == "remove":
        return
    for role, text in example.context:
        if role != "assistant" or targets == "last" or example.kind != "remove":
            yield text
    yield "\n".join(part for part in SENTENCE.split(example.prompt) if not part.rstrip().endswith(("?", "？", "؟")))


def _rare(text: str) -> Iterator[str]:
    for sentence in SENTENCE.split(text):
        for place, match in enumerate(WORD.finditer(sentence)):
            word = match.group()
            number = any(character.isdigit() for character in word)
            if number or (place and word[0].isupper() and len(word) > 1):
                yield word


def _texts(example: Example) -> str:
    return "\n".join([*(text for _, text in example.context), example.prompt, example.response])


def _words(text: str) -> Iterator[str]:
    return (match.group() for match in WORD.finditer(text))
