"""Is this a results.json? Every fault is named with its place; NaN and infinities become None."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from expunge.errors import ConfigurationError
from expunge.reading import parse_json, read_text

MODELS = ("original", "retrained", "unlearned")
KINDS = ("density", "mean weight")
HINT = "Give a results.json written by `expunge evaluate` or `expunge demo`."


def read_results(path: Path | str) -> dict[str, Any]:
    """Read and check the results file at `path`.

    NaN and infinities become None. Raises ConfigurationError, which names the file
    and the place in it, if the file is missing, is not JSON or does not have the form of results.
    """
    try:
        value = parse_json(read_text(path, ConfigurationError), path, ConfigurationError, infinite=True)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} {HINT}") from None
    return check_results(value, str(path))


def check_results(results: Any, where: str = "results") -> dict[str, Any]:
    """Check a results dict and return a copy of it with None for NaN and infinities.

    `where` begins every message. Raises ConfigurationError at the first fault.
    """
    results = _finite(results)
    _expect(isinstance(results, dict), where, "must be an object with a list `runs`", results)
    runs = results.get("runs")
    _expect(isinstance(runs, list), f"{where}: runs", "must be a list", runs)
    _expect(len(runs) > 0, f"{where}: runs", "must hold at least one run", runs)
    for name in ("environment", "request", "hashes"):
        _expect(isinstance(results.get(name) or {}, dict), f"{where}: {name}", "must be an object", results.get(name))
    _expect(_texts(results.get("warnings") or []), f"{where}: warnings", "must be a list of texts", results)
    _expect(_texts(results.get("tuned_on") or []), f"{where}: tuned_on", "must be a list of marks", results)
    if results.get("successive") is not None:
        _check_successive(results["successive"], f"{where}: successive")
    for index, run in enumerate(runs):
        _check_run(run, f"{where}: runs[{index}]")
    return results


def _check_successive(found: Any, where: str) -> None:
    _expect(isinstance(found, dict), where, "must be an object", found)
    _expect(
        found.get("kind") in ("sustainability", "scalability"),
        f"{where}.kind",
        "must be a known kind",
        found.get("kind"),
    )
    _expect(
        _objects(found.get("points")) and bool(found["points"]),
        f"{where}.points",
        "must be a list of points",
        found.get("points"),
    )
    for index, point in enumerate(found["points"]):
        place = f"{where}.points[{index}]"
        _expect(_whole(point.get("requests")), f"{place}.requests", "must be a whole number", point.get("requests"))
        _expect(isinstance(point.get("label"), str), f"{place}.label", "must be a text", point.get("label"))
        _expect(_whole(point.get("examples")), f"{place}.examples", "must be a whole number", point.get("examples"))
        for name in ("metrics", "intervals"):
            _expect(isinstance(point.get(name), dict), f"{place}.{name}", "must be an object", point.get(name))
        for key, value in point["metrics"].items():
            _expect(_number_or_none(value), f"{place}.metrics.{key}", "must be a number or null", value)
        for key, value in point["intervals"].items():
            _expect(_interval(value), f"{place}.intervals.{key}", "must be a pair of numbers", value)
    each = found.get("requests") or []
    _expect(_objects(each), f"{where}.requests", "must be a list of objects", each)
    for index, row in enumerate(each):
        place = f"{where}.requests[{index}]"
        for name in ("request", "after"):
            _expect(_whole(row.get(name)), f"{place}.{name}", "must be a whole number", row.get(name))
        _expect(isinstance(row.get("metric"), str), f"{place}.metric", "must be a text", row.get("metric"))
        for name in ("value", "original"):
            _expect(
                name in row and _number_or_none(row[name]), f"{place}.{name}", "must be a number or null", row.get(name)
            )


def _check_run(run: Any, where: str) -> None:
    _expect(isinstance(run, dict), where, "must be an object", run)
    model = run.get("model")
    _expect(model in MODELS, f"{where}.model", f"must be one of {', '.join(MODELS)}", model)
    method = run.get("method")
    named = isinstance(method, str) and bool(method.strip())
    _expect(named or (model != "unlearned" and method is None), f"{where}.method", "must name the method", method)
    metrics = run.get("metrics")
    _expect(isinstance(metrics, dict), f"{where}.metrics", "must be an object of numbers", metrics)
    for key, value in metrics.items():
        _expect(_number_or_none(value), f'{where}.metrics["{key}"]', "must be a number or null", value)
    intervals = run.get("intervals") or {}
    _expect(isinstance(intervals, dict), f"{where}.intervals", "must be an object of [low, high]", intervals)
    for key, value in intervals.items():
        _expect(_interval(value), f'{where}.intervals["{key}"]', "must be [low, high] or null", value)
    for name in ("seed", "seconds", "peak_memory_mb"):
        _expect(_number_or_none(run.get(name)), f"{where}.{name}", "must be a number", run.get(name))
    _expect(isinstance(run.get("settings") or {}, dict), f"{where}.settings", "must be an object", run.get("settings"))
    _expect(_texts(run.get("notes") or []), f"{where}.notes", "must be a list of texts", run.get("notes"))
    log = run.get("log") or []
    _expect(_objects(log), f"{where}.log", "must be a list of objects, one a step", log)
    examples = run.get("examples") or {}
    _expect(isinstance(examples, dict), f"{where}.examples", "must be an object of lists", examples)
    for name, items in examples.items():
        _expect(_objects(items or []), f'{where}.examples["{name}"]', "must be a list of objects", items)
    _check_comparison(run, where)
    _expect(_objects(run.get("attacks") or []), f"{where}.attacks", "must be a list of objects", run.get("attacks"))
    for index, one in enumerate(run.get("attacks") or []):
        _check_attack(one, f"{where}.attacks[{index}]")
    if run.get("attribution") is not None:
        _check_attribution(run["attribution"], f"{where}.attribution")
    if run.get("search") is not None:
        _check_search(run["search"], f"{where}.search")
    if run.get("solve") is not None:
        _check_solve(run["solve"], f"{where}.solve")
    for name in ("update", "models"):
        if run.get(name) is not None:
            _expect(isinstance(run[name], dict), f"{where}.{name}", "must be an object", run[name])
    for name, value in (run.get("update") or {}).items():
        _expect(_number_or_none(value), f"{where}.update.{name}", "must be a number or null", value)
    for name, value in (run.get("models") or {}).items():
        _expect(value is None or isinstance(value, dict), f"{where}.models.{name}", "must be an object or null", value)


def _check_comparison(run: dict[str, Any], where: str) -> None:
    """The differences to other models, and what the detectors found."""
    against = run.get("against") or {}
    _expect(isinstance(against, dict), f"{where}.against", "must be an object of lists", against)
    for name, differences in against.items():
        _expect(name in MODELS, f"{where}.against", f"must have keys among {', '.join(MODELS)}", name)
        _expect(_objects(differences), f"{where}.against.{name}", "must be a list of objects", differences)
        for index, one in enumerate(differences):
            at = f"{where}.against.{name}[{index}]"
            _expect(_named(one.get("metric")), f"{at}.metric", "must name a metric", one.get("metric"))
            _expect(isinstance(one.get("beyond_noise"), bool), f"{at}.beyond_noise", "must be true or false", one)
            for key in ("difference", "low", "high", "p", "adjusted", "n"):
                holds = key in one and _number_or_none(one[key])
                _expect(holds, f"{at}.{key}", "must be a number or null", one.get(key))
    found = run.get("findings") or []
    _expect(_objects(found), f"{where}.findings", "must be a list of objects", found)
    for index, one in enumerate(found):
        for key in ("name", "text"):
            _expect(_named(one.get(key)), f"{where}.findings[{index}].{key}", "must be a text", one.get(key))


def _check_attack(one: dict[str, Any], where: str) -> None:
    _expect(_named(one.get("kind")), f"{where}.kind", "must name an attack", one.get("kind"))
    _expect(isinstance(one.get("settings") or {}, dict), f"{where}.settings", "must be an object", one.get("settings"))
    _expect(_number_or_none(one.get("seconds")), f"{where}.seconds", "must be a number", one.get("seconds"))
    _expect(_texts(one.get("notes") or []), f"{where}.notes", "must be a list of texts", one.get("notes"))
    _expect(_objects(one.get("examples") or []), f"{where}.examples", "must be a list of objects", one.get("examples"))
    points = one.get("points")
    _expect(_objects(points), f"{where}.points", "must be a list of objects", points)
    for index, point in enumerate(points or ()):
        at = f"{where}.points[{index}]"
        _expect(_numbers([point.get("at")]), f"{at}.at", "must be a number", point.get("at"))
        _expect(_named(point.get("label")), f"{at}.label", "must be a text", point.get("label"))
        metrics, intervals = point.get("metrics"), point.get("intervals") or {}
        fits = isinstance(metrics, dict) and all(map(_number_or_none, metrics.values()))
        _expect(fits, f"{at}.metrics", "must be an object of numbers", metrics)
        fits = isinstance(intervals, dict) and all(map(_interval, intervals.values()))
        _expect(fits, f"{at}.intervals", "must be an object of [low, high]", intervals)


def _check_attribution(found: Any, where: str) -> None:
    _expect(isinstance(found, dict), where, "must be an object", found)
    _expect(found.get("kind") in KINDS, f"{where}.kind", f"must be one of {', '.join(KINDS)}", found.get("kind"))
    cells = found.get("cells")
    _expect(_objects(cells) and bool(cells), f"{where}.cells", "must be a list of objects, at least one", cells)
    for index, cell in enumerate(cells):
        at = f"{where}.cells[{index}]"
        layer, entries = cell.get("layer"), cell.get("entries")
        _expect(layer is None or _whole(layer), f"{at}.layer", "must be a whole number from 0 or null", layer)
        _expect(_named(cell.get("module")), f"{at}.module", "must name a kind of module", cell.get("module"))
        _expect(_share_or_none(cell.get("value")), f"{at}.value", "must lie between 0 and 1", cell.get("value"))
        _expect(_whole(entries), f"{at}.entries", "must be a whole number from 0", entries)
    _check_histogram(found.get("histogram"), f"{where}.histogram")
    overlap = found.get("overlap") or []
    _expect(_objects(overlap), f"{where}.overlap", "must be a list of objects", overlap)
    for index, row in enumerate(overlap):
        at = f"{where}.overlap[{index}]"
        for name in ("with", "module"):
            _expect(_named(row.get(name)), f"{at}.{name}", "must be a name", row.get(name))
        for name in ("jaccard", "expected"):
            holds = name in row and _share_or_none(row[name])
            _expect(holds, f"{at}.{name}", "must lie between 0 and 1, or be null", row.get(name))


def _check_histogram(found: Any, where: str) -> None:
    if found is None:
        return
    _expect(isinstance(found, dict), where, "must be an object", found)
    edges, counts = found.get("edges"), found.get("counts")
    rising = _numbers(edges) and len(edges) > 1 and all(low < high for low, high in pairwise(edges))
    _expect(rising, f"{where}.edges", "must be a list of rising numbers", edges)
    fits = _numbers(counts) and len(counts) == len(edges) - 1 and all(count >= 0 for count in counts)
    _expect(fits, f"{where}.counts", "must be a list of numbers from 0, one fewer than the edges", counts)


def _check_search(found: Any, where: str) -> None:
    _expect(isinstance(found, dict), where, "must be an object", found)
    _expect(_named(found.get("criterion")), f"{where}.criterion", "must name a measure", found.get("criterion"))
    never = found.get("never_learned")
    _expect(_number_or_none(never), f"{where}.never_learned", "must be a number or null", never)
    for name in ("examples", "before"):
        value = found.get(name)
        fits = isinstance(value, dict) and all(_number_or_none(item) for item in value.values())
        _expect(fits, f"{where}.{name}", "must be an object of numbers", value)
    candidates = found.get("candidates")
    _expect(_objects(candidates), f"{where}.candidates", "must be a list of objects", candidates)
    for index, one in enumerate(candidates):
        at = f"{where}.candidates[{index}]"
        _expect(_numbers([one.get("alpha")]), f"{at}.alpha", "must be a number", one.get("alpha"))
        for name in ("forget", "retain", "leak", "damage"):
            holds = name in one and _number_or_none(one[name])
            _expect(holds, f"{at}.{name}", "must be a number or null", one.get(name))


def _check_solve(found: Any, where: str) -> None:
    _expect(isinstance(found, dict), where, "must be an object", found)
    for name in ("instances", "edited", "parameters", "b_norm", "memorised", "ratio", "moved", "loss_before"):
        _expect(_number_or_none(found.get(name)), f"{where}.{name}", "must be a number or null", found.get(name))
    rounds = found.get("rounds")
    _expect(_objects(rounds), f"{where}.rounds", "must be a list of objects", rounds)
    for index, one in enumerate(rounds):
        at = f"{where}.rounds[{index}]"
        rows = one.get("candidates") or []
        _expect(_objects(rows), f"{at}.candidates", "must be a list of objects", rows)
        for place, row in enumerate([one, *rows]):
            inner = at if not place else f"{at}.candidates[{place - 1}]"
            for name in ("factor", "damping", "loss", "ratio", "residual", "residual_held_out"):
                _expect(_number_or_none(row.get(name)), f"{inner}.{name}", "must be a number or null", row.get(name))
        points = one.get("curve") or []
        fits = isinstance(points, list) and all(
            isinstance(point, list) and len(point) == 3 and all(map(_number_or_none, point)) for point in points
        )
        _expect(fits, f"{at}.curve", "must be a list of [passes, seconds, residual]", points)


def _expect(holds: bool, where: str, what: str, value: Any) -> None:
    if not holds:
        shown = json.dumps(value, ensure_ascii=False, default=str)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise ConfigurationError(f"{where} {what}, not {shown}. {HINT}")


def _number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(item is not None and _number_or_none(item) for item in value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _share_or_none(value: Any) -> bool:
    return _number_or_none(value) and (value is None or -1e-6 <= value <= 1 + 1e-6)


def _named(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _interval(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, Sequence) and len(value) == 2 and all(_number_or_none(item) for item in value)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
