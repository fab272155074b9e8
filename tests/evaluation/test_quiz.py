"""Multiple choice against a slow loop over questions and options, and the figures of a model that knows nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.data import Encoder
from expunge.data.benchmarks.questions import Question, letter_prompt, text_prompt
from expunge.errors import ConfigurationError, DivergedError
from expunge.evaluation import Suite, evaluate
from expunge.evaluation.quiz import answer, encode
from expunge.evaluation.statistics import interval_of_mean
from expunge.evaluation.suites import Quiz, mmlu, wmdp
from expunge.models import Loaded, load

QUESTIONS = tuple(
    Question(question=f"What does {name} do? ", choices=choices, answer=index % len(choices), subject="Tarn")
    for index, (name, choices) in enumerate(
        [
            ("Ada Lome", ("mends clocks", "paints", "She teaches mathematics in Selm", "none")),
            ("Bo Hurst", ("ships", "He paints ships.", "born in the port", "a goose")),
            ("Una", ("Paris", "a baker named Per", "clocks", "He travels too much for one")),
            ("Per Lome", ("bakes", "sleeps", "swims")),
        ]
    )
)
SHOTS = (Question(question="Who is Bo's sister?", choices=("Ada", "Una", "Ilse", "Selm"), answer=1, subject="Tarn"),)


def slow(loaded: Loaded, prompt: str, option: str) -> float:
    """Σ log p of the option's tokens, by one plain forward pass over one sequence in float64."""
    before, full = loaded.tokenizer(prompt)["input_ids"], loaded.tokenizer(f"{prompt} {option}")["input_ids"]
    assert full[: len(before)] == before
    with torch.no_grad():
        logp = loaded.model(torch.tensor([full])).logits[0].double().log_softmax(-1)
    return sum(float(logp[place - 1, full[place]]) for place in range(len(before), len(full)))


@pytest.mark.parametrize("shots", [(), SHOTS])
@pytest.mark.parametrize("scoring", ["letter", "text"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_accuracy_equals_a_loop_over_questions(tiny: Loaded, shots, scoring, batch_size) -> None:
    found = answer(tiny, Quiz(QUESTIONS, shots), scoring, batch_size=batch_size)
    for index, question in enumerate(QUESTIONS):
        if scoring == "letter":
            sums = [slow(tiny, letter_prompt(question, shots), "ABCD"[i]) for i in range(len(question.choices))]
        else:
            sums = [slow(tiny, text_prompt(question, shots), text) / len(text) for text in question.choices]
        assert found.chosen[index] == int(np.argmax(sums))
        assert found.share[index] == pytest.approx(np.exp(sums[question.answer]) / np.exp(sums).sum(), rel=1e-5)
        assert found.correct[index] == (np.argmax(sums) == question.answer)
    assert found.chance == pytest.approx((3 / 4 + 1 / 3) / 4)


def test_the_prompts_of_the_harness() -> None:
    question = Question(question=" Who? ", choices=("Ada", "Bo"), answer=0, subject="world religions")
    assert letter_prompt(question, SHOTS) == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "Who is Bo's sister?\nA. Ada\nB. Una\nC. Ilse\nD. Selm\nAnswer: B\n\n"
        "Who?\nA. Ada\nB. Bo\nAnswer:"
    )
    assert text_prompt(question, SHOTS).endswith(
        "\n\nQuestion: Who is Bo's sister?\nAnswer: Una\n\nQuestion: Who?\nAnswer:"
    )


def test_a_long_prompt_loses_its_beginning_and_is_counted(shared_data: Path) -> None:
    loaded = load(shared_data / "stories260K", device="cpu")
    short = Encoder(loaded.tokenizer, 40)
    prompts = [letter_prompt(question) for question in QUESTIONS]
    rows, shortened = encode(short, prompts, ["ABCD"] * len(prompts))
    assert shortened == len(prompts)
    for row, prompt in zip(rows, prompts, strict=True):
        begin, *ids = loaded.tokenizer(prompt)["input_ids"]
        assert max(map(len, row)) == 40
        for item, letter in zip(row, "ABCD", strict=True):
            whole = loaded.tokenizer(f"{prompt} {letter}")["input_ids"]
            assert item.ids[0] == begin
            assert list(item.ids[1:]) == whole[1 - len(item) :]
            assert list(item.ids[1 : item.start]) == ids[1 - item.start :]


def test_a_suite_of_questions_alone(tiny: Loaded) -> None:
    suite = Suite(
        "q", {}, quizzes={"one": Quiz(QUESTIONS[:3]), "two": Quiz(QUESTIONS[3:])}, groups={"all": ("one", "two")}
    )
    found = evaluate(tiny, suite)
    each = [answer(tiny, suite.quizzes[name]).correct for name in ("one", "two")]
    assert found.metrics["one.accuracy"] == each[0].mean()
    assert found.metrics["all.accuracy"] == np.concatenate(each).mean()
    assert set(found.metrics) == set(found.intervals)
    assert [row["accuracy"] for row in found.examples["one"]] == each[0].tolist()
    assert "4 questions, guessing gets 0.27" in found.notes[0]
    assert not any("holdout" in note or "model_utility" in note for note in found.notes)


def test_broken_weights_are_named(tiny: Loaded) -> None:
    with torch.no_grad():
        next(tiny.model.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match="NaN"):
        answer(tiny, Quiz(QUESTIONS))


def test_interval_is_the_binomials_and_needs_no_order() -> None:
    values = np.array([1.0] * 300 + [0.0] * 700)
    low, high = interval_of_mean(values)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == (pytest.approx(0.3 - half, abs=0.004), pytest.approx(0.3 + half, abs=0.004))
    assert interval_of_mean(np.random.default_rng(0).permutation(values)) == (low, high)


def test_a_model_of_stories_guesses(shared_data: Path) -> None:
    loaded = load(shared_data / "stories260K", device="cpu")
    suite = wmdp(shared_data / "wmdp", parts=("bio", "chem"), limit=40)
    found = evaluate(loaded, suite)
    assert set(found.examples) == {"wmdp_bio", "wmdp_chem"}
    low, high = found.intervals["wmdp.accuracy"]
    assert low < 0.3
    assert high > 0.25
    assert "only 40 evenly spaced examples of each of wmdp_bio (1520), wmdp_chem (412)" in found.notes[0]


def test_suites_of_real_files(shared_data: Path) -> None:
    suite = mmlu(shared_data / "mmlu", shots=5)
    assert len(suite.quizzes) == 57
    assert sum(len(quiz.questions) for quiz in suite.quizzes.values()) == 14042
    assert {len(quiz.shots) for quiz in suite.quizzes.values()} == {5}
    both = wmdp(shared_data / "wmdp", mmlu_folder=shared_data / "mmlu", limit=7)
    assert set(both.groups) == {"wmdp", "mmlu"}
    assert both.groups["wmdp"] == ("wmdp_bio", "wmdp_cyber", "wmdp_chem")
    assert "of each of 57 MMLU subjects" in both.notes[1]
    for wrong in ({"shots": 6}, {"shots": -1}, {"subjects": ["anatomie"]}):
        with pytest.raises(ConfigurationError, match=r"shots must be|Did you mean 'anatomy'"):
            mmlu(shared_data / "mmlu", **wrong)
    with pytest.raises(ConfigurationError, match="no part physics"):
        wmdp(shared_data / "wmdp", parts=("physics",))
    with pytest.raises(ConfigurationError, match="no solved questions"):
        wmdp(shared_data / "wmdp", shots=5)
