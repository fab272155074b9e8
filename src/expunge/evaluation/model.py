"""Measure one model on one suite: one teacher-forced pass, one generation pass, then arithmetic."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from expunge.data import Encoder, cut_note
from expunge.errors import ConfigurationError
from expunge.evaluation.choice import choose
from expunge.evaluation.choice import summarise as summarise_choices
from expunge.evaluation.generation import generate as generate_texts
from expunge.evaluation.measure import Measured, Plan, measure, plan
from expunge.evaluation.metrics import quality
from expunge.evaluation.quiz import answer
from expunge.evaluation.quiz import summarise as summarise_quizzes
from expunge.evaluation.records import Progress, Record, score
from expunge.evaluation.result import Evaluation
from expunge.evaluation.suites import Suite
from expunge.evaluation.summary import (
    Summary,
    canonical_weights,
    membership_attacks,
    model_utility,
    perplexity,
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
    encoder = encoder or loaded.encoder(max_length)
    new_tokens = suite.max_new_tokens if max_new_tokens is None else max_new_tokens
    answered = {}
    if suite.sets:
        plans = [
            plan(name, examples, encoder, prefix_tokens=suite.prefix_tokens, max_new_tokens=new_tokens)
            for name, examples in suite.sets.items()
        ]
        _check_reference(plans, reference)
        found = _measure(loaded, plans, new_tokens if generate else None, batch_size, progress)
    else:
        plans, found = [], {}
    for name, quiz in suite.quizzes.items():
        answered[name] = answer(loaded, quiz, suite.scoring, batch_size=batch_size, progress=progress)
    asking = {"new_tokens": new_tokens if generate else None, "batch_size": batch_size, "progress": progress}
    chosen = {name: choose(loaded, name, choice, encoder, **asking) for name, choice in suite.choices.items()}
    summary, notes = _summarise(suite, found, generate) if found else ({}, [])
    metrics = {name: value for name, (value, _) in summary.items()}
    why_not = _forget_quality(found["forget"], reference, metrics) if found else None
    if answered:
        asked, more = summarise_quizzes(suite, answered)
        summary |= asked
        metrics |= {name: value for name, (value, _) in asked.items()}
        notes += more
    if chosen:
        asked, more = summarise_choices(chosen.values())
        summary |= asked
        metrics |= {name: value for name, (value, _) in asked.items()}
        notes += more
    encoded = [item for each in plans for item in each.encoded]
    notes = [*suite.notes, cut_note(encoded, encoder.max_length), *_gaps(plans), *notes, why_not]
    return Evaluation(
        suite=suite.name,
        metrics=metrics,
        intervals={name: interval for name, (_, interval) in summary.items()},
        examples={name: each.details() for name, each in found.items()}
        | {name: each.details(name) for name, each in answered.items()}
        | {name: each.details() for name, each in chosen.items()},
        notes=tuple(note for note in notes if note),
    )


def _measure(
    loaded: Loaded, plans: Sequence[Plan], new_tokens: int | None, batch_size: int, progress: Progress | None
) -> dict[str, Measured]:
    """One scoring pass and one generation pass (without `new_tokens`, none) over all sets."""
    encoded = [item for each in plans for item in each.encoded]
    records = iter(score(loaded, encoded, batch_size=batch_size, progress=progress))
    found = {each.name: [next(records) for _ in each.encoded] for each in plans}
    speaking = [each for each in plans if new_tokens is not None and each.name != "holdout"]
    texts: Iterator[str] = iter(())
    if speaking and new_tokens is not None:
        prompts = [ids for each in speaking for ids in each.prompts if ids is not None]
        known = [tokens for each in speaking for tokens in _known(each, found[each.name])]
        settings = {"max_new_tokens": new_tokens, "batch_size": batch_size, "progress": progress}
        texts = iter(generate_texts(loaded, prompts, known=known, **settings))
    return {each.name: measure(each, found[each.name], _deal(each, texts, each in speaking)) for each in plans}


def _known(plan: Plan, records: Sequence[Record]) -> list[tuple[int, ...]]:
    """For each prompt, the first tokens that follow it and are the model's likeliest: greedy decoding gives these."""
    return [
        item.labels[skip : skip + int(np.cumprod(record.correct[skip:]).sum())]
        for ids, item, skip, record in zip(
            plan.prompts, plan.responses, plan.skipped, records[: len(plan.responses)], strict=True
        )
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
        summary |= means | perplexity(each, weights[name])
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
            notes.append(f"{each.name}: {texts} of {total} running texts are too short for a prefix: no rouge_l")
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


def _check_reference(plans: Sequence[Plan], reference: Evaluation | None) -> None:
    """Before any work: the reference must have seen the very examples of the suite's forget set."""
    rows = reference.examples.get("forget") if reference is not None else None
    if rows is None:
        return
    shown = next(each.shown for each in plans if each.name == "forget")
    if sorted((row["prompt"], row["response"]) for row in rows) != sorted(shown):
        raise ConfigurationError(
            "The reference was evaluated on another forget set than this suite's: "
            f"{len(rows)} examples there, {len(shown)} here. Evaluate both on the same suite and limit."
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
