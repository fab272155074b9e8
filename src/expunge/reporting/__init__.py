"""From results.json to what a person reads: a leaderboard, plots and one self-contained page, also as Markdown."""

from expunge.reporting.card import model_card as model_card_of
from expunge.reporting.html import render_report, write_report
from expunge.reporting.markdown import render_markdown
from expunge.reporting.merging import merge
from expunge.reporting.results import Cell, Row, leaderboard, markdown_table, read_results
from expunge.reporting.terminal import render_table, render_verdict, show_results

__all__ = [
    "Cell",
    "Row",
    "leaderboard",
    "markdown_table",
    "merge",
    "model_card_of",
    "read_results",
    "render_markdown",
    "render_report",
    "render_table",
    "render_verdict",
    "show_results",
    "write_report",
]
