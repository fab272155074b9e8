"""Recommendation as yes/no questions made from nothing, in the manner of TALLRec: will this user like that film?

Every user likes three of the six genres of `titles` and dislikes the others. A row shows some titles the user liked and
some the user disliked, and asks about another one. The answer follows from the genres: a model can learn it for users
and titles it has not seen, while titles (1,152 of them) and users (each with a few rows) are too many to be learned by
heart at one pass. Now and then (`noise`) a user likes a title against their taste, so no model is always right.
"""

import random
from typing import Literal

from expunge.data.benchmarks.task import Task, edited, flip, remove
from expunge.data.benchmarks.titles import TITLES
from expunge.errors import ConfigurationError
from expunge.request import Example

ROWS = 5  # a user


def make(
    seed: int = 0,
    n: int = 1000,
    *,
    test: int = 500,
    kind: Literal["remove", "correct"] = "remove",
    share: float | None = None,
    noise: float = 0.05,
    history: int = 3,
) -> Task:
    """n rows to train on and `test` rows of other users; in each, half of the answers are Yes.

    kind "remove": `share` (default .1) of the rows are to be removed. "correct": `share` (default .4) of the rows were
    learned with the opposite answer. noise: how often a title is against its user's taste. history: how many liked, and
    how many disliked titles are shown.

    Raises ConfigurationError for another kind, fewer than two rows, noise outside [0, .5) or a history below 1.
    """
    if kind not in ("remove", "correct"):
        raise ConfigurationError(f"kind must be remove or correct, got {kind!r}.")
    if min(n, test) < 2 or not 0 <= noise < 0.5 or history < 1:
        raise ConfigurationError(
            f"n={n}, test={test}, noise={noise} and history={history}: give at least 2 rows, noise from 0 to below .5 "
            "and a history of at least 1."
        )
    draw, seen = random.Random(f"recommendation {seed}"), set[str]()
    rows = _rows(draw, n, "user", noise, history, seen)
    asked = _rows(draw, test, "test", noise, history, seen)
    edit, usual = (remove, 0.1) if kind == "remove" else (flip, 0.4)
    return edited(rows, asked, edit, share=usual if share is None else share, seed=seed)


def _rows(draw: random.Random, count: int, user: str, noise: float, history: int, seen: set[str]) -> list[Example]:
    """`count` rows of users called `user`0, `user`1, ..., whose prompts are not in `seen` and join it."""
    answers = [index % 2 == 0 for index in range(count)]
    draw.shuffle(answers)
    rows: list[Example] = []
    liked: list[str] = []
    while len(rows) < count:
        number, place = divmod(len(rows), ROWS)
        if place == 0:
            liked = draw.sample(list(TITLES), 3)
        answer = answers[len(rows)]
        prompt = _prompt(draw, liked, answer != (draw.random() < noise), history)
        if prompt in seen:
            continue
        seen.add(prompt)
        right, wrong = ("Yes", "No") if answer else ("No", "Yes")
        name = f"{user}{number}"
        rows.append(
            Example(prompt=prompt, response=right, id=f"{name}/{place}", subject=name, wrong_responses=(wrong,))
        )
    return rows


def _prompt(draw: random.Random, liked: list[str], fits: bool, history: int) -> str:
    """fits: whether the title asked about is of a genre the user likes."""
    tastes = {True: liked, False: [genre for genre in TITLES if genre not in liked]}

    def title(taste: bool) -> str:
        return draw.choice(TITLES[draw.choice(tastes[taste])])

    asked, shown = title(fits), {True: list[str](), False: list[str]()}
    for taste, titles in shown.items():
        while len(titles) < history:
            found = title(taste)
            if found not in (asked, *titles):
                titles.append(found)
    return f"Liked: {', '.join(shown[True])}. Disliked: {', '.join(shown[False])}. Will this user like {asked}?"
