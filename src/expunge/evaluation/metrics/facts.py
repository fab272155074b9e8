"""The facts of a text that can be told without a model: its names, and its numbers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# words that may begin a sentence, or stand before a name, and are none
PLAIN = frozenset("""
    a an and are as at but by can did do does during each every for from had has have he her hers his how i if in is it
    its many most my no not of on one or our she since so some that the their there these they this those to was we
    were what when where which while who whom whose why will with yes you your
""".split())  # fmt: skip # noqa: SIM905
LISTS = {
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
}  # fmt: skip
ORDINAL = re.compile(r"(\d+)(st|nd|rd|th)")


@dataclass(frozen=True)
class Fact:
    """A name or a number, where it stands in a text, and the word before it."""

    text: str
    start: int
    stop: int
    before: str

    @property
    def kind(self) -> str:
        """ "number 4" (of four digits), "ordinal", "month", "day" or "name": what may stand in its place."""
        if self.text[0].isdigit():
            return "ordinal" if ORDINAL.fullmatch(self.text) else f"number {len(self.text)}"
        return next((kind for kind, words in LISTS.items() if self.text in words), "name")


def facts(text: str) -> list[Fact]:
    """The names (runs of capitalised words) and numbers of a text, in order.

    A capital at the beginning of a sentence makes no name by itself, and small words are taken off a name's front.
    """
    found: list[Fact] = []
    run: list[re.Match[str]] = []
    for match in (*re.finditer(r"\d+(?:st|nd|rd|th)\b|\d+(?:[.,:/]\d+)*|[^\W\d_][\w’'-]*", text), None):
        joined = run and match is not None and text[run[-1].end() : match.start()] == " "
        capital = match is not None and match.group()[0].isupper()
        if run and not (joined and capital):
            found += _named(text, run)
            run = []
        if match is not None and match.group()[0].isdigit():
            found.append(Fact(match.group(), match.start(), match.end(), _before(text, match.start())))
        elif match is not None and capital:
            run.append(match)
    return found


def _named(text: str, run: list[re.Match[str]]) -> Iterator[Fact]:
    before = text[: run[0].start()].rstrip()
    begins = not before or before[-1] in '.!?:;"“(\n'
    words = run
    while words and words[0].group().casefold() in PLAIN:
        words, begins = words[1:], False
    if words and not (begins and len(words) == 1):
        stop = words[-1].end() - (2 if words[-1].group().endswith(("'s", "’s")) else 0)
        start = words[0].start()
        yield Fact(text[start:stop], start, stop, _before(text, start))


def _before(text: str, place: int) -> str:
    """The word before a place, in small letters."""
    return re.sub(r"\W", "", (text[:place].split() or [""])[-1]).casefold()
