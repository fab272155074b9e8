"""Pictures of the attacks: relearning curves, bars over bit widths, and everything else point by point."""

from collections.abc import Sequence
from typing import Any

from expunge.reporting.attacks import STRONGEST, Attack, Step
from expunge.reporting.metrics import describe, number
from expunge.reporting.plots import WIDTH, Style, brief, styles
from expunge.reporting.results import Row
from expunge.reporting.svg import BODY, INK, MUTED, SMALL, drawn, legend, new_figure, to_svg

LINE_HEIGHT = 24  # pixels between two lines of the dot plot


def label_of(key: str) -> str:
    """A metric's name with the set it is of, and which way is better."""
    metric = describe(key)
    return f"{metric.label} {metric.arrow}".strip()


def _present(attack: Attack, rows: Sequence[Row]) -> list[tuple[Row, Style]]:
    """The rows the attack was run on, with their looks."""
    return [
        (row, style)
        for row, style in zip(rows, styles(rows), strict=True)
        if any(step.cell(row, attack.key).mean is not None for step in attack.steps)
    ]


@drawn
def curve(attack: Attack, rows: Sequence[Row], index: int = 0) -> str | None:
    """What comes out over the strength of the attack, one line a model, with its interval or s.d. as a band."""
    present = _present(attack, rows)
    if not present or len(attack.steps) < 2:
        return None
    lines = -(-len(present) // 3)
    figure, axes = new_figure(WIDTH, 270 + 16 * lines)
    ax = axes[0, 0]
    places = [step.at for step in attack.steps]
    wide = max(places) / max(1.0, min(place for place in places if place > 0)) > 20
    handles = []
    for row, style in present:
        points = [(step.at, step.cell(row, attack.key)) for step in attack.steps]
        known = [(at, cell) for at, cell in points if cell.mean is not None]
        xs, ys = [at for at, _ in known], [cell.mean for _, cell in known]
        low = [cell.low if cell.low is not None else (cell.mean or 0) - (cell.spread or 0) for _, cell in known]
        high = [cell.high if cell.high is not None else (cell.mean or 0) + (cell.spread or 0) for _, cell in known]
        ax.fill_between(xs, low, high, color=style.colour, alpha=0.12, linewidth=0)
        dash = ":" if row.model == "original" else style.dash
        handles += ax.plot(xs, ys, dash, marker=style.marker, markersize=4.5, color=style.colour, linewidth=1.7)
    if wide:
        ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.set_xticks(places, [f"{place:g}" for place in places])
    ax.set_xticks([], minor=True)
    ax.grid(visible=False, axis="x")
    top = max(cell.mean or 0 for step in attack.steps for row, _ in present if (cell := step.cell(row, attack.key)))
    ax.set_ylim(-0.02, max(1.04, 1.1 * top) if top > 0.5 else 1.25 * top + 0.02)
    ax.set_xlabel("steps" if attack.kind == "relearn" else "strength", color=MUTED, fontsize=BODY)
    ax.set_title(label_of(attack.key), fontsize=BODY, color=INK, loc="left", pad=8)
    legend(figure, handles, [brief(row.label) for row, _ in present], "outside upper left")
    return to_svg(figure, f"attack{index}", _said(attack, [row for row, _ in present]))


@drawn
def bars(attack: Attack, rows: Sequence[Row], index: int = 0) -> str | None:
    """Groups of bars, one group a point of the attack, one bar a model."""
    present = _present(attack, rows)
    if not present:
        return None
    lines = -(-len(present) // 3)
    figure, axes = new_figure(WIDTH, 250 + 16 * lines)
    ax = axes[0, 0]
    width = 0.82 / len(present)
    handles = []
    for place, (row, style) in enumerate(present):
        cells = [step.cell(row, attack.key) for step in attack.steps]
        xs = [at - 0.41 + width * (place + 0.5) for at in range(len(cells))]
        alpha = {"original": 0.5, "retrained": 0.25}.get(row.model, 0.9)
        handles.append(
            ax.bar(xs, [cell.mean or 0.0 for cell in cells], width * 0.9, color=style.colour, alpha=alpha, linewidth=0)
        )
        for x, cell in zip(xs, cells, strict=True):
            if cell.mean is None:
                continue
            reach = cell.spread or 0.0
            low = cell.low if cell.low is not None else cell.mean - reach
            high = cell.high if cell.high is not None else cell.mean + reach
            ax.plot([x, x], [low, high], color=INK, linewidth=1, alpha=0.6)
    ax.set_xticks(range(len(attack.steps)), [_tick(step) for step in attack.steps], color=INK)
    ax.grid(visible=False, axis="x")
    ax.set_ylim(bottom=0)
    ax.set_title(label_of(attack.key), fontsize=BODY, color=INK, loc="left", pad=8)
    legend(figure, handles, [brief(row.label) for row, _ in present], "outside upper left")
    return to_svg(figure, f"attack{index}", _said(attack, [row for row, _ in present]))


@drawn
def dots(found: Sequence[Attack], rows: Sequence[Row]) -> str | None:
    """A line for each point of each attack, on it a mark for each model: how much comes out."""
    lines: list[tuple[Attack, Step]] = [(attack, step) for attack in found for step in _hard(attack)]
    present = [pair for pair in zip(rows, styles(rows), strict=True) if any(_measured(a, s, pair[0]) for a, s in lines)]
    if not lines or not present:
        return None
    spare = 70 + 16 * -(-len(present) // 3)
    figure, axes = new_figure(WIDTH, spare + LINE_HEIGHT * (len(lines) + 0.9 * len(found)))
    ax = axes[0, 0]
    ticks, names, y, handles = [], [], 0.0, {}
    for attack in found:
        ax.text(
            0,
            y + 0.1,
            f"{attack.title}: {label_of(attack.key).removeprefix('forget ')}",
            fontsize=SMALL,
            color=MUTED,
            va="center",
        )
        y += 0.9
        for step in _hard(attack):
            ticks.append(y)
            names.append(_tick(step))
            for row, style in present:
                handle = _mark(ax, step, attack.key, row, style, y)
                if handle is not None:
                    handles[row.label] = handle
            y += 1
    ax.set_yticks(ticks, names, color=INK)
    ax.set_ylim(y - 0.4, -0.6)
    ax.set_xlim(-0.03, 1.03)
    ax.spines["left"].set_visible(False)
    order = [brief(row.label) for row, _ in present]
    legend(figure, [handles[row.label] for row, _ in present], order, "outside upper left")
    said = "; ".join(_said(attack, [row for row, _ in present]) for attack in found)
    return to_svg(figure, "attacks", said)


def _hard(attack: Attack) -> tuple[Step, ...]:
    """The points that are attacks, unless there is nothing else; of many ways to ask, the strongest one's alone."""
    steps = attack.steps[1:] or attack.steps
    return steps[-1:] if steps[-1].label.startswith(STRONGEST) else steps


def _measured(attack: Attack, step: Step, row: Row) -> bool:
    return step.cell(row, attack.key).mean is not None


def _tick(step: Step) -> str:
    """A point's label, cut to fit, with a dagger where the attack breaks the original model too."""
    label = step.label if len(step.label) <= 26 else f"{step.label[:25]}…"
    return f"{label} †" if step.broken else label


def _mark(ax: Any, step: Step, key: str, row: Row, style: Style, y: float) -> Any:
    cell = step.cell(row, key)
    if cell.mean is None:
        return None
    reach = cell.spread or 0.0
    low = cell.low if cell.low is not None else cell.mean - reach
    high = cell.high if cell.high is not None else cell.mean + reach
    hollow = row.model == "retrained"
    ax.plot([low, high], [y, y], color=style.colour, linewidth=1, alpha=0.4, zorder=3)
    return ax.plot(
        [cell.mean], [y], style.marker, color=style.colour, markersize=7.5, zorder=4, alpha=0.9, linestyle="none",
        markerfacecolor="none" if hollow else style.colour, markeredgewidth=1.5 if hollow else 0,
    )[0]  # fmt: skip


def _said(attack: Attack, rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        numbers = ", ".join(f"{step.name} {number(step.cell(row, attack.key).mean)}" for step in attack.steps)
        parts.append(f"{row.label}: {numbers}")
    return f"{attack.title}, {describe(attack.key).label}. {'; '.join(parts)}"
