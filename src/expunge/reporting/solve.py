"""How the linear system of a closed-form update was solved, which damping λ was taken, and what that does to the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.reporting.metrics import number, percent
from expunge.reporting.results import Row
from expunge.reporting.svg import BODY, INK, MUTED, SERIES, SMALL, drawn, legend, new_figure, to_svg

SOLVERS = {"cg": "conjugate gradient", "sgd": "mini-batch descent", "datainf": "DataInf’s closed form"}
MATRICES = {"gauss_newton": "Gauss–Newton matrix", "hessian": "Hessian"}
SHOWN = 1e-12  # residuals below this are drawn there


@dataclass(frozen=True, kw_only=True)
class Solve:
    """The solves of one method: `runs` holds what each run says under "solve"."""

    label: str
    runs: tuple[Mapping[str, Any], ...]

    @property
    def rounds(self) -> list[tuple[int, int, Mapping[str, Any]]]:
        """(run, round), both from 1, and what is known of it."""
        return [
            (place, count, one)
            for place, run in enumerate(self.runs, 1)
            for count, one in enumerate(run.get("rounds") or [], 1)
        ]

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """Every λ tried, with the run and round it was tried in and whether it was taken."""
        return [
            {**row, "run": run, "round": count, "chosen": row.get("factor") == one.get("factor")}
            for run, count, one in self.rounds
            for row in sorted(one.get("candidates") or [], key=lambda row: row.get("damping") or 0.0)
        ]

    @property
    def said(self) -> str:
        """The system and what came of it, in sentences; numbers are those of the first run."""
        run = self.runs[0]
        matrix = MATRICES.get(run.get("curvature", ""), "curvature")
        how = f"{SOLVERS.get(run.get('solver', ''), 'a solver')} on the {matrix}"
        sentences = [
            f"{_count(run.get('edited'))} of {_count(run.get('instances'))} instances were taken out or changed by one "
            f"linear system in {_count(run.get('parameters'))} unknowns (‖b‖\u00a0=\u00a0{number(run.get('b_norm'), 2)}), "
            f"by {how}."
        ]
        if run.get("memorised") is not None:
            sentences.append(
                f"{percent(run['memorised'])} of these instances were known by heart; their gradients are near 0, and "
                "removing such an instance moves little."
            )
        rounds = run.get("rounds") or []
        if not rounds:
            return " ".join([*sentences, "The edit changes nothing."])
        last = rounds[-1]
        times = f"{len(rounds)} rounds" if len(rounds) > 1 else f"{_count(last.get('products'))} products"
        sentences.append(
            f"After {times} the relative residual is {number(last.get('residual'), 2)}{_held_out(last)}, "
            f"and the adapter has moved by {number(run.get('ratio'), 2)} of its norm (L2)"
            + (f", with earlier requests {number(run.get('moved'), 2)}." if run.get("moved_before") else ".")
        )
        return " ".join(sentences)


def _held_out(last: dict[str, Any]) -> str:
    value = last.get("residual_held_out")
    return "" if value is None else f" ({number(value, 2)} on training data the solve did not see)"


def solves(rows: Sequence[Row]) -> list[Solve]:
    """One for each row whose update solved a system."""
    found = []
    for row in rows:
        runs = tuple(run["solve"] for run in row.runs if run.get("solve"))
        if runs:
            found.append(Solve(label=row.label, runs=runs))
    return found


@drawn
def curve(solve: Solve, index: int = 0) -> str | None:
    """Relative residual against the examples used, and the loss on the edited set against λ; None where neither is known.

    One line a round, of every run. The λ taken has a ring. `index` keeps the ids of several pictures apart.
    """
    curves = [
        (run, count, [point for point in one.get("curve") or [] if None not in point])
        for run, count, one in solve.rounds
    ]
    paths = [(count, one) for _, count, one in solve.rounds if len(_points(one)) > 1]
    if not any(curves_points for *_, curves_points in curves):
        return None
    figure, axes = new_figure(460, 260 if not paths else 460, rows=2 if paths else 1)
    ax = axes[0, 0]
    for _, count, points in curves:
        if points:
            passes, _, residuals = zip(*points, strict=True)
            ax.plot(passes, [max(one, SHOWN) for one in residuals], color=_colour(count), linewidth=1.8)
    ax.set_yscale("log")
    _plain_powers(ax.yaxis)
    ax.set_xlabel("passes over the data", color=MUTED, fontsize=BODY)
    ax.set_ylabel("relative residual", color=MUTED, fontsize=BODY)
    if paths:
        _losses(axes[1, 0], paths, solve.runs[0].get("loss_before"))
    counts = sorted({count for _, count, _ in solve.rounds})
    handles = [ax.plot([], [], color=_colour(count), linewidth=1.8)[0] for count in counts]
    if len(counts) > 1:
        legend(figure, handles, [f"round {count}" for count in counts], "outside upper left")
    return to_svg(figure, f"solve{index}", _label(solve))


def _losses(ax: Any, paths: Sequence[tuple[int, Mapping[str, Any]]], before: float | None) -> None:
    """The loss on the edited set by λ, and as a dashed line what it was before."""
    for count, one in paths:
        points = _points(one)
        xs, ys = zip(*points, strict=True)
        ax.plot(xs, ys, "o-", color=_colour(count), linewidth=1.6, markersize=4)
        taken = [(row["damping"], row["loss"]) for row in one["candidates"] if row.get("factor") == one.get("factor")]
        if taken and taken[0] in points:
            ax.plot(*taken[0], "o", markersize=10, markerfacecolor="none", markeredgecolor=INK)
    if before is not None:
        ax.axhline(before, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0.5)
        ax.annotate("before", (1, before), xycoords=("axes fraction", "data"), xytext=(0, 3),
                    textcoords="offset points", ha="right", va="bottom", fontsize=SMALL, color=MUTED)  # fmt: skip
        losses = [loss for _, one in paths for _, loss in _points(one)]
        low, high = min(*losses, before), max(*losses, before)
        high = min(high, before + 3 * max(before - low, 0.1 * abs(before)))  # a λ far too small would hide the rest
        ax.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    ax.set_xscale("log")
    _plain_powers(ax.xaxis)
    ax.set_xlabel("damping λ", color=MUTED, fontsize=BODY)
    ax.set_ylabel("loss on the edited data", color=MUTED, fontsize=BODY)


def _plain_powers(axis: Any) -> None:
    """Powers of ten written as in the text, 1e-3: the page's figures know no formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if 0.01 <= value < 1000 else number(value)))
    axis.set_minor_formatter(NullFormatter())


def _points(one: Mapping[str, Any]) -> list[tuple[float, float]]:
    rows = one.get("candidates") or []
    known = [(row["damping"], row["loss"]) for row in rows if row.get("damping") and row.get("loss") is not None]
    return sorted(known)


def _colour(count: int) -> str:
    return SERIES[(count - 1) % len(SERIES)]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _label(solve: Solve) -> str:
    ends = [
        f"round {count}: residual {number(one.get('residual'), 2)}, λ {number(one.get('damping'), 2)}, "
        f"loss {number(one.get('loss'), 2)}"
        for _, count, one in solve.rounds
    ]
    return f"How {solve.label} solved for its update. {'; '.join(ends)}"
