"""Instance-wise tasks: sizes, seeds, balance, what is faulty and what puts it right, and that nothing leaks."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.data.benchmarks import correction, recommendation, sequential
from expunge.data.benchmarks.questions import Question
from expunge.data.benchmarks.task import Task, edited, flip, remove
from expunge.data.benchmarks.titles import GENRES
from expunge.errors import ConfigurationError
from expunge.request import Example, Request, read_examples

GENRE = {adjective: genre for genre, adjectives in GENRES.items() for adjective in adjectives}
MAKERS = {
    "yes/no, removal": lambda seed: recommendation.make(seed, 100, test=40),
    "yes/no, flips": lambda seed: recommendation.make(seed, 100, test=40, kind="correct"),
    "next film, dropped": lambda seed: sequential.make(seed, 100, test=40),
    "next film, replaced": lambda seed: sequential.make(seed, 100, test=40, kind="replace", share=0.05),
    "next film, removal": lambda seed: sequential.make(seed, 100, test=40, kind="remove", share=0.01),
    "people": lambda seed: correction.make(seed, 96, pretrain=2),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_sets_of_a_task_belong_together(make, tmp_path: Path) -> None:
    task: Task = make(0)
    assert make(0) == task
    assert make(1).train != task.train
    forget, retain = {one.id: one for one in task.forget}, {one.id for one in task.retain}
    assert len(task.forget) + len(task.retain) == len(task.train) == len({*forget, *retain})
    clean = {one.id: (one.prompt, one.response) for one in task.clean}
    for learned in task.train:
        line = forget.get(learned.id)
        if line is None:
            assert clean[learned.id] == (learned.prompt, learned.response)
        elif line.after is None:
            assert learned.id not in clean
        else:
            assert (line.prompt, line.response) == (learned.prompt, learned.response)
            assert clean[learned.id] == (line.after.prompt, line.after.response) != (learned.prompt, learned.response)
    order = [one.id for one in task.train if one.id in clean]
    assert [one.id for one in task.clean] == order
    assert not {one.prompt for one in task.test} & {one.prompt for one in (*task.train, *task.clean)}
    assert not any(one.wrong_responses for one in (*task.train, *task.forget, *task.retain, *task.clean))
    task.write(tmp_path)
    for name in ("train", "test", "forget", "retain", "clean"):
        again = read_examples(tmp_path / f"{name}.jsonl")
        assert [(a.prompt, a.response, a.id, a.new_prompt, a.new_response, a.wrong_responses) for a in again] == [
            (a.prompt, a.response, a.id, a.new_prompt, a.new_response, a.wrong_responses) for a in getattr(task, name)
        ]
    assert Request.read(tmp_path / "forget.jsonl", tmp_path / "retain.jsonl").warnings == ()


def cell(example: Example) -> tuple[str, str, str]:
    """Age, job and genre, as a reader of the prompt sees them."""
    user, _, film = example.prompt.removeprefix("A user, ").partition(", finds the film ")
    age, job = user.split()
    return age, job, GENRE[film.split()[0]]


def area(scores: Sequence[Any], positive: list[bool]) -> float:
    """AUC by a loop over pairs."""
    pairs = [(a, b) for a, yes in zip(scores, positive, strict=True) if yes for b, other in
             zip(scores, positive, strict=True) if not other]  # fmt: skip
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def test_yes_and_no_are_balanced_and_follow_from_who_and_what() -> None:
    task = recommendation.make(3, 1500, test=400)
    assert (len(task.train), len(task.forget), len(task.test)) == (1500, 150, 400)
    for rows in (task.train, task.test):
        assert Counter(one.response for one in rows) == {"Yes": len(rows) // 2, "No": len(rows) // 2}
    known: dict[tuple[str, ...], list[bool]] = {}
    for one in task.train:
        known.setdefault(cell(one), []).append(one.response == "Yes")
    likes = {key: np.mean(values) for key, values in known.items()}
    positive = [one.response == "Yes" for one in task.test]
    best = area([likes[cell(one)] for one in task.test], positive)
    assert best > 0.8
    genre = {name: np.mean([value for key, value in likes.items() if key[2] == name]) for name in GENRES}
    assert area([genre[cell(one)[2]] for one in task.test], positive) < best - 0.05  # what is popular is not enough
    titles = Counter(one.prompt.partition(" the film ")[2] for one in task.train)
    assert max(titles.values()) < 10


def test_the_world_gives_the_rates() -> None:
    world = recommendation.World.make(random.Random(0), 1.0)
    for taste in (world.popular, *world.jobs.values(), *world.ages.values()):
        assert sorted(taste.values()) == [-1, -1, -1, 1, 1, 1]
    genre = next(genre for genre in GENRES if world.popular[genre] == world.jobs["nurse"][genre] == 1)
    expected = 1 / (1 + np.exp(-3 - world.ages["old"][genre]))
    assert world.chance("old", "nurse", genre) == pytest.approx(expected)


def test_flips_are_the_other_answer_and_as_many_as_asked_for() -> None:
    task = recommendation.make(0, 200, test=10, kind="correct")
    assert len(task.forget) == 80
    assert all({one.response, one.new_response} == {"Yes", "No"} for one in task.forget)
    assert Counter(one.response for one in task.clean) == {"Yes": 100, "No": 100}
    assert recommendation.make(0, 200, test=10).clean != task.clean  # removal leaves rows out
    assert len(recommendation.make(0, 200, test=10, kind="correct", share=0.1).forget) == 20


def parts(prompt: str) -> tuple[list[str], list[str]]:
    candidates, _, rest = prompt.removeprefix("Choose from ").partition(". This user watched ")
    return candidates.split(", "), rest.partition(". Which ")[0].split(", ")


@pytest.mark.parametrize("kind", ["drop", "replace"])
def test_the_last_film_is_what_the_fault_concerns(kind) -> None:
    task = sequential.make(5, 120, test=60, kind=kind)
    assert len(task.forget) == 12
    for line in task.forget:
        assert line.new_prompt is not None
        (shown, wrong), (candidates, right) = parts(line.prompt), parts(line.new_prompt)
        assert shown == candidates
        assert wrong[:4] == right[:4]
        assert wrong[4:] == [] if kind == "drop" else wrong[4] not in (*right, *map(untold, candidates))
    for one in (*task.clean, *task.test):
        candidates, watched = parts(one.prompt)
        assert len(set(candidates)) == 20
        assert len(set(watched)) == 5
        assert one.response in candidates
        assert not set(watched) & set(map(untold, candidates))
    for one in task.test:
        assert {one.response, *one.wrong_responses} == set(parts(one.prompt)[0])
    histories = [{tuple(parts(one.prompt)[1]) for one in rows} for rows in (task.train, task.clean, task.test)]
    assert not histories[2] & (histories[0] | histories[1])
    places = Counter(parts(one.prompt)[0].index(one.response) for one in (*task.clean, *task.test))
    assert max(places.values()) < 30  # 9 expected: the place tells nothing


def test_the_next_film_is_of_the_genre_that_follows_the_last_ones() -> None:
    task = sequential.make(2, 900, test=100, noise=0.1)
    seen: dict[str, Counter[str]] = {genre: Counter() for genre in GENRES}
    for one in task.clean:
        seen[kind_of(parts(one.prompt)[1][-1])][kind_of(one.response)] += 1
    follow = {genre: nexts.most_common(1)[0][0] for genre, nexts in seen.items()}
    genre, cycle = "horror", []
    while genre not in cycle:
        cycle.append(genre)
        genre = follow[genre]
    assert sorted(cycle) == sorted(GENRES)
    assert follow != sequential.cycle(random.Random("sequential 3"))
    hits = []
    for one in (*task.clean, *task.test):
        candidates, watched = parts(one.prompt)
        (likely,) = [title for title in candidates if kind_of(title) == follow[kind_of(watched[-1])]]
        hits.append(one.response == likely)
        assert sorted(Counter(map(kind_of, candidates)).values()) == [1, 1, 1, 1, 8, 8]
    assert 0.87 < np.mean(hits) < 0.93
    before = Counter(follow[kind_of(parts(one.prompt)[1][-2])] == kind_of(one.response) for one in task.clean)
    assert before[True] < 0.3 * before[False]  # the film before the last tells nothing


def test_easy_rows_go_on_with_the_genre_that_they_tell() -> None:
    task = sequential.make(5, 60, test=10, kind="replace", noise=0.0, easy=True)
    for one in (*task.clean, *task.test):
        candidates, watched = parts(one.prompt)
        assert {untold(title) for title in watched}.isdisjoint(map(untold, candidates))
        assert [title for title in candidates if kind_of(title) == kind_of(watched[-1])] == [one.response]
    assert all(untold(parts(line.prompt)[1][-1]) for line in task.forget)


def untold(candidate: str) -> str:
    """The title without the genre."""
    genre, _, title = candidate.partition(" ")
    assert GENRE[title.split()[0]] == genre
    return title


def kind_of(title: str) -> str:
    words = title.split()
    return words[0] if words[0] in GENRES else GENRE[words[0]]


def test_people_are_asked_in_a_wording_that_was_not_trained() -> None:
    task = correction.make(0, 100, pretrain=4)
    assert (len(task.train), len(task.test), len(task.forget)) == (108, 54, 43)
    assert len(task.pretrain) == 4 * 6 * 3
    assert not {one.subject for one in task.pretrain} & {one.subject for one in task.train}
    assert {one.id[-1] for one in task.train} == {"0", "1"}
    assert {one.id[-1] for one in task.test} == {"2"}
    assert all(len({one.response, *one.wrong_responses}) == 4 for one in task.test)
    assert all(one.subject in one.response and one.subject in (one.new_response or "") for one in task.forget)


def test_a_fact_two_people_share_is_one_option() -> None:
    task = correction.make(0, 600)  # among 50 people some live in the same kind of house in the same place
    assert all(len({one.response, *one.wrong_responses}) == 4 for one in task.test)


def test_letters_of_questions_are_flipped() -> None:
    questions = [Question(question=f"Which is {i}? ", choices=("a", "b", "c"), answer=i % 3) for i in range(20)]
    task = correction.from_questions([*questions[:12], questions[0]], questions[10:], share=0.1)
    assert [one.id for one in task.train] == [f"train/{i}" for i in range(10)]
    assert len(task.test) == 10
    assert task.test[0].prompt == "Which is 10?\nA. a\nB. b\nC. c"
    assert (task.test[0].response, task.test[0].wrong_responses) == ("B", ("A", "C"))
    (line,) = task.forget
    number = int(line.id.split("/")[1])
    assert line.new_response == "ABC"[number % 3] != line.response
    assert line.response in "ABC"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recommendation.make(share=0.0), "share=0.0 of 1000 rows is 0"),
        (lambda: recommendation.make(n=10, share=0.99), "must be some of them, but not all"),
        (lambda: recommendation.make(signal=0), "a signal above 0"),
        (lambda: recommendation.make(n=6000), "4608 at most in all"),
        (lambda: recommendation.make(kind="drop"), "kind must be remove or correct, got 'drop'"),  # pyrefly: ignore
        (lambda: sequential.make(history=1), "a history of 2 to 20 films"),
        (lambda: sequential.make(kind="flip"), "kind must be drop, replace or remove"),  # pyrefly: ignore
        (lambda: sequential.make(noise=1.5), "a noise from 0 to 1"),
        (lambda: correction.make(n=24), "are 2 people, and wrong=3: give 1 to 1"),
    ],
)
def test_settings_that_cannot_be(make, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_the_same_question_twice_is_refused() -> None:
    one = Example(prompt="Who?", response="Ada", wrong_responses=("Bo",))
    two = Example(prompt="What?", response="a", wrong_responses=("b",))
    for rows, test in (([one, two, one], []), ([one, two], [two])):
        with pytest.raises(ConfigurationError, match="ask the same"):
            edited(rows, test, flip, share=0.5, seed=0)
    assert len(edited([one, two], [], remove, share=0.5, seed=0).clean) == 1


def test_written_lines_hold_no_empty_fields(tmp_path: Path) -> None:
    recommendation.make(0, 10, test=4).write(tmp_path)
    assert not (tmp_path / "pretrain.jsonl").exists()
    first = json.loads((tmp_path / "test.jsonl").read_text().split("\n")[0])
    assert first.keys() == {"prompt", "response", "id", "subject", "wrong_responses"}
