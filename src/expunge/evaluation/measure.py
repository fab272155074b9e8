"""From one set of examples to one number per example and metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.data import Encoded, Encoder
from expunge.data.encoding import spelling
from expunge.evaluation.metrics import fluency, membership, memorization, similarity
from expunge.evaluation.metrics import truth_ratio as truth
from expunge.evaluation.records import Record
from expunge.request import Example

SMALL = 50  # forget examples up to which their tokens' log-probabilities are kept, for tests over tokens
COMPARED = ("forget", "holdout")  # the sets that membership attacks tell apart


@dataclass(frozen=True)
class Plan:
    """What has to be scored for one set of n examples. `right` and `wrong` are empty where nothing needs them.

    right: what the truth ratio takes as each example's right answer. wrong: each example's wrong answers. begins: for
    each example how many tokens stand before what the model is to say by itself: the prompt, or of running text the
    prefix it is given; None for a text that is too short for one. shown: what stands before that, and what should come
    then, as texts: the prompt and the response, or a text's prefix and how it goes on for as long as is generated.
    """

    name: str
    examples: Sequence[Example]
    responses: list[Encoded]
    right: list[Encoded]
    wrong: list[list[Encoded]]
    begins: list[int | None]
    shown: list[tuple[str, str]]

    @property
    def encoded(self) -> list[Encoded]:
        """All sequences: the responses, then the right answers, then the wrong ones example by example."""
        return [*self.responses, *self.right, *(item for items in self.wrong for item in items)]

    @property
    def prompts(self) -> list[list[int] | None]:
        """What to generate from, in tokens; None where there is nothing to generate from."""
        return [
            None if begin is None else list(item.ids[:begin])
            for begin, item in zip(self.begins, self.responses, strict=True)
        ]

    @property
    def skipped(self) -> list[int]:
        """How many labelled tokens of each example the model is given rather than asked: those of a text's prefix."""
        return [
            0 if begin is None else begin - item.start for begin, item in zip(self.begins, self.responses, strict=True)
        ]


@dataclass(frozen=True)
class Measured:
    """One set's metrics, example by example: `columns` maps a metric to [n], NaN where an example has none.

    ratio: the truth ratio R itself, [n], or None; `columns["truth_ratio"]` holds the score made of it.
    generations: None for what was not generated. shown: see Plan.
    """

    name: str
    examples: Sequence[Example]
    records: Sequence[Record]
    generations: Sequence[str | None]
    columns: dict[str, np.ndarray]
    ratio: np.ndarray | None
    shown: Sequence[tuple[str, str]]

    def details(self) -> list[dict[str, Any]]:
        """One dict per example for a person to read (see `Evaluation.examples`)."""
        rows: list[dict[str, Any]] = []
        tokens = [record.logprob[record.answer] for record in self.records]
        for index, example in enumerate(self.examples):
            row: dict[str, Any] = {
                "id": example.id or f"{self.name}/{index}",
                "prompt": self.shown[index][0],
                "response": self.shown[index][1],
                "generation": self.generations[index],
                "nll": self.records[index].nll_mean,
            }
            if self.name in COMPARED:
                row["min_k"] = float(membership.min_k([self.records[index]])[0])
            own = {name: column for name, column in self.columns.items() if name != "nll" and "compat" not in name}
            row |= {name: _plain(column[index]) for name, column in own.items()}
            if self.name == "forget" and (after := example.after) is not None:
                row["new"] = [after.prompt, after.response]
            if self.name == "forget" and len(self.examples) <= SMALL:
                row["token_logprob"] = [round(float(value), 4) for value in tokens[index]]
            if self.ratio is not None:
                row["truth_ratio"] = _plain(self.ratio[index])
            rows.append(row)
        return rows


def plan(
    name: str,
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    prefix_tokens: int | None = None,
    max_new_tokens: int = 200,
) -> Plan:
    """Encode what the metrics of a set need. A holdout set needs its responses only.

    prefix_tokens: see `Suite`. max_new_tokens: how much of a text's continuation a generation is compared with.
    """
    responses = encoder.examples(examples)
    begins = [_begin(*pair, prefix_tokens) for pair in zip(examples, responses, strict=True)]
    shown = [
        _shown(example, item, begin, encoder, max_new_tokens)
        for example, item, begin in zip(examples, responses, begins, strict=True)
    ]
    if name == "holdout" or not any(example.wrong_responses for example in examples):
        return Plan(name, examples, responses, [], [], begins, shown)
    right = []
    for example, response in zip(examples, responses, strict=True):
        other = example.paraphrased_response
        right.append(response if other is None else encoder.pair(example, example.prompt, other))
    wrong = [[encoder.pair(example, example.prompt, text) for text in example.wrong_responses] for example in examples]
    return Plan(name, examples, responses, right, wrong, begins, shown)


