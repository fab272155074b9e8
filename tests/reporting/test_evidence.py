"""Claims on few examples: what supports them, what they say where nothing does, and how often they are false."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm

from expunge.evaluation import statistics
from expunge.reporting import evidence
from expunge.reporting.results import leaderboard
from expunge.reporting.verdict import Verdict, verdicts
from expunge.runs.record import result
from tests.evaluation.test_comparison import made

ALPHA = 0.05


def compared(
    forget: dict[str, list[np.ndarray]], retain: np.ndarray | None = None, **suite: list[float]
) -> tuple[Verdict, dict[str, Any]]:
    """The verdict on an unlearned model beside the original: of each measure the original's column, then its own."""
    keep = np.full(40, 0.9) if retain is None else retain
    models = []
    for index in (0, 1):
        sets = {"forget": {name: columns[index] for name, columns in forget.items()}, "retain": {"probability": keep}}
        models.append(made(sets, **{name: values[index] for name, values in suite.items()}))
    original, unlearned = models
    runs = [
        result("original", "original", original, controls={}),
        result("npo", "unlearned", unlearned, controls={"original": original}),
    ]
    (verdict,) = verdicts(leaderboard({"runs": runs}))
    return verdict, runs[1]


def with_tokens(run: dict[str, Any], rows: np.ndarray) -> None:
    for row, tokens in zip(run["examples"]["forget"], rows, strict=True):
        row["token_logprob"] = tokens.tolist()


def claim(verdict: Verdict, name: str) -> Any:
    return next(each for each in verdict.claims if each.name == name)


def test_three_rows_do_not_say_that_nothing_changed() -> None:
    before, after = np.array([0.7, 0.74, 0.72]), np.array([0.05, 0.06, 0.07])
    verdict, run = compared({"extraction_strength": [before, after]})
    assert "no_op" not in [each["name"] for each in run["findings"]]
    assert (verdict.level, verdict.word) == ("unknown", "Too few examples to tell")
    assert "Not known: too few examples (3 examples); it takes about 29 examples." in claim(verdict, "recites").text
    changed = next(each for each in run["against"]["original"] if each["metric"] == "forget.extraction_strength")
    assert changed["needed"] == 6  # 2^(1 − n) < .05
    assert changed["low"] is changed["high"] is None


@pytest.mark.parametrize(
    ("drop", "level"),
    [
        (4.0, "good"),  # e^−4 = 2 % of the probability is left
        (1.0, "partial"),  # 37 % is: the tokens do not bear extraction strength out
    ],
)
def test_a_few_rows_are_judged_by_their_tokens(drop: float, level: str) -> None:
    rng = np.random.default_rng(0)
    metrics = [{"forget.extraction_strength": value, "retain.probability": 0.9} for value in (0.72, 0.01)]
    tokens = -0.2 + rng.normal(0, 0.02, (3, 24))
    runs = []
    for model, numbers, logprob in (("original", metrics[0], tokens), ("unlearned", metrics[1], tokens - drop)):
        strength = numbers["forget.extraction_strength"]
        rows = [{"id": i, "prompt": f"p{i}", "response": "r", "extraction_strength": strength} for i in range(3)]
        run = {"model": model, "method": model, "metrics": numbers, "examples": {"forget": rows}}
        with_tokens(run, logprob + rng.normal(0, 0.01, logprob.shape))
        runs.append(run)
    (verdict,) = verdicts(leaderboard({"runs": runs}))
    found = claim(verdict, "recites")
    assert (found.evidence.unit, found.evidence.n) == (evidence.TOKENS, 18)  # 24 tokens are 6 blocks
    assert found.evidence.low <= math.exp(-drop) <= found.evidence.high
    assert found.evidence.high - found.evidence.low < 0.05
    assert found.level == level


def test_the_interval_of_what_is_left_is_the_contrasts() -> None:
    rng = np.random.default_rng(1)
    before, after = np.full(60, 0.8), np.abs(rng.normal(0.03, 0.02, 60))
    verdict, _ = compared({"extraction_strength": [before, after]})
    found = claim(verdict, "recites").evidence
    t = 1.96 * after.std(ddof=1) / math.sqrt(60) / 0.8
    assert (found.low, found.high) == pytest.approx((after.mean() / 0.8 - t, after.mean() / 0.8 + t), abs=0.002)
    assert claim(verdict, "recites").level == "good"


