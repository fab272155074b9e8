"""What the study of LLMEraser prints: a table for a case in one world, and one for several worlds together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PROBES = ("test", "forget")  # the rows whose losses are compared
FEW = 5  # answers


def table(case: Mapping[str, Any], world: int) -> str:
    """One case in one world: metric and gap, agreement of the predicted with the real change, cost."""
    rows, faulty = case["rows"], case["faulty"]
    right = rows["retrained"]
    gold = truth(case)[0]
    cpu = float(np.mean([run["cpu"] for run in right]))
    each = [f"{ceiling(right, faulty, probe):.2f} on {probe} rows" for probe in PROBES]
    if groups := same_answer(case):
        same = np.mean([ceiling(right, faulty, "test", group) for group in groups])
        each.insert(1, f"{same:.2f} on those of one answer")
    lines = [
        f"**{case['name']}**, world {world} ({case['metric']}); one retraining's change against the other ones': "
        f"r = {', '.join(each)}",
        "",
        "| | metric | gap | r, test rows | r, one answer | r, forget rows | forget loss | CPU s | times faster | peak MB |",
        "| --- |" + " ---: |" * 9,
    ]
    for label, runs in rows.items():
        refused = [run["refused"] for run in runs if "refused" in run]
        if refused:
            lines.append(f"| {label} | refused ({len(refused)} of {len(runs)}) |" + " – |" * 8)
            continue
        values = np.array([run["metric"] for run in runs])
        cells = [spread(values), f"{100 * (values.mean() - gold) / gold:+.1f} %"]
        cells += ["–"] * 3 if label in ("retrained", "corrupted") else correlations(case, label)
        seconds = float(np.mean([run["cpu"] for run in runs]))
        cells += [f"{np.mean([np.mean(run['forget']) for run in runs]):.3f}"]
        cells += ["–"] * 3 if label == "corrupted" else [
            f"{seconds:.1f}", f"{cpu / seconds:.1f}", f"{max(run['peak_mb'] for run in runs):.0f}"
        ]  # fmt: skip
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def pooled(worlds: Mapping[int, Mapping[str, Any]]) -> str:
    """One case in several worlds: each start's gap to its own world's retrained adapters, and its agreement with them."""
    first = next(iter(worlds.values()))
    lines = [
        f"**{first['name']}**, worlds {', '.join(map(str, worlds))} ({first['metric']}): mean ± deviation over the starts",
        "",
        "| | gap, % | gap by world, % | r, test rows | r, forget rows |",
        "| --- |" + " ---: |" * 4,
    ]
    for label in first["rows"]:
        gaps = [
            [100 * (run["metric"] / truth(case)[0] - 1) for run in case["rows"][label] if "refused" not in run]
            for case in worlds.values()
        ]
        every = [gap for world in gaps for gap in world]
        missing = sum(len(case["rows"][label]) for case in worlds.values()) - len(every)
        apart = {probe: [r for case in worlds.values() for r in agreements(case, label, probe)] for probe in PROBES}
        told = every and label not in ("retrained", "corrupted")
        cells = [
            spread(np.array(every), 1) if every else "–",
            ", ".join(f"{np.mean(world):+.1f}" if world else "–" for world in gaps),
            *(spread(np.array(apart[probe]), 2) if told else "–" for probe in PROBES),
        ]
        lines.append(f"| {label}{f' ({missing} refused)' if missing else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def truth(case: Mapping[str, Any]) -> tuple[float, dict[str, np.ndarray]]:
    """The retrained adapters' mean metric, and the mean change of each row's loss by probe."""
    right, faulty = case["rows"]["retrained"], case["faulty"]
    real = {
        probe: np.mean([change(r, f, probe) for r, f in zip(right, faulty, strict=True)], axis=0) for probe in PROBES
    }
    return float(np.mean([run["metric"] for run in right])), real


def correlations(case: Mapping[str, Any], label: str) -> list[str]:
    """r on test rows, r on those of one answer (the mean over the answers), r on forget rows."""
    same = [agreements(case, label, "test", group) for group in same_answer(case)]
    test, forget = (spread(agreements(case, label, probe), 2) for probe in PROBES)
    return [test, spread(np.mean(same, axis=0), 2) if same else "–", forget]


def same_answer(case: Mapping[str, Any]) -> list[np.ndarray]:
    """The places of the test rows of each answer, where a few answers are all there are."""
    answers = np.array(case["answers"])
    found = sorted(set(case["answers"]))
    return [np.flatnonzero(answers == answer) for answer in found] if len(found) <= FEW else []


def agreements(case: Mapping[str, Any], label: str, probe: str, at: np.ndarray | None = None) -> np.ndarray:
    """r of what each run that was not refused changed with the real change, over the rows `at` or all: [runs]."""
    chosen = slice(None) if at is None else at
    real = truth(case)[1][probe][chosen]
    pairs = [(r, s) for r, s in zip(case["rows"][label], case["faulty"], strict=False) if "refused" not in r]
    return np.array([agreement(change(run, start, probe)[chosen], real) for run, start in pairs])


def change(after: Mapping[str, Any], before: Mapping[str, Any], probe: str) -> np.ndarray:
    return np.subtract(after[probe], before[probe])


def ceiling(right: Sequence[dict], faulty: Sequence[dict], probe: str, at: np.ndarray | None = None) -> float:
    """How well one training's change is told by the mean of the others': no prediction can be expected to do better."""
    chosen = slice(None) if at is None else at
    changes = np.array([change(r, f, probe)[chosen] for r, f in zip(right, faulty, strict=True)])
    others = (changes.sum(0) - changes) / (len(changes) - 1)
    return float(np.mean([agreement(one, rest) for one, rest in zip(changes, others, strict=True)]))


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r; 0 where one of them does not vary."""
    if min(one.std(), other.std()) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def spread(values: np.ndarray, digits: int = 3) -> str:
    return f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")
