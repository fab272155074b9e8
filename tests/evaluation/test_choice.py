"""Choices against a slow loop over examples and options in float64."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.data import Encoder
from expunge.data.benchmarks import sequential as next_film
from expunge.data.benchmarks.fictional import build_tokenizer
from expunge.errors import ConfigurationError, DivergedError, RequestError
from expunge.evaluation import Suite, evaluate
from expunge.evaluation.choice import choose
from expunge.evaluation.suites import Choice, choice, recommendation, sequential
from expunge.models import Loaded
from expunge.request import Example
from tests.conftest import build_model

ASKED = tuple(
    Example(prompt=f"Is {name} in Tarn?", response=right, wrong_responses=(wrong,), id=name)
    for name, right, wrong in (("Ada", "Yes", "No"), ("Bo Hurst", "No", "Yes"), ("Una", "No", "Yes"), ("Per", "Yes", "No"))
)  # fmt: skip
OPTIONS = tuple(
    Example(prompt=prompt, response=right, wrong_responses=wrong, id=prompt[:3])
    for prompt, right, wrong in (
        ("Where does Ada live?", "Tarn", ("Selm", "Paris", "in the port of Selm")),
        ("Who bakes?", "Per Lome", ("Ada Lome", "Bo")),
        ("What is grey?", "A goose", ("A clock", "a ship named Una", "Ilse")),
    )
)


def logp(loaded: Loaded, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def spelled(loaded: Loaded, text: str) -> list[int]:
    return loaded.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_yes_and_no_are_compared_where_they_first_differ(tiny: Loaded, batch_size) -> None:
    found = choose(tiny, "x", Choice(ASKED, "Yes"), Encoder(tiny.tokenizer), batch_size=batch_size)
    expected = []
    for example in ASKED:
        yes, no = (spelled(tiny, f"Question: {example.prompt}\nAnswer: {text}") for text in ("Yes", "No"))
        place = next(place for place in range(len(no)) if yes[place] != no[place])
        at = logp(tiny, yes[:place])[-1]
        expected.append(float(at[yes[place]] - at[no[place]]))
    assert found.margin == pytest.approx(expected, rel=1e-5)
    right = [(margin > 0) == (example.response == "Yes") for margin, example in zip(expected, ASKED, strict=True)]
    assert found.correct.tolist() == right
    pairs = [expected[i] > expected[j] for i in (0, 3) for j in (1, 2)]
    suite = Suite("x", {}, choices={"x": Choice(ASKED, "Yes")})
    result = evaluate(tiny, suite)
    assert result.metrics["x.auc"] == np.mean(pairs)
    assert result.metrics["x.option_accuracy"] == np.mean(right)
    low, high = result.intervals["x.auc"]
    assert low <= np.mean(pairs) <= high
    sure = [1 / (1 + np.exp(-m if e.response == "Yes" else m)) for m, e in zip(expected, ASKED, strict=True)]
    assert result.metrics["x.probability_with_options"] == pytest.approx(np.mean(sure), rel=1e-5)
    assert [row["id"] for row in result.examples["x"]] == ["Ada", "Bo Hurst", "Una", "Per"]


def test_answers_of_several_tokens_share_what_is_the_same(tiny: Loaded) -> None:
    tokenizer = build_tokenizer(["zz"], 258)  # one byte a token
    loaded = Loaded(build_model(len(tokenizer), seed=2), tokenizer, tiny.folder)
    pair = (Example(prompt="Is it?", response="Nope", wrong_responses=("Noah",)),)
    found = choose(loaded, "x", Choice(pair, "Nope"), Encoder(tokenizer))
    yes, no = (spelled(loaded, f"Question: Is it?\nAnswer: {text}") for text in ("Nope", "Noah"))
    assert len(yes) == len("Question: Is it?\nAnswer: Nope")
    at = logp(loaded, yes[:-2])[-1]  # after " No"
    assert found.margin[0] == pytest.approx(float(at[yes[-2]] - at[no[-2]]), rel=1e-4)


def test_an_option_that_begins_another_is_told_by_its_end(tiny: Loaded) -> None:
    pair = (Example(prompt="Is it?", response="No", wrong_responses=("No no",)),)
    found = choose(tiny, "x", Choice(pair, "No"), Encoder(tiny.tokenizer))
    short, long = (spelled(tiny, f"Question: Is it?\nAnswer: {text}") for text in ("No", "No no"))
    at = logp(tiny, short)[-1]
    assert found.margin[0] == pytest.approx(float(at[tiny.tokenizer.eos_token_id] - at[long[len(short)]]), rel=1e-4)


def test_options_are_compared_by_their_whole_probability(tiny: Loaded) -> None:
    found = choose(tiny, "x", Choice(OPTIONS, written=True), Encoder(tiny.tokenizer), new_tokens=4, batch_size=2)
    for example, sums in zip(OPTIONS, found.logp, strict=True):
        begin = spelled(tiny, f"Question: {example.prompt}\nAnswer:")
        for option, value in zip((example.response, *example.wrong_responses), sums, strict=True):
            ids = [*spelled(tiny, f"Question: {example.prompt}\nAnswer: {option}"), tiny.tokenizer.eos_token_id]
            assert ids[: len(begin)] == begin
            at = logp(tiny, ids)
            expected = sum(float(at[place - 1, ids[place]]) for place in range(len(begin), len(ids)))
            assert value == pytest.approx(expected, rel=1e-5)
    assert found.correct.tolist() == [float(sums.argmax() == 0) for sums in found.logp]
    assert found.share == pytest.approx([np.exp(sums[0]) / np.exp(sums).sum() for sums in found.logp])
    assert found.texts is not None
    model: Any = tiny.model
    for example, text in zip(OPTIONS, found.texts, strict=True):
        ids = torch.tensor([spelled(tiny, f"Question: {example.prompt}\nAnswer:")])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        assert text == str(tiny.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_hits_are_counted_among_valid_answers(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite("s", {}, choices={"s": Choice((*OPTIONS, OPTIONS[0]), written=True)})
    said = ["Tarn", "it is Ada Lome", "nothing", "Tarn or Selm"]
    monkeypatch.setattr("expunge.evaluation.choice.generate", lambda *_, **__: said)
    found = evaluate(tiny, suite)
    assert found.metrics["s.hit_ratio"] == 0.5
    assert found.metrics["s.valid_ratio"] == 0.5
    assert [row["generation"] for row in found.examples["s"]] == said
    said[:] = ["none"] * 4
    assert evaluate(tiny, suite).metrics["s.hit_ratio"] == 0
    silent = evaluate(tiny, suite, generate=False)
    assert "s.hit_ratio" not in silent.metrics
    assert "s.option_accuracy" in silent.metrics
    assert any("no hit ratio" in note for note in silent.notes)


def test_suites_from_files(tmp_path: Path, tiny: Loaded) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"prompt": e.prompt, "response": e.response + "."}) + "\n" for e in ASKED))
    suite = recommendation(tmp_path)
    assert suite.choices["recommendation"].positive == "Yes."
    assert [e.wrong_responses for e in suite.choices["recommendation"].examples[:2]] == [("No.",), ("Yes.",)]
    assert len(recommendation(path, limit=2).choices["recommendation"].examples) == 2
    assert "only 2 evenly spaced examples" in recommendation(path, limit=2).notes[0]
    with pytest.raises(RequestError, match=r"test\.jsonl:1: no wrong_responses"):
        choice(path)
    with pytest.raises(RequestError, match=r"holds no test\.jsonl"):
        sequential(tmp_path / "..")
    next_film.make(0, 12, test=3).write(tmp_path)
    asked = sequential(tmp_path).choices["sequential"]
    assert [len(e.wrong_responses) for e in asked.examples] == [19] * 3
    assert asked.written
    path.write_text(json.dumps({"prompt": "Is it?", "response": "Yes"}) + "\n")
    found = evaluate(tiny, recommendation(path))
    assert "recommendation.auc" not in found.metrics
    assert any("there is no AUC" in note for note in found.notes)


def test_what_cannot_be_chosen_from(tiny: Loaded) -> None:
    one = Example(prompt="Is it?", response="Yes", where="f.jsonl:3")
    for wrong, positive, message in (
        ((), None, r"f\.jsonl:3: give wrong_responses"),
        (("Yes",), None, "all different"),
        (("No", "So"), "Yes", "has two options"),
        (("No",), "Ja", "one of them 'Ja'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Choice((Example(prompt="Is it?", response="Yes", wrong_responses=wrong, where=one.where),), positive)
    with pytest.raises(ConfigurationError, match="without examples"):
        Choice(())
    long = Choice((Example(prompt="Is it?", response="Yes", wrong_responses=("No " * 40,)),))
    with pytest.raises(RequestError, match="an option does not fit"):
        choose(tiny, "x", long, Encoder(tiny.tokenizer, 30))
    with torch.no_grad():
        next(tiny.model.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match="NaN"):
        choose(tiny, "x", Choice(ASKED, "Yes"), Encoder(tiny.tokenizer))
