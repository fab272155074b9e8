"""What a model still knows and can do: one shared forward pass, one generation pass, many metrics."""

from expunge.evaluation.evaluate import evaluate
from expunge.evaluation.generation import generate
from expunge.evaluation.records import Progress, Record, score
from expunge.evaluation.result import Evaluation
from expunge.evaluation.suites import Suite, request_suite, tofu

__all__ = ["Evaluation", "Progress", "Record", "Suite", "evaluate", "generate", "request_suite", "score", "tofu"]
