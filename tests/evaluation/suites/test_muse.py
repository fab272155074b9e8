"""MUSE on a tiny synthetic folder: each number against transformers' own generation and rouge-score."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from expunge.errors import ConfigurationError, RequestError
from expunge.evaluation import evaluate
from expunge.evaluation.comparison import paired
from expunge.evaluation.suites import Writing, muse
from expunge.evaluation.writing import write
from expunge.models import Loaded, load
from expunge.request import Example
from expunge.runs import make_suite
from tests.conftest import build_model

QA = [{"question": "What does Ada Lome do?", "answer": "She mends old clocks."}, {"question": "Who?", "answer": "Una"}]
SHOTS = [{"question": "Which pet has Ada Lome?", "answer": "A grey goose"}]
FILES = {
    "verbmem/forget": [
        {"prompt": "Ada Lome was born in Tarn.", "gt": "She mends old clocks. Her brother is Per Lome, a baker."},
        {"prompt": "Bo Hurst was born in", "gt": "the port of Selm. He paints ships."},
    ],
    "knowmem/forget_qa": QA, "knowmem/forget_qa_icl": SHOTS, "knowmem/retain_qa": QA[:1], "knowmem/retain_qa_icl": SHOTS,
    "privleak/forget": ["Ada Lome was born in Tarn.", "A grey goose named Ilse.", "Her brother is Per Lome, a baker."],
    "privleak/retain": ["He paints ships.", "His sister is Una."],
    "privleak/holdout": ["None at all, since he travels.", "She teaches mathematics in Selm.", "Paris is the capital."],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in FILES.items():
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))
    return tmp_path


def told(loaded: Loaded, text: str, tokens: int) -> str:
    """What transformers' own greedy decoding writes after a text."""
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    out = loaded.model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def f1(target: str, text: str) -> float:
    return RougeScorer(["rougeL"], use_stemmer=False).score(target, text)["rougeL"].fmeasure


def test_numbers_are_those_of_plain_generation_and_rouge_score(tiny: Loaded, folder: Path) -> None:
    result = evaluate(tiny, muse(folder))
    cut = [tiny.tokenizer.decode(tiny.tokenizer(row["gt"])["input_ids"][:128]) for row in FILES["verbmem/forget"]]
    expected = [
        f1(target, told(tiny, row["prompt"], 128)) for target, row in zip(cut, FILES["verbmem/forget"], strict=True)
    ]
    assert result.metrics["forget.verbmem"] == pytest.approx(np.mean(expected), abs=1e-9)
    lead = "Question: Which pet has Ada Lome?\nAnswer: A grey goose\n\n"
    texts = [told(tiny, f"{lead}Question: {row['question']}\nAnswer:", 32) for row in QA]
    for stop in ("\n\n", "\nQuestion", "Question:"):
        texts = [text.split(stop)[0] for text in texts]
    values = [f1(row["answer"], text) for row, text in zip(QA, texts, strict=True)]
    assert result.metrics["forget.knowmem"] == pytest.approx(np.mean(values), abs=1e-9)
    assert result.metrics["retain.knowmem"] == pytest.approx(values[0], abs=1e-9)
    rows = result.examples["forget_knowmem"]
    assert [row["prompt"] for row in rows] == [row["question"] for row in QA]
    assert [row["forget.knowmem"] for row in rows] == pytest.approx(values)
    assert result.intervals.keys() >= {"forget.verbmem", "forget.knowmem", "retain.knowmem"}
    assert "forget.rouge_l" not in result.metrics  # the texts are only scored
    assert "model_utility" not in result.metrics


def test_privleak_is_the_relative_auc_of_min_k(tiny: Loaded, folder: Path) -> None:
    other = Loaded(build_model(len(tiny.tokenizer), seed=7), tiny.tokenizer, tiny.folder)
    suite = muse(folder)
    gold = evaluate(other, suite)
    found = evaluate(tiny, suite, reference=gold)

    def auc(loaded: Loaded) -> float:
        scores = []
        for text in FILES["privleak/forget"] + FILES["privleak/holdout"]:
            ids = torch.tensor([[*loaded.tokenizer(text)["input_ids"]]])
            logp = loaded.model(ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            scores.append(-logp.sort().values[: max(1, int(0.4 * len(logp)))].mean().item())
        return float(np.mean([member < other for member in scores[:3] for other in scores[3:]]))

    with torch.no_grad():
        mine, theirs = auc(tiny), auc(other)
    assert found.metrics["mia.min_k.auc"] == pytest.approx(mine)
    assert found.metrics["privleak"] == pytest.approx(100 * ((1 - mine) - (1 - theirs)) / (1 - theirs))


def test_two_models_are_compared_example_by_example(tiny: Loaded, folder: Path) -> None:
    suite = muse(folder)
    one = evaluate(tiny, suite)
    names = {difference.metric for difference in paired(one, one)}
    assert {"forget.verbmem", "forget.knowmem", "retain.knowmem"} <= names


def test_the_published_prompt_ends_in_a_space(folder: Path) -> None:
    plain, published = (muse(folder, trailing_space=value).writings["forget.knowmem"] for value in (False, True))
    assert (plain.form, published.form) == ("Question: {}\nAnswer:", "Question: {}\nAnswer: ")


def test_what_is_missing_is_said(tiny: Loaded, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for part in ("privleak", "knowmem"):
        for file in (folder / part).iterdir():
            file.unlink()
        (folder / part).rmdir()
    suite = muse(folder)
    assert any("privleak is left out" in note and "knowmem" in note for note in suite.notes)
    result = evaluate(tiny, suite)
    assert result.metrics.keys() == {"forget.verbmem", "forget.verbmem_compat"}
    quiet = evaluate(tiny, suite, generate=False)
    assert not quiet.metrics
    assert any("nothing was generated" in note for note in quiet.notes)
    with pytest.raises(RequestError, match="none of MUSE's folders"):
        muse(tmp_path_factory.mktemp("nothing"))


def test_a_prompt_too_long_loses_its_beginning(tiny: Loaded) -> None:
    long = "old clocks " * 200
    writing = Writing((Example(prompt=long, response="x"),), 8)
    found = write(tiny, "forget.verbmem", writing)
    assert found.shortened == 1
    ids = tiny.tokenizer(long)["input_ids"]
    begin = ids[:1] if ids[0] == tiny.tokenizer.bos_token_id else []
    kept = [*begin, *ids[len(ids) - (256 - 8 - len(begin)) :]]
    out = tiny.model.generate(torch.tensor([kept]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert found.texts == [tiny.tokenizer.decode(out[0, len(kept) :], skip_special_tokens=True).strip()]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batch_size_changes_no_number(tiny_folder: Path, folder: Path, batch_size: int) -> None:
    loaded = load(tiny_folder)
    base = evaluate(loaded, muse(folder)).metrics
    found = evaluate(loaded, muse(folder), batch_size=batch_size).metrics
    assert found == pytest.approx(base, rel=1e-6, abs=1e-9)


def test_the_commands_suite(folder: Path) -> None:
    suite = make_suite("muse", data=folder, limit=1)
    assert [len(writing.examples) for writing in suite.writings.values()] == [1, 1, 1]
    with pytest.raises(ConfigurationError, match="128 and 32 tokens"):
        make_suite("muse", data=folder, max_new_tokens=9)


def test_nothing_to_go_on_from_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="none is there"):
        Writing((), 8)
