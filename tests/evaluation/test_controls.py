"""What is measured against the retrained model: from a file, of the same data only, and said where it is missing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, mannwhitneyu

from expunge.data import Encoder
from expunge.errors import ConfigurationError
from expunge.evaluation import Evaluation, Suite, evaluate, request_suite, score
from expunge.evaluation.metrics.membership import auc, min_k, tpr_at_fpr
from expunge.models import Loaded
from expunge.request import Example, Request
from tests.conftest import RETAIN

WRONG = ("In Tarn, by a lake.", "He sold maps.", "A red hen.")


@pytest.fixture
def suite(small_request: Request) -> Suite:
    forget = tuple(
        replace(example, wrong_responses=WRONG, paraphrased_response="So it was.") for example in small_request.forget
    )
    holdout = tuple(Example(prompt=row["prompt"], response=row["response"]) for row in RETAIN)
    return request_suite(Request(forget, (), holdout))


def other(loaded: Loaded) -> Loaded:
    """The same model with every weight a little larger; the retrained one, say."""
    import copy

    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    return Loaded(model, loaded.tokenizer, loaded.folder)


def read_again(evaluation: Evaluation) -> Evaluation:
    return Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict(), allow_nan=False)))


def test_privleak_and_the_reference_attack_equal_their_definitions(tiny: Loaded, suite: Suite) -> None:
    retrained = other(tiny)
    reference = read_again(evaluate(retrained, suite, generate=False))
    found = evaluate(tiny, suite, generate=False, reference=reference)
    encoder = Encoder(tiny.tokenizer)
    scores, losses = {}, {}
    for role, loaded in (("own", tiny), ("gold", retrained)):
        records = {name: score(loaded, encoder.examples(suite.sets[name])) for name in ("forget", "holdout")}
        low = [min_k(records[name]) for name in ("forget", "holdout")]
        scores[role] = mannwhitneyu(*low).statistic / (len(low[0]) * len(low[1]))  # MUSE: P(forget above holdout)
        losses[role] = [np.array([one.nll_mean for one in records[name]]) for name in ("forget", "holdout")]
    assert found.metrics["privleak"] == pytest.approx(100 * (scores["own"] - scores["gold"]) / scores["gold"])
    pair = [own - gold for own, gold in zip(losses["own"], losses["gold"], strict=True)]
    assert found.metrics["mia.reference.auc"] == pytest.approx(auc(*pair))
    assert found.metrics["mia.reference.tpr_at_1_fpr"] == pytest.approx(tpr_at_fpr(*pair))
    low, high = found.intervals["privleak"]
    assert low <= found.metrics["privleak"] <= high
    assert evaluate(retrained, suite, generate=False, reference=reference).metrics["privleak"] == 0


def test_order_and_batches_change_neither(tiny: Loaded, suite: Suite) -> None:
    reference = evaluate(other(tiny), suite, generate=False)
    one = evaluate(tiny, suite, generate=False, reference=reference, deep=True, batch_size=1)
    turned = replace(suite, sets={name: examples[::-1] for name, examples in suite.sets.items()})
    two = evaluate(tiny, turned, generate=False, reference=reference, deep=True)
    assert set(one.metrics) == set(two.metrics)
    for name in ("privleak", "mia.reference.auc", "mia.gradnorm.auc", "forget.logit_lens", "forget_quality"):
        assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-6)
    for name in ("privleak", "mia.gradnorm.auc", "forget.logit_lens"):
        assert two.intervals[name] == pytest.approx(one.intervals[name], rel=1e-5)
    assert one.asked == two.asked


def test_the_gradient_norm_attack_is_the_norms_own(tiny: Loaded, suite: Suite) -> None:
    found = evaluate(tiny, suite, generate=False, deep=True)
    norms = []
    for name in ("forget", "holdout"):
        norms.append([])
        for item in Encoder(tiny.tokenizer).examples(suite.sets[name]):
            tiny.model.zero_grad()
            logits = tiny.model(torch.tensor([item.ids])).logits[0, item.start - 1 : -1]
            torch.nn.functional.cross_entropy(logits, torch.tensor(item.labels)).backward()
            norms[-1].append(float(torch.cat([p.grad.flatten() for p in tiny.model.parameters()]).norm()))
    assert found.metrics["mia.gradnorm.auc"] == pytest.approx(auc(*map(np.array, norms)))
    assert not [name for name in evaluate(tiny, suite, generate=False).metrics if "gradnorm" in name]


def test_without_a_reference_it_is_said(tiny: Loaded, suite: Suite) -> None:
    found = evaluate(tiny, suite, generate=False)
    text = " | ".join(found.notes)
    for name in ("forget_quality", "mia.reference and privleak"):
        assert f"{name} {'is' if name == 'forget_quality' else 'are'} absent: no model retrained" in text
    assert "privleak" not in found.metrics


@pytest.mark.parametrize("change", ["wrong", "paraphrase", "form"])
def test_a_reference_that_was_asked_something_else_is_refused(tiny: Loaded, suite: Suite, change: str) -> None:
    reference = read_again(evaluate(tiny, suite, generate=False))
    first, *rest = suite.sets["forget"]
    first = {
        "wrong": replace(first, wrong_responses=WRONG[1:]),
        "paraphrase": replace(first, paraphrased_response="Thus."),
        "form": first,
    }[change]
    changed = replace(suite, sets={**suite.sets, "forget": (first, *rest)})
    form = "paper" if change == "form" else "geometric"
    with pytest.raises(ConfigurationError, match="other paraphrases or wrong answers, or another form"):
        evaluate(tiny, changed, reference=reference, form=form, progress=lambda *_: pytest.fail("work had begun"))


def test_another_holdout_set_is_said_not_used(tiny: Loaded, suite: Suite) -> None:
    reference = evaluate(other(tiny), suite, generate=False)
    fewer = replace(suite, sets={**suite.sets, "holdout": (Example(prompt="Who?", response="Someone else."),)})
    found = evaluate(tiny, fewer, generate=False, reference=reference)
    assert "privleak" not in found.metrics
    assert "forget_quality" in found.metrics
    assert any("not evaluated on this holdout set" in note for note in found.notes)


def test_a_reference_of_an_older_version_still_serves(tiny: Loaded, suite: Suite) -> None:
    old = evaluate(other(tiny), suite, generate=False)
    rows = {
        name: [{k: v for k, v in row.items() if k != "min_k"} for row in rows] for name, rows in old.examples.items()
    }
    found = evaluate(tiny, suite, generate=False, reference=replace(old, examples=rows, asked={}))
    assert "mia.reference.auc" in found.metrics
    assert "privleak" not in found.metrics
    assert any("holds no min-k scores" in note for note in found.notes)


def test_forms_of_the_truth_ratio_reach_the_results(tiny: Loaded, suite: Suite) -> None:
    found = {form: evaluate(tiny, suite, generate=False, form=form) for form in ("geometric", "paper", "knowledge")}
    ratio = {form: np.array([row["truth_ratio"] for row in one.examples["forget"]]) for form, one in found.items()}
    assert (ratio["paper"] > ratio["geometric"]).all()  # the arithmetic mean is the larger
    np.testing.assert_array_equal(ratio["knowledge"], ratio["geometric"])
    assert found["knowledge"].metrics["forget.truth_ratio"] == pytest.approx(np.mean(1 / (1 + ratio["geometric"])))
    assert any("form 'paper'" in note for note in found["paper"].notes)
    with pytest.raises(ConfigurationError, match="no form 'harmonic'"):
        evaluate(tiny, suite, form="harmonic")  # type: ignore[arg-type]


def test_a_set_of_one_example(tiny: Loaded, suite: Suite) -> None:
    one = replace(suite, sets={name: examples[:1] for name, examples in suite.sets.items()})
    reference = evaluate(other(tiny), one, generate=False)
    found = evaluate(tiny, one, generate=False, reference=reference, deep=True)
    assert found.metrics["forget_quality"] == ks_2samp([1.0], [2.0]).pvalue == 1
    assert found.metrics["mia.gradnorm.auc"] in (0, 1)
    assert all(np.isfinite(value) for value in found.metrics.values())


def test_an_empty_answer_is_measured_like_any_other(tiny: Loaded, suite: Suite) -> None:
    """What is left of it is the space before it and the end-of-sequence token."""
    blank = replace(suite.sets["forget"][0], response="")
    odd = replace(suite, sets={**suite.sets, "forget": (blank, *suite.sets["forget"][1:])}, max_new_tokens=4)
    found = evaluate(tiny, odd, deep=True)
    assert all(np.isfinite(value) for value in found.metrics.values())
    row = found.examples["forget"][0]
    assert row["rouge_l"] == 0
    item = Encoder(tiny.tokenizer).example(blank)
    assert item.labels[-1] == tiny.tokenizer.eos_token_id
    assert len(item.labels) == 2
    with torch.no_grad():
        logp = tiny.model(torch.tensor([item.ids])).logits[0, -3:-1].double().log_softmax(-1)
    assert row["nll"] == pytest.approx(-float(logp[range(2), item.labels].mean()), rel=1e-5)


def test_missing_paraphrases_are_said(tiny: Loaded, suite: Suite) -> None:
    plain = tuple(replace(example, paraphrased_response=None) for example in suite.sets["forget"])
    found = evaluate(tiny, replace(suite, sets={**suite.sets, "forget": plain}), generate=False)
    assert any("4 of 4 examples have no paraphrased_response" in note for note in found.notes)
    assert "forget.truth_ratio" in found.metrics
