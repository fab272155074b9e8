"""A whole evaluation: its numbers recomputed from its parts, and unmoved by batching and order."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp, mannwhitneyu

from expunge.data import Encoder, collate
from expunge.data.corpus import chunks
from expunge.errors import ConfigurationError
from expunge.evaluation import Evaluation, Suite, evaluate, generate, request_suite, tofu
from expunge.models import Loaded, answers, load
from expunge.request import Example, Request

WRONG = {
    "wrong_responses": ("In Tarn, by a lake.", "He sold maps.", "A red hen."),
    "paraphrased_response": "It was so.",
}


@pytest.fixture
def suite(small_request: Request) -> Suite:
    """Every metric is defined: options everywhere, paraphrases in forget only, and a holdout set."""
    facts = [replace(example, **{**WRONG, "paraphrased_response": None}) for example in small_request.retain[3:]]
    request = Request(
        forget=tuple(replace(example, **WRONG) for example in small_request.forget),
        retain=tuple(replace(example, **WRONG) for example in small_request.retain[:3]),
        holdout=tuple(
            Example(prompt=f"Who is {name}?", response=f"{name} is a potter.") for name in ("Ola", "Ib", "Jo")
        ),
    )
    return request_suite(request, utility={"facts": facts}, with_options=["facts"], max_new_tokens=12)


def nll(loaded: Loaded, example: Example, response: str) -> float:
    """Mean NLL of a response by one plain forward pass in float64 log-softmax."""
    item = Encoder(loaded.tokenizer).pair(example, example.prompt, response)
    with torch.no_grad():
        logp = torch.log_softmax(loaded.model(torch.tensor([item.ids])).logits[0].double(), -1)
    return -float(np.mean([logp[place - 1, item.ids[place]] for place in range(item.start, len(item))]))


def test_metrics_equal_the_definitions(tiny: Loaded, suite: Suite) -> None:
    found = evaluate(tiny, suite).metrics
    loss = {name: [nll(tiny, e, e.response) for e in examples] for name, examples in suite.sets.items()}
    ratio = {}
    for name in ("forget", "retain", "facts"):
        ratio[name] = [
            np.exp(-np.mean([nll(tiny, e, text) for text in e.wrong_responses]))
            / np.exp(-nll(tiny, e, e.paraphrased_response or e.response))
            for e in suite.sets[name]
        ]
    share = []
    for e, own in zip(suite.sets["facts"], loss["facts"], strict=True):
        share.append(np.exp(-own) / (np.exp(-own) + sum(np.exp(-nll(tiny, e, text)) for text in e.wrong_responses)))
    encoder, scorer = Encoder(tiny.tokenizer), RougeScorer(["rougeL"], use_stemmer=True)
    rouge = {}
    for name in ("retain", "facts"):
        texts = generate(tiny, [encoder.prompt(e) for e in suite.sets[name]], max_new_tokens=12)
        pairs = zip(suite.sets[name], texts, strict=True)
        rouge[name] = np.mean([scorer.score(e.response, text)["rougeL"].recall for e, text in pairs])
    expected = {
        "forget.probability": np.mean(np.exp(-np.array(loss["forget"]))),
        "holdout.probability": np.mean(np.exp(-np.array(loss["holdout"]))),
        "forget.truth_ratio": np.mean([min(r, 1 / r) for r in ratio["forget"]]),
        "retain.truth_ratio": np.mean([max(0, 1 - r) for r in ratio["retain"]]),
        "facts.truth_ratio": np.mean([max(0, 1 - r) for r in ratio["facts"]]),
        "facts.probability_with_options": np.mean(share),
        "mia.loss.auc": mannwhitneyu(loss["holdout"], loss["forget"]).statistic / 12,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-6, abs=3e-7), name
    assert found["retain.rouge_l"] == pytest.approx(rouge["retain"])
    parts = [
        np.mean(np.exp(-np.array(loss["retain"]))), rouge["retain"], expected["retain.truth_ratio"],
        np.mean(share), rouge["facts"], expected["facts.truth_ratio"],
    ]  # fmt: skip
    assert found["model_utility"] == pytest.approx(hmean(parts) if min(parts) > 0 else 0, rel=1e-5)


def test_forget_quality_compares_with_the_reference(tiny: Loaded, suite: Suite) -> None:
    reference = evaluate(tiny, suite, generate=False)
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.mul_(1.3)
    found = evaluate(tiny, suite, generate=False, reference=Evaluation.from_dict(reference.to_dict()))
    ratios = [[row["truth_ratio"] for row in each.examples["forget"]] for each in (found, reference)]
    assert ratios[0] != ratios[1]
    assert found.metrics["forget_quality"] == ks_2samp(*ratios).pvalue
    assert found.metrics["forget_quality_log10"] == pytest.approx(np.log10(found.metrics["forget_quality"]))
    assert "forget_quality" not in reference.metrics
    assert any("forget_quality is absent: no model retrained" in note for note in reference.notes)


def test_a_reference_on_other_examples_is_refused_before_any_work(tiny: Loaded, suite: Suite) -> None:
    reference = evaluate(tiny, suite, generate=False)
    smaller = replace(suite, sets={**suite.sets, "forget": suite.sets["forget"][:2]})
    with pytest.raises(ConfigurationError, match="4 examples there, 2 here"):
        evaluate(tiny, smaller, reference=reference, progress=lambda *_: pytest.fail("work had begun"))


def test_results_survive_json(tiny: Loaded, suite: Suite) -> None:
    found = evaluate(tiny, suite)
    again = Evaluation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found
    row = found.examples["forget"][0]
    assert row["id"] == "f0"
    assert row["response"] == "Ada Lome was born in Tarn."
    assert set(row) >= {"generation", "probability", "nll", "extraction_strength", "exact_memorization", "rouge_l"}
    assert row["probability"] == pytest.approx(np.exp(-row["nll"]))
    for name, (low, high) in found.intervals.items():
        assert low <= found.metrics[name] + 1e-12 or name == "model_utility", name
        assert low <= high
    assert set(found.metrics) == set(found.intervals)


def test_a_request_without_anything_else_says_what_is_missing(tiny: Loaded, small_request: Request) -> None:
    texts = (Example(prompt="", response="a"), *small_request.forget[:1])
    found = evaluate(tiny, request_suite(Request(texts), max_new_tokens=4))
    assert not [name for name in found.metrics if "truth" in name or name.startswith(("mia", "model", "forget_"))]
    text = " | ".join(found.notes)
    for part in ("no holdout set", "no set that must stay", "no wrong_responses", "1 of 2 running texts are too short"):
        assert part in text
    assert found.examples["forget"][0]["generation"] is None
    assert found.examples["forget"][0]["rouge_l"] is None
    assert found.metrics["forget.rouge_l"] == found.examples["forget"][1]["rouge_l"]


def test_cut_examples_are_counted(tiny: Loaded, small_request: Request) -> None:
    found = evaluate(tiny, request_suite(Request(small_request.forget)), max_length=30, generate=False)
    assert any("cut to 30 tokens" in note for note in found.notes)


def shuffled(suite: Suite) -> Suite:
    rng = np.random.default_rng(1)
    return replace(
        suite,
        sets={
            name: tuple(examples[i] for i in rng.permutation(len(examples))) for name, examples in suite.sets.items()
        },
    )


def check_invariance(loaded: Loaded, suite: Suite) -> None:
    one = evaluate(loaded, suite, batch_size=1)
    for other in (evaluate(loaded, suite, batch_size=8), evaluate(loaded, shuffled(suite), batch_size=32)):
        assert set(other.metrics) == set(one.metrics)
        for name, value in one.metrics.items():
            # the absolute part is for 1 − R of ratios near 1, where fp32's rounding of the losses is all that is left
            assert other.metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
            assert other.intervals[name] == pytest.approx(one.intervals[name], rel=1e-6, abs=1e-5), name


def test_what_scoring_knows_changes_no_generation(tiny: Loaded, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that learned its answers: most need no decoding, and the texts are those of decoding all."""
    suite = replace(suite, max_new_tokens=40)
    items = Encoder(tiny.tokenizer).examples(suite.sets["forget"] + suite.sets["retain"])
    optimizer = torch.optim.Adam(tiny.model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        answers(tiny.model, collate(items)).mean_nll.mean().backward()
        optimizer.step()
    rows = []
    handle = tiny.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"]) if kwargs["use_cache"] else 0), with_kwargs=True
    )
    found = evaluate(tiny, suite)
    fewer = sum(rows)
    rows.clear()
    module = import_module("expunge.evaluation.model")  # where the names it calls stand
    monkeypatch.setattr(module, "known", lambda plan, _: [() for ids in plan.prompts if ids])
    plain = evaluate(tiny, suite)
    handle.remove()
    assert found == plain
    learned = [row for name in ("forget", "retain") for row in found.examples[name]]
    assert sum(row["generation"] == row["response"] for row in learned) >= 5
    assert fewer < 0.5 * sum(rows)


