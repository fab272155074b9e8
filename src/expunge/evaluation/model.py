"""Measure one model on one suite: one teacher-forced pass, one generation pass, then arithmetic."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.data import Encoder, cut_note
from expunge.errors import ConfigurationError
from expunge.evaluation import controls
from expunge.evaluation.choice import choose
from expunge.evaluation.choice import summarise as summarise_choices
from expunge.evaluation.conditions import Conditions
from expunge.evaluation.generation import generate as generate_texts
from expunge.evaluation.lens import Lens, lens
from expunge.evaluation.measure import COMPARED, Measured, Plan, known, measure, plan
from expunge.evaluation.metrics import fluency
from expunge.evaluation.metrics.memorization import lens_profile
from expunge.evaluation.metrics.truth_ratio import FORMS, Form
from expunge.evaluation.quiz import answer
from expunge.evaluation.quiz import summarise as summarise_quizzes
from expunge.evaluation.records import Progress, evaluating, score
from expunge.evaluation.result import Evaluation
from expunge.evaluation.suites import Suite
from expunge.evaluation.summary import (
    Summary,
    canonical_weights,
    corrections,
    membership_attacks,
    model_utility,
    near,
    perplexity,
    set_means,
    utility_parts,
)
from expunge.evaluation.writing import summarise as summarise_writings
from expunge.evaluation.writing import write
from expunge.gradients.example_norms import gradient_norms
from expunge.models import Loaded

SMALL = 8  # examples in a backward pass


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
    lens_layers: Sequence[int] | None = None,
    deep: bool = False,
    form: Form = "geometric",
    progress: Progress | None = None,
) -> Evaluation:
    """Every metric the suite's examples allow, of one model.

    encoder: how examples become tokens; default: the model's own tokenizer, sequences capped at `max_length` tokens
    (or the model's positions, if fewer). max_new_tokens: default the suite's. reference: the evaluation, on the same
    suite, of the model retrained without the forget set; with it, and where the examples have wrong answers,
    `forget_quality` is defined. generate: False leaves out ROUGE-L and `model_utility`, and with them most of the
    time. progress: called with (stage, batches done, batches in all).

    lens_layers: the inner layers (1: after the first block) at which the logit lens reads the forget set's answers, in
    the same pass; default: up to four from the middle on, () for none. Each costs a product with the output layer for
    the tokens of these answers. deep: also the gradient-norm attack, one backward pass over the forget and the holdout
    set. form: of the truth ratio, see `metrics.truth_ratio.ratio_of`.

    Raises ConfigurationError if the reference was asked something else, RequestError for an example that does not
    fit, DivergedError if the model answers with NaN.
    """
    encoder = encoder or loaded.encoder(max_length)
    new_tokens = suite.max_new_tokens if max_new_tokens is None else max_new_tokens
    if form not in FORMS:
        raise ConfigurationError(f"The truth ratio has no form {form!r}. Known: {', '.join(FORMS)}.")
    plans = [
        plan(name, examples, encoder, prefix_tokens=suite.prefix_tokens, max_new_tokens=new_tokens)
        for name, examples in suite.sets.items()
    ]
    conditions = Conditions.of(
        loaded, encoder, plans, new_tokens=new_tokens if generate else None, prefix=suite.prefix_tokens
    )
    unrecorded = controls.check_reference(plans, reference, form, conditions)
    asking: dict[str, Any] = {
        "new_tokens": new_tokens if generate else None,
        "batch_size": batch_size,
        "progress": progress,
    }
    summary: Summary = {}
    plain: dict[str, float] = {}  # metrics without an interval
    layers: dict[str, Any] = {}
    notes: list[str | None] = []
    found: dict[str, Measured] = {}
    if plans:
        reader, unread = _lens(loaded, plans, lens_layers)
        found = _measure(loaded, plans, suite.silent, reader=reader, form=form, **asking)
        layers = _profile(reader, found["forget"])
        norms = _gradient_norms(loaded, plans, batch_size, progress) if deep and "holdout" in found else {}
        summary, more = _summarise(suite, found, reference, norms, generate)
        plain, why_not = controls.forget_quality(found["forget"], reference)
        notes = [*_gaps(plans, suite.silent), *_unjudged(found), *more, unread, why_not]
        if form != "geometric":
            notes.append(f"the truth ratio is in the form {form!r}")
    asked, rows, more = _questions(loaded, suite, encoder, **asking)
    summary |= asked
    if suite.tasks is not None:
        from expunge.evaluation.harness import run_tasks

        of_tasks, others, told = run_tasks(loaded, suite.tasks, batch_size=batch_size)
        summary, plain, more = summary | of_tasks, plain | others, more + told
    notes = [
        *suite.notes,
        encoder.note(example for each in plans for example in each.examples),
        unrecorded,
        cut_note((item for each in plans for item in each.encoded), encoder.max_length),
        *notes,
        *more,
    ]
    return Evaluation(
        suite=suite.name,
        metrics={name: value for name, (value, _) in summary.items()} | plain,
        intervals={name: interval for name, (_, interval) in summary.items()},
        examples={name: each.details() for name, each in found.items()} | rows,
        notes=tuple(note for note in notes if note),
        asked={each.name: controls.asked(each, form) for each in plans},
        layers=layers,
        conditions=conditions,
    )


def _measure(
    loaded: Loaded,
    plans: Sequence[Plan],
    silent: Sequence[str],
    *,
    reader: Lens | None,
    form: Form,
    new_tokens: int | None,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, Measured]:
    """One scoring pass over all sets, one generation pass (without `new_tokens`, none) over those not `silent`."""
    encoded = [item for each in plans for item in each.encoded]
    records = iter(score(loaded, encoded, batch_size=batch_size, lens=reader, progress=progress))
    found = {each.name: [next(records) for _ in each.encoded] for each in plans}
    speaking = [each for each in plans if new_tokens is not None and each.name not in silent]
    texts: Iterator[str] = iter(())
    if speaking and new_tokens is not None:
        prompts = [ids for each in speaking for ids in each.prompts if ids is not None]
        told = [tokens for each in speaking for tokens in known(each, found[each.name])]
        settings = {"max_new_tokens": new_tokens, "batch_size": batch_size, "progress": progress}
        texts = iter(generate_texts(loaded, prompts, known=told, **settings))
    return {each.name: measure(each, found[each.name], _deal(each, texts, each in speaking), form) for each in plans}


def _lens(loaded: Loaded, plans: Sequence[Plan], layers: Sequence[int] | None) -> tuple[Lens | None, str | None]:
    """What reads the inner layers of the forget set's answers, or why nothing does."""
    if layers is not None and not layers:
        return None, None
    forget = next(each for each in plans if each.name == "forget")
    found = lens(loaded, forget.responses, layers)
    return (None, found) if isinstance(found, str) else (found, None)


def _profile(reader: Lens | None, forget: Measured) -> dict[str, Any]:
    """What was read at each inner layer, and what the model itself says: mean probability, share of right arg-maxes."""
    if reader is None:
        return {}
    probability, correct = lens_profile(forget.records)
    last = np.mean([record.correct.mean() for record in forget.records])
    return {
        "lens": {
            "set": "forget",
            "layers": [*reader.layers, len(reader.decoder.blocks)],
            "probability": [*map(float, probability), float(forget.columns["probability"].mean())],
            "correct": [*map(float, correct), float(last)],
        }
    }


def _gradient_norms(
    loaded: Loaded, plans: Sequence[Plan], batch_size: int, progress: Progress | None
) -> dict[str, np.ndarray]:
    """‖∇l‖ of each example of the forget and the holdout set."""
    wanted = [each for each in plans if each.name in COMPARED]
    items = [item for each in wanted for item in each.responses]
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress("gradients", done, len(items))

    with evaluating(loaded.model):
        norms = gradient_norms(
            loaded.model, items, pad=loaded.pad, batch_size=min(SMALL, batch_size), progress=tell
        ).numpy()
    return dict(
        zip(
            (each.name for each in wanted),
            np.split(norms, np.cumsum([len(each.responses) for each in wanted])[:-1]),
            strict=True,
        )
    )


def _questions(
    loaded: Loaded,
    suite: Suite,
    encoder: Encoder,
    *,
    new_tokens: int | None,
    batch_size: int,
    progress: Progress | None,
) -> tuple[Summary, dict[str, list[dict[str, Any]]], list[str]]:
    """The suite's quizzes, choices and writings: their metrics, their examples, and notes."""
    running: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    answered = {name: answer(loaded, quiz, suite.scoring, **running) for name, quiz in suite.quizzes.items()}
    running["new_tokens"] = new_tokens
    chosen = {name: choose(loaded, name, choice, encoder, **running) for name, choice in suite.choices.items()}
    del running["new_tokens"]
    asked = suite.writings.items() if new_tokens is not None else ()
    written = {key: write(loaded, key, writing, **running) for key, writing in asked}
    rows = {name: each.details(name) for name, each in answered.items()}
    rows |= {each.name: each.details() for each in written.values()}
    summary: Summary = {}
    notes: list[str] = []
    if answered:
        summary, notes = summarise_quizzes(suite, answered)
    if chosen:
        of_choices, more = summarise_choices(chosen.values())
        summary, notes = summary | of_choices, notes + more
    of_writings, more = summarise_writings(written)
    summary, notes = summary | of_writings, notes + more
    if len(written) < len(suite.writings):
        notes.append(f"{', '.join(suite.writings)}: nothing was generated, so they are absent")
    return summary, rows | {name: each.details() for name, each in chosen.items()}, notes


def _deal(plan: Plan, texts: Iterator[str], spoken: bool) -> list[str | None]:
    """Each example's generation, None where it has no prompt or its set was not generated."""
    return [next(texts) if spoken and ids is not None else None for ids in plan.prompts]


def _summarise(
    suite: Suite,
    measured: Mapping[str, Measured],
    reference: Evaluation | None,
    norms: Mapping[str, np.ndarray],
    generated: bool,
) -> tuple[Summary, list[str | None]]:
    summary: Summary = {}
    draws, notes = {}, list[str | None]()
    weights = {name: canonical_weights(each, stream) for stream, (name, each) in enumerate(measured.items())}
    for name, each in measured.items():
        means, draws[name] = set_means(each, weights[name])
        summary |= means | perplexity(each, weights[name])
    if "holdout" in measured:
        attacks, more = _attacks(measured, reference, norms, weights)
        summary |= attacks
        notes += more
    else:
        notes.append("membership attacks are absent: the suite has no holdout set")
    if "retain" in measured:
        nearest, why_not = near(measured["forget"], measured["retain"])
        summary |= nearest
        notes.append(why_not)
    if "replacement" in measured and generated:
        summary |= corrections(measured["forget"], measured["replacement"])
    parts = utility_parts(suite, measured)
    if generated and parts:
        summary["model_utility"] = model_utility(parts, summary, draws, measured)
        names = ", ".join(f"{name}.{metric}" for name, metric in parts)
        notes.append(f"model_utility is the harmonic mean of {names}")
    elif not suite.writings:
        reason = "nothing was generated" if parts else "the suite names no set that must stay"
        notes.append(f"model_utility is absent: {reason}")
    return summary, notes


def _attacks(
    measured: Mapping[str, Measured],
    reference: Evaluation | None,
    norms: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
) -> tuple[Summary, list[str | None]]:
    """Every membership attack, and PrivLeak."""
    further, absent = controls.reference_scores(measured, reference)
    if norms:
        further["gradnorm"] = (norms["forget"], norms["holdout"])
    pair = (weights["forget"], weights["holdout"])
    summary = membership_attacks(measured["forget"], measured["holdout"], *pair, further)
    if reference is None or absent is not None:
        return summary, [absent]
    leak, why_not = controls.privleak(measured, reference, weights)
    return summary | leak, [why_not]


def _unjudged(measured: Mapping[str, Measured]) -> list[str]:
    """Which measures of what was written leave some answers out, for their language's sake."""
    return [
        f"{name}: {told}"
        for name, each in measured.items()
        for told in fluency.unjudged([text for text in each.generations if text is not None])
    ]


def _gaps(plans: list[Plan], silent: Sequence[str]) -> list[str]:
    """What some examples of a set lack, so that a mean over the rest is not taken for one over all."""
    notes = []
    for each in plans:
        texts, total = sum(ids is None for ids in each.prompts), len(each.examples)
        if texts and each.name not in silent:
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
