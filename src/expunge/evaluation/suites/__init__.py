"""Suites: which examples a model is measured on, for each benchmark and for a person's own request."""

from expunge.evaluation.suites.mmlu import mmlu
from expunge.evaluation.suites.request import request_suite
from expunge.evaluation.suites.suite import Quiz, Suite
from expunge.evaluation.suites.tofu import tofu
from expunge.evaluation.suites.wmdp import wmdp

__all__ = ["Quiz", "Suite", "mmlu", "request_suite", "tofu", "wmdp"]
