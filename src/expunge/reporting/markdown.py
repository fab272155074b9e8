"""The report as Markdown: what fits a pull request, a ticket or a model's card."""

from collections.abc import Sequence
from typing import Any

from expunge.reporting.attacks import Attack, attacks
from expunge.reporting.escaping import code, safe
from expunge.reporting.metrics import describe, worded
from expunge.reporting.results import Row, inline, leaderboard, markdown_table
from expunge.reporting.sections import flat, limits
from expunge.reporting.validation import check_results
from expunge.reporting.verdict import Verdict, alarms, best_first, missing, summary, verdicts

ANSWERS = {"good": "yes", "partial": "partly", "failed": "**no**", "unknown": "not known"}


def render_markdown(results: dict[str, Any]) -> str:
    """The report of `results` as Markdown, with the page's verdicts, limits and main numbers, without its pictures.

    Raises ConfigurationError if `results` is malformed.
    """
    results = check_results(results)
    rows = leaderboard(results)
    found = attacks(rows)
    given = best_first(verdicts(rows, found))
    title = str(results.get("title") or "What the model still remembers")
    parts = [f"# {safe(title)}", safe(summary(rows, given)), *(f"**Warning.** {safe(text)}" for text in alarms(rows))]
    if len(given) > 1:
        parts.append(at_a_glance(given))
    for verdict in given:
        parts += [f"## {safe(verdict.row.label)}: {safe(verdict.word.lower())}", evidence(verdict)]
    parts += ["## What this does not show", listed(limits(found, given))]
    gaps = [(f"{what}.", why) for what, why in missing(results, rows)]
    gaps += [("Note.", text) for text in map(worded, results.get("warnings") or [])]
    if gaps:
        parts += ["## What is missing", listed(gaps)]
    parts += ["## Side by side", markdown_table(results), NOTE]
    if found:
        parts += ["## Under attack", attack_table(found, rows)]
    hashes = flat(results.get("hashes") or {})
    if hashes:
        parts += ["## Hashes", "\n".join(f"- {safe(name)}: {code(value)}" for name, value in hashes)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


NOTE = (
    "↓ lower is better, ↑ higher is better, → best where the retrained model's is. In brackets the 95 % interval over the "
    "examples; after ± the standard deviation over seeds."
)


def at_a_glance(given: Sequence[Verdict]) -> str:
    """One line a method, one column a claim."""
    titles = {claim.name: claim.title for verdict in given for claim in verdict.claims}
    lines = [["method", *titles.values(), "in all"], ["---"] * (len(titles) + 2)]
    for verdict in given:
        levels = {claim.name: ANSWERS[claim.level] for claim in verdict.claims}
        lines.append([safe(verdict.row.label), *(levels.get(name, "") for name in titles), safe(verdict.word)])
    return table(lines)


def evidence(verdict: Verdict) -> str:
    """Each claim with its answer and its evidence, as a list."""
    lines = [f"- **Warning.** {safe(text)}" for text in verdict.warnings]
    for claim in verdict.claims:
        lines.append(f"- {claim.title}: {ANSWERS[claim.level]}. {safe(claim.text)}")
        lines += [f"  - {safe(part.attack.title)} {safe(part.text)}" for part in claim.parts]
    return "\n".join(lines)


def listed(items: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- **{safe(what)}** {safe(why)}" for what, why in items)


def attack_table(found: Sequence[Attack], rows: Sequence[Row]) -> str:
    """The headline measure of every point of every attack, one column a model."""
    present = [row for row in rows if any(row.label in step.cells for attack in found for step in attack.steps)]
    lines = [
        ["attack", "point", "measure", *(safe(row.label) for row in present)],
        ["---"] * 3 + ["---:"] * len(present),
    ]
    for attack in found:
        for step in attack.steps:
            cells = [inline(step.cell(row, attack.key)) for row in present]
            if any(cell != "–" for cell in cells):
                lines.append([safe(attack.title), safe(step.name), safe(describe(attack.key).label), *cells])
    return table(lines)


def table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
