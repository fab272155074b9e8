"""Paired comparison: differences, p-values and Holm's adjustment against hand-made cases and scipy."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from expunge.evaluation import Evaluation, statistics
from expunge.evaluation.comparison import Difference, paired
from expunge.evaluation.metrics import membership, quality


def made(columns: dict[str, dict[str, Any]], notes: tuple[str, ...] = (), **suite: float) -> Evaluation:
    """An evaluation whose sets have the given per-example columns; each metric is the column's mean."""
    examples, metrics = {}, {}
    for name, values in columns.items():
        count = len(next(iter(values.values())))
        examples[name] = [
            {"id": f"{name}/{i}", "prompt": f"p{i}", "response": f"r{i}"}
            | {metric: None if np.isnan(column[i]) else float(column[i]) for metric, column in values.items()}
            for i in range(count)
        ]
        metrics |= {f"{name}.{metric}": float(np.nanmean(column)) for metric, column in values.items()}
    return Evaluation("made", metrics | suite, {}, examples, notes)


def by_metric(differences: list[Difference]) -> dict[str, Difference]:
    return {each.metric: each for each in differences}


def test_sign_flips_are_those_of_an_exact_permutation_test() -> None:
    values = np.array([0.31, -0.05, 0.2, 0.11, 0.4, -0.02, 0.17])
    ours = statistics.sign_flip_p(values[:, None])[0]
    exact = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert ours == pytest.approx(exact.pvalue, abs=1e-12)


def test_random_sign_flips_come_close_to_the_t_test() -> None:
    values = np.random.default_rng(3).normal(0.2, 1.0, size=(200, 1))
    assert statistics.sign_flip_p(values)[0] == pytest.approx(stats.ttest_1samp(values, 0).pvalue[0], abs=0.01)


@pytest.mark.parametrize(("n", "least"), [(1, 1.0), (3, 0.25), (5, 0.0625)])
def test_few_examples_never_show_much(n: int, least: float) -> None:
    assert statistics.sign_flip_p(np.ones((n, 1)))[0] == pytest.approx(least)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .5 times 4 3 2 1 = .04 .06 .06 .5, never falling
    assert statistics.holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_noise_is_told_from_change() -> None:
    generator = np.random.default_rng(0)
    hard = generator.uniform(0, 1, 60)  # what makes an example hard is shared by both models
    changed, noise = hard - 0.04 + generator.normal(0, 0.02, 60), hard + generator.normal(0, 0.02, 60)
    one = made({"forget": {"probability": changed, "rouge_l": noise}})
    other = made({"forget": {"probability": hard, "rouge_l": hard}})
    found = by_metric(paired(one, other))
    assert found["forget.probability"].difference == pytest.approx(float((changed - hard).mean()))
    assert found["forget.probability"].beyond_noise
    assert found["forget.probability"].low < -0.04 < found["forget.probability"].high
    assert not found["forget.rouge_l"].beyond_noise
    assert found["forget.rouge_l"].low < 0 < found["forget.rouge_l"].high
    # unpaired intervals would not have told the change apart: the examples spread far more than the models differ
    spread = statistics.interval_of_mean(hard)
    assert spread[0] < float(changed.mean()) < spread[1]


def test_interval_is_that_of_a_slow_bootstrap() -> None:
    gaps = np.random.default_rng(5).exponential(1.0, 80)
    found = paired(made({"forget": {"nll": gaps}}), made({"forget": {"nll": np.zeros(80)}}))[0]
    slow = stats.bootstrap((gaps,), np.mean, method="percentile", n_resamples=5000, random_state=1)
    assert (found.low, found.high) == pytest.approx(tuple(slow.confidence_interval), abs=0.03)


def test_equal_models_and_the_other_way_round() -> None:
    columns = {"forget": {"probability": np.linspace(0.1, 0.9, 30)}, "retain": {"probability": np.linspace(0, 1, 30)}}
    one, other = made(columns), made({name: {"probability": c["probability"] ** 2} for name, c in columns.items()})
    assert all(each.p == 1 and each.difference == 0 and not each.beyond_noise for each in paired(one, one))
    forth, back = by_metric(paired(one, other)), by_metric(paired(other, one))
    for metric, each in forth.items():
        assert back[metric].difference == pytest.approx(-each.difference)
        assert back[metric].p == each.p


def test_order_changes_nothing_and_other_examples_are_left_out() -> None:
    one = made({"forget": {"probability": np.linspace(0.1, 0.9, 20)}})
    other = made({"forget": {"probability": np.linspace(0.1, 0.9, 20) ** 2}})
    shuffled = Evaluation("made", other.metrics, {}, {"forget": other.examples["forget"][::-1]})
    assert paired(one, shuffled) == paired(one, other)
    fewer = Evaluation("made", other.metrics, {}, {"forget": other.examples["forget"][:7]})
    assert paired(one, fewer)[0].n == 7
    strangers = [row | {"prompt": "another"} for row in other.examples["forget"]]
    assert paired(one, Evaluation("made", other.metrics, {}, {"forget": strangers})) == []


def test_gaps_and_the_truth_ratios_score() -> None:
    ratio = np.array([0.5, 2.0, np.nan, 4.0])  # scores .5, .5, none, .25 on forget; .5, 0, none, 0 on retain
    one = made({"forget": {"truth_ratio": ratio}, "retain": {"truth_ratio": ratio}})
    other = made({name: {"truth_ratio": np.ones(4)} for name in ("forget", "retain")})
    found = by_metric(paired(one, other))
    assert found["forget.truth_ratio"].difference == pytest.approx((0.5 + 0.5 + 0.25) / 3 - 1)
    assert found["retain.truth_ratio"].difference == pytest.approx(0.5 / 3)
    assert found["forget.truth_ratio"].n == 3


def test_membership_auc() -> None:
    generator = np.random.default_rng(1)
    seen, unseen = generator.normal(1, 0.2, 40), generator.normal(3, 0.2, 40)
    auc = membership.auc(seen, unseen)
    one = made({"forget": {"nll": seen}, "holdout": {"nll": unseen}}, **{"mia.loss.auc": auc, "mia.min_k.auc": auc})
    other = made(
        {"forget": {"nll": unseen[::-1]}, "holdout": {"nll": unseen}}, **{"mia.loss.auc": 0.5, "mia.min_k.auc": 1}
    )
    found = by_metric(paired(one, other))
    assert found["mia.loss.auc"].difference == pytest.approx(auc - 0.5)
    assert found["mia.loss.auc"].beyond_noise
    assert "mia.min_k.auc" not in found  # its scores were not kept


def test_model_utility_from_its_parts() -> None:
    generator = np.random.default_rng(2)
    columns = {"retain": {"probability": generator.uniform(0.5, 1, 50), "rouge_l": generator.uniform(0.5, 1, 50)}}
    worse = {"retain": {name: column - 0.2 for name, column in columns["retain"].items()}}
    note = ("model_utility is the harmonic mean of retain.probability, retain.rouge_l",)

    def whole(given: dict[str, dict[str, Any]]) -> Evaluation:
        return made(given, note, model_utility=quality.model_utility([c.mean() for c in given["retain"].values()]))

    one, other = whole(columns), whole(worse)
    found = by_metric(paired(one, other))["model_utility"]
    assert found.difference == pytest.approx(one.metrics["model_utility"] - other.metrics["model_utility"])
    assert found.beyond_noise
    assert found.low < found.difference < found.high
    unlike = made(columns, note, model_utility=0.123)  # not what its parts give
    assert "model_utility" not in by_metric(paired(unlike, other))
