"""From results.json to what a person reads: a leaderboard, plots and one self-contained page."""

from expunge.reporting.html import render_report, write_report
from expunge.reporting.results import Cell, Row, leaderboard, markdown_table, read_results, render_table

__all__ = [
    "Cell",
    "Row",
    "leaderboard",
    "markdown_table",
    "read_results",
    "render_report",
    "render_table",
    "write_report",
]