def test_nothing_changed_takes_an_interval_and_enough_rows() -> None:
    rng = np.random.default_rng(2)
    before = rng.uniform(0.7, 0.9, 40)
    same, moved = before + rng.normal(0, 0.01, 40), before + rng.normal(0, 0.3, 40)
    assert [each["name"] for each in compared({"extraction_strength": [before, same]})[1]["findings"]] == ["no_op"]
    assert (
        compared({"extraction_strength": [before, moved]})[1]["findings"] == []
    )  # unchanged on average is not unchanged
    assert compared({"extraction_strength": [before[:4], same[:4]]})[1]["findings"] == []


def test_kept_takes_an_interval_above_nine_tenths() -> None:
    rng = np.random.default_rng(3)
    forget = {"extraction_strength": [np.full(40, 0.9), np.full(40, 0.01)]}

    def kept(n: int, noise: float) -> Any:
        original = rng.uniform(0.7, 0.9, n)
        own = original + rng.normal(0, noise, n)
        sets = [{"forget": {"extraction_strength": forget["extraction_strength"][i]}, "retain": {"probability": column}}
                for i, column in enumerate((original, own - own.mean() + original.mean()))]  # fmt: skip
        one, other = made(sets[0]), made(sets[1])
        runs = [result("original", "original", one), result("npo", "unlearned", other, controls={"original": one})]
        return claim(verdicts(leaderboard({"runs": runs}))[0], "kept")

    assert kept(100, 0.05).level == "good"
    wide = kept(8, 0.3)
    assert (wide.level, wide.unpowered) == ("unknown", True)
    assert "Not known: too few examples (8 examples); it takes about" in wide.text
    assert kept(3, 0.001).unpowered


def test_other_sets_do_not_make_a_small_request_undecidable() -> None:
    rng = np.random.default_rng(4)
    before, after = rng.uniform(0.6, 0.8, 7), rng.uniform(0.0, 0.1, 7)
    retain = {f"measure{k}": rng.uniform(0, 1, 20) for k in range(30)}
    one = made({"forget": {"extraction_strength": after}, "retain": retain})
    other = made({"forget": {"extraction_strength": before}, "retain": retain})
    run = result("npo", "unlearned", one, controls={"original": other})
    found = {each["metric"]: each for each in run["against"]["original"]}
    assert found["forget.extraction_strength"]["adjusted"] == pytest.approx(2 / 2**7)
    assert found["forget.extraction_strength"]["beyond_noise"]
    assert found["forget.extraction_strength"]["family"] == "forget"
    assert found["retain.measure0"]["family"] == "kept"


# --- how often claims are false, over a few thousand simulated requests


def slack(share: float, count: int) -> float:
    """The largest share of false claims that `count` trials at `share` show, but for one in a thousand."""
    return share + 3.1 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("n", [3, 5, 6, 9, 12])
def test_an_unchanged_model_is_seldom_said_to_have_changed(n: int) -> None:
    gaps = np.random.default_rng(n).standard_t(3, size=(n, 3000))
    assert (statistics.sign_flip_p(gaps) < ALPHA).mean() <= slack(ALPHA, 3000)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 48), (3, 20), (5, 40)])
def test_tokens_that_depend_on_each_other_do_not_fool_the_token_test(rows: int, tokens: int) -> None:
    rng, dependence = np.random.default_rng(rows), 0.3
    noise = rng.normal(size=(2000, rows, tokens))
    noise[..., 0] /= math.sqrt(1 - dependence**2)
    for k in range(1, tokens):
        noise[..., k] += dependence * noise[..., k - 1]
    blocks = np.array([statistics.block_means(list(request)) for request in noise])
    assert (statistics.sign_flip_p(blocks.T) < ALPHA).mean() <= slack(0.07, 2000)  # a block leans a little on the next


@pytest.mark.parametrize("n", [6, 8, 16])
def test_subset_intervals_hold_the_centre(n: int) -> None:
    draws = np.random.default_rng(n).standard_t(3, size=(600, n)) + 1.5
    pairs = [statistics.subset_interval(values) for values in draws]
    missed = np.mean([pair is None or not pair[0] <= 1.5 <= pair[1] for pair in pairs])
    assert missed <= slack(ALPHA, 600)
    assert statistics.subset_interval(draws[0, :5]) is None


def test_the_subset_interval_is_the_test_turned_round() -> None:
    values = np.array([0.31, -0.05, 0.2, 0.11, 0.4, -0.02, 0.17])
    pair = statistics.subset_interval(values)
    assert pair is not None
    inside, outside = 1e-6, -1e-6
    for bound, way in ((pair[0], 1), (pair[1], -1)):
        assert statistics.sign_flip_p((values - bound - way * inside)[:, None])[0] > ALPHA
        assert statistics.sign_flip_p((values - bound - way * outside)[:, None])[0] <= ALPHA


