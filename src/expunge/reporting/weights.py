"""Where the weights fall: which share of each layer and kind of module a method may change, or their mean weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from expunge.reporting import modules
from expunge.reporting.metrics import number
from expunge.reporting.results import Row
from expunge.reporting.svg import BODY, MUTED, SERIES, drawn, new_figure, to_svg

MOST_LAYERS = 32  # columns of a heat map; neighbouring layers of a deeper model share one
EVEN = 0.1  # differences up to this share of what is rarer (kept or frozen weights) are not worth a sentence
HARD, SOFT = "density", "mean weight"
ALL = "all"
Sums = dict[tuple[int | None, str], tuple[float, float]]  # (layer, module) -> (value, entries)


@dataclass(frozen=True, kw_only=True)
class Shade:
    """One cell: its value, in [0, 1], how it is written, and its colour from 0 (palest) to 100; no value, no colour."""

    value: float | None
    text: str
    heat: int | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a table: its name, its cell over all layers, then a cell for each layer; none outside the layers."""

    name: str
    whole: Shade
    cells: tuple[Shade, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The Jaccard index of this mask with another one, by kind of module, and what independent masks would have."""

    other: str
    cells: dict[str, tuple[float | None, float | None]]  # name of the module -> (jaccard, expected)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is shown of one method's attribution; `low` and `high` say what the ends of the colours stand for."""

    label: str
    kind: str
    runs: int
    said: str
    layers: tuple[str, ...]
    lines: tuple[Line, ...]
    low: str
    high: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    overlaps: tuple[Overlap, ...]
    sums: Sums


def grids(rows: Sequence[Row]) -> list[Grid]:
    """A grid for each row with an attribution; the cells of several seeds are averaged."""
    found = []
    for row in rows:
        given = [run["attribution"] for run in row.runs if run.get("attribution")]
        if given:
            found.append(_grid(row.label, given))
    return found


def _grid(label: str, given: Sequence[Mapping[str, Any]]) -> Grid:
    sums = _averaged(given)
    kind = given[0]["kind"]
    bands = _bands(sorted({layer for layer, _ in sums if layer is not None}))
    kinds = sorted(dict.fromkeys(module for _, module in sums), key=modules.order)
    low, high, under, over = _scale(sums)
    shade = _shader(kind, low, high)
    lines = [_line(sums, ALL, bands, lambda module: True, shade)]
    lines += [_line(sums, modules.name(kind_), bands, kind_.__eq__, shade) for kind_ in kinds]
    edges, shares = _histogram(given)
    return Grid(
        label=label,
        kind=kind,
        runs=len(given),
        said=_said(kind, sums, bands),
        layers=tuple(_heading(band) for band in bands),
        lines=tuple(lines),
        low=("≤ " if under else "") + written(low, kind),
        high=("≥ " if over else "") + written(high, kind),
        edges=edges,
        shares=shares,
        overlaps=_overlaps(given),
        sums=sums,
    )


def _averaged(given: Sequence[Mapping[str, Any]]) -> Sums:
    values: dict[tuple[int | None, str], list[tuple[float, float]]] = {}
    for one in given:
        for cell in one["cells"]:
            if cell["value"] is not None:
                values.setdefault((cell["layer"], cell["module"]), []).append((cell["value"], cell["entries"]))
    return {place: (fmean(v for v, _ in cells), fmean(n for _, n in cells)) for place, cells in values.items()}


def _mean(sums: Sums, chosen: Callable[[int | None, str], bool]) -> float | None:
    """The mean over the entries of the chosen cells."""
    cells = [cell for place, cell in sums.items() if chosen(*place)]
    entries = sum(count for _, count in cells)
    return sum(value * count for value, count in cells) / entries if entries else None


def _bands(layers: Sequence[int]) -> list[tuple[int, ...]]:
    width = max(1, -(-len(layers) // MOST_LAYERS))
    return [tuple(layers[start : start + width]) for start in range(0, len(layers), width)]


def _heading(band: tuple[int, ...]) -> str:
    return str(band[0]) if len(band) == 1 else f"{band[0]}–{band[-1]}"


def _line(
    sums: Sums,
    name: str,
    bands: Sequence[tuple[int, ...]],
    of: Callable[[str], bool],
    shade: Callable[[float | None], Shade],
) -> Line:
    inside = any(layer is not None and of(module) for layer, module in sums)
    cells = [_mean(sums, lambda layer, module, band=band: layer in band and of(module)) for band in bands]
    whole = _mean(sums, lambda _, module: of(module))
    return Line(name=name, whole=shade(whole), cells=tuple(map(shade, cells)) if inside else ())


def _scale(sums: Sums) -> tuple[float, float, bool, bool]:
    """The values at the two ends of the colours, and whether cells lie beyond them.

    They are those of the matrices in the layers, as embeddings and norms can lie far off. At least half of the rarer
    kind of weights apart (of kept and frozen ones): else a mask drawn at random would look full of structure.
    """
    inside = [value for (layer, module), (value, _) in sums.items() if layer is not None and modules.is_matrix(module)]
    every = [value for value, _ in sums.values()]
    shown = inside or every
    if not shown:
        return 0.0, 1.0, False, False
    low, high, whole = min(shown), max(shown), _mean(sums, lambda *_: True) or 0.0
    lacking = max(0.0, 0.5 * min(whole, 1 - whole) - (high - low))
    low, high = low - lacking / 2, high + lacking / 2
    shift = max(0.0, -low) - max(0.0, high - 1)
    low, high = max(0.0, low + shift), min(1.0, high + shift)
    if high <= low:
        low, high = max(0.0, low - 0.05), min(1.0, high + 0.05)
    return low, high, min(every) < low, max(every) > high


def _shader(kind: str, low: float, high: float) -> Callable[[float | None], Shade]:
    def shade(value: float | None) -> Shade:
        if value is None:
            return Shade(value=None, text="–")
        return Shade(
            value=value, text=written(value, kind), heat=round(100 * min(1.0, max(0.0, (value - low) / (high - low))))
        )

    return shade


def written(value: float | None, kind: str) -> str:
    """A cell's text: a weight with two decimals; a share in per cent, never rounded to none or to all."""
    if value is None:
        return "–"
    if kind == SOFT:
        return number(value, 2)
    per_cent = 100 * value
    if 0 < per_cent < 0.05:
        return "<0.1"
    if 99.95 <= per_cent < 100:
        return ">99.9"
    return f"{per_cent:.1f}" if 0 < per_cent < 9.95 or 99.5 <= per_cent < 100 else f"{per_cent:.0f}"


def _said(kind: str, sums: Sums, bands: Sequence[tuple[int, ...]]) -> str:
    """Some sentences: how much in all, in which kind of module most and least, and in which half of the layers."""
    unit = "\u00a0%" if kind == HARD else ""
    whole = _mean(sums, lambda *_: True) or 0.0
    known = f"{written(whole, kind)}{unit}"
    sentences = [f"The method may change {known} of the weights." if kind == HARD else f"The mean weight is {known}."]
    telling = EVEN * min(whole, 1 - whole)
    kinds = dict.fromkeys(module for _, module in sums if modules.is_matrix(module))
    means = [(_mean(sums, lambda _, m, one=one: m == one) or 0.0, modules.name(one)) for one in kinds]
    if len(means) > 1:
        (least, where_least), (most, where_most) = min(means), max(means)
        sentences.append(
            f"It is highest in {where_most} ({written(most, kind)}{unit}) and lowest in {where_least} "
            f"({written(least, kind)}{unit})."
            if most - least > telling
            else "It is about the same in every kind of module."
        )
    layers = [layer for band in bands for layer in band]
    middle = layers[len(layers) // 2] if layers else 0
    early = _mean(sums, lambda layer, _: layer is not None and layer < middle)
    late = _mean(sums, lambda layer, _: layer is not None and layer >= middle)
    if early is not None and late is not None and abs(early - late) > telling:
        halves = f"{written(early, kind)}{unit}, the second {written(late, kind)}{unit}"
        sentences.append(f"The first half of the layers has {halves}.")
    return " ".join(sentences)


def _histogram(given: Sequence[Mapping[str, Any]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The edges, and the share of weights in each bin, averaged over the runs; empty without a histogram."""
    known = [one["histogram"] for one in given if one.get("histogram")]
    known = [one for one in known if sum(one["counts"]) > 0 and one["edges"] == known[0]["edges"]]
    if not known:
        return (), ()
    shares = [[count / sum(one["counts"]) for count in one["counts"]] for one in known]
    return tuple(known[0]["edges"]), tuple(fmean(column) for column in zip(*shares, strict=True))


def _overlaps(given: Sequence[Mapping[str, Any]]) -> tuple[Overlap, ...]:
    found: dict[str, dict[str, list[tuple[float | None, float | None]]]] = {}
    for one in given:
        for row in one.get("overlap") or []:
            by_module = found.setdefault(row["with"], {})
            by_module.setdefault(row["module"], []).append((row["jaccard"], row["expected"]))
    overlaps = []
    for other, by_module in found.items():
        kinds = sorted(by_module, key=lambda module: (module != ALL, modules.order(module)))
        cells = {
            (ALL if module == ALL else modules.name(module)): (
                _known_mean([jaccard for jaccard, _ in by_module[module]]),
                _known_mean([expected for _, expected in by_module[module]]),
            )
            for module in kinds
        }
        overlaps.append(Overlap(other=other, cells=cells))
    return tuple(overlaps)


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def comparison(found: Sequence[Grid]) -> tuple[list[str], list[Line]]:
    """The kinds of module of several grids, and a line for each grid with its value in each kind.

    Each line is shaded by its own grid's scale, as a mask that keeps much and one that keeps little have the same shape.
    """
    kinds = sorted(dict.fromkeys(module for grid in found for _, module in grid.sums), key=modules.order)
    names = list(dict.fromkeys(modules.name(kind) for kind in kinds))
    lines = []
    for grid in found:
        known = {line.name: line.whole for line in grid.lines}
        blank = Shade(value=None, text="–")
        lines.append(Line(name=grid.label, whole=known[ALL], cells=tuple(known.get(name, blank) for name in names)))
    return names, lines


@drawn
def histogram(grid: Grid, index: int = 0) -> str | None:
    """Bars of the share of parameters by their weight w; None where the masks are hard. `index` keeps ids apart."""
    if not grid.shares:
        return None
    figure, axes = new_figure(460, 240)
    ax = axes[0, 0]
    widths = [right - left for left, right in zip(grid.edges[:-1], grid.edges[1:], strict=True)]
    ax.bar(grid.edges[:-1], [100 * share for share in grid.shares], width=[0.9 * width for width in widths],
           align="edge", color=SERIES[0], alpha=0.85, linewidth=0)  # fmt: skip
    ax.grid(visible=False, axis="x")
    ax.set_xlim(grid.edges[0], grid.edges[-1])
    ax.tick_params(axis="x", pad=6)
    ax.set_xlabel("weight w of a parameter", color=MUTED, fontsize=BODY)
    ax.set_ylabel("parameters in %", color=MUTED, fontsize=BODY)
    bins = zip(grid.edges[:-1], grid.edges[1:], grid.shares, strict=True)
    said = "; ".join(f"{left:g} to {right:g}: {written(share, HARD)} %" for left, right, share in bins)
    return to_svg(figure, f"weights{index}", f"Histogram of the weights of {grid.label}: {said}")
