"""What takes two models: the original's view of what others wrote, and other models' inner states in the original."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.errors import ModelError
from expunge.evaluation import Evaluation
from expunge.evaluation.depth import depth, gaps
from expunge.evaluation.judge import judged
from expunge.evaluation.suites import Suite
from expunge.models import Loaded, load
from expunge.runs.record import Listener

BY_DEFINITION = {"original": 0.0, "retrained": 1.0}


def beside_original(
    original: Path | str,
    others: Mapping[str, Path | str],
    suite: Suite,
    found: Mapping[str, Evaluation],
    *,
    deep: bool = False,
    max_length: int = 512,
    batch_size: int = 32,
    listener: Listener | None = None,
    **options: Any,
) -> dict[str, Evaluation]:
    """The evaluations `found`, by role, with what the original model has to say: fluency, and where `deep` the depth.

    others: the folders of the unlearned and, where it is a model, of the retrained one. options: of `load`. At most two
    models are in memory. What cannot be measured is said in the notes.
    """
    listener = listener or Listener()
    written = any(row.get("generation") for one in found.values() for rows in one.examples.values() for row in rows)
    if not written and not deep:
        return dict(found)
    loaded = load(original, **options)
    result = dict(found)
    if written:
        listener.stage("reading what was written with the original model")
        progress = {"max_length": max_length, "batch_size": batch_size, "progress": listener.batch}
        result = judged(loaded, suite, result, **progress)
    if not deep or "forget" not in suite.sets or "unlearned" not in result:
        return result
    if "retrained" not in others:
        reason = "it takes the retrained model itself, not only its results"
        return result | {"unlearned": _noted(result["unlearned"], f"uds is absent: {reason}")}
    listener.stage("looking into the layers")
    try:
        measured = _depth(loaded, others, suite, max_length, batch_size, listener, options)
    except ModelError as error:
        return result | {"unlearned": _noted(result["unlearned"], f"uds is absent: {error}")}
    return {role: _with_depth(role, one, measured) for role, one in result.items()}


def _depth(
    original: Loaded,
    others: Mapping[str, Path | str],
    suite: Suite,
    max_length: int,
    batch_size: int,
    listener: Listener,
    options: Mapping[str, Any],
) -> Any:
    items = original.encoder(max_length).examples(suite.sets["forget"])
    running: dict[str, Any] = {"batch_size": batch_size, "progress": listener.batch}
    gap = {role: gaps(original, load(others[role], **options), items, **running) for role in ("retrained", "unlearned")}
    return depth(gap["retrained"], gap["unlearned"])


def _with_depth(role: str, evaluation: Evaluation, measured: Any) -> Evaluation:
    """The unlearned model's scores; the controls' are 0 and 1 by definition."""
    scores = measured.metrics
    if role in BY_DEFINITION:
        return replace(evaluation, metrics=evaluation.metrics | dict.fromkeys(scores, BY_DEFINITION[role]))
    told = measured.to_dict()
    if not scores:
        return _noted(evaluation, "uds is absent: the retrained model lacks none of the forget set's answers")
    left = f"uds leaves out {told['without']} of {told['examples']} examples, which the retrained model does not lack"
    rows = [
        dict(row) | {"uds": None if score != score else float(score)}
        for row, score in zip(evaluation.examples["forget"], measured.scores, strict=True)
    ]
    return replace(
        _noted(evaluation, left) if told["without"] else evaluation,
        metrics=evaluation.metrics | {name: value for name, (value, _) in scores.items()},
        intervals=evaluation.intervals | {name: interval for name, (_, interval) in scores.items()},
        examples=evaluation.examples | {"forget": rows},
        layers=evaluation.layers | {"depth": told},
    )


def _noted(evaluation: Evaluation, note: str) -> Evaluation:
    return replace(evaluation, notes=(*evaluation.notes, note))
