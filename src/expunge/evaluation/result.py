"""What an evaluation found, as plain values that go to JSON and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from expunge.evaluation.conditions import Conditions, alike
from expunge.evaluation.statistics import Interval


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one suite.

    `metrics`: "<set>.<metric>" and suite-level names to numbers; a metric that is not defined is absent. `intervals`:
    the bootstrap 95 % interval of those that have one. `examples`: for each set one dict per example with id, prompt,
    response, nll, probability, extraction_strength, exact_memorization and, where defined, generation, rouge_l,
    rouge_l_f1, probability_with_options and truth_ratio (R itself, not the score averaged in the metric; None where
    this example has none); min_k on the forget and holdout sets. `notes`: what a reader should know. `asked`: for each
    set a hash of its examples with their right and wrong answers. `layers`: what was read layer by layer, under "lens"
    and "depth". `conditions`: how the model was measured; None in results of earlier versions.
    """

    suite: str
    metrics: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    asked: dict[str, str] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    conditions: Conditions | None = None

    def to_dict(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers only."""
        return {
            "suite": self.suite,
            "metrics": dict(self.metrics),
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "examples": {name: [dict(row) for row in rows] for name, rows in self.examples.items()},
            "notes": list(self.notes),
            "asked": dict(self.asked),
            "layers": dict(self.layers),
            "conditions": self.conditions.to_dict() if self.conditions else {},
        }

    def unlike(self, other: "Evaluation") -> list[str]:
        """What was measured otherwise in `other`; empty where nothing is known to differ."""
        if self.conditions is None or other.conditions is None:
            return []
        return self.conditions.unlike(other.conditions, alike(self.asked, other.asked))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Evaluation":
        """The inverse of `to_dict`; keys it does not know are left out."""
        intervals = {name: pair for name, pair in (value.get("intervals") or {}).items() if pair is not None}
        return cls(
            suite=value.get("suite") or "",
            metrics=dict(value["metrics"]),
            intervals={name: (low, high) for name, (low, high) in intervals.items()},
            examples={name: [dict(row) for row in rows or ()] for name, rows in (value.get("examples") or {}).items()},
            notes=tuple(value.get("notes") or ()),
            asked=dict(value.get("asked") or {}),
            layers=dict(value.get("layers") or {}),
            conditions=Conditions.read(value.get("conditions")),
        )