def _begin(example: Example, item: Encoded, prefix_tokens: int | None) -> int | None:
    if not example.is_text:
        return item.start
    tokens = len(item) - item.ended
    begin = tokens // 2 if prefix_tokens is None else prefix_tokens
    return begin if 0 < begin < tokens else None


def _shown(
    example: Example, item: Encoded, begin: int | None, encoder: Encoder, max_new_tokens: int
) -> tuple[str, str]:
    if not example.is_text or begin is None:
        return example.prompt, example.response
    target = item.ids[begin : begin + max_new_tokens]
    return spelling(encoder.tokenizer, item.ids[:begin]), spelling(encoder.tokenizer, target).strip()


def known(plan: Plan, records: Sequence[Record]) -> list[tuple[int, ...]]:
    """For each prompt, the first tokens that follow it and are the model's likeliest: greedy decoding gives these."""
    return [
        item.labels[skip : skip + int(np.cumprod(record.correct[skip:]).sum())]
        for ids, item, skip, record in zip(
            plan.prompts, plan.responses, plan.skipped, records[: len(plan.responses)], strict=True
        )
        if ids is not None
    ]


def measure(
    plan: Plan, records: Sequence[Record], generations: Sequence[str | None], form: truth.Form = "geometric"
) -> Measured:
    """Every per-example metric of a set, from the records of `plan.encoded` and one generation (or None) each.

    form: of the truth ratio.
    """
    n = len(plan.responses)
    own = records[:n]
    unaided = [record.after(skip) for record, skip in zip(own, plan.skipped, strict=True)]
    columns = {"probability": memorization.probability(own)}
    ratio = None
    if plan.wrong:
        truths, ratio = _truth(plan, columns["probability"], records[n:], form)
        columns |= truths
    columns["extraction_strength"] = memorization.extraction_strength(unaided)
    columns["extraction_strength_compat"] = memorization.extraction_strength(unaided, compat=True)
    columns["exact_memorization"] = memorization.exact_memorization(own)
    if any(len(record.lens) for record in own):
        columns["logit_lens"] = memorization.logit_lens(own)
    columns |= _written([target for _, target in plan.shown], generations)
    if any(example.is_text for example in plan.examples):
        pairs = zip(plan.examples, own, strict=True)
        columns["nll"] = np.array([record.nll_mean if example.is_text else np.nan for example, record in pairs])
    return Measured(plan.name, plan.examples, own, generations, columns, ratio, plan.shown)


def _truth(
    plan: Plan, probability: np.ndarray, records: Sequence[Record], form: truth.Form
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Truth ratio and probability among options, NaN for examples without wrong answers; and R."""
    n = len(plan.right)
    nll = np.array([record.nll_mean for record in records])
    wrong = np.split(nll[n:], np.cumsum([len(items) for items in plan.wrong])[:-1])
    defined = np.array([len(items) > 0 for items in wrong])
    given = [items for items in wrong if len(items)]
    ratio, share, score = (np.full(n, np.nan) for _ in range(3))
    ratio[defined] = truth.ratio_of(nll[:n][defined], given, form)
    share[defined] = memorization.probability_with_options(probability[defined], [np.exp(-items) for items in given])
    score[defined] = truth.score_of(ratio[defined], plan.name == "forget", form)
    return {"probability_with_options": share, "truth_ratio": score}, ratio


def _written(targets: Sequence[str], generations: Sequence[str | None]) -> dict[str, np.ndarray]:
    """What a written text is compared with the answer by, and what is wrong with it by itself: NaN where none is."""
    spoken = [index for index, text in enumerate(generations) if text is not None]
    if not spoken:
        return {}
    texts = [text for text in generations if text is not None]
    right = [targets[index] for index in spoken]
    recall, f1 = similarity.rouge_l(right, texts)
    compat = (recall, f1)
    if not all(text.isascii() for text in (*right, *texts)):
        compat = similarity.rouge_l(right, texts, compat=True)
    found = {
        "rouge_l": recall,
        "rouge_l_f1": f1,
        "rouge_l_compat": compat[0],
        "rouge_l_f1_compat": compat[1],
        "repetition": fluency.repetition(texts),
        "refusal": fluency.refusal(texts),
        "empty": fluency.empty(texts),
        "gibberish": fluency.gibberish(texts),
    }
    columns = {name: np.full(len(targets), np.nan) for name in found if not np.isnan(found[name]).all()}
    for name, column in columns.items():
        column[spoken] = found[name]
    return columns


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
