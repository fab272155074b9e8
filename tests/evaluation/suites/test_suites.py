"""Suites: the right sets, and clear words where they cannot be."""

from dataclasses import replace
from pathlib import Path

import pytest

from expunge.errors import ConfigurationError
from expunge.evaluation import Suite, request_suite, tofu
from expunge.evaluation.suites.suite import subsample
from expunge.request import Example, Request


def test_tofu_has_the_published_sets(shared_data: Path) -> None:
    suite = tofu(shared_data / "tofu", "forget05")
    sizes = {name: len(examples) for name, examples in suite.sets.items()}
    assert sizes == {"forget": 200, "retain": 400, "real_authors": 100, "world_facts": 117, "holdout": 200}
    assert suite.utility == ("retain", "real_authors", "world_facts")
    assert {len(example.wrong_responses) for example in suite.sets["forget"]} == {5}
    assert all(example.paraphrased_response for example in suite.sets["retain"])
    assert not any(example.paraphrased_response for example in suite.sets["world_facts"])
    assert suite.notes == ()


def test_limit_is_even_deterministic_and_said(shared_data: Path) -> None:
    suite = tofu(shared_data / "tofu", "forget01", limit=50)
    assert [example.id for example in suite.sets["retain"][:3]] == [f"retain_perturbed/{i}" for i in (0, 8, 16)]
    assert {name: len(examples) for name, examples in suite.sets.items()} == {
        "forget": 40, "retain": 50, "real_authors": 50, "world_facts": 50, "holdout": 40,
    }  # fmt: skip
    assert "50 evenly spaced examples of each of retain (400), real_authors (100)" in suite.notes[0]


def test_subsample_bounds() -> None:
    examples = [Example(prompt=str(i), response="x") for i in range(7)]
    assert [example.prompt for example in subsample(examples, 3)] == ["0", "2", "4"]
    assert subsample(examples, None) == subsample(examples, 9) == tuple(examples)
    with pytest.raises(ConfigurationError, match="at least 1"):
        subsample(examples, 0)


def test_request_takes_what_there_is(small_request: Request) -> None:
    suite = request_suite(Request(small_request.forget))
    assert list(suite.sets) == ["forget"]
    assert suite.utility == ()
    facts = (Example(prompt="2 + 2?", response="4"),)
    suite = request_suite(small_request, utility={"facts": facts}, limit=3)
    assert {name: len(examples) for name, examples in suite.sets.items()} == {"forget": 3, "retain": 3, "facts": 1}
    assert suite.utility == ("retain", "facts")


def test_corrected_examples_make_a_set_of_their_own(small_request: Request) -> None:
    first, *others = small_request.forget
    suite = request_suite(Request((replace(first, new_response="In Selm."), *others)))
    assert [example.response for example in suite.sets["replacement"]] == ["In Selm."]
    assert suite.sets["forget"][0].response == first.response


def test_impossible_suites_are_refused(small_request: Request) -> None:
    with pytest.raises(ConfigurationError, match="cannot be called 'retain'"):
        request_suite(small_request, utility={"retain": small_request.retain})
    with pytest.raises(ConfigurationError, match="'facts' of the suite request is empty"):
        request_suite(small_request, utility={"facts": ()})
    with pytest.raises(ConfigurationError, match=r"retain\.jsonl:1.? has no wrong_responses"):
        request_suite(small_request, with_options=["retain"])
    with pytest.raises(ConfigurationError, match="has no set 'forget'; it has retain"):
        Suite("mine", {"retain": small_request.retain})
