"""A model card of the Hugging Face hub: metadata it can index, and a section that says how well the model forgot."""

import re
from typing import Any

import yaml

from expunge.errors import ConfigurationError
from expunge.reporting.attacks import attacks
from expunge.reporting.escaping import code, safe
from expunge.reporting.markdown import NOTE, attack_table, evidence, listed
from expunge.reporting.metrics import describe
from expunge.reporting.results import leaderboard, markdown_table
from expunge.reporting.sections import flat, limits
from expunge.reporting.validation import check_results
from expunge.reporting.verdict import alarms, best_first, verdicts

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name


def model_card(results: dict[str, Any], method: str | None = None) -> str:
    """The card of one unlearned model of `results`: YAML metadata (`base_model` where it is a hub id, `tags`,
    `model-index` with every metric), then the section "Unlearning" in Markdown.

    method: which one, as the results name it or as the tables do; by default the best. Raises ConfigurationError if
    `results` is malformed or holds no such model.
    """
    results = check_results(results)
    rows = leaderboard(results)
    found = attacks(rows)
    given = best_first(verdicts(rows, found))
    chosen = [
        one for one in given if method is None or method.lower() in (one.row.method.lower(), one.row.label.lower())
    ]
    if not chosen:
        known = ", ".join(verdict.row.method for verdict in given) or "none"
        raise ConfigurationError(f"The results hold no unlearned model {method or ''}; they hold: {known}.")
    verdict = chosen[0]
    row, suite = verdict.row, str(results.get("suite") or "request")
    metrics = [
        {"type": key, "name": describe(key).label, "value": round(cell.mean, 6), "verified": False}
        for key, cell in row.metrics.items()
        if cell.mean is not None
    ]
    entry = {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {"type": suite, "name": suite},
        "metrics": metrics,
    }
    data: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["unlearning", "machine-unlearning", "expunge"],
        "model-index": [{"name": f"{row.label} on {suite}", "results": [entry]}],
    }
    base = str((results.get("models") or {}).get("original") or "")
    if HUB_ID.fullmatch(base):
        data = {"base_model": base, **data}
    only = {**results, "runs": [run for run in results["runs"] if run["model"] != "unlearned"] + list(row.runs)}
    beside = [one for one in rows if one.model != "unlearned" or one is row]
    mine = [one for one in found if any(row.label in step.cells for step in one.steps)]
    parts = [
        "## Unlearning",
        f"This model was made to forget a part of its training data with {safe(row.label)}, by expunge "
        f"{safe(results.get('version') or '')}. Verdict: **{verdict.word.lower()}**.",
        *(f"**Warning.** {safe(text)}" for text in alarms(rows)),
        evidence(verdict),
        "### Numbers",
        markdown_table(only),
        NOTE,
        *(["### Under attack", attack_table(mine, beside)] if mine else []),
        "### What this does not show",
        listed(limits(mine, [verdict])),
        "### How it was made",
        "\n".join(f"- {safe(name)}: {code(value)}" for name, value in _made(results, row.runs[0])),
    ]
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{text}---\n\n" + "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _made(results: dict[str, Any], run: dict[str, Any]) -> list[tuple[str, str]]:
    """Method, settings and hashes."""
    seed = {} if run.get("seed") is None else {"seed": run["seed"]}
    settings = {key: value for key, value in (run.get("settings") or {}).items() if key not in ("out", "output")}
    return flat({"method": run["method"], **seed, **settings}) + flat({"hash": results.get("hashes") or {}})
