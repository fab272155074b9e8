"""What the original model makes of texts that other models wrote: their perplexity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from expunge.data import Encoded, Encoder
from expunge.evaluation import statistics
from expunge.evaluation.measure import plan
from expunge.evaluation.metrics import fluency
from expunge.evaluation.records import Progress, score
from expunge.evaluation.result import Evaluation
from expunge.evaluation.suites import Suite
from expunge.models import Loaded


@dataclass(frozen=True)
class _Written:
    """One text that a model wrote: where its row stands, and its tokens after its prompt; None for an empty text."""

    role: str
    name: str
    index: int
    item: Encoded | None


def judged(
    original: Loaded,
    suite: Suite,
    found: Mapping[str, Evaluation],
    *,
    encoder: Encoder | None = None,
    max_length: int = 512,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """The evaluations `found`, by role, with `<set>.fluency` of what each model wrote, and `<set>.gibberish` renewed.

    Fluency is exp(Σ NLL / Σ tokens) under `original` over the texts of a set, each after its own prompt and without the
    end token; empty texts are left out, and so are sets of which nothing was written or whose rows are not this suite's.
    One scoring pass over all texts of all models, equal ones once.
    """
    encoder = encoder or original.encoder(max_length)
    written = [one for role, evaluation in found.items() for one in _written(role, evaluation, suite, encoder)]
    items = [one.item for one in written if one.item is not None]
    records = iter(score(original, items, batch_size=batch_size, progress=progress))
    told: dict[tuple[str, str], list[tuple[int, float, int]]] = {}  # (role, set): row, NLL, tokens
    for one in written:
        record = next(records) if one.item is not None else None
        own = record.logprob[record.answer] if record is not None else np.empty(0)
        told.setdefault((one.role, one.name), []).append((one.index, -float(own.sum()), len(own)))
    result = dict(found)
    for (role, name), rows in told.items():
        result[role] = _with_fluency(result[role], name, rows, len(original.tokenizer))
    return result


def _written(role: str, evaluation: Evaluation, suite: Suite, encoder: Encoder) -> list[_Written]:
    found = []
    for name, examples in suite.sets.items():
        rows = evaluation.examples.get(name, [])
        plain = [replace(example, wrong_responses=()) for example in examples]
        given = plan(name, plain, encoder, prefix_tokens=suite.prefix_tokens, max_new_tokens=suite.max_new_tokens)
        by_text = {shown: place for place, shown in enumerate(given.shown)}
        for index, row in enumerate(rows):
            place, text = by_text.get((row["prompt"], row["response"])), row.get("generation")
            if text is None or place is None:
                continue
            example, prompt = examples[place], given.prompts[place]
            if not any(character.isalnum() for character in text) or prompt is None:
                found.append(_Written(role, name, index, None))
            elif example.is_text:
                new = encoder.words(f" {text}")
                ids = (*prompt, *new)[: encoder.max_length]
                found.append(_Written(role, name, index, Encoded(ids, len(prompt)) if len(ids) > len(prompt) else None))
            else:
                found.append(_Written(role, name, index, encoder.pair(example, example.prompt, text)))
    return found


def _with_fluency(
    evaluation: Evaluation, name: str, told: Sequence[tuple[int, float, int]], vocabulary: int
) -> Evaluation:
    """`evaluation` with the fluency of one set. told: of each text its row, NLL and tokens (0 if it is empty)."""
    rows = [dict(row) for row in evaluation.examples[name]]
    index, nll, tokens = (np.array(column) for column in zip(*told, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = nll / tokens  # [n] NaN for an empty text
    broken = fluency.gibberish([rows[place]["generation"] for place in index], mean, vocabulary)
    for place, value, bad in zip(index, mean, broken, strict=True):
        rows[place]["fluency"] = None if np.isnan(value) else float(np.exp(value))
        rows[place]["gibberish"] = float(bad)
    metrics, intervals = dict(evaluation.metrics), dict(evaluation.intervals)
    metrics[f"{name}.gibberish"] = float(broken.mean())
    intervals[f"{name}.gibberish"] = statistics.interval_of_mean(broken)
    if tokens.any():
        order = np.lexsort((tokens, nll))  # whatever order the examples stand in
        weights = statistics.resample(len(order))
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = np.exp((weights @ nll[order]) / (weights @ tokens[order]))
        metrics[f"{name}.fluency"] = float(np.exp(nll.sum() / tokens.sum()))
        intervals[f"{name}.fluency"] = statistics.interval(draws)
    examples = evaluation.examples | {name: rows}
    return replace(evaluation, metrics=metrics, intervals=intervals, examples=examples)
