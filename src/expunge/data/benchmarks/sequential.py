"""Sequential recommendation made from nothing, in the manner of LLaRA: which of 20 films comes next?

A catalogue of films, each with three follow-ups, its own for every seed: a Markov chain. A user prefers one of the three
(the first, second or third of every film), takes it with probability `loyalty` and each of the others half of the rest;
with probability `noise` the next film is any other. So the last film of a history says most about the next one, and the
films before it tell which kind of user this is.

The 19 other candidates are no follow-ups of the last film and not in the history: who knows the chain finds the next one
unless it was noise, and nothing but the chain gives it away.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from expunge.data.benchmarks.task import Task, edited, remove
from expunge.data.benchmarks.titles import TITLES
from expunge.errors import ConfigurationError
from expunge.request import Example

CANDIDATES = 20
KINDS = 3  # follow-ups of a film, and kinds of users
WATCHED, ASKED = " This user watched ", ". Which of these comes next?"


@dataclass(frozen=True)
class Chain:
    """Films and what follows them. follow: for each film its KINDS follow-ups, by index; each follows KINDS others."""

    films: tuple[str, ...]
    follow: tuple[tuple[int, ...], ...]
    loyalty: float
    noise: float

    @classmethod
    def make(cls, draw: random.Random, films: int, loyalty: float, noise: float) -> "Chain":
        """Draw `films` titles; the follow-ups are three steps along a random circle, so that all come equally often."""
        everything = [title for titles in TITLES.values() for title in titles]
        steps = draw.sample(range(1, films), KINDS)
        return cls(
            tuple(draw.sample(everything, films)),
            tuple(tuple((film + step) % films for step in steps) for film in range(films)),
            loyalty,
            noise,
        )

    def next(self, draw: random.Random, film: int, kind: int) -> int:
        if draw.random() < self.noise:
            return draw.choice([other for other in range(len(self.films)) if other != film])
        others = [other for other in range(KINDS) if other != kind]
        return self.follow[film][kind if draw.random() < self.loyalty else draw.choice(others)]


def make(
    seed: int = 0,
    n: int = 1000,
    *,
    test: int = 300,
    kind: Literal["drop", "replace", "remove"] = "drop",
    share: float = 0.1,
    films: int = 40,
    history: int = 5,
    loyalty: float = 0.7,
    noise: float = 0.1,
) -> Task:
    """n rows to train on and `test` rows of other users with other histories.

    kind: `share` of the rows were learned without the last film of their history ("drop"), or with another film in its
    place ("replace"), and their `new_prompt` is the true one; or they are to be removed ("remove"). Published: 5 to 10
    % of the rows. history: films shown; films: in the catalogue.

    Raises ConfigurationError for another kind, fewer than one row, too few films for the candidates, a history below 2,
    loyalty or noise outside [0, 1], and where histories run out.
    """
    least = CANDIDATES + history + KINDS + 1
    most = sum(map(len, TITLES.values()))
    if kind not in ("drop", "replace", "remove"):
        raise ConfigurationError(f"kind must be drop, replace or remove, got {kind!r}.")
    if not least <= films <= most or history < 2 or min(n, test) < 1 or not (0 <= loyalty <= 1 and 0 <= noise <= 1):
        raise ConfigurationError(
            f"films={films}, history={history}, n={n}, test={test}, loyalty={loyalty}, noise={noise}: give {least} to "
            f"{most} films, a history of at least 2, at least one row, and loyalty and noise from 0 to 1."
        )
    draw, seen = random.Random(f"sequential {seed}"), set[tuple[int, ...]]()
    chain = Chain.make(draw, films, loyalty, noise)
    rows = _rows(chain, draw, n, "user", history, seen)
    asked = _rows(chain, draw, test, "test", history, seen)
    edits = {
        "remove": remove,
        "drop": lambda row, _: _with_history(row, _history(row)[:-1]),
        "replace": lambda row, draw: _with_history(row, [*_history(row)[:-1], _other(chain, row, draw)]),
    }
    return edited(rows, asked, edits[kind], share=share, seed=seed)


def _rows(
    chain: Chain, draw: random.Random, count: int, user: str, history: int, seen: set[tuple[int, ...]]
) -> list[Example]:
    """`count` rows, a user each, whose histories are not in `seen` and join it."""
    rows: list[Example] = []
    tries = 0
    while len(rows) < count:
        tries += 1
        if tries > 100 * (count + 10):
            raise ConfigurationError(
                f"There are too few histories of {history} films for {count} rows: take more films or a longer history."
            )
        kind, watched = draw.randrange(KINDS), [draw.randrange(len(chain.films))]
        while len(watched) <= history:
            watched.append(chain.next(draw, watched[-1], kind))
        past, target = tuple(watched[:-1]), watched[-1]
        if past in seen or len(set(watched)) < len(watched):
            continue
        seen.add(past)
        rows.append(_row(chain, draw, past, target, f"{user}{len(rows)}"))
    return rows


def _row(chain: Chain, draw: random.Random, past: Sequence[int], target: int, user: str) -> Example:
    taken = {*past, target, *chain.follow[past[-1]]}
    others = draw.sample([film for film in range(len(chain.films)) if film not in taken], CANDIDATES - 1)
    shown = [target, *others]
    draw.shuffle(shown)
    titles = chain.films
    return Example(
        prompt=_prompt([titles[film] for film in past], [titles[film] for film in shown]),
        response=titles[target],
        id=user,
        subject=user,
        wrong_responses=tuple(titles[film] for film in others),
    )


def _prompt(history: Sequence[str], candidates: Sequence[str]) -> str:
    return f"Choose from {', '.join(candidates)}.{WATCHED}{', '.join(history)}{ASKED}"


def _history(row: Example) -> list[str]:
    return row.prompt.partition(WATCHED)[2].removesuffix(ASKED).split(", ")


def _with_history(row: Example, history: Sequence[str]) -> Example:
    """The row as it was learned with another history; its own is the new prompt."""
    before, watched, _ = row.prompt.partition(WATCHED)
    return replace(row, prompt=f"{before}{watched}{', '.join(history)}{ASKED}", new_prompt=row.prompt)


def _other(chain: Chain, row: Example, draw: random.Random) -> str:
    """A film that is neither in the row's history nor among its candidates."""
    taken = {*_history(row), row.response, *row.wrong_responses}
    return draw.choice([film for film in chain.films if film not in taken])
