"""Several results of one experiment as one: more methods, more seeds, more attacks beside the same controls."""

from collections.abc import Sequence
from typing import Any

from expunge.errors import ConfigurationError
from expunge.evaluation.conditions import Conditions, alike
from expunge.reporting.results import name_of
from expunge.reporting.validation import check_results

SAME = 1e-6  # relative difference up to which two numbers are one


def merge(given: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Merge results, each with the name of its file, into one; a single one stays as it is.

    Runs of the same model, method, settings and seed become one, with the metrics and attacks of both. Raises
    ConfigurationError if the files measured on different suites or forget sets, or if their controls or equal runs
    disagree on a number: then a table of both would compare what cannot be compared.
    """
    if not given:
        raise ConfigurationError("There is nothing to report: give at least one results.json.")
    checked = [(name, check_results(results, name)) for name, results in given]
    first_name, first = checked[0]
    runs, warnings = [dict(run) for run in first["runs"]], list(first.get("warnings") or [])
    merged: dict[str, Any] = {**first, "runs": runs, "warnings": warnings}
    for name, results in checked[1:]:
        if results.get("suite") != first.get("suite"):
            raise ConfigurationError(
                f"{first_name} and {name} were measured on different suites, {first.get('suite')!r} and "
                f"{results.get('suite')!r}: their numbers cannot stand side by side."
            )
        for run in results["runs"]:
            _add(merged["runs"], run, name)
        merged["warnings"] += [text for text in results.get("warnings") or [] if text not in merged["warnings"]]
        merged["hashes"] = _hashes(merged.get("hashes") or {}, results)
        if results.get("version") != first.get("version"):
            merged["warnings"].append(
                f"{name} was made by expunge {results.get('version')}, {first_name} by {first.get('version')}."
            )
    return merged


def _add(runs: list[dict[str, Any]], run: dict[str, Any], name: str) -> None:
    for index, known in enumerate(runs):
        if known.get("seed") == run.get("seed"):
            _check_examples(known, run, name)
        _check_conditions(known, run, name)
        if _who(known) == _who(run):
            _check_numbers(known, run, name)
            runs[index] = _joined(known, run)
            return
    runs.append(dict(run))


def _who(run: dict[str, Any]) -> tuple[Any, ...]:
    method = run.get("method") if run["model"] == "unlearned" else None
    settings = (run.get("settings") or {}) if run["model"] == "unlearned" else {}
    return run["model"], method, run.get("seed"), repr(sorted(settings.items()))


def _check_examples(known: dict[str, Any], run: dict[str, Any], name: str) -> None:
    sets = [
        sorted(
            (str(item.get("prompt")), str(item.get("response")))
            for item in (one.get("examples") or {}).get("forget") or []
        )
        for one in (known, run)
    ]
    if all(sets) and sets[0] != sets[1]:
        raise ConfigurationError(
            f"{name}: its {run['model']} model was measured on another forget set ({len(sets[1])} examples) than the "
            f"{known['model']} model merged before ({len(sets[0])}). Merge results of one request and limit only."
        )


def _check_conditions(known: dict[str, Any], run: dict[str, Any], name: str) -> None:
    pair = [Conditions.read(each.get("conditions"), name) for each in (known, run)]
    if pair[0] is None or pair[1] is None:
        return
    words = pair[0].unlike(pair[1], alike(known.get("asked") or {}, run.get("asked") or {}))
    if words:
        raise ConfigurationError(
            f"{name}: its {_words(run)} was measured otherwise than the {_words(known)} merged before: "
            f"{'; '.join(words)}. Their numbers cannot be compared: evaluate both alike."
        )


def _check_numbers(known: dict[str, Any], run: dict[str, Any], name: str) -> None:
    for key in known["metrics"].keys() & run["metrics"].keys():
        one, other = known["metrics"][key], run["metrics"][key]
        if one is not None and other is not None and abs(one - other) > SAME * max(1.0, abs(one)):
            raise ConfigurationError(
                f"{name}: {key} of its {_words(run)} is {other:g}, but {one:g} in the results merged before. They are "
                "different models, or were measured differently; give each method a name or seed of its own."
            )


def _joined(known: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    joined = {**run, **{key: value for key, value in known.items() if value}}
    for key in ("metrics", "intervals", "examples", "against"):
        joined[key] = {**(run.get(key) or {}), **(known.get(key) or {})}
    attacks = list(known.get("attacks") or [])
    done = [(one["kind"], one.get("settings")) for one in attacks]
    attacks += [one for one in run.get("attacks") or [] if (one["kind"], one.get("settings")) not in done]
    return {**joined, "attacks": attacks} if attacks else joined


def _hashes(known: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Both files' hashes; a model's that differs stands under its method's name."""
    found = {key: dict(value) for key, value in known.items() if isinstance(value, dict)}
    labels = [name_of(run["method"]) for run in results["runs"] if run["model"] == "unlearned"]
    for key, values in (results.get("hashes") or {}).items():
        for role, value in values.items():
            own = found.setdefault(key, {})
            own[role if own.get(role, value) == value else f"{role} ({', '.join(labels)})"] = value
    return found


def _words(run: dict[str, Any]) -> str:
    return run["method"] if run["model"] == "unlearned" else f"{run['model']} model"