def test_batch_size_and_order_change_no_number(tiny: Loaded, suite: Suite) -> None:
    check_invariance(tiny, suite)


def test_batch_size_and_order_change_no_number_on_real_data(shared_data: Path) -> None:
    loaded = load(shared_data / "stories260K", device="cpu")
    suite = tofu(shared_data / "tofu", "forget01", limit=12, max_new_tokens=16)
    few = {name: examples if name == "forget" else examples[:5] for name, examples in suite.sets.items()}
    check_invariance(loaded, replace(suite, sets=few))


def test_running_text_is_continued_from_its_prefix(tiny: Loaded) -> None:
    """Chunks of a book: what is generated, scored and shown, each against a computation of its own."""
    book = "Ada Lome was born in Tarn. She mends old clocks, and has a grey goose named Ilse. " * 3
    encoder = Encoder(tiny.tokenizer, max_length=24)
    texts = tuple(chunks([Example(prompt="", response=book)], encoder))
    retain = (Example(prompt="", response="Bo Hurst paints ships."), Example(prompt="Who?", response="Una."))
    suite = request_suite(Request(texts, retain), prefix_tokens=10, max_new_tokens=6)
    found = evaluate(tiny, suite, encoder=encoder)
    scorer, recall, strength, nll = RougeScorer(["rougeL"], use_stemmer=True), [], [], []
    for text, row in zip(texts, found.examples["forget"], strict=True):
        ids = text.tokens
        said = generate(tiny, [list(ids[:10])], max_new_tokens=6)[0]
        target = tiny.tokenizer.decode(ids[10:16], skip_special_tokens=True).strip()
        assert (row["prompt"], row["response"]) == (tiny.tokenizer.decode(ids[:10]), target)
        assert row["generation"] == said
        recall.append(scorer.score(target, said)["rougeL"].recall)
        with torch.no_grad():
            logp = tiny.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nll.append([-float(logp[place - 1, ids[place]]) for place in range(1, len(ids))])
        own = [int(logp[place - 1].argmax()) == ids[place] for place in range(10, len(ids))]
        own = own[:-1] if ids[-1] == tiny.tokenizer.eos_token_id else own
        wrong = [place for place, right in enumerate(own) if not right]
        strength.append(1 - (wrong[-1] + 1) / len(own) if wrong else 1.0)
    assert found.metrics["forget.rouge_l"] == pytest.approx(np.mean(recall))
    assert found.metrics["forget.extraction_strength"] == pytest.approx(np.mean(strength))
    assert found.metrics["forget.nll"] == pytest.approx(np.mean([np.mean(each) for each in nll]), rel=1e-6)
    assert found.metrics["forget.perplexity"] == pytest.approx(np.exp(np.mean(np.concatenate(nll))), rel=1e-6)
    low, high = found.intervals["forget.perplexity"]
    assert low < found.metrics["forget.perplexity"] < high
    assert found.metrics["retain.nll"] == pytest.approx(found.examples["retain"][0]["nll"])
    assert found.examples["retain"][1]["nll"] is not None
    assert evaluate(tiny, suite, encoder=encoder, reference=found).metrics == found.metrics


def test_known_text_scores_one(tiny: Loaded) -> None:
    """A model that knows a text by heart, and is cut off as early as its generations are."""
    text = (Example(prompt="", response="She mends old clocks in Tarn with her brother Per Lome, a baker."),)
    items = Encoder(tiny.tokenizer).examples(text)
    optimizer = torch.optim.Adam(tiny.model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        answers(tiny.model, collate(items)).mean_nll.mean().backward()
        optimizer.step()
    found = evaluate(tiny, request_suite(Request(text), max_new_tokens=3)).metrics
    assert found["forget.rouge_l_f1"] == found["forget.extraction_strength"] == 1
    assert 1 < found["forget.perplexity"] < 1.2
