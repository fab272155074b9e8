"""What a run says of itself: `run.json`, the entries of `results.json`, and whom it tells while it works."""

import hashlib
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

import expunge
from expunge.evaluation import Evaluation
from expunge.evaluation.comparison import paired
from expunge.evaluation.detectors import disclosed, findings, never_memorised
from expunge.evaluation.statistics import share_interval
from expunge.files import recover
from expunge.models import Loaded
from expunge.outputs import discard
from expunge.reporting import read_results
from expunge.runs.inputs import Inputs, described
from expunge.training import History

CONTROLS = ("original", "retrained")


class Listener:
    """Hears how a run goes on; this one stays silent. The command line's prints."""

    def stage(self, name: str) -> None:
        """A new part of the run begins."""

    def step(self, entry: dict[str, Any], steps: int) -> None:
        """One training step of `steps` is done; `entry` is its line of the log."""

    def batch(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` evaluation batches of `stage` are done."""

    def note(self, text: str) -> None:
        """Something the person should know."""


@dataclass
class Clock:
    """Seconds spent in each part of a run."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> float:
        """Book the time since the last lap under `name`; returns it."""
        now = time.perf_counter()
        spent, self._since = now - self._since, now
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        return spent


def checkpoint_of(out: Path, *, resume: bool) -> Path:
    """The folder beside `out` for the checkpoints of its run; emptied unless the run shall go on from one."""
    folder = out.with_name(out.name + ".checkpoint")
    recover(folder, alone=True)
    if not resume:
        discard(folder)
    return folder


def run_record(
    command: str,
    configuration: Mapping[str, Any],
    *,
    clock: Clock,
    data: Inputs | None = None,
    model: Loaded | None = None,
) -> dict[str, Any]:
    """The content of `run.json`: version, commit, configuration, hashes of data and model, timings, peak memory."""
    return {
        "command": command,
        "version": expunge.__version__,
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "configuration": dict(configuration),
        "data": described(data or {}),
        "model": _described(model) if model else None,
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "environment": environment(),
    }


def _described(loaded: Loaded) -> dict[str, Any]:
    params = list(loaded.model.parameters())
    return {
        "path": str(loaded.folder),
        "fingerprint": loaded.fingerprint,
        "parameters": sum(param.numel() for param in params),
        "trainable": sum(param.numel() for param in params if param.requires_grad),
    }


def result(
    method: str,
    role: str,
    evaluation: Evaluation,
    *,
    controls: Mapping[str, Evaluation] | None = None,
    history: History | None = None,
    settings: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    same_weights: bool | None = None,
) -> dict[str, Any]:
    """One entry of `results.json`'s runs; `role` is "original", "retrained" or "unlearned".

    controls: the evaluations to compare it with, by role; those of other roles than "original" and "retrained", and its
    own, are left out. same_weights: whether its weights are the original's, where known.
    """
    found = evaluation.to_dict()
    run = {"method": method, "model": role, "metrics": found["metrics"], "intervals": found["intervals"]}
    others = {name: one for name, one in (controls or {}).items() if name in CONTROLS and name != role}
    unlike = {name: words for name, one in others.items() if (words := evaluation.unlike(one))}
    others = {name: one for name, one in others.items() if name not in unlike}
    against = {name: paired(evaluation, other) for name, other in others.items()}
    run["against"] = {name: [each.to_dict() for each in differences] for name, differences in against.items()}
    if role == "unlearned" and "original" in others and (given := disclosed(evaluation, others["original"])):
        run["metrics"]["forget.new_disclosure"] = len(given[0]) / given[1]
        run["intervals"]["forget.new_disclosure"] = list(share_interval(len(given[0]), given[1]))
    warned = findings(role, evaluation, others, against, same_weights=same_weights)
    run["findings"] = [finding.to_dict() for finding in warned]
    if settings is not None:
        run["settings"] = dict(settings)
        run["seed"] = settings.get("seed")
    if seconds is not None:
        run["seconds"] = round(seconds, 3)
    if history is not None:
        run["stopped"] = history.stopped
        run["log"] = history.log
        run |= history.found
    run["notes"] = [*found["notes"], *(history.notes if history else ())]
    run["notes"] += [
        f"how it differs from the {name} model is not known: measured otherwise, by {'; '.join(words)}"
        for name, words in unlike.items()
    ]
    run |= {name: found[name] for name in ("asked", "conditions", "layers") if found[name]}
    run["examples"] = found["examples"]
    return run


def warn_early(listener: Listener, found: Mapping[str, Evaluation]) -> None:
    """Say it before anything is done if the original model does not know what it shall forget."""
    if "original" in found:
        finding = never_memorised(found["original"], found.get("retrained"))
        if finding is not None:
            listener.note(f"warning: {finding.text}")


def hashes(weights: Mapping[str, str | None], found: Mapping[str, Evaluation]) -> dict[str, Any]:
    """What was measured, to be recognised again: the fingerprint of each model's weights, as taken when it was loaded
    (None: it is no folder here), and the sha256 of each set's examples (id, prompt and response, one JSON list a line,
    sorted).
    """
    data = {}
    for name, rows in next(iter(found.values())).examples.items() if found else ():
        lines = sorted(json.dumps([row.get("id"), row.get("prompt"), row.get("response")]) for row in rows)
        data[name] = {"examples": len(rows), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
    return {"models": {role: known for role, known in weights.items() if known is not None}, "data": data}


def read_evaluation(path: Path | str) -> Evaluation | None:
    """The evaluation in a results.json (its retrained run, else its last); None if `path` is no such file."""
    if not str(path).endswith(".json"):
        return None
    runs = read_results(path)["runs"]
    chosen = next((run for run in runs if run["model"] == "retrained"), runs[-1])
    return Evaluation.from_dict(chosen)


def results_of(title: str, suite: str, runs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The content of `results.json`."""
    return {
        "title": title,
        "suite": suite,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": expunge.__version__,
        "environment": environment(),
        **more,
        "runs": runs,
    }


def environment() -> dict[str, Any]:
    """The software and hardware that can change a number."""
    import peft
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The git commit of the checkout expunge runs from, if it is one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory_mb() -> float:
    """The most memory this process ever held, in MB; on a GPU the most its allocator held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if importlib.util.find_spec("resource") is None:  # Windows
        return psutil.Process().memory_info().rss / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
