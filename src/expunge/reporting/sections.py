"""What the page's newer sections show: the claims' limits, paired differences, attacks, examples, hashes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from expunge.reporting import attack_plots, distributions
from expunge.reporting.answers import cut, repeated
from expunge.reporting.attacks import KINDS, Attack
from expunge.reporting.claims import TITLES
from expunge.reporting.heat import heat
from expunge.reporting.metrics import describe
from expunge.reporting.results import Cell, Row
from expunge.reporting.verdict import Verdict

RELEARNED = "The retrained model learns the data anew; an unlearned one that climbs faster had kept it."
ROUNDED = "Where bars rise with fewer bits, the change was too small to survive rounding."
EACH = "What comes out of each model under each of them."
BROKEN = " †: the attack breaks the original model too, so silence there proves nothing."
MOST_WORST = 3  # examples of an attack shown for each model
GENERAL = (
    (
        "Other copies.",
        "The same data may be known to the model from elsewhere in its training, in search indexes, caches or "
        "backups; these are not looked at.",
    ),
    (
        "No proof.",
        "Numbers near the retrained model's are evidence, not a guarantee in the sense of differential privacy, and "
        "not legal advice.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row's paired differences to the controls: (measure, a difference or None for each control)."""

    label: str
    said: str
    controls: tuple[str, ...]
    lines: tuple[tuple[str, tuple[dict[str, Any] | None, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class AttackTable:
    """All numbers of one attack, (measure, one cell a row) point by point, and the worst examples of each row."""

    attack: Attack
    labels: tuple[str, ...]
    points: tuple[tuple[str, tuple[tuple[str, tuple[Cell, ...]], ...]], ...]
    settings: tuple[tuple[str, str], ...]
    worst: tuple[tuple[str, tuple[dict[str, Any], ...]], ...]


def limits(found: Sequence[Attack], given: Sequence[Verdict]) -> list[tuple[str, str]]:
    """(what, why) of what the verdicts leave open: each claim's, the attacks not tried, and what no test shows."""
    made = {claim.name for verdict in given for claim in verdict.claims} or set(TITLES) - {"corrected"}
    shown = made if found else made - {"attacks"}
    open_points = [(f"“{claim}”:", why) for name, (claim, why) in TITLES.items() if name in shown]
    tried = {attack.kind for attack in found}
    untried = [title.lower() for kind, (title, _) in KINDS.items() if kind not in tried]
    if not tried:
        open_points.append((
            "Attacks.",
            "No attack was tried. Someone who trains the model a little further, stores it in fewer bits, samples many "
            "answers or starts the answer for it may bring back what seems forgotten; unlearned models often fail here.",
        ))  # fmt: skip
    elif untried:
        open_points.append(("Attacks not tried:", f"{', '.join(untried)}."))
    return [*open_points, *GENERAL]


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """A table of differences for each unlearned row that was compared; of several runs, the first one's."""
    found = []
    for row in rows:
        against = next((run["against"] for run in row.runs if run.get("against")), {})
        tables = {control: {one["metric"]: one for one in given} for control, given in against.items() if given}
        if row.model != "unlearned" or not tables:
            continue
        metrics = dict.fromkeys(metric for table in tables.values() for metric in table)
        lines = [(describe(metric).label, tuple(table.get(metric) for table in tables.values())) for metric in metrics]
        counts = [
            f"{sum(one['beyond_noise'] for one in table.values())} of {len(table)} from the {control}"
            for control, table in tables.items()
        ]
        found.append(
            Comparison(label=row.label, said=", ".join(counts), controls=tuple(tables), lines=tuple(lines))
        )  # fmt: skip
    return found


def under_attack(rows: Sequence[Row], found: Sequence[Attack]) -> dict[str, Any]:
    """The section on attacks: pictures in two columns, and a table for each attack."""
    curves = [attack for attack in found if attack.kind == "relearn"]
    bars = [attack for attack in found if attack.kind == "quantize"]
    others = [attack for attack in found if attack.kind not in ("relearn", "quantize")]
    left = [("relearn", attack_plots.curve(one, rows, index), one.title, RELEARNED) for index, one in enumerate(curves)]
    right = [
        ("quantize", attack_plots.bars(one, rows, index), one.title, ROUNDED)
        for index, one in enumerate(bars, len(curves))
    ]
    if others:
        (left if len(left) <= len(right) else right).append(
            ("others", attack_plots.dots(others, rows), "The other attacks", EACH)
        )
    dagger = BROKEN if any(step.broken for attack in found for step in attack.steps) else ""
    columns = [
        [(name, Markup(svg), f"{title}. {text}{dagger}") for name, svg, title, text in column if svg is not None]
        for column in (left, right)
    ]
    return {
        "attack_figures": [column for column in columns if column],
        "attack_tables": [_table(attack, rows) for attack in found],
    }


def _table(attack: Attack, rows: Sequence[Row]) -> AttackTable:
    present = [row for row in rows if any(row.label in step.cells for step in attack.steps)]
    points = []
    for step in attack.steps:
        keys = dict.fromkeys(key for row in present for key in step.cells.get(row.label, {}))
        first = [attack.key] if attack.key in keys else []
        ordered = [*first, *(key for key in keys if key != attack.key)]
        lines = tuple((describe(key).label, tuple(step.cell(row, key) for row in present)) for key in ordered)
        points.append((step.name, lines))
    words = {"seconds": "budget in seconds"}
    settings = [(words.get(name, name.replace("_", " ")), plain(value)) for name, value in attack.settings.items()]
    settings += [("seconds spent, all models", plain(round(attack.seconds, 1)))] if attack.seconds else []
    return AttackTable(
        attack=attack,
        labels=tuple(row.label for row in present),
        points=tuple(points),
        settings=tuple(settings),
        worst=tuple(
            (row.label, tuple(map(_drawn_out, attack.examples[row.label][:MOST_WORST])))
            for row in present
            if row.model == "unlearned" and row.label in attack.examples
        ),
    )


def _drawn_out(item: dict[str, Any]) -> dict[str, Any]:
    """One example of an attack for the page, what repeats the recorded answer marked."""
    prompt, answer = str(item.get("prompt") or ""), str(item.get("answer") or "")
    before = item.get("before")
    return {
        "prompt": cut(prompt),
        "answer": cut(answer),
        "at": str(item.get("at") or ""),
        "before": None if before is None else cut(str(before)),
        "pieces": repeated(cut(str(item.get("generation") or "")), answer, prompt),
    }


def example_by_example(rows: Sequence[Row]) -> dict[str, Any]:
    """The section on single examples: heat map, truth ratios and their tests."""
    svg = distributions.truth_ratios(rows)
    return {
        "heat": heat(rows),
        "ratios": None if svg is None else Markup(svg),
        "tests": distributions.ks_tests(rows),
    }


def flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) pairs of text."""
    pairs = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            pairs += flat(item, f"{name}.")
        else:
            pairs.append((name, plain(item)))
    return pairs


def plain(value: Any) -> str:
    """A setting's value for a person."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
