"""The truth ratio against its definition in plain probabilities."""

import numpy as np
import pytest

from expunge.evaluation.metrics.truth_ratio import (
    Form,
    forget_score,
    knowledge_score,
    ratio_of,
    score_of,
    truth_ratio,
    utility_score,
)

RIGHT = np.array([0.4, 0.1, 0.2])  # length-normalised probabilities
WRONG = [np.array([0.1, 0.4]), np.array([0.2, 0.8]), np.array([0.2])]
GEOMETRIC = np.array([0.2 / 0.4, 0.4 / 0.1, 1.0])


def nll(items: list[np.ndarray]) -> list[np.ndarray]:
    return [-np.log(item) for item in items]


def test_geometric_ratio_and_its_scores_by_hand() -> None:
    ratio = truth_ratio(-np.log(RIGHT), nll(WRONG))
    np.testing.assert_allclose(ratio, GEOMETRIC)
    np.testing.assert_allclose(forget_score(ratio), [0.5, 0.25, 1.0])
    np.testing.assert_allclose(utility_score(ratio), [0.5, 0.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(knowledge_score(ratio), [0.4 / 0.6, 0.1 / 0.5, 0.5])


def test_arithmetic_ratio_by_hand() -> None:
    ratio = truth_ratio(-np.log(RIGHT), nll(WRONG), mean="arithmetic")
    np.testing.assert_allclose(ratio, [0.25 / 0.4, 0.5 / 0.1, 1.0])


def test_compat_adds_the_frameworks_epsilon() -> None:
    right, wrong = np.array([1e-10, 0.3]), [np.array([4e-10, 4e-10]), np.array([0.1, 0.1])]
    ratio = truth_ratio(-np.log(right), nll(wrong), compat=True)
    np.testing.assert_allclose(ratio, [4e-10 / 2e-10, 0.1 / (0.3 + 1e-10)])
    np.testing.assert_allclose(forget_score(ratio, compat=True), [1 / (2 + 1e-10), 0.1 / (0.3 + 1e-10)])


def test_answers_of_vanishing_probability_stay_finite() -> None:
    ratio = truth_ratio(np.array([2000.0, 1.0]), [np.array([1.0]), np.array([2000.0])])
    assert np.isfinite(ratio).all()
    np.testing.assert_allclose(forget_score(ratio), [0, 0], atol=1e-300)
    np.testing.assert_allclose(utility_score(ratio), [0, 1])


@pytest.mark.parametrize(
    ("form", "ratio", "forget", "keep"),
    [
        ("geometric", GEOMETRIC, [0.5, 0.25, 1.0], [0.5, 0, 0]),
        ("paper", [0.625, 5.0, 1.0], [0.625, 0.2, 1.0], [0.375, 0, 0]),
        ("compat", GEOMETRIC, [0.5, 0.25, 1.0], [0.5, 0, 0]),
        ("knowledge", GEOMETRIC, [0.4 / 0.6, 0.1 / 0.5, 0.5], [0.4 / 0.6, 0.1 / 0.5, 0.5]),
    ],
)
def test_each_form_by_hand(form: Form, ratio, forget, keep) -> None:
    found = ratio_of(-np.log(RIGHT), nll(WRONG), form)
    np.testing.assert_allclose(found, ratio, rtol=3e-9)
    np.testing.assert_allclose(score_of(found, True, form), forget, rtol=3e-9)
    np.testing.assert_allclose(score_of(found, False, form), keep, rtol=3e-9, atol=1e-9)


# rows 0, 1, 150 and 299 of eval_log_forget.json in TOFU's release (github.com/locuslab/tofu, MIT), of the models retrained
# on retain90 with weight decay .01: mean loss of the paraphrased answer, of the five perturbed ones, logged truth ratio
PHI = [
    (3.8409483432769775,
     [5.015774250030518, 4.298834323883057, 4.457849979400635, 3.6705191135406494, 4.644697666168213],
     0.5618125796318054),
    (2.0570340156555176,
     [1.8738352060317993, 2.6113600730895996, 2.098874092102051, 2.8013901710510254, 3.8412797451019287],
     0.5552626252174377),
    (3.6181488037109375,
     [2.556987762451172, 3.2274065017700195, 3.7449378967285156, 3.1266744136810303, 3.174553394317627],
     1.5715094804763794),
    (3.396699905395508,
     [4.1542229652404785, 4.34261417388916, 3.9717347621917725, 3.9464502334594727, 4.01607608795166],
     0.501816987991333),
]  # fmt: skip
LLAMA = [
    (3.9661529064178467,
     [3.3338165283203125, 3.7183289527893066, 3.7701635360717773, 4.032127857208252, 3.265414237976074],
     1.4080170392990112),
    (3.0422770977020264,
     [1.4900201559066772, 3.139751672744751, 2.6959047317504883, 3.3705334663391113, 3.658674955368042],
     1.1868467330932617),
    (3.4906435012817383,
     [2.7405025959014893, 2.919919490814209, 3.2527363300323486, 2.7709527015686035, 3.55146861076355],
     1.5581940412521362),
    (3.1766767501831055,
     [3.473094940185547, 3.4327142238616943, 3.47965145111084, 3.2868974208831787, 3.4398083686828613],
     0.7821123003959656),
]  # fmt: skip


@pytest.mark.parametrize("log", [PHI, LLAMA])
def test_the_default_form_is_that_of_tofus_published_logs(log) -> None:
    right, wrong, logged = zip(*log, strict=True)
    ratio = ratio_of(np.array(right), [np.array(losses) for losses in wrong])
    np.testing.assert_allclose(ratio, logged, rtol=1e-6)
    published = 1 / ratio  # what the release's aggregation starts from
    np.testing.assert_allclose(score_of(ratio, True), np.minimum(published, 1 / published), rtol=1e-12)
    np.testing.assert_allclose(score_of(ratio, False), np.maximum(0, 1 - 1 / published), atol=1e-12)
