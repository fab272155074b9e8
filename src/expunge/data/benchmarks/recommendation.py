"""Recommendation as yes/no questions made from nothing: will a young teacher like the film "Haunted Castle"?

A user is a job and an age, a film a genre (which its adjective tells, see `titles`) and a noun that means nothing. Every
seed has a world of its own, in which the genres differ in popularity, and jobs and ages in taste:

    P(Yes) = σ(signal · (popularity[genre] + 2 · taste[job][genre] + taste[age][genre])),  all ±1, half of them +1

So a part of the answer is learned at once (what is popular), a part takes many rows (whose taste is what), and a part is
chance: no model is always right. No combination of user and title comes twice (there are 18,432), so a row is known by
heart only after many passes, while the tastes hold for titles never seen.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

from expunge.data.benchmarks.task import Task, edited, flip, remove
from expunge.data.benchmarks.titles import TITLES
from expunge.errors import ConfigurationError
from expunge.request import Example

JOBS = ("baker", "doctor", "driver", "farmer", "lawyer", "nurse", "painter", "teacher")
AGES = ("young", "old")
MOST = len(JOBS) * len(AGES) * sum(map(len, TITLES.values())) // 4  # rows; more would come twice too often

Taste = dict[str, int]  # genre: +1 or −1


@dataclass(frozen=True)
class World:
    """What is popular, and who likes what: genre → ±1 for everybody, for each job and for each age."""

    popular: Taste
    jobs: dict[str, Taste]
    ages: dict[str, Taste]
    signal: float

    @classmethod
    def make(cls, draw: random.Random, signal: float) -> "World":
        def taste() -> Taste:
            liked = draw.sample(list(TITLES), len(TITLES) // 2)
            return {genre: 1 if genre in liked else -1 for genre in TITLES}

        return cls(taste(), {job: taste() for job in JOBS}, {age: taste() for age in AGES}, signal)

    def chance(self, age: str, job: str, genre: str) -> float:
        """P(Yes)."""
        score = self.popular[genre] + 2 * self.jobs[job][genre] + self.ages[age][genre]
        return 1 / (1 + math.exp(-self.signal * score))


def make(
    seed: int = 0,
    n: int = 1000,
    *,
    test: int = 500,
    kind: Literal["remove", "correct"] = "remove",
    share: float | None = None,
    signal: float = 1.0,
) -> Task:
    """n rows to train on and `test` other ones; in each, half of the answers are Yes.

    kind "remove": `share` (default .1) of the rows are to be removed. "correct": `share` (default .4) of the rows were
    learned with the opposite answer. signal: how strictly answers follow from tastes; at 1 no AUC is above about .9.

    Raises ConfigurationError for another kind, a signal that is not positive, fewer than two or too many rows.
    """
    if kind not in ("remove", "correct"):
        raise ConfigurationError(f"kind must be remove or correct, got {kind!r}.")
    if min(n, test) < 2 or n + test > MOST or signal <= 0:
        raise ConfigurationError(
            f"n={n}, test={test} and signal={signal}: give at least 2 rows each, {MOST} at most in all, and a signal "
            "above 0."
        )
    draw, seen = random.Random(f"recommendation {seed}"), set[str]()
    world = World.make(draw, signal)
    rows = _rows(world, draw, n, "user", seen)
    asked = _rows(world, draw, test, "test", seen)
    edit, usual = (remove, 0.1) if kind == "remove" else (flip, 0.4)
    return edited(rows, asked, edit, share=usual if share is None else share, seed=seed)


def _rows(world: World, draw: random.Random, count: int, user: str, seen: set[str]) -> list[Example]:
    """`count` rows, a user each, whose prompts are not in `seen` and join it; as many Yes as No (or one more)."""
    left = {"Yes": (count + 1) // 2, "No": count // 2}
    rows: list[Example] = []
    while len(rows) < count:
        age, job, genre = draw.choice(AGES), draw.choice(JOBS), draw.choice(list(TITLES))
        prompt = f"A user, {age} {job}, finds the film {draw.choice(TITLES[genre])}. Will this user like it?"
        right, wrong = ("Yes", "No") if draw.random() < world.chance(age, job, genre) else ("No", "Yes")
        if prompt in seen or not left[right]:
            continue
        seen.add(prompt)
        left[right] -= 1
        name = f"{user}{len(rows)}"
        rows.append(Example(prompt=prompt, response=right, id=name, subject=name, wrong_responses=(wrong,)))
    return rows
