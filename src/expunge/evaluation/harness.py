"""Tasks of the Language Model Evaluation Harness (lm-eval), where it is installed: `pip install 'expunge[harness]'`."""

import contextlib
import importlib.util
import math
import sys
from collections.abc import Mapping
from typing import Any

from expunge.errors import ConfigurationError
from expunge.evaluation.records import evaluating
from expunge.evaluation.statistics import Interval, auc_interval, share_interval
from expunge.evaluation.suites.suite import Tasks
from expunge.models import Loaded

Z = 1.96  # of a 95 % interval from a standard error
SHARES = ("acc", "exact_match", "em", "f1", "mc1", "mc2")  # how the names of measures between 0 and 1 begin


def check_installed() -> None:
    """Raise ConfigurationError, naming the extra, without lm-eval."""
    try:
        found = "lm_eval" in sys.modules or importlib.util.find_spec("lm_eval") is not None
    except ValueError:  # a module without a spec
        found = False
    if not found or sys.modules.get("lm_eval", True) is None:
        raise ConfigurationError(
            "The suite `harness` runs tasks of lm-eval, which is not installed: pip install 'expunge[harness]'. The suites "
            "wmdp and mmlu ask their questions without it."
        )


def run_tasks(
    loaded: Loaded, tasks: Tasks, *, batch_size: int = 32
) -> tuple[dict[str, tuple[float, Interval]], dict[str, float], list[str]]:
    """Each task's metrics as "<task>.<metric>": those with a standard error with their 95 % interval (± 1.96 of it), the
    others plain; and notes. A metric's filter, where the task has one, is part of its name ("exact_match_strict_match").

    Raises ConfigurationError without lm-eval, for a task it does not know, and where a task's data cannot be read.
    """
    check_installed()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    try:
        with evaluating(loaded.model), contextlib.redirect_stdout(sys.stderr):
            found = simple_evaluate(
                model=HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size),
                tasks=list(tasks.names),
                num_fewshot=tasks.shots,
                limit=tasks.limit,
                task_manager=TaskManager(include_path=tasks.folder),
                log_samples=False,
                bootstrap_iters=100,  # 0: no standard errors at all, not even those of means
            )
    except Exception as error:  # the harness and the hub's client raise many kinds, which mean the same to the person
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigurationError(
            f"lm-eval could not run {', '.join(tasks.names)}: {reason} Check the names (`lm_eval --tasks list`), and that "
            "their data are here or the network is."
        ) from error
    samples = {task: int(counts["effective"]) for task, counts in (found.get("n-samples") or {}).items()}
    summary, plain = _metrics(found["results"], samples)
    shots = "each task's own number of" if tasks.shots is None else str(tasks.shots)
    return summary, plain, [f"run by lm-eval {_version()} with {shots} solved examples"]


def _metrics(
    results: Mapping[str, Mapping[str, Any]], samples: Mapping[str, int]
) -> tuple[dict[str, tuple[float, Interval]], dict[str, float]]:
    """The harness's "metric,filter" keys as ours, and intervals from their standard errors. samples: by task."""
    summary: dict[str, tuple[float, Interval]] = {}
    plain: dict[str, float] = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            name = f"{task}.{metric}" + ("" if kept == "none" else f"_{kept.replace('-', '_')}")
            error = values.get(f"{metric}_stderr,{kept}")
            if isinstance(error, int | float):
                share = metric.startswith(SHARES)
                summary[name] = float(value), _interval(float(value), float(error), samples.get(task), share)
            else:
                plain[name] = float(value)
    return summary, plain


def _interval(value: float, error: float, n: int | None, share: bool) -> Interval:
    """The 95 % interval: of zeros and ones exact, from their number n; of other numbers ± 1.96 standard errors.

    A mean of zeros and ones is known by its standard error, √(v(1 − v)/(n − 1)). Of another `share`, as the mean of
    several tasks' accuracies, it is Wilson's of v(1 − v)/error² examples where these would leave [0, 1], and all of
    [0, 1] where the error is 0.
    """
    if n and 0 <= value <= 1 and math.isclose(error, math.sqrt(value * (1 - value) / max(1, n - 1)), abs_tol=1e-6):
        return share_interval(round(value * n), n)
    low, high = value - Z * error, value + Z * error
    if share and 0 <= value <= 1 and (low < 0 or high > 1 or error == 0):
        many = value * (1 - value) / error**2 if error > 0 else 0.0
        return auc_interval(value, many, many) if many > 0 else (0.0, 1.0)
    return low, high


def _version() -> str:
    import lm_eval

    return str(getattr(lm_eval, "__version__", "(unknown version)"))
