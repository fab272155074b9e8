"""Is this a results.json? Every fault is named with its place; NaN and infinities become None."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.errors import ConfigurationError

MODELS = ("original", "retrained", "unlearned")
HINT = "Give a results.json written by `expunge evaluate` or `expunge demo`."


def read_results(path: Path | str) -> dict[str, Any]:
    """Read and check the results file at `path`.

    Returns the results with every NaN and infinity replaced by None. Raises ConfigurationError, which names the file
    and the place in it, if the file is missing, is not JSON or does not have the form of results.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file. {HINT}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: could not be read ({error}). {HINT}") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path}:{error.lineno}: not valid JSON ({error.msg}). {HINT}") from error
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
    for name in ("environment", "request"):
        _expect(isinstance(results.get(name) or {}, dict), f"{where}: {name}", "must be an object", results.get(name))
    _expect(_texts(results.get("warnings") or []), f"{where}: warnings", "must be a list of texts", results)
    for index, run in enumerate(runs):
        _check_run(run, f"{where}: runs[{index}]")
    return results


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


def _expect(holds: bool, where: str, what: str, value: Any) -> None:
    if not holds:
        shown = json.dumps(value, ensure_ascii=False, default=str)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise ConfigurationError(f"{where} {what}, not {shown}. {HINT}")


def _number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


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
