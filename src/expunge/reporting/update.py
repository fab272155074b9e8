"""How far the update goes: what the model still holds at each step size α tried, and which α was chosen and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.reporting.metrics import label_of, number, short
from expunge.reporting.results import Row
from expunge.reporting.svg import BODY, INK, MUTED, SERIES, SMALL, drawn, legend, new_figure, to_svg

FORGET, RETAIN = SERIES[1], SERIES[0]
CLOSEST = 26.0  # pixels between the names of two dashed levels


@dataclass(frozen=True, kw_only=True)
class Search:
    """The α search of one method: `runs` holds each run's "search" (None where α was given) and its "update"."""

    label: str
    criterion: str
    said: str
    runs: tuple[tuple[Mapping[str, Any] | None, Mapping[str, Any]], ...]

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The candidates of every run by α, each with the seed's place (from 1) and whether it was the one chosen."""
        return [
            {**candidate, "run": place, "chosen": _same(candidate["alpha"], update.get("alpha"))}
            for place, (search, update) in enumerate(self.runs, 1)
            if search
            for candidate in _by_alpha(search)
        ]


def searches(rows: Sequence[Row]) -> list[Search]:
    """One for each row whose update has a step size."""
    found = []
    for row in rows:
        runs = [
            (run.get("search"), run.get("update") or {}) for run in row.runs if run.get("search") or run.get("update")
        ]
        if runs:
            first = next((search for search, _ in runs if search), None)
            word = label_of(first["criterion"]) if first else ""
            found.append(Search(label=row.label, criterion=word, said=_said(runs, word), runs=tuple(runs)))
    return found


