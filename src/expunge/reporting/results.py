"""From results.json to a leaderboard: rows in a fixed order, seeds put together, shown on a terminal or in Markdown."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.reporting.escaping import safe
from expunge.reporting.metrics import describe, number
from expunge.reporting.validation import MODELS, check_results, read_results

__all__ = ["COLUMNS", "Cell", "Row", "leaderboard", "markdown_table", "read_results"]

# the leaderboard's columns: metric key -> heading on a terminal, narrow enough for 80 characters in all
COLUMNS = {
    "forget.extraction_strength": "forget\nextrac-\ntion ↓",
    "forget.probability": "forget\nproba-\nbility ↓",
    "forget.rouge_l": "forget\nROUGE-L\n↓",
    "retain.extraction_strength": "retain\nextrac-\ntion ↑",
    "model_utility": "model\nutility\n↑",
    "forget_quality": "forget\nquality\n↑",
    "mia.min_k.auc": "min-k\nAUC\n→",
}
# what stands beside or in place of them where multiple-choice questions were asked
QUIZ_COLUMNS = {
    f"{name}.{measure}": heading
    for measure in ("accuracy", "accuracy_text")
    for name, heading in {
        "wmdp_bio": "WMDP\nbio\n↓", "wmdp_cyber": "WMDP\ncyber\n↓", "wmdp_chem": "WMDP\nchem\n↓", "wmdp": "WMDP\nall\n↓",
        "mmlu": "MMLU\nall\n↑",
    }.items()
}  # fmt: skip
# where texts were to be gone on from (MUSE)
WRITTEN_COLUMNS = {
    "forget.verbmem": "forget\nVerb-\nMem ↓", "forget.knowmem": "forget\nKnow-\nMem ↓", "privleak": "Priv-\nLeak\n→ 0",
    "retain.knowmem": "retain\nKnow-\nMem ↑", "forget.extraction_strength": "forget\nextrac-\ntion ↓",
    "mia.min_k.auc": "min-k\nAUC\n→",
}  # fmt: skip
# where examples with options were put: key -> heading, and what guessing gets
CHOICE_COLUMNS = {
    "recommendation.auc": ("yes/no\nAUC\n↑", 0.5),
    "recommendation.option_accuracy": ("yes/no\naccu-\nracy ↑", 0.5),
    "sequential.hit_ratio": ("Hit-\nRatio\n@1 ↑", 0.05),
    "sequential.valid_ratio": ("valid\nratio\n↑", 0.0),
    "sequential.option_accuracy": ("likeli-\nest is\nright ↑", 0.05),
    "choice.option_accuracy": ("accu-\nracy\n↑", 0.0),
    "choice.probability_with_options": ("proba-\nbility\n↑", 0.0),
}
MOST_OTHERS = 6  # columns of a table of other measures alone
CHANCE = 0.25  # the accuracy of guessing one of four options
# what a model is compared with the retrained one by; all lie between 0 and 1
DISTANCE = tuple(key for key in COLUMNS if key != "forget_quality")
# the first of these that was measured stands for "how much it still remembers" and "how useful it still is"
FORGET_KEYS = (
    "forget.extraction_strength", "forget.exact_memorization", "forget.rouge_l", "forget.probability",
    "forget.verbmem", "forget.knowmem", "wmdp.accuracy", "wmdp.accuracy_text",
)  # fmt: skip
UTILITY_KEYS = (
    "model_utility", "retain.knowmem", "retain.rouge_l", "retain.probability", "retain.extraction_strength",
    "mmlu.accuracy", "mmlu.accuracy_text", "recommendation.auc", "sequential.hit_ratio", "sequential.option_accuracy",
    "choice.option_accuracy",
)  # fmt: skip
NAMES = {
    "altpo": "AltPO", "ceu": "CE-U", "descent": "Descent", "dpo": "DPO", "flat": "FLAT", "gradascent": "GradAscent",
    "graddiff": "GradDiff", "idk": "IDK", "kl": "KL", "llmeraser": "LLMEraser", "ngdiff": "NGDiff", "npo": "NPO",
    "magnitude": "magnitude", "pdu": "PDU", "perta": "PerTA", "po": "PO", "random": "random",
    "retrainadapter": "Retrained adapter", "rmu": "RMU",
    "salun": "SalUn", "satimp": "SatImp", "simnpo": "SimNPO", "snip": "SNIP", "taskvector": "Task vector",
    "undial": "UNDIAL", "wagle": "WAGLE", "wanda": "Wanda", "wga": "WGA", "whp": "WHP",
}  # fmt: skip
# settings that differ between repetitions of one experiment without making it another
REPETITION = ("seed", "out", "output", "run", "resume", "name", "base", "forget_model")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a row: `mean` over `count` runs, its standard deviation, or the interval of a single run.

    `mean` is None if no run has the number. `spread` is the sample standard deviation, None below two runs. `low` and
    `high` are the run's own interval, None unless the row has exactly one run with both.
    """

    mean: float | None = None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    count: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the leaderboard: a model, or a method over its seeds.

    `distance` is the mean absolute difference to the retrained model over those of `DISTANCE` that it was measured
    by; None for other models than unlearned ones, without a retrained model, or where this row lacks one of them.
    """

    label: str
    model: str
    method: str
    metrics: dict[str, Cell]
    seconds: Cell
    peak_memory_mb: Cell
    distance: float | None
    runs: tuple[dict[str, Any], ...] = field(repr=False)

    def mean(self, key: str) -> float | None:
        cell = self.metrics.get(key)
        return None if cell is None else cell.mean

    def cell(self, key: str) -> Cell:
        return self.metrics.get(key, Cell())


def leaderboard(results: dict[str, Any]) -> list[Row]:
    """The rows of a results dict: the original, the retrained model, then the methods in their order in the file.

    Runs of one method with the same settings but for the seed become one row. Where one method comes with several
    settings, the labels name what differs. Raises ConfigurationError if `results` is malformed.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in check_results(results)["runs"]:
        groups.setdefault(_group(run), []).append(run)
    ordered = sorted(groups.values(), key=lambda runs: MODELS.index(runs[0]["model"]))  # stable: keeps the file's order
    retrained = next((_cells(runs) for runs in ordered if runs[0]["model"] == "retrained"), None)
    return [_row(runs, label, retrained) for runs, label in zip(ordered, _labels(ordered), strict=True)]


