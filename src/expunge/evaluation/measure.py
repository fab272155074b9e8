"""From one set of examples to one number per example and metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.data import Encoded, Encoder
from expunge.evaluation.metrics import memorization, similarity
from expunge.evaluation.metrics import truth_ratio as truth
from expunge.evaluation.records import Record
from expunge.request import Example


@dataclass(frozen=True)
class Plan:
    """What has to be scored for one set of n examples. `right` and `wrong` are empty where nothing needs them.

    right: what the truth ratio takes as each example's right answer. wrong: each example's wrong answers.
    """

    name: str
    examples: Sequence[Example]
    responses: list[Encoded]
    right: list[Encoded]
    wrong: list[list[Encoded]]

    @property
    def encoded(self) -> list[Encoded]:
        """All sequences: the responses, then the right answers, then the wrong ones example by example."""
        return [*self.responses, *self.right, *(item for items in self.wrong for item in items)]

    @property
    def prompts(self) -> list[list[int] | None]:
        """What to generate from, in tokens; None for running text, which has no prompt."""
        return [
            list(item.ids[: item.start]) if example.prompt or example.context else None
            for example, item in zip(self.examples, self.responses, strict=True)
        ]


@dataclass(frozen=True)
class Measured:
    """One set's metrics, example by example: `columns` maps a metric to [n], NaN where an example has none.

    ratio: the truth ratio R itself, [n], or None; `columns["truth_ratio"]` holds the score made of it.
    generations: None for what was not generated.
    """

    name: str
    examples: Sequence[Example]
    records: Sequence[Record]
    generations: Sequence[str | None]
    columns: dict[str, np.ndarray]
    ratio: np.ndarray | None

    def details(self) -> list[dict[str, Any]]:
        """One dict per example for a person to read (see `Evaluation.examples`)."""
        rows: list[dict[str, Any]] = []
        for index, example in enumerate(self.examples):
            row: dict[str, Any] = {
                "id": example.id or f"{self.name}/{index}",
                "prompt": example.prompt,
                "response": example.response,
                "generation": self.generations[index],
                "nll": self.records[index].nll_mean,
            }
            row |= {name: _plain(column[index]) for name, column in self.columns.items() if not name.endswith("compat")}
            if self.ratio is not None:
                row["truth_ratio"] = _plain(self.ratio[index])
            rows.append(row)
        return rows


def plan(name: str, examples: Sequence[Example], encoder: Encoder) -> Plan:
    """Encode what the metrics of a set need. A holdout set needs its responses only."""
    responses = encoder.examples(examples)
    if name == "holdout" or not any(example.wrong_responses for example in examples):
        return Plan(name, examples, responses, [], [])
    right = []
    for example, response in zip(examples, responses, strict=True):
        other = example.paraphrased_response
        right.append(response if other is None else encoder.pair(example, example.prompt, other))
    wrong = [[encoder.pair(example, example.prompt, text) for text in example.wrong_responses] for example in examples]
    return Plan(name, examples, responses, right, wrong)


def measure(plan: Plan, records: Sequence[Record], generations: Sequence[str | None]) -> Measured:
    """Every per-example metric of a set, from the records of `plan.encoded` and one generation (or None) each."""
    n = len(plan.responses)
    own = records[:n]
    columns = {"probability": memorization.probability(own)}
    ratio = None
    if plan.wrong:
        truths, ratio = _truth(plan, columns["probability"], records[n:])
        columns |= truths
    columns["extraction_strength"] = memorization.extraction_strength(own)
    columns["extraction_strength_compat"] = memorization.extraction_strength(own, compat=True)
    columns["exact_memorization"] = memorization.exact_memorization(own)
    columns |= _similarity(plan.examples, generations)
    return Measured(plan.name, plan.examples, own, generations, columns, ratio)


def _truth(plan: Plan, probability: np.ndarray, records: Sequence[Record]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Truth ratio and probability among options, NaN for examples without wrong answers; and R."""
    n = len(plan.right)
    nll = np.array([record.nll_mean for record in records])
    wrong = np.split(nll[n:], np.cumsum([len(items) for items in plan.wrong])[:-1])
    defined = np.array([len(items) > 0 for items in wrong])
    given = [items for items in wrong if len(items)]
    ratio, share, score = (np.full(n, np.nan) for _ in range(3))
    ratio[defined] = truth.truth_ratio(nll[:n][defined], given)
    share[defined] = memorization.probability_with_options(probability[defined], [np.exp(-items) for items in given])
    score[defined] = (truth.forget_score if plan.name == "forget" else truth.utility_score)(ratio[defined])
    return {"probability_with_options": share, "truth_ratio": score}, ratio


def _similarity(examples: Sequence[Example], generations: Sequence[str | None]) -> dict[str, np.ndarray]:
    spoken = [index for index, text in enumerate(generations) if text is not None]
    if not spoken:
        return {}
    recall, f1 = np.full(len(examples), np.nan), np.full(len(examples), np.nan)
    texts = [text for text in generations if text is not None]
    recall[spoken], f1[spoken] = similarity.rouge_l([examples[index].response for index in spoken], texts)
    return {"rouge_l": recall, "rouge_l_f1": f1}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
