"""Measure one model on one suite: one teacher-forced pass, one generation pass, then arithmetic."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from expunge.data import Encoder, cut_note
from expunge.errors import ConfigurationError
from expunge.evaluation.generation import generate as generate_texts
from expunge.evaluation.measure import Measured, Plan, measure, plan
from expunge.evaluation.metrics import quality
from expunge.evaluation.records import Progress, Record, score
from expunge.evaluation.result import Evaluation
from expunge.evaluation.suites import Suite
from expunge.evaluation.summary import (
    Summary,
    canonical_weights,
    membership_attacks,
    model_utility,
    set_means,
    utility_parts,
)
from expunge.models import Loaded


def evaluate(
    loaded: Loaded,
    suite: Suite,
    *,
    encoder: Encoder | None = None,
    max_length: int = 512,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    reference: Evaluation | None = None,
    generate: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Every metric the suite's examples allow, of one model.

    encoder: how examples become tokens; default: the model's own tokenizer, sequences capped at `max_length` tokens
    (or the model's positions, if fewer). max_new_tokens: default the suite's. reference: the evaluation, on the same
    suite, of the model retrained without the forget set; with it, and where the examples have wrong answers,
    `forget_quality` is defined. generate: False leaves out ROUGE-L and `model_utility`, and with them most of the
    time. progress: called with (stage, batches done, batches in all).

    Raises ConfigurationError if the reference was taken on other examples, RequestError for an example that does not
    fit, DivergedError if the model answers with NaN.
    """
    _check_reference(suite, reference)
    encoder = encoder or loaded.encoder(max_length)
    plans = [plan(name, examples, encoder) for name, examples in suite.sets.items()]
    encoded = [item for each in plans for item in each.encoded]
    records = iter(score(loaded, encoded, batch_size=batch_size, progress=progress))
    found = {each.name: [next(records) for _ in each.encoded] for each in plans}
    speaking = [each for each in plans if generate and each.name != "holdout"]
    prompts = [ids for each in speaking for ids in each.prompts if ids is not None]
    known = [tokens for each in speaking for tokens in _known(each, found[each.name])]
    texts = iter(
        generate_texts(
            loaded,
            prompts,
            known=known,
            max_new_tokens=suite.max_new_tokens if max_new_tokens is None else max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
    )
    measured = {each.name: measure(each, found[each.name], _deal(each, texts, each in speaking)) for each in plans}
    summary, notes = _summarise(suite, measured, generate)
    metrics = {name: value for name, (value, _) in summary.items()}
    why_not = _forget_quality(measured["forget"], reference, metrics)
    notes = [*suite.notes, cut_note(encoded, encoder.max_length), *_gaps(plans), *notes, why_not]
    return Evaluation(
        suite=suite.name,
        metrics=metrics,
        intervals={name: interval for name, (_, interval) in summary.items()},
        examples={name: each.details() for name, each in measured.items()},
        notes=tuple(note for note in notes if note),
    )


def _known(plan: Plan, records: Sequence[Record]) -> list[tuple[int, ...]]:
    """For each prompt, the first tokens of its response that are the model's likeliest: greedy decoding gives these."""
    return [
        item.labels[: int(np.cumprod(record.correct).sum())]
        for ids, item, record in zip(plan.prompts, plan.responses, records[: len(plan.responses)], strict=True)
        if ids is not None
    ]


def _deal(plan: Plan, texts: Iterator[str], spoken: bool) -> list[str | None]:
    """Each example's generation, None where it has no prompt or its set was not generated."""
    return [next(texts) if spoken and ids is not None else None for ids in plan.prompts]


def _summarise(suite: Suite, measured: Mapping[str, Measured], generated: bool) -> tuple[Summary, list[str]]:
    summary: Summary = {}
    draws, notes = {}, []
    weights = {name: canonical_weights(each, stream) for stream, (name, each) in enumerate(measured.items())}
    for name, each in measured.items():
        means, draws[name] = set_means(each, weights[name])
        summary |= means
    if "holdout" in measured:
        summary |= membership_attacks(measured["forget"], measured["holdout"], weights["forget"], weights["holdout"])
    else:
        notes.append("membership attacks are absent: the suite has no holdout set")
    parts = utility_parts(suite, measured)
    if generated and parts:
        summary["model_utility"] = model_utility(parts, summary, draws)
        names = ", ".join(f"{name}.{metric}" for name, metric in parts)
        notes.append(f"model_utility is the harmonic mean of {names}")
    else:
        reason = "nothing was generated" if parts else "the suite names no set that must stay"
        notes.append(f"model_utility is absent: {reason}")
    return summary, notes


def _gaps(plans: list[Plan]) -> list[str]:
    """What some examples of a set lack, so that a mean over the rest is not taken for one over all."""
    notes = []
    for each in plans:
        texts, total = sum(ids is None for ids in each.prompts), len(each.examples)
        if texts and each.name != "holdout":
            notes.append(f"{each.name}: {texts} of {total} examples are running text without a prompt: no rouge_l")
        bare = sum(not items for items in each.wrong)
        if bare:
            notes.append(f"{each.name}: {bare} of {total} examples have no wrong_responses: no truth_ratio")
        plain = sum(
            bool(example.wrong_responses) and example.paraphrased_response is None
            for example in each.examples
            if each.wrong
        )
        if plain:
            notes.append(
                f"{each.name}: {plain} of {total} examples have no paraphrased_response: "
                "their truth_ratio takes the response itself as the right answer"
            )
    return notes


def _check_reference(suite: Suite, reference: Evaluation | None) -> None:
    """Before any work: the reference must have seen the very examples of the suite's forget set."""
    rows = reference.examples.get("forget") if reference is not None else None
    if rows is None:
        return
    known = sorted((row["prompt"], row["response"]) for row in rows)
    if known != sorted((example.prompt, example.response) for example in suite.sets["forget"]):
        raise ConfigurationError(
            "The reference was evaluated on another forget set than this suite's: "
            f"{len(rows)} examples there, {len(suite.sets['forget'])} here. Evaluate both on the same suite and limit."
        )


def _forget_quality(forget: Measured, reference: Evaluation | None, metrics: dict[str, float]) -> str | None:
    """Put forget quality among the metrics, or say why there is none."""
    if forget.ratio is None:
        return "forget_quality is absent: the forget examples have no wrong_responses"
    if reference is None:
        return "forget_quality is absent: no model retrained without the forget set was given"
    rows = reference.examples.get("forget", [])
    other = np.array([row["truth_ratio"] for row in rows if row.get("truth_ratio") is not None])
    if not other.size:
        return "forget_quality is absent: the reference's evaluation holds no truth ratios"
    p_value = quality.forget_quality(forget.ratio[~np.isnan(forget.ratio)], other)
    metrics |= {"forget_quality": p_value, "forget_quality_log10": quality.log10(p_value)}
    return None