def pick(rows: Sequence[Row], keys: Sequence[str]) -> str | None:
    """The first of `keys` that an unlearned model was measured by, and the original too if there is one; else None."""
    originals = [row for row in rows if row.model == "original"]
    unlearned = [row for row in rows if row.model == "unlearned"] or list(rows)
    for key in keys:
        if any(row.mean(key) is not None for row in unlearned) and all(row.mean(key) is not None for row in originals):
            return key
    return None


def columns(rows: Sequence[Row]) -> dict[str, str]:
    """The leaderboard's columns for these rows, key -> heading: COLUMNS, unless only questions were put."""
    measured = {key for row in rows for key in row.metrics}
    headings = QUIZ_COLUMNS | {key: heading for key, (heading, _) in CHOICE_COLUMNS.items()}
    asked = {key: heading for key, heading in headings.items() if key in measured}
    if measured & {"forget.verbmem", "forget.knowmem"}:
        return {key: heading for key, heading in (WRITTEN_COLUMNS | asked).items() if key in measured}
    if measured and not asked and not measured & COLUMNS.keys():  # as from the harness, whose names are its own
        return {key: key.replace(".", "\n").replace("_", "\n", 1) for key in list(rows[0].metrics)[:MOST_OTHERS]}
    return {**(COLUMNS if not asked or measured & COLUMNS.keys() else {}), **asked}


def floor(key: str | None) -> float:
    """What a model that knows nothing scores on a measure between 0 and 1."""
    if key in CHOICE_COLUMNS:
        return CHOICE_COLUMNS[key][1]
    return CHANCE if key in QUIZ_COLUMNS else 0.0


def _group(run: dict[str, Any]) -> tuple[str, str, str]:
    if run["model"] != "unlearned":
        return run["model"], "", ""
    settings = {key: value for key, value in (run.get("settings") or {}).items() if key not in REPETITION}
    return run["model"], run["method"], json.dumps(settings, sort_keys=True, default=str)


