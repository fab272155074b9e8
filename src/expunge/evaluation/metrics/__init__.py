"""Metrics: pure functions over records, generations and scores, one file per family; and the table of all of them.

`METRICS` is the only place where a metric's words stand: `expunge metrics` prints it and the report quotes it.
"""

from expunge.evaluation.metrics.metric import AS_RETRAINED, HIGHER, LOWER, NEITHER, Metric
from expunge.evaluation.metrics.table import METRICS

__all__ = ["AS_RETRAINED", "HIGHER", "LOWER", "METRICS", "NEITHER", "Metric"]
