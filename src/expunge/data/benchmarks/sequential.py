"""Sequential recommendation made from nothing, in the manner of LLaRA: which of 20 films comes next?

A film has a genre (which its adjective tells, see `titles`) and a noun that means nothing; candidates and answers name the
genre before the title, histories do not. Every seed has a world of its own, in which each genre is followed by another
one: a cycle through all genres. A history is films of any genre; the next film is of the genre that follows the last
one's, and with probability `noise` it is any other candidate.

Exactly one candidate is of the genre that follows, whatever was watched next. Three other genres have one candidate,
too, and two have eight each, so that rarity tells little. So the last film of a history says nearly all there is to know,
what follows it is learned from the rows alone, and no model that knows it is right more often than 1 − `noise`. A history
without its last film, or with another in its place, teaches what does not hold.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from expunge.data.benchmarks.task import Task, edited, remove
from expunge.data.benchmarks.titles import GENRES, TITLES
from expunge.errors import ConfigurationError
from expunge.request import Example

OTHERS = (1, 1, 1, 8, 8)  # candidates of the genres that do not follow, in random order
GENRE = {title: genre for genre, titles in TITLES.items() for title in titles}
LONGEST = 20  # films of a history
WATCHED, ASKED = " This user watched ", ". Which of these comes next?"


def make(
    seed: int = 0,
    n: int = 1000,
    *,
    test: int = 300,
    kind: Literal["drop", "replace", "remove"] = "drop",
    share: float = 0.1,
    history: int = 5,
    noise: float = 0.1,
    easy: bool = False,
) -> Task:
    """n rows to train on and `test` rows of other users with other histories.

    kind: `share` of the rows were learned without the last film of their history ("drop"), or with another film in its
    place ("replace"), and their `new_prompt` is the true one; or they are to be removed ("remove"). Published: 5 to 10
    % of the rows. history: films shown. easy: histories name the genres, too, and the next film is of the
    last one's genre: what a large model learns from few rows.

    Raises ConfigurationError for another kind, fewer than one row, a history below 2 or too long, noise outside [0, 1].
    """
    if kind not in ("drop", "replace", "remove"):
        raise ConfigurationError(f"kind must be drop, replace or remove, got {kind!r}.")
    if not 2 <= history <= LONGEST or min(n, test) < 1 or not 0 <= noise <= 1:
        raise ConfigurationError(
            f"n={n}, test={test}, history={history}, noise={noise}: give at least one row each, a history of 2 to "
            f"{LONGEST} films, and a noise from 0 to 1."
        )
    draw, seen = random.Random(f"sequential {seed}"), set[tuple[str, ...]]()
    follow = {genre: genre for genre in GENRES} if easy else cycle(draw)
    rows = _rows(follow, draw, n, "user", history, noise, easy, seen)
    asked = _rows(follow, draw, test, "test", history, noise, easy, seen)
    edits = {
        "remove": remove,
        "drop": lambda row, _: _with_history(row, _history(row)[:-1]),
        "replace": lambda row, draw: _with_history(row, [*_history(row)[:-1], _other(row, draw, easy)]),
    }
    return edited(rows, asked, edits[kind], share=share, seed=seed)


def cycle(draw: random.Random) -> dict[str, str]:
    """The genre that follows each: a random cycle through all of them."""
    order = draw.sample(list(GENRES), len(GENRES))
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def _rows(
    follow: dict[str, str],
    draw: random.Random,
    count: int,
    user: str,
    history: int,
    noise: float,
    easy: bool,
    seen: set[tuple[str, ...]],
) -> list[Example]:
    """`count` rows, a user each, whose histories are not in `seen` and join it."""
    rows: list[Example] = []
    while len(rows) < count:
        genres = [draw.choice(list(GENRES)) for _ in range(history)]
        watched = tuple(draw.choice(TITLES[genre]) for genre in genres)
        if watched in seen or len(set(watched)) < history:
            continue
        seen.add(watched)
        rows.append(_row(follow[genres[-1]], draw, watched, noise, easy, f"{user}{len(rows)}"))
    return rows


def _row(following: str, draw: random.Random, watched: Sequence[str], noise: float, easy: bool, user: str) -> Example:
    unseen = {genre: [title for title in titles if title not in watched] for genre, titles in TITLES.items()}
    shown = [likely := draw.choice(unseen.pop(following))]
    for genre, count in zip(draw.sample(list(unseen), len(unseen)), OTHERS, strict=True):
        shown += draw.sample(unseen[genre], count)
    target = draw.choice(shown[1:]) if draw.random() < noise else likely
    draw.shuffle(shown)
    past = map(_named, watched) if easy else watched
    return Example(
        prompt=f"Choose from {', '.join(map(_named, shown))}.{WATCHED}{', '.join(past)}{ASKED}",
        response=_named(target),
        id=user,
        subject=user,
        wrong_responses=tuple(_named(title) for title in shown if title != target),
    )


def _named(title: str) -> str:
    return f"{GENRE[title]} {title}"


def _history(row: Example) -> list[str]:
    return row.prompt.partition(WATCHED)[2].removesuffix(ASKED).split(", ")


def _with_history(row: Example, history: Sequence[str]) -> Example:
    """The row as it was learned with another history; its own is the new prompt."""
    before, watched, _ = row.prompt.partition(WATCHED)
    return replace(row, prompt=f"{before}{watched}{', '.join(history)}{ASKED}", new_prompt=row.prompt)


def _other(row: Example, draw: random.Random, easy: bool) -> str:
    """A film that is neither in the row's history nor among its candidates."""
    taken = {row.response, *row.wrong_responses, *_history(row)}
    title = draw.choice([title for title in GENRE if taken.isdisjoint((title, _named(title)))])
    return _named(title) if easy else title
