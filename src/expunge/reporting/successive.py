"""Requests one after another: what is remembered and what is kept after each, as a picture and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from expunge.reporting.metrics import describe, number
from expunge.reporting.plots import WIDTH
from expunge.reporting.results import FORGET_KEYS, UTILITY_KEYS, Cell, cell_of
from expunge.reporting.svg import BODY, INK, MUTED, SERIES, drawn, legend, new_figure, to_svg

FIRST = "request_1.extraction_strength"
BRIEF = {  # names that fit beside each other above the picture
    "forget.extraction_strength": "forget, all", FIRST: "first request", "retain.extraction_strength": "retain",
    "model_utility": "model utility", "mia.min_k.auc": "min-k AUC", "forget.verbmem": "VerbMem",
    "forget.knowmem": "KnowMem forget", "retain.knowmem": "KnowMem retain",
}  # fmt: skip
WORDS = {
    "sustainability": "Each request was unlearned from the model the one before had left.",
    "scalability": "Each time, everything asked for so far was unlearned from the original model.",
}


def section(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page's section shows: a sentence, the picture and the table; None where there were no such requests."""
    found = results.get("successive")
    if not found:
        return None
    points = found["points"]
    keys = _keys(points)
    after = [point["requests"] for point in points if point["requests"]]
    return {
        "after": after,
        "each": _each(found.get("requests") or [], after),
        "text": WORDS[found["kind"]],
        "figure": Markup(svg) if (svg := curve(points, keys)) else None,
        "heads": [f"{describe(key).label} {describe(key).arrow}".strip() for key in keys],
        "lines": [
            (point["label"], point["examples"], [cell(point, key) for key in keys], number(point.get("seconds"), 1))
            for point in points
        ],
    }


def _each(rows: Sequence[Mapping[str, Any]], after: Sequence[int]) -> list[tuple[int, str, list[str]]]:
    """Each request with the original's extraction strength and that after each step; "–" before it was asked for."""
    of_metric = [row for row in rows if row["metric"] == "extraction_strength"]
    original = {row["request"]: number(row["original"]) for row in of_metric}
    values = {(row["request"], row["after"]): number(row["value"]) for row in of_metric}
    return [
        (request, first, [values.get((request, step), "–") for step in after])
        for request, first in sorted(original.items())
    ]


def _keys(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is shown, of what every point or all but the first has: forgetting, the first request, utility, privacy."""
    measured = {key for point in points for key in point["metrics"]}
    first = [next((key for key in keys if key in measured), None) for keys in (FORGET_KEYS, UTILITY_KEYS)]
    others = ["forget.verbmem", "forget.knowmem", FIRST, "retain.extraction_strength", "mia.min_k.auc", "privleak"]
    return [key for key in dict.fromkeys([*first, *others]) if key is not None and key in measured]


def cell(point: Mapping[str, Any], key: str) -> Cell:
    return cell_of([point["metrics"].get(key)], point["intervals"].get(key))


@drawn
def curve(points: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str | None:
    """Each measure between 0 and 1 over the number of requests, with its 95 % interval as a band."""
    shown = [key for key in keys if key != "privleak"][: len(SERIES)]
    if len(points) < 2 or not shown:
        return None
    figure, axes = new_figure(WIDTH, 270 + 16 * -(-len(shown) // 2))
    ax = axes[0, 0]
    handles, said = [], []
    for key, colour, marker in zip(shown, SERIES, "os^Dv<>", strict=False):
        known = [(point["requests"], found) for point in points if (found := cell(point, key)).mean is not None]
        xs, ys = [at for at, _ in known], [found.mean for _, found in known]
        low = [found.mean if found.low is None else found.low for _, found in known]
        high = [found.mean if found.high is None else found.high for _, found in known]
        ax.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
        handles += ax.plot(xs, ys, "-", marker=marker, markersize=4.5, color=colour, linewidth=1.7)
        said.append(f"{describe(key).label}: {', '.join(number(value, 2) for value in ys)}")
    ax.set_xticks([point["requests"] for point in points], [str(point["requests"]) for point in points], color=INK)
    ax.set_ylim(-0.03, 1.06)
    ax.grid(visible=False, axis="x")
    ax.set_xlabel("requests unlearned", color=MUTED, fontsize=BODY)
    legend(figure, handles, [BRIEF.get(key, describe(key).label) for key in shown], "outside upper left")
    return to_svg(figure, "successive", f"After each of {len(points) - 1} requests. {'; '.join(said)}")
