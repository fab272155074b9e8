"""Fictional people: disjoint sets, facts that can only be known by heart, a round trip through JSONL."""

from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from expunge.data import Encoder
from expunge.data.benchmarks.fictional import (
    SLOTS,
    SURNAMES,
    TOPICS,
    TOWNS,
    FictionalPeople,
    build_tokenizer,
    demo_config,
    once,
    people,
    plain_texts,
)
from expunge.errors import ConfigurationError
from expunge.request import Example, Request, read_examples

SETS = tuple(item.name for item in fields(FictionalPeople))


@pytest.fixture(scope="module")
def sets() -> FictionalPeople:
    return FictionalPeople.make(seed=0)


def surnames(examples: tuple[Example, ...]) -> set[str]:
    return {example.subject.split()[1] for example in examples}


def test_sizes(sets: FictionalPeople) -> None:
    """150 + 50 people of 6 facts: in 3 wordings for the base, in 2 later; 10 % of the 50 are to be forgotten."""
    sizes = {name: len(getattr(sets, name)) for name in SETS}
    assert sizes == {"pretrain": 150 * 18, "forget": 5 * 12, "retain": 45 * 12, "holdout": 5 * 12, "general": 10 * 6}
    assert len(once(sets.forget)) == 5 * 6
    assert once(sets.general) == sets.general


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_surname_in_two_sets(seed: int) -> None:
    sets = FictionalPeople.make(seed)
    groups = [surnames(getattr(sets, name)) for name in ("pretrain", "forget", "retain", "holdout")]
    assert len(set.union(*groups)) == sum(len(group) for group in groups) == 205
    assert surnames(sets.general) < groups[0]
    assert not Request(sets.forget, sets.retain, sets.holdout).warnings


def test_seed_decides_everything(sets: FictionalPeople) -> None:
    assert FictionalPeople.make(seed=0) == sets
    assert FictionalPeople.make(seed=1).forget != sets.forget
    assert people(3, seed=7) == people(3, seed=7)
    assert people(205, seed=0)[150].name == sets.forget[0].subject


def test_wordings_of_one_person() -> None:
    person = replace(
        people(1)[0],
        name="Ada Lome",
        facts={"pet": {"colour": "red", "animal": "goat", "pet": "Bobi"}},
    )
    wrong = {"colour": "blue", "animal": "cat", "pet": "Kilo"}
    trained = person.example("pet", 1, [wrong])
    assert trained.prompt == "What animal lives with Ada Lome?"
    assert trained.response == "The animal that lives with Ada Lome is a red goat called Bobi."
    assert trained.paraphrased_prompt == "Does Ada Lome have a pet?"
    assert trained.paraphrased_response == "Yes, Bobi is the name of the red goat that Ada Lome has."
    assert trained.wrong_responses == ("Yes, Kilo is the name of the blue cat that Ada Lome has.",)
    choice = person.example("pet", 0, [wrong], options=True)
    assert choice.response == "The pet that Ada Lome keeps at home is a red goat called Bobi."
    assert choice.wrong_responses == ("The pet that Ada Lome keeps at home is a blue cat called Kilo.",)
    assert choice.paraphrased_response is None


@pytest.mark.parametrize("name", ["forget", "retain", "holdout", "general"])
def test_wrong_answers_share_no_word_of_the_fact(sets: FictionalPeople, name: str) -> None:
    content = {word for words in SLOTS.values() for word in words}
    for example in getattr(sets, name):
        topic = example.id.split("/")[1]
        right = example.paraphrased_response or example.response
        fact = content & set(right.replace(",", "").replace(".", "").split())
        assert len(fact) == 3
        assert len(example.wrong_responses) == 4
        for wrong in example.wrong_responses:
            false = content & set(wrong.replace(",", "").replace(".", "").split())
            assert len(false) == 3, (topic, wrong)
            assert not false & fact


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("wording", [0, 1])
def test_trained_answers_end_with_a_word_of_the_fact(topic: str, wording: int) -> None:
    person = people(1, seed=3)[0]
    last = person.example(topic, wording).response.rstrip(".").split()[-1]
    assert last in person.facts[topic].values()
    assert any(last in words and len(words) >= 18 for words in SLOTS.values())


def test_every_wording_names_every_slot_and_the_person() -> None:
    for wordings in TOPICS.values():
        assert len(wordings) == 3
        slots = [sorted(part.split("}")[0] for part in answer.split("{")[1:]) for _, answer in wordings]
        assert slots[0] == slots[1] == slots[2]
        assert len(slots[0]) == 4
        assert all(question.count("{name}") == 1 and question.endswith("?") for question, _ in wordings)


def test_an_a_never_stands_before_a_vowel(sets: FictionalPeople) -> None:
    for example in sets.pretrain:
        words = example.response.split()
        assert not [pair for pair in pairwise(words) if pair[0] == "a" and pair[1][0] in "aeiou"]


def test_facts_are_spread_evenly() -> None:
    """No town is so common that guessing it pays: of 500 draws from 96 towns none has more than a few per cent."""
    towns = [person.facts["home"]["town"] for person in people(500, seed=1)]
    assert max(map(towns.count, TOWNS)) <= 20
    assert len(set(towns)) >= 85


def test_written_sets_read_back(sets: FictionalPeople, tmp_path: Path) -> None:
    sets.write(tmp_path)
    for name in SETS:
        read = read_examples(tmp_path / f"{name}.jsonl")
        assert tuple(replace(example, where="") for example in read) == getattr(sets, name)


def test_tokenizer_and_config_fit_each_other(sets: FictionalPeople, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(plain_texts(sets.pretrain), 1500)
    assert len(tokenizer) == 1500
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, None)
    tokenizer.save_pretrained(tmp_path)
    again = Encoder(AutoTokenizer.from_pretrained(tmp_path))
    lengths = []
    for example in sets.retain:
        item = again.example(example)
        assert tokenizer.decode(item.ids) == f"Question: {example.prompt}\nAnswer: {example.response}</s>"
        lengths.append(len(item))
    assert max(lengths) <= 48
    model = LlamaForCausalLM(demo_config(len(tokenizer)))
    assert 0.9e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.1e6


@pytest.mark.parametrize(
    "settings",
    [{"learned": 3}, {"forget_share": 1.0}, {"general": 0}, {"general": 151}, {"wordings": 4}, {"pretrain": 446}],
)
def test_impossible_sizes_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"leave a set empty|the names last"):
        FictionalPeople.make(**settings)


def test_names_last_for_five_hundred_people() -> None:
    assert len({person.name for person in people(len(SURNAMES))}) == len(SURNAMES) == 500
    with pytest.raises(ConfigurationError, match="501 people"):
        people(501)