def _labels(groups: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """A name for each group of runs; methods that occur with several settings say which."""
    labels = []
    for runs in groups:
        first = runs[0]
        if first["model"] != "unlearned":
            labels.append(first["model"])
            continue
        name = name_of(first["method"])
        settings = first.get("settings") or {}
        others = [other[0].get("settings") or {} for other in groups if other[0].get("method") == first["method"]]
        differing = [
            key for key in settings if key not in REPETITION and any(o.get(key) != settings[key] for o in others)
        ]
        labels.append(f"{name} ({', '.join(f'{key}={settings[key]}' for key in differing)})" if differing else name)
    return labels


def name_of(method: str) -> str:
    """How tables write a method: "npo+wagle" is "NPO + WAGLE"."""
    parts = [" ".join(part.split()) for part in method.split("+")]
    return " + ".join(NAMES.get(part.lower().replace("-", "").replace("_", ""), part) for part in parts)


def _row(runs: Sequence[dict[str, Any]], label: str, retrained: dict[str, Cell] | None) -> Row:
    metrics = _cells(runs)
    model = runs[0]["model"]
    return Row(
        label=label,
        model=model,
        method=runs[0].get("method") or model,
        metrics=metrics,
        seconds=cell_of([run.get("seconds") for run in runs]),
        peak_memory_mb=cell_of([run.get("peak_memory_mb") for run in runs]),
        distance=_distance(metrics, retrained) if model == "unlearned" and retrained is not None else None,
        runs=tuple(runs),
    )


def _cells(runs: Sequence[dict[str, Any]]) -> dict[str, Cell]:
    keys = dict.fromkeys(key for run in runs for key in run["metrics"])
    intervals = (runs[0].get("intervals") or {}) if len(runs) == 1 else {}
    return {key: cell_of([run["metrics"].get(key) for run in runs], intervals.get(key)) for key in keys}


def cell_of(values: Sequence[float | None], interval: Sequence[float | None] | None = None) -> Cell:
    known = [float(value) for value in values if value is not None]
    low, high = interval or (None, None)
    if not known:
        return Cell()
    return Cell(
        mean=statistics.fmean(known),
        spread=statistics.stdev(known) if len(known) > 1 else None,
        low=low if high is not None else None,
        high=high if low is not None else None,
        count=len(known),
    )


def _distance(metrics: dict[str, Cell], retrained: dict[str, Cell]) -> float | None:
    gaps = []
    for key in DISTANCE:
        goal = retrained.get(key, Cell()).mean
        if goal is None:
            continue
        mine = metrics.get(key, Cell()).mean
        if mine is None:  # fewer terms would make this row look comparable with others when it is not
            return None
        gaps.append(abs(mine - goal))
    return statistics.fmean(gaps) if gaps else None


def markdown_table(results: dict[str, Any]) -> str:
    """The leaderboard as a Markdown table, with intervals or ± s.d. over seeds, for a study's notes.

    Raises ConfigurationError if `results` is malformed.
    """
    rows = leaderboard(results)
    keys = columns(rows)
    heads = [f"{safe(describe(key).label)} {describe(key).arrow}" for key in keys]
    lines = [["method", *heads, "distance to retrained ↓", "seconds"]]
    lines.append(["---", *["---:"] * (len(heads) + 2)])
    for row in rows:
        cells = [inline(row.cell(key)) for key in keys]
        lines.append([safe(row.label), *cells, number(row.distance), number(row.seconds.mean, 1)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def inline(cell: Cell) -> str:
    """A cell on one line: `0.031 ± 0.004`, `0.031 [0.010, 0.052]` or `0.031`."""
    return " ".join(part for part in (number(cell.mean), beside(cell)) if part)


def beside(cell: Cell) -> str:
    """What stands beside a number to say how sure it is: `± 0.004`, `[0.010, 0.052]` or nothing."""
    if cell.mean is None:
        return ""
    if cell.spread is not None:
        return f"± {number(cell.spread)}"
    if cell.low is not None and cell.high is not None:
        return f"[{number(cell.low)}, {number(cell.high)}]"
    return ""
