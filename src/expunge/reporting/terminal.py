"""What a terminal shows of results: the leaderboard, the verdict on each method, and one line on releasing the model."""

from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from expunge.reporting.attacks import attacks
from expunge.reporting.escaping import visible
from expunge.reporting.metrics import number
from expunge.reporting.release import release
from expunge.reporting.results import Cell, columns, inline, leaderboard
from expunge.reporting.verdict import best_first, summary, verdicts

WIDE = 15  # characters a column needs to show a number and its interval on one line, with its heading in words
COLOURS = {"good": "green", "partial": "yellow", "failed": "red", "unknown": ""}
ANSWERS = {"good": "yes", "partial": "partly", "failed": "no", "unknown": "not known"}
LEGEND = (
    "Extraction: extraction strength. ↓ lower is better, ↑ higher,\n"
    "→ like the retrained model's; – not measured.\n"
    "Below a number: its 95 % interval, or ± its s.d. over seeds."
)


def show_results(results: dict[str, Any], console: Console | None = None) -> None:
    """Print `results` to standard output in the window's width.

    Raises ConfigurationError if `results` is malformed.
    """
    console = console or Console(highlight=False)
    console.print(render_table(results, width=console.width))
    console.print(render_verdict(results))


def render_verdict(results: dict[str, Any]) -> RenderableType:
    """The verdict on each unlearned model, of a single one claim by claim, and whether the best of them may be released."""
    rows = leaderboard(results)
    given = best_first(verdicts(rows, attacks(rows)))
    lines = [Text(visible(summary(rows, given)), style="bold")]
    if len(given) == 1:
        claims = given[0].claims
        lines += [
            Text.assemble("  ", visible(claim.title), ": ", (ANSWERS[claim.level], COLOURS[claim.level]))
            for claim in claims
        ]
    else:
        lines += [
            Text.assemble("  ", visible(each.row.label), ": ", (visible(each.word.lower()), COLOURS[each.level]))
            for each in given
        ]
    return Group(*lines, Text(visible(release(given).text), style="bold"))


def render_table(results: dict[str, Any], width: int = 80) -> Table:
    """The leaderboard for a window of `width` characters: each number with its interval or ± s.d. over seeds, below
    it in a window of less than WIDE characters a column, beside it in a wider one.

    Raises ConfigurationError if `results` is malformed.
    """
    rows = leaderboard(results)
    keys = columns(rows)
    wide = width >= 24 + WIDE * (len(keys) + 1)
    table = Table(
        title=Text(visible(results.get("title") or "Leaderboard")),
        caption=LEGEND if not wide else LEGEND.replace("\n", " ").replace("Below", "Beside"),
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        padding=(0, 1) if wide else (0, 0),
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("method", overflow="fold", min_width=10)
    for heading in keys.values():
        table.add_column(
            heading.replace("-\n", "").replace("\n", " ") if wide else heading, justify="right", no_wrap=not wide
        )
    table.add_column("seconds" if wide else "sec-\nonds", justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        last_control = row.model != "unlearned" and (index + 1 == len(rows) or rows[index + 1].model == "unlearned")
        cells = [Text(inline(row.cell(key)) if wide else _stacked(row.cell(key))) for key in keys]
        table.add_row(Text(visible(row.label)), *cells, Text(number(row.seconds.mean, 1)), end_section=last_control)
    return table


def _stacked(cell: Cell) -> str:
    if cell.mean is not None and cell.spread is not None:
        return f"{number(cell.mean)}\n±{number(cell.spread)}"
    if cell.mean is not None and cell.low is not None and cell.high is not None:
        return f"{number(cell.mean)}\n{_bare(cell.low)}–{_bare(cell.high)}"
    return number(cell.mean)


def _bare(value: float) -> str:
    """Two decimals without the leading zero, as the interval must fit below a number: .05, -.10, 1.0."""
    if abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 0.995 else f"{value:.2f}".replace("0.", ".", 1)
