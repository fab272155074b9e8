"""The report's pictures, each as an inline SVG string that follows the page's colours; None where there is no data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expunge.reporting.labels import Box, anchor, place
from expunge.reporting.metrics import describe, number
from expunge.reporting.results import FORGET_KEYS, UTILITY_KEYS, Cell, Row, floor, pick
from expunge.reporting.svg import BODY, INK, LINE, MUTED, SERIES, SMALL, WASH, calm, drawn, legend, new_figure, to_svg
from expunge.reporting.thresholds import CLOSE, INTACT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 460.0  # CSS pixels; the page scales it between a phone's width and half a desk's
MARKERS = ("o", "^", "v", "P", "X", "<", ">", "p", "h")  # nine shapes × seven colours: 63 methods differ
DASHES = ("-", "--", "-.", ":")
KEY_METRICS = (
    "forget.extraction_strength", "retain.extraction_strength", "forget.rouge_l", "model_utility",
    "forget.probability", "mia.min_k.auc",
)  # fmt: skip
MOST_NAMES = 10  # methods named beside their marks; more are numbered
LONGEST_NAME = 20  # characters
POINTS = 12_000  # vertices of all curves of one figure together, which keeps the page small


@dataclass(frozen=True)
class Style:
    """How one row looks in every picture."""

    colour: str
    marker: str
    dash: str


@dataclass(frozen=True)
class Mark:
    """A row as a point: how far its bars reach left and right (`across`), down and up (`up`), in data units."""

    row: Row
    style: Style
    x: float
    y: float
    across: tuple[float, float]
    up: tuple[float, float]


def styles(rows: Sequence[Row]) -> list[Style]:
    """A look for each row: controls in the text's colour, methods in turn through colours, shapes and dashes."""
    found, count = [], 0
    for row in rows:
        if row.model == "original":
            found.append(Style(INK, "s", "-"))
        elif row.model == "retrained":
            found.append(Style(INK, "D", "--"))
        else:
            dash = DASHES[count // len(SERIES) % len(DASHES)]
            found.append(Style(SERIES[count % len(SERIES)], MARKERS[count % len(MARKERS)], dash))
            count += 1
    return found


def brief(label: str) -> str:
    """A name that fits a picture: a long one loses its middle."""
    return label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME // 2]}…{label[-(LONGEST_NAME // 2 - 1) :]}"


@drawn
def tradeoff(rows: Sequence[Row]) -> str | None:
    """Forgetting against utility: every model a named mark, with its interval or s.d. as bars, and the goal shaded.

    The goal is where a model counts as having forgotten (`CLOSE`) and as intact (`INTACT`) in the verdicts.
    """
    forget, utility = pick(rows, FORGET_KEYS), pick(rows, UTILITY_KEYS)
    if forget is None or utility is None:
        return None
    marks = [
        Mark(row, style, x, y, _reach(row.cell(forget)), _reach(row.cell(utility)))
        for row, style in zip(rows, styles(rows), strict=True)
        if (x := row.mean(forget)) is not None and (y := row.mean(utility)) is not None
    ]
    if not marks:
        return None
    crowded = sum(mark.row.model == "unlearned" for mark in marks) > MOST_NAMES
    figure, axes = new_figure(WIDTH, 390 + (16 * -(-len(marks) // 3) if crowded else 0))
    ax = axes[0, 0]
    _goal(ax, rows, forget, utility)
    handles = [_draw_mark(ax, mark) for mark in marks]
    ax.set_xlim(*_window([mark.x - mark.across[0] for mark in marks], [mark.x + mark.across[1] for mark in marks]))
    ax.set_ylim(*_window([mark.y - mark.up[0] for mark in marks], [mark.y + mark.up[1] for mark in marks]))
    ax.set_xlabel(f"{describe(forget).label}   (← lower is better)", color=MUTED, fontsize=BODY)
    ax.set_ylabel(f"{describe(utility).label}   (higher is better →)", color=MUTED, fontsize=BODY)
    names = {index: brief(mark.row.label) for index, mark in enumerate(marks)}
    if crowded:  # names would cover the marks: number the methods and say below which is which
        methods = [index for index, mark in enumerate(marks) if mark.row.model == "unlearned"]
        numbers = {index: str(place_) for place_, index in enumerate(methods, 1)}
        keys = [f"{numbers[index]}  {names[index]}" for index in methods]
        legend(figure, [handles[index] for index in methods], keys, "outside lower left")
        names |= numbers
    _write_names(figure, ax, marks, list(names.values()))
    points = "; ".join(f"{mark.row.label} at {number(mark.x)}, {number(mark.y)}" for mark in marks)
    return to_svg(figure, "tradeoff", f"{describe(forget).label} against {describe(utility).label}: {points}")


def _window(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    """The limits of an axis that shows all marks with their bars, and 8 % of their range around them."""
    low, high = min(lows), max(highs)
    margin = 0.08 * (high - low) or 0.05
    return low - margin, high + margin


def _draw_mark(ax: "Axes", mark: "Mark") -> Any:
    colour, hollow = mark.style.colour, mark.row.model == "retrained"
    (left, right), (down, up) = mark.across, mark.up
    ax.plot([mark.x - left, mark.x + right], [mark.y, mark.y], color=colour, linewidth=1, alpha=0.45, zorder=3)
    ax.plot([mark.x, mark.x], [mark.y - down, mark.y + up], color=colour, linewidth=1, alpha=0.45, zorder=3)
    return ax.plot(
        [mark.x], [mark.y], mark.style.marker, color=colour, markersize=8.5, zorder=4,
        markerfacecolor="none" if hollow else colour, markeredgewidth=1.6 if hollow else 0,
    )[0]  # fmt: skip


def _reach(cell: Cell) -> tuple[float, float]:
    """How far the bar of a cell goes below and above its mean."""
    if cell.spread is not None:
        return cell.spread, cell.spread
    if cell.mean is None or cell.low is None or cell.high is None:
        return 0.0, 0.0
    return max(cell.mean - cell.low, 0.0), max(cell.high - cell.mean, 0.0)


def _goal(ax: "Axes", rows: Sequence[Row], forget: str, utility: str) -> None:
    from matplotlib.patches import Rectangle

    controls = {row.model: row for row in rows if row.model != "unlearned"}
    if "original" not in controls:
        return
    before, full = controls["original"].mean(forget), controls["original"].mean(utility)
    gold = (controls["retrained"].mean(forget) if "retrained" in controls else None) or floor(forget)
    if before is None or full is None or before <= gold:
        return
    right, low = gold + CLOSE * (before - gold), floor(utility) + INTACT * (full - floor(utility))
    ax.add_patch(Rectangle((-1, low), right + 1, 9, facecolor=WASH, edgecolor="none", zorder=0))


def _write_names(figure: "Figure", ax: "Axes", marks: Sequence[Mark], names: Sequence[str]) -> None:
    """Write each name beside its mark, with a thin line to it where it had to stand apart."""
    figure.canvas.draw()  # fixes the layout, without which data have no pixels yet
    figure.set_layout_engine("none")
    texts = [ax.text(0, 0, name, fontsize=BODY, color=INK, va="bottom", zorder=6) for name in names]
    sizes = [(text.get_window_extent().width, text.get_window_extent().height) for text in texts]
    points = [tuple(ax.transData.transform((mark.x, mark.y))) for mark in marks]
    frame = Box(*ax.get_window_extent().extents)
    obstacles = []
    for mark, (x, y) in zip(marks, points, strict=True):
        left, bottom = ax.transData.transform((mark.x - mark.across[0], mark.y - mark.up[0]))
        right, top = ax.transData.transform((mark.x + mark.across[1], mark.y + mark.up[1]))
        obstacles += [Box(left, y - 1, right, y + 1), Box(x - 1, bottom, x + 1, top)]
    pixels = ax.transData.inverted()
    for text, box, point in zip(texts, place(points, sizes, frame, obstacles), points, strict=True):
        text.set_position(tuple(pixels.transform((box.left, box.bottom))))
        end = anchor(box, point)
        if (end[0] - point[0]) ** 2 + (end[1] - point[1]) ** 2 > 16**2:
            (x0, y0), (x1, y1) = pixels.transform([point, end])
            ax.plot([x0, x1], [y0, y1], color=MUTED, linewidth=0.6, zorder=2)


@drawn
def bars(rows: Sequence[Row]) -> str | None:
    """Bars of the key metrics by model, each metric with its own panel; a dashed line marks the retrained model."""
    keys = [key for key in KEY_METRICS if any(row.mean(key) is not None for row in rows)]
    if not keys:
        return None
    lines = (len(keys) + 1) // 2
    figure, axes = new_figure(WIDTH, lines * (48 + 17 * len(rows)), lines, 2, space=(0.06, 0.04), sharey=True)
    for ax in axes.flat[len(keys) :]:
        ax.set_visible(False)
    looks = styles(rows)
    for ax, key in zip(axes.flat, keys, strict=False):
        metric = describe(key)
        right = 1.25 * max(0.8, *(row.mean(key) or 0.0 for row in rows))  # the numbers stand in a column of their own
        for place_, (row, style) in enumerate(zip(rows, looks, strict=True)):
            value = row.mean(key)
            if value is None:
                ax.text(0.02, place_, "not measured", fontsize=SMALL, color=MUTED, va="center")
                continue
            alpha = {"original": 0.5, "retrained": 0.25}.get(row.model, 0.9)
            ax.barh(place_, value, height=0.62, color=style.colour, alpha=alpha, linewidth=0)
            ax.text(right, place_, f"{value:.2f}", fontsize=SMALL, color=INK, va="center", ha="right")
            if row.model == "retrained":
                ax.axvline(value, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0.5)
        ax.set_title(f"{metric.label} {metric.arrow}", fontsize=BODY, color=INK, loc="left", pad=5)
        ax.set_xlim(0, right)
        ax.set_xticks([])
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(rows)), [brief(row.label) for row in rows], color=INK)
    axes[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    shown = ", ".join(describe(key).label for key in keys)
    return to_svg(figure, "bars", f"Bars of {shown} for {', '.join(row.label for row in rows)}")


@drawn
def losses(rows: Sequence[Row]) -> str | None:
    """The loss on the forget and on the retain side over the steps, one line a run.

    Negative log-likelihoods where they were logged, as these can be compared between methods; else the methods' own
    losses.
    """
    kind = "nll" if _any_logged(rows, "forget_nll") or _any_logged(rows, "retain_nll") else "loss"
    word = "negative log-likelihood per token" if kind == "nll" else "the method's own loss"
    panels = [(f"forget_{kind}", f"forget: {word}"), (f"retain_{kind}", f"retain: {word}")]
    panels = [panel for panel in panels if _any_logged(rows, panel[0])]
    return _curves(rows, panels, "losses") if panels else None


@drawn
def rates(rows: Sequence[Row]) -> str | None:
    """The learning rate over the steps, one line a run."""
    return _curves(rows, [("lr", "learning rate")], "rates") if _any_logged(rows, "lr") else None


def _any_logged(rows: Sequence[Row], name: str) -> bool:
    return any(_series(run, name) for row in rows for run in row.runs)


def _series(run: dict[str, Any], name: str) -> list[tuple[float, float]]:
    if run.get("update"):  # a task vector's log is of the fine-tuning on the forget set: no unlearning yet
        return []
    points = []
    for index, entry in enumerate(run.get("log") or []):
        step, value = entry.get("step", index), entry.get(name)
        if isinstance(value, int | float) and isinstance(step, int | float):
            points.append((float(step), float(value)))
    return points


def _curves(rows: Sequence[Row], panels: Sequence[tuple[str, str]], name: str) -> str:
    logged = [
        (row, style)
        for row, style in zip(rows, styles(rows), strict=True)
        if any(_series(run, key) for run in row.runs for key, _ in panels)
    ]
    legend_lines = -(-len(logged) // 3)
    figure, axes = new_figure(
        WIDTH, 72 + 16 * legend_lines + 160 * len(panels), len(panels), 1, space=(0.05, 0.02), sharex=True
    )
    for ax, (key, title) in zip(axes.flat, panels, strict=True):
        lines = [(row, style, _series(run, key)) for row, style in logged for run in row.runs]
        limit = max(POINTS // max(len(lines), 1) // len(panels), 20)
        for row, style, points in lines:
            xs, ys = zip(*_thinned(points, limit), strict=True) if points else ((), ())
            alpha = 0.95 if len(row.runs) == 1 else 0.6
            mark = "o" if len(xs) == 1 else None
            ax.plot(xs, ys, style.dash, marker=mark, markersize=4, color=style.colour, linewidth=1.5, alpha=alpha)
        _scale(ax, [y for *_, points in lines for _, y in points])
        ax.set_title(title, fontsize=BODY, color=INK, loc="left", pad=8)
    axes[-1, 0].set_xlabel("step", color=MUTED, fontsize=BODY)
    ax = axes[0, 0]
    handles = [ax.plot([], [], style.dash, color=style.colour, linewidth=2)[0] for _, style in logged]
    legend(figure, handles, [brief(row.label) for row, _ in logged], "outside upper left")
    what = " and ".join(title for _, title in panels)
    return to_svg(figure, name, f"{what} over the steps of {', '.join(row.label for row, _ in logged)}")


def _thinned(points: list[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most about `limit` points, evenly taken, the last always among them."""
    stride = -(-len(points) // limit)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _scale(ax: "Axes", values: Sequence[float]) -> None:
    """A logarithmic axis where positive values span more than a factor of 30, else a plain one without offsets."""
    positive = bool(values) and min(values) > 0
    if positive and max(values) / min(values) > 30:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(lambda value, _: "")
        ax.grid(visible=False, which="minor")
    else:
        low, high = min([0.0, *values]), max([0.0, *values])
        if low < high:
            ax.set_ylim(low - 0.04 * (high - low) if low < 0 else 0, high + 0.08 * (high - low))
    ax.yaxis.set_major_formatter(lambda value, _: re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}"))  # 1e-5, not 0.00001
    calm(ax)
    ax.grid(visible=False, axis="x")
    ax.spines["left"].set_color(LINE)
