"""Suites: which examples a model is measured on, for each benchmark and for a person's own request."""

from expunge.evaluation.suites.choice import choice, recommendation, sequential
from expunge.evaluation.suites.harness import harness
from expunge.evaluation.suites.mmlu import mmlu
from expunge.evaluation.suites.muse import muse
from expunge.evaluation.suites.request import request_suite
from expunge.evaluation.suites.suite import Choice, Quiz, Suite, Tasks, Writing
from expunge.evaluation.suites.tofu import tofu
from expunge.evaluation.suites.wmdp import wmdp

__all__ = [
    "Choice", "Quiz", "Suite", "Tasks", "Writing", "choice", "harness", "mmlu", "muse", "recommendation", "request_suite",
    "sequential", "tofu", "wmdp",
]  # fmt: skip
