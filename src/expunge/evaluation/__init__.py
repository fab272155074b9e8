"""What a model still knows and can do: one shared forward pass, one generation pass, many metrics."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.evaluation.generation import generate as generate
    from expunge.evaluation.model import evaluate as evaluate
    from expunge.evaluation.records import Progress as Progress
    from expunge.evaluation.records import Record as Record
    from expunge.evaluation.records import score as score
    from expunge.evaluation.result import Evaluation as Evaluation
    from expunge.evaluation.suites import Suite as Suite
    from expunge.evaluation.suites import request_suite as request_suite
    from expunge.evaluation.suites import tofu as tofu

_HOMES = {
    "Evaluation": "result",
    "Progress": "records",
    "Record": "records",
    "Suite": "suites",
    "evaluate": "model",
    "generate": "generation",
    "request_suite": "suites",
    "score": "records",
    "tofu": "suites",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the table of metrics is read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"expunge.evaluation.{_HOMES[name]}"), name)