@pytest.mark.parametrize("n", [3, 10, 30, 100])
def test_a_test_that_can_tell_is_seldom_said_not_to(n: int) -> None:
    """True AUC .6, the margin itself: the interval must seldom lie within .5 ± .1; and of true AUC .5 it often does."""
    rng, shift = np.random.default_rng(n), math.sqrt(2) * norm.ppf(0.6)
    count = 150
    claimed = 0
    weights = statistics.resample(n, samples=300), statistics.resample(n, stream=1, samples=300)
    for _ in range(count):
        seen, unseen = rng.normal(-shift, 1, n), rng.normal(0, 1, n)
        value = float((seen[:, None] < unseen).mean())
        low, high = (
            statistics.auc_interval(value, n, n)
            if n < statistics.FEW
            else statistics.interval(statistics.aucs(seen, unseen, *weights))
        )
        assert 0 <= low <= value <= high <= 1
        claimed += low >= 0.4 and high <= 0.6
    assert claimed / count <= slack(ALPHA, count)


@pytest.mark.parametrize("n", [20, 29, 60])
@pytest.mark.parametrize("kind", ["zeros and ones", "few large", "alike"])
def test_what_is_left_is_seldom_said_to_be_little(n: int, kind: str) -> None:
    """True share left .1, the line itself, however it is spread over the rows."""
    rng = np.random.default_rng(n)
    draws = {
        "zeros and ones": lambda: (rng.random(n) < 0.1).astype(float),
        "few large": lambda: rng.beta(0.2, 1.8, n),
        "alike": lambda: rng.beta(2.0, 18.0, n),
    }
    count = 200
    claimed = [statistics.skewed_interval(draws[kind](), seed=trial)[1] <= 0.1 for trial in range(count)]
    assert np.mean(claimed) <= slack(0.06, count)


@pytest.mark.parametrize("n", [3, 8, 30])
@pytest.mark.parametrize(("share", "spread"), [(1.0, 0.02), (0.3, 0.1), (0.1, 0.05)])
def test_simulated_requests_are_seldom_cleared_of_what_is_left(n: int, share: float, spread: float) -> None:
    """Whole verdicts on models that keep all, 30 % and 10 % (the line itself) of what they knew of each request."""
    rng, count, cleared = np.random.default_rng(n), 250, 0
    for _ in range(count):
        known = rng.uniform(0.7, 0.9, n)
        own = np.clip(known * share + rng.normal(0, spread, n), 0, 1)
        logprob = -0.3 + rng.normal(0, 0.05, (n, 16))
        runs = []
        for model, strength, moved in (("original", known, 0.0), ("unlearned", own, math.log(share))):
            tokens = logprob + moved + rng.normal(0, 0.3, logprob.shape)
            rows = [
                {
                    "id": i,
                    "prompt": "p",
                    "response": "r",
                    "extraction_strength": float(value),
                    "token_logprob": list(line),
                }
                for i, (value, line) in enumerate(zip(strength, tokens.tolist(), strict=True))
            ]
            metrics = {"forget.extraction_strength": float(strength.mean())}
            runs.append({"model": model, "method": model, "metrics": metrics, "examples": {"forget": rows}})
        (verdict,) = verdicts(leaderboard({"runs": runs}))
        cleared += claim(verdict, "recites").level == "good"
        if share == 1.0:
            assert claim(verdict, "recites").level in ("failed", "unknown")
    assert cleared / count <= slack(ALPHA, count)


def test_shares_have_exact_intervals_within_0_and_1() -> None:
    for right, n in ((0, 3), (3, 3), (2, 3), (17, 40)):
        values = np.repeat([1.0, 0.0], [right, n - right])
        low, high = statistics.interval_of_mean(values)
        assert low == pytest.approx(beta.ppf(0.025, right, n - right + 1) if right else 0.0)
        assert high == pytest.approx(beta.ppf(0.975, right + 1, n - right) if right < n else 1.0)


def test_auc_intervals_are_wilsons_and_stay_within_0_and_1() -> None:
    wilson = binomtest(2, 6).proportion_ci(method="wilson")
    assert statistics.auc_interval(1 / 3, 6, 9) == pytest.approx((wilson.low, wilson.high))
    assert statistics.auc_interval(0.0, 3, 3)[1] == pytest.approx(0.5615, abs=1e-4)
    low, high, p = statistics.auc_change(1.0, 0.0, 3)
    assert low < 1 < high + 1e-9
    # each AUC has the chance 1/20 were both .5; resamples, which never cross, would say p = .0002
    assert p > 2 * (1 / 20) ** 2
