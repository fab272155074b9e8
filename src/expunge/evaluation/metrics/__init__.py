"""Metrics: pure functions over records, generations and scores; one file per family."""
