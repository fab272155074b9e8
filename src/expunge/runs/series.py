"""What a series of requests reports after each step: a point of its curve, and what is left of every request."""

from dataclasses import dataclass
from typing import Any

from expunge.evaluation import Evaluation

EACH = ("extraction_strength", "probability")  # what is said of each request after each step
CURVE = (  # what the curve shows, where it was measured
    "forget.extraction_strength", "forget.probability", "forget.rouge_l", "forget.logit_lens", "forget.verbmem",
    "forget.knowmem", "retain.extraction_strength", "retain.probability", "retain.rouge_l", "retain.knowmem",
    "neighbours.extraction_strength", "model_utility", "mia.min_k.auc", "privleak",
)  # fmt: skip


@dataclass(frozen=True)
class RequestPoint:
    """What a model remembers of request `request` after `after` requests, beside the first original model."""

    request: int
    after: int
    metric: str
    value: float
    original: float


def each_request(step: int, evaluation: Evaluation, original: Evaluation) -> list[RequestPoint]:
    """What is remembered of each request so far, and what the first original knew of it."""
    keys = [(number, f"request_{number}.{name}") for number in range(1, step + 1) for name in EACH]
    return [
        RequestPoint(number, step, key.partition(".")[2], evaluation.metrics[key], original.metrics[key])
        for number, key in keys
        if key in evaluation.metrics and key in original.metrics
    ]


def curve_point(step: int, examples: int, label: str, evaluation: Evaluation, seconds: float | None) -> dict[str, Any]:
    """One point of the curve."""
    keys = [*CURVE, *(key for key in evaluation.metrics if key.startswith("request_") and key.endswith("_strength"))]
    return {
        "requests": step,
        "examples": examples,
        "label": label,
        "seconds": seconds,
        "metrics": {key: evaluation.metrics[key] for key in keys if key in evaluation.metrics},
        "intervals": {key: list(evaluation.intervals[key]) for key in keys if key in evaluation.intervals},
    }