def _by_alpha(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sorted(search["candidates"], key=lambda candidate: candidate["alpha"])


def _same(one: float, other: float | None) -> bool:
    return other is not None and abs(one - other) <= 1e-9 * max(1.0, abs(one))


def _said(runs: Sequence[tuple[Mapping[str, Any] | None, Mapping[str, Any]]], word: str) -> str:
    """What was chosen, on how many examples, what it did there, and the size of the update."""
    searched = [(search, update) for search, update in runs if search]
    alphas = [update["alpha"] for _, update in runs if update.get("alpha") is not None]
    chosen = " and ".join(dict.fromkeys(f"{alpha:.4g}" for alpha in alphas)) if len(alphas) < 3 else (
        f"{min(alphas):.4g} to {max(alphas):.4g} (over {len(alphas)} runs)"
    )  # fmt: skip
    sentences = []
    if searched:
        search, update = searched[0]
        counts = " and ".join(f"{count} {name}" for name, count in search["examples"].items())
        tried = len(search["candidates"])
        sentences.append(
            f"α\u00a0=\u00a0{chosen or '–'} was chosen among {tried} by what the model then held of {counts} examples "
            f"({word}): the lowest sum of leak and damage."
        )
        hit = next((one for one in search["candidates"] if _same(one["alpha"], update.get("alpha"))), None)
        if hit and len(runs) == 1 and hit["forget"] is not None and hit["retain"] is not None:
            sentences.append(_effect(search, hit))
    elif chosen:
        sentences.append(f"α\u00a0=\u00a0{chosen}, as it was set.")
    sentences.append(_size([update for _, update in runs]))
    return " ".join(sentence for sentence in sentences if sentence)


def _effect(search: Mapping[str, Any], hit: Mapping[str, Any]) -> str:
    before, never = search["before"], search["never_learned"]
    was = {side: f"from {short(before[side])}" if before.get(side) is not None else "" for side in ("forget", "retain")}
    level = f"{short(never)} where never learned" if never is not None else ""
    forget = f"{short(hit['forget'])} of forget{_aside(was['forget'], level)}"
    return f"There it holds {forget} and {short(hit['retain'])} of retain{_aside(was['retain'])}."


def _aside(*parts: str) -> str:
    known = ", ".join(part for part in parts if part)
    return f" ({known})" if known else ""


def _size(updates: Sequence[Mapping[str, Any]]) -> str:
    norms = [update["norm"] for update in updates if update.get("norm") is not None]
    whole = [update["task_vector_norm"] for update in updates if update.get("task_vector_norm") is not None]
    if not norms:
        return ""
    mean = "mean " if len(norms) > 1 else ""
    text = f"The update’s {mean}norm (L2) is {number(sum(norms) / len(norms), 2)}"
    return f"{text}; the task vector’s is {number(sum(whole) / len(whole), 2)}." if whole else f"{text}."


@drawn
def curve(search: Search, index: int = 0) -> str | None:
    """What is held of the forget and the retain part against α, one pair of lines a run; None without candidates.

    Dashed: what a model that never learned the forget part holds of it, and what the model held of both before. The α
    chosen is marked by an upright line. `index` keeps the ids of several pictures apart.
    """
    shown = [(each, update) for each, update in search.runs if each and each["candidates"]]
    if not shown:
        return None
    figure, axes = new_figure(460, 300)
    ax = axes[0, 0]
    alpha = 0.95 if len(shown) == 1 else 0.55
    for each, update in shown:
        for side, colour, marker in (("forget", FORGET, "o"), ("retain", RETAIN, "s")):
            points = [(one["alpha"], one[side]) for one in _by_alpha(each) if one[side] is not None]
            start = each["before"].get(side)
            points = [(0.0, start), *points] if start is not None else points
            if points:
                xs, ys = zip(*points, strict=True)
                ax.plot(xs, ys, f"{marker}-", color=colour, linewidth=1.6, markersize=4.5, alpha=alpha)
        if update.get("alpha") is not None:
            ax.axvline(update["alpha"], color=INK, linewidth=1.2, alpha=alpha, zorder=1)
    _levels(ax, shown[0][0])
    right = max(one["alpha"] for each, _ in shown for one in each["candidates"])
    held = [one[side] or 0.0 for each, _ in shown for one in each["candidates"] for side in ("forget", "retain")]
    top = max(1.0, *held)
    ax.set_xlim(0, 1.03 * right)
    ax.set_ylim(-0.03 * top, 1.1 * top)
    ax.set_xlabel("step size α", color=MUTED, fontsize=BODY)
    ax.set_ylabel(f"held, by {search.criterion}", color=MUTED, fontsize=BODY)
    handles = [ax.plot([], [], "o-", color=FORGET)[0], ax.plot([], [], "s-", color=RETAIN)[0]]
    handles.append(ax.plot([], [], "-", color=INK, linewidth=1.2)[0])
    legend(figure, handles, ["forget", "retain", "α chosen"], "outside upper left")
    return to_svg(figure, f"update{index}", _label(search))


def _levels(ax: Any, search: Mapping[str, Any]) -> None:
    """Dashed lines with their names, which share one where they would cover each other."""
    before = search["before"]
    levels = [("never learned", search["never_learned"])]
    levels += [(f"{side} before", before.get(side)) for side in ("forget", "retain")]
    known = sorted(((value, name) for name, value in levels if value is not None), reverse=True)
    groups: list[list[tuple[float, str]]] = []
    for value, name in known:
        if groups and groups[-1][-1][0] - value < CLOSEST / 220:
            groups[-1].append((value, name))
        else:
            groups.append([(value, name)])
    for group in groups:
        for value, _ in group:
            ax.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0.5)
        names = [name for _, name in group]
        text = "before" if sorted(names) == ["forget before", "retain before"] else ", ".join(names)
        ax.annotate(text, (1, group[0][0]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                    textcoords="offset points", ha="right", va="bottom", fontsize=SMALL, color=MUTED)  # fmt: skip


def _label(search: Search) -> str:
    points = "; ".join(
        f"α {one['alpha']:.4g}: forget {number(one['forget'], 2)}, retain {number(one['retain'], 2)}"
        + (" (chosen)" if one["chosen"] else "")
        for one in search.candidates
    )
    return f"What {search.label} holds of forget and retain by step size α. {points}"
