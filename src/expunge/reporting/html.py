"""The report: one HTML page that needs no network, from the numbers in results.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from expunge.files import write_text
from expunge.outputs import MARKDOWN_MARK
from expunge.reporting import plots, sections, solve, successive, thresholds, update, weights
from expunge.reporting.answers import MEMORISED, chosen
from expunge.reporting.attacks import attacks
from expunge.reporting.claims import TITLES
from expunge.reporting.escaping import visible
from expunge.reporting.markdown import render_markdown
from expunge.reporting.metrics import Metric, describe, number, percent, worded
from expunge.reporting.results import DISTANCE, FORGET_KEYS, UTILITY_KEYS, Row, beside, columns, leaderboard, pick
from expunge.reporting.sections import flat
from expunge.reporting.thresholds import CLOSE, INTACT
from expunge.reporting.validation import check_results
from expunge.reporting.verdict import Verdict, alarms, best, best_first, missing, summary, verdicts

HERE = Path(__file__).parent


def write_report(results: dict[str, Any], out: Path | str) -> None:
    """Write the report of `results` (the content of results.json) to the file `out`, and as Markdown to the same name
    ending in .md, each in one step.

    The page is self-contained: styles and pictures are inline, nothing is loaded. All its numbers come from
    `results`. Raises ConfigurationError if `results` is malformed and OutputError if `out` cannot be written.
    """
    page, text = render_report(results), render_markdown(results)
    write_text(Path(out), page)
    write_text(Path(out).with_suffix(".md"), f"{text}\n{MARKDOWN_MARK}")


def render_report(results: dict[str, Any]) -> str:
    """The report of `results` as HTML text. Raises ConfigurationError if `results` is malformed."""
    results = check_results(results)
    rows = leaderboard(results)
    found = attacks(rows)
    given = best_first(verdicts(rows, found))
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, beside=beside, tidy=_tidy, signed=_signed)
    return environment.get_template("report.html.j2").render(
        title=str(results.get("title") or "What the model still remembers"),
        facts=_facts(results, rows),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        summary=summary(rows, given),
        verdicts=given,
        winner=best(given) if len(given) > 1 else None,
        claim_titles=_claim_titles(given),
        alarms=alarms(rows),
        limits=sections.limits(found, given),
        rows=rows,
        columns=[describe(key) for key in columns(rows)],
        distance=[describe(key).label for key in DISTANCE],
        has_distance=any(row.distance is not None for row in rows),
        comparisons=sections.comparisons(rows),
        figures=_columns(_figures(rows)),
        **sections.under_attack(rows, found),
        **sections.example_by_example(rows),
        successive=successive.section(results),
        **_step_sizes(rows),
        solves_drawn=[(one, _inline(solve.curve(one, index))) for index, one in enumerate(solve.solves(rows))],
        **_weights(rows),
        sides=[(side, chosen(rows, side)) for side in ("forget", "retain")],
        gaps=missing(results, rows),
        warnings=_warnings(results, rows),
        definitions=_definitions(rows),
        every=_every_metric(rows),
        settings=[(row.label, _settings(row), _seeds(row)) for row in rows],
        environment=flat(results.get("environment") or {}),
        hashes=flat(results.get("hashes") or {}),
        thresholds={name.lower(): value for name, value in vars(thresholds).items() if name.isupper()}
        | {"memorised": MEMORISED},
    )


def _claim_titles(given: Sequence[Verdict]) -> dict[str, tuple[str, str]]:
    """The claims that any verdict makes: not every request has corrections."""
    made = {claim.name for verdict in given for claim in verdict.claims}
    return {name: title for name, title in TITLES.items() if name in made}


def _signed(value: float | None) -> str:
    """A difference, with its sign."""
    return number(value) if value is None or value < 0 or not value else f"+{number(value)}"


def _tidy(text: str) -> str:
    """Keeps a line from breaking within a name."""
    return text.replace("ROUGE-L", "ROUGE\u2011L")


def _facts(results: dict[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(name, value) of what the page's head says: which model, request and methods these results are of."""
    request = [f"{value} {key.replace('_', ' ')}" for key, value in flat(results.get("request") or {})]
    methods = [row.label for row in rows if row.model == "unlearned"]
    models = results.get("models") or {}
    facts = [
        ("Model", models.get("original") or models.get("unlearned")),
        ("Request", ", ".join(request) or None),
        ("Methods" if len(methods) > 1 else "Method", ", ".join(methods) or None),
        ("Suite", results.get("suite")),
        ("Created", str(results.get("created") or "").replace("T", " ").replace("+00:00", " UTC") or None),
        ("expunge", results.get("version")),
    ]
    return [(name, visible(value)) for name, value in facts if value is not None]


