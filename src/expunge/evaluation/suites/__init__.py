"""Suites: which examples a model is measured on, for each benchmark and for a person's own request."""

from expunge.evaluation.suites.request import request_suite
from expunge.evaluation.suites.suite import Suite
from expunge.evaluation.suites.tofu import tofu

__all__ = ["Suite", "request_suite", "tofu"]
