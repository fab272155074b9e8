"""The truth ratios behind forget quality: their distributions, and what the Kolmogorov–Smirnov test makes of them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from expunge.reporting.answers import examples_of
from expunge.reporting.metrics import number
from expunge.reporting.plots import WIDTH, brief, styles
from expunge.reporting.results import Row
from expunge.reporting.svg import BODY, INK, MUTED, drawn, legend, new_figure, to_svg

REACH = 1e3  # the axis shows R from 1/REACH to REACH


@dataclass(frozen=True, kw_only=True)
class KSTest:
    """The two-sided KS test of a row's truth ratios against the retrained model's: its statistic D, and p where the
    results hold it (forget quality).
    """

    label: str
    statistic: float
    p_value: float | None
    n: int


def ratios(row: Row) -> list[float]:
    """The truth ratio R of each forget example, of the row's first run that recorded some; sorted."""
    values = [item.get("truth_ratio") for item in examples_of(row, "forget").values()]
    return sorted(float(value) for value in values if isinstance(value, int | float))


def ks_tests(rows: Sequence[Row]) -> list[KSTest]:
    """A test for every unlearned row with truth ratios; none without the retrained model's."""
    gold = next((ratios(row) for row in rows if row.model == "retrained"), [])
    if not gold:
        return []
    return [
        KSTest(label=row.label, statistic=statistic(own, gold), p_value=row.mean("forget_quality"), n=len(own))
        for row in rows
        if row.model == "unlearned" and (own := ratios(row))
    ]


def statistic(one: Sequence[float], other: Sequence[float]) -> float:
    """D = max over x of |F(x) − G(x)|, F and G the shares of two sorted samples that are at most x."""
    return max(abs(bisect_right(one, x) / len(one) - bisect_right(other, x) / len(other)) for x in (*one, *other))


@drawn
def truth_ratios(rows: Sequence[Row]) -> str | None:
    """For each model the share of forget examples whose truth ratio is at most R, as a step curve over R."""
    known = [(row, style, own) for row, style in zip(rows, styles(rows), strict=True) if (own := ratios(row))]
    if not known:
        return None
    figure, axes = new_figure(WIDTH, 290 + 16 * -(-len(known) // 3))
    ax = axes[0, 0]
    handles = []
    for row, style, values in known:
        shown = [min(max(value, 1 / REACH), REACH) for value in values]
        heights = [(place + 1) / len(shown) for place in range(len(shown))]
        dash = ":" if row.model == "original" else style.dash
        xs, ys = [shown[0], *shown], [0.0, *heights]
        handles += ax.step(xs, ys, dash, where="post", color=style.colour, linewidth=1.7)
    ax.set_xscale("log")
    low = max(1 / REACH, min(values[0] for *_, values in known))
    high = min(REACH, max(values[-1] for *_, values in known))
    marks = [digit * 10.0**power for power in range(-3, 4) for digit in ((1, 2, 5) if high < 100 * low else (1,))]
    ax.set_xticks([mark for mark in marks if low / 2 <= mark <= 2 * high])
    ax.set_xticks([], minor=True)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_ylim(0, 1.03)
    ax.axvline(1, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0.5)
    ax.set_xlabel("truth ratio R of an example", color=MUTED, fontsize=BODY)
    ax.set_title("share of forget examples with at most this R", fontsize=BODY, color=INK, loc="left", pad=8)
    legend(figure, handles, [brief(row.label) for row, *_ in known], "outside upper left")
    said = ", ".join(f"{row.label} {number(values[len(values) // 2])}" for row, _, values in known)
    return to_svg(figure, "ratios", f"Distribution of the truth ratios on the forget set; medians: {said}")
