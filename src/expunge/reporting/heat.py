"""Each forget example of each model as one cell: which are still known, and whether by all models or by one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import escape

from expunge.reporting.answers import examples_of
from expunge.reporting.metrics import describe, number
from expunge.reporting.results import Row

MEASURES = ("extraction_strength", "probability", "rouge_l")
LEVELS = 10  # shades between 0 and 1
MOST = 400  # columns; neighbouring examples of a longer set share one
MOST_LINES = 400  # lines of the table behind the picture


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One measure: a line for each model, drawn as `svg`, `width` columns wide."""

    measure: str
    labels: tuple[str, ...]
    svg: str
    width: int


@dataclass(frozen=True, kw_only=True)
class Heat:
    """The panels share their columns: the examples, those the unlearned models know best first.

    `lines`: (number, prompt, one text a model) of the first panel's measure, for reading.
    """

    panels: tuple[Panel, ...]
    labels: tuple[str, ...]
    lines: tuple[tuple[int, str, tuple[str, ...]], ...]
    count: int
    each: int


def heat(rows: Sequence[Row], side: str = "forget") -> Heat | None:
    """The heat map of one set over all models that recorded its examples; None where none did. Numbers are those of each
    row's first run with examples.
    """
    tables = {row.label: (row, table) for row in rows if (table := examples_of(row, side))}
    if not tables:
        return None
    keys = _ordered(tables)
    each = max(1, math.ceil(len(keys) / MOST))
    panels = []
    for measure in MEASURES:
        known = {
            label: _binned([_value(table.get(key), measure) for key in keys], each)
            for label, (_, table) in tables.items()
        }
        known = {label: values for label, values in known.items() if any(value is not None for value in values)}
        if known:
            panels.append(_panel(measure, known))
    if not panels:
        return None
    labels = tuple(label for label in tables if label in panels[0].labels)
    lines = tuple(
        (place, _prompt(key, tables), tuple(_text(tables[label][1].get(key)) for label in labels))
        for place, key in enumerate(keys[:MOST_LINES], 1)
    )
    return Heat(panels=tuple(panels), labels=labels, lines=lines, count=len(keys), each=each)


def _text(item: dict[str, Any] | None) -> str:
    """The first measure that the example has, as text."""
    return number(next((value for measure in MEASURES if (value := _value(item, measure)) is not None), None), 2)


def _ordered(tables: Mapping[str, tuple[Row, dict[str, Any]]]) -> list[str]:
    """Every example, those the unlearned models (else all) know best first."""
    judged = [table for row, table in tables.values() if row.model == "unlearned"] or [t for _, t in tables.values()]
    keys = list(dict.fromkeys(key for _, table in tables.values() for key in table))

    def known(key: str) -> tuple[float, float]:
        means = []
        for measure in ("extraction_strength", "probability"):
            values = [value for table in judged if (value := _value(table.get(key), measure)) is not None]
            means.append(sum(values) / len(values) if values else 0.0)
        return means[0], means[1]

    return sorted(keys, key=known, reverse=True)


def _value(item: dict[str, Any] | None, measure: str) -> float | None:
    value = (item or {}).get(measure)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _prompt(key: str, tables: Mapping[str, tuple[Row, dict[str, Any]]]) -> str:
    item = next(table[key] for _, table in tables.values() if key in table)
    text = str(item.get("prompt") or item.get("response") or key)
    return text if len(text) <= 90 else f"{text[:89]}…"


def _binned(values: Sequence[float | None], each: int) -> list[float | None]:
    found: list[float | None] = []
    for start in range(0, len(values), each):
        known = [value for value in values[start : start + each] if value is not None]
        found.append(sum(known) / len(known) if known else None)
    return found


def _panel(measure: str, known: Mapping[str, Sequence[float | None]]) -> Panel:
    width = len(next(iter(known.values())))
    shades: dict[int, list[str]] = {}
    for line, values in enumerate(known.values()):
        for start, length, level in _runs(values):
            shades.setdefault(level, []).append(f"M{start} {line}h{length}v.88h-{length}z")
    paths = "".join(
        f'<path style="--v:{100 * level // LEVELS}" d="{"".join(d)}"/>' for level, d in sorted(shades.items())
    )
    means = {label: [value for value in values if value is not None] for label, values in known.items()}
    said = ", ".join(f"{label} {number(sum(values) / len(values), 2)}" for label, values in means.items())
    name = describe(f"forget.{measure}").label
    svg = (
        f'<svg role="img" aria-label="{escape(name)} of each example; means: {escape(said)}" '
        f'viewBox="0 0 {width} {len(known)}" preserveAspectRatio="none" shape-rendering="crispEdges">{paths}</svg>'
    )
    return Panel(measure=name, labels=tuple(known), svg=svg, width=width)


def _runs(values: Sequence[float | None]) -> list[tuple[int, int, int]]:
    """(first column, how many, shade) of each run of equal shades."""
    found: list[tuple[int, int, int]] = []
    for column, value in enumerate(values):
        if value is None:
            continue
        level = round(LEVELS * min(1.0, max(0.0, value)))
        if found and found[-1][2] == level and sum(found[-1][:2]) == column:
            found[-1] = (found[-1][0], found[-1][1] + 1, level)
        else:
            found.append((column, 1, level))
    return found