def _figures(rows: Sequence[Row]) -> list[tuple[str, Markup, str]]:
    """(name, SVG, caption) of each picture that can be drawn."""
    forget, utility = pick(rows, FORGET_KEYS), pick(rows, UTILITY_KEYS)
    gold = any(row.model == "retrained" for row in rows)
    goal = "remembers at most {} of what {} and keeps {} of the original's {}".format(
        percent(CLOSE),
        "the original remembers beyond the retrained model" if gold else "the original remembers",
        percent(INTACT),
        describe(utility).label if utility else "utility",
    )
    captions = {
        "tradeoff": f"{describe(forget).label if forget else ''} against {describe(utility).label if utility else ''}. "
        f"The goal is the upper left; in the shaded part a model {goal}. Bars: 95 % intervals, or s.d. over seeds.",
        "bars": "The main measures by model. Dashed: the retrained model, which every method should come close to."
        if gold
        else "The main measures by model.",
        "losses": "Losses while unlearning, as logged at each step: the forget side should rise, the retain side stay.",
        "rates": "The learning rate at each step; methods that choose it themselves start from what they measured.",
    }
    drawn = {"tradeoff": plots.tradeoff, "bars": plots.bars, "losses": plots.losses, "rates": plots.rates}
    pictures = [(name, draw(rows), captions[name]) for name, draw in drawn.items()]
    return [(name, Markup(svg), caption[0].upper() + caption[1:]) for name, svg, caption in pictures if svg is not None]


def _columns(figures: list[tuple[str, Markup, str]]) -> list[list[tuple[str, Markup, str]]]:
    """The pictures in the two columns of a wide page; only one where there is nothing for the other."""
    columns = [
        [figure for figure in figures if figure[0] in names] for names in (("tradeoff", "losses"), ("bars", "rates"))
    ]
    return [column for column in columns if column]


def _step_sizes(rows: Sequence[Row]) -> dict[str, Any]:
    """What the section on the update's step size shows."""
    found = update.searches(rows)
    drawn = [(search, _inline(update.curve(search, index))) for index, search in enumerate(found)]
    return {"searches": found, "searches_drawn": drawn}


def _weights(rows: Sequence[Row]) -> dict[str, Any]:
    """What the section on where the weights fall shows."""
    found = weights.grids(rows)
    names, lines = weights.comparison(found)
    kinds = {grid.kind for grid in found}
    return {
        "weights_title": "Which weights were trained" if kinds == {weights.HARD} else "Where the weights fall",
        "kinds": kinds,
        "grids_drawn": [(grid, _inline(weights.histogram(grid, index))) for index, grid in enumerate(found)],
        "module_names": names,
        "compared": lines,
    }


def _inline(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


def _definitions(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(measure, definition, direction) of everything shown; one entry for a measure of several sets."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for metric, _ in _every_metric(rows):
        if metric.definition:
            found.setdefault((metric.measure, metric.definition), {}).setdefault(metric.better, []).append(metric.on)
    entries = []
    for (measure, definition), directions in found.items():
        parts = [f"{', '.join(sets)}: {better}" if all(sets) else better for better, sets in directions.items()]
        entries.append((measure, definition, f"{' · '.join(parts)}."))
    return entries


def _every_metric(rows: Sequence[Row]) -> list[tuple[Metric, list[Any]]]:
    """Each metric that any row has, the leaderboard's first, with every row's cell."""
    keys = dict.fromkeys([*columns(rows), *(key for row in rows for key in row.metrics)])
    return [(describe(key), [row.cell(key) for row in rows]) for key in keys]


def _warnings(results: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """The results' own warnings and the runs' notes, each said once with whom it is about, unless all."""
    whose: dict[str, list[str]] = {}
    for row in rows:
        for note in dict.fromkeys(worded(note) for run in row.runs for note in run.get("notes") or []):
            whose.setdefault(note, []).append(row.label)
    notes = [note if len(labels) == len(rows) else f"{', '.join(labels)}: {note}" for note, labels in whose.items()]
    return list(dict.fromkeys([*map(worded, results.get("warnings") or []), *notes]))


def _settings(row: Row) -> list[tuple[str, str]]:
    """The settings of a row's first run, and which other models took part."""
    models = {name: one for name, one in (row.runs[0].get("models") or {}).items() if one}
    return flat(row.runs[0].get("settings") or {}) + flat(models, "models.")


def _seeds(row: Row) -> str:
    return ", ".join(str(run["seed"]) for run in row.runs if run.get("seed") is not None)
