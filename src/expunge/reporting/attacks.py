"""What the attacks of all runs found, side by side, and how much of the forgotten each of them brought back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from expunge.reporting.metrics import describe, percent, short
from expunge.reporting.results import Cell, Row, cell_of
from expunge.reporting.thresholds import CLOSE, DAMAGED, FAILED, GOOD, PARTIAL, RETURNED, UNKNOWN, WORKS

# kind -> (title, what it does)
KINDS = {
    "relearn": ("Relearning", "training it a little further"),
    "quantize": ("Rounding the weights", "storing its weights in fewer bits, as is done to run it cheaply"),
    "sample": ("Sampling", "asking many times instead of once"),
    "prefill": ("Prefilling", "starting the answer for it"),
    "paraphrase": ("Paraphrasing", "asking in other words"),
    "fewshot": ("Few-shot prompting", "showing it solved examples first"),
    "jailbreak": ("Role play", "wrapping the question in a story or an instruction"),
    "translate": ("Translation", "asking in another language"),
    "prune": ("Pruning", "removing its smallest weights"),
    "merge": ("Merging back", "mixing in a little of the original"),
}
MEMORY = ("forget.extraction_strength", "forget.keywords", "forget.rouge_l", "forget.probability")
RETAINED = tuple(key.replace("forget.", "retain.") for key in MEMORY)  # the first that was measured shows damage
LEAKS = ("leak_at_128", "leak_at_16", "leak_at_1")
HEADLINES = {"sample": (*LEAKS, *MEMORY)}  # what stands for "how much comes out"; the first that was measured
LEAST = 0.05  # what must be left to bring back for a share of it to mean anything
REPETITION = ("seed",)
STRONGEST = "the strongest"  # how the label of a point begins that takes the best of several ways, example by example


@dataclass(frozen=True)
class Step:
    """One point of an attack: how hard it was (`at`), in words, and what each row said then, by the row's label.

    broken: the attack also ruined the original model here: what it knows of the retain set fell below `DAMAGED` of
    what it was. A model that gives nothing away at such a point has not shown that it forgot.
    """

    at: float
    label: str
    cells: dict[str, dict[str, Cell]] = field(repr=False)
    broken: bool = False

    @property
    def name(self) -> str:
        """The label, with a mark where the attack broke the original model too."""
        return f"{self.label} (breaks the original)" if self.broken else self.label

    def cell(self, row: Row, key: str) -> Cell:
        return self.cells.get(row.label, {}).get(key, Cell())


@dataclass(frozen=True)
class Attack:
    """One attack, with the same settings, on every row it was run on. `key`: the metric that stands for it."""

    kind: str
    title: str
    means: str
    key: str
    settings: dict[str, Any]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    seconds: float
    examples: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Outcome:
    """How one row stood one attack. `recovered`: the largest share of the forgotten that came back, at `step`."""

    attack: Attack
    level: str
    text: str
    recovered: float | None
    step: Step | None


def attacks(rows: Sequence[Row]) -> list[Attack]:
    """Every attack of the rows, one for each kind and settings, in the order of KINDS."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        for run in row.runs:
            for one in run.get("attacks") or []:
                settings = {
                    name: value for name, value in (one.get("settings") or {}).items() if name not in REPETITION
                }
                place = one["kind"], json.dumps(settings, sort_keys=True, default=str)
                groups.setdefault(place, {}).setdefault(row.label, []).append(one)
    found = [_attack(kind, json.loads(settings), by_row) for (kind, settings), by_row in groups.items()]
    original = next((row for row in rows if row.model == "original"), None)
    if original is not None:
        found = [replace(one, steps=_marked(one.steps, original)) for one in found]
    order = list(KINDS)
    found.sort(key=lambda one: order.index(one.kind) if one.kind in order else len(order))
    return _told_apart([one for one in found if one.steps])


def _attack(kind: str, settings: dict[str, Any], by_row: dict[str, list[dict[str, Any]]]) -> Attack:
    every = [one for given in by_row.values() for one in given]
    labels = dict.fromkeys((point["label"], point["at"]) for one in every for point in one["points"])
    steps = tuple(Step(at, label, _cells(by_row, label)) for label, at in labels)
    title, means = KINDS.get(kind, (kind.replace("_", " ").capitalize(), ""))
    measured = {key for one in every for point in one["points"] for key in point["metrics"]}
    key = next((key for key in HEADLINES.get(kind, MEMORY) if key in measured), min(measured, default=""))
    return Attack(
        kind=kind,
        title=title,
        means=means,
        key=key,
        settings=settings,
        steps=steps,
        notes=tuple(dict.fromkeys(note for one in every for note in one.get("notes") or [])),
        seconds=sum(one.get("seconds") or 0.0 for one in every),
        examples={label: given[0]["examples"] for label, given in by_row.items() if given[0].get("examples")},
    )


def _marked(steps: Sequence[Step], original: Row) -> tuple[Step, ...]:
    """The steps, those marked that break the original model."""
    return tuple(replace(step, broken=_breaks(steps[0], step, original)) for step in steps)


def _breaks(untouched: Step, step: Step, original: Row) -> bool:
    for key in RETAINED:
        before, after = untouched.cell(original, key).mean, step.cell(original, key).mean
        if before is not None and after is not None and before >= LEAST:
            return after < DAMAGED * before
    return False


def _cells(by_row: dict[str, list[dict[str, Any]]], label: str) -> dict[str, dict[str, Cell]]:
    found: dict[str, dict[str, Cell]] = {}
    for name, given in by_row.items():
        points = [point for one in given for point in one["points"] if point["label"] == label]
        keys = dict.fromkeys(key for point in points for key in point["metrics"])
        intervals = (points[0].get("intervals") or {}) if len(points) == 1 else {}
        found[name] = {
            key: cell_of([point["metrics"].get(key) for point in points], intervals.get(key)) for key in keys
        }
    return found


def _told_apart(found: list[Attack]) -> list[Attack]:
    """Attacks of one kind with several settings say in their title what differs."""
    told = []
    for one in found:
        others = [other.settings for other in found if other.kind == one.kind]
        differing = [name for name, value in one.settings.items() if any(o.get(name) != value for o in others)]
        extra = ", ".join(f"{name.replace('_', ' ')} {one.settings[name]}" for name in differing)
        told.append(replace(one, title=f"{one.title} ({extra})") if extra else one)
    return told


def outcome(attack: Attack, row: Row, rows: Sequence[Row]) -> Outcome | None:
    """How `row` stood the attack; None if it was not run on it.

    At each point the share that came back is (u − r) / (o − r), where u is what comes out of the row, r what comes out of
    the retrained model under the same attack (0 where there is none) and o what the original says before the attack, of a
    measure that takes one, under it. Points where the retrained model says nearly as much as the original say nothing.
    An attack under which the original itself gives away less than `WORKS` of this is too weak to clear anybody: unless it
    brought something back, its level is unknown.
    """
    if row.label not in {label for step in attack.steps for label in step.cells}:
        return None
    original = next((one for one in rows if one.model == "original"), None)
    retrained = next((one for one in rows if one.model == "retrained"), None)
    gold = retrained is not None and any(step.cell(retrained, attack.key).mean is not None for step in attack.steps)
    if attack.kind == "relearn" and not gold:
        said = "was run, but without a retrained model trained in the same way nothing tells relearning from learning."
        return Outcome(attack, UNKNOWN, said, None, None)
    shares: list[tuple[float, Step, float, float]] = []
    reach = 0.0  # the largest share that any point's interval reaches
    for step in attack.steps[1:] or attack.steps:
        now = step.cell(row, attack.key).mean
        control = (step.cell(retrained, attack.key).mean if retrained is not None else None) or 0.0
        before = _known(attack, step, original)
        if now is not None and before is not None and before - control >= LEAST:
            shares.append(((now - control) / (before - control), step, now, control))
            top = step.cell(row, attack.key).high
            if top is not None and top - control >= LEAST:
                reach = max(reach, (top - control) / (before - control))
    if not shares:
        return Outcome(attack, UNKNOWN, "was run, but there is nothing to compare it with.", None, None)
    share, step, now, control = max(shares, key=lambda one: one[0])
    level = GOOD if share <= CLOSE or now - control < LEAST else PARTIAL if share <= RETURNED else FAILED
    most = _on_original(attack, original, retrained)
    if level == GOOD and most is not None and most[0] < WORKS:
        weak = f"{_name(attack.key)} {short(most[1])}"
        why = "it breaks the original model" if most[2] else "even the original gives away next to nothing under it"
        said = f"tells nothing: {why} ({weak})."
        return Outcome(attack, UNKNOWN, said, None, None)
    if level == GOOD and reach > CLOSE:
        said = (
            f"brings back next to nothing on these examples ({_name(attack.key)} {short(now)}), but they are too few to "
            f"tell: the 95 % interval reaches {percent(reach)}."
        )
        return Outcome(attack, UNKNOWN, said, share, step)
    control_said = f" against {short(control)} for the retrained model" if gold else ""
    words = {
        GOOD: "brings back next to nothing",
        PARTIAL: f"brings back about {percent(share)}",
        FAILED: f"brings back about {percent(share)}",
    }
    text = f"{words[level]} ({_name(attack.key)} {short(now)}{control_said}, at {step.name})."
    return Outcome(attack, level, text, share, step)


def _on_original(attack: Attack, original: Row | None, retrained: Row | None) -> tuple[float, float, bool] | None:
    """The largest share of what the original gives away that it still does under the attack, the measure then, and
    whether the attack breaks the original at every point.

    None where the original was not attacked, or says no more than the retrained model before.
    """
    if original is None:
        return None
    found = []
    for step in attack.steps[1:]:
        drawn, before = step.cell(original, attack.key).mean, _known(attack, step, original)
        control = (step.cell(retrained, attack.key).mean if retrained is not None else None) or 0.0
        if drawn is None or before is None or before - control < LEAST or step.label.startswith(STRONGEST):
            continue  # the strongest way may be the plain question
        share = 0.0 if step.broken else (drawn - control) / (before - control)
        found.append((share, drawn, step.broken))
    return max(found, default=None)


def _known(attack: Attack, step: Step, original: Row | None) -> float | None:
    """What the original says before the attack; where the measure is not defined without one, under the attack."""
    if original is None:
        return None
    values = (
        attack.steps[0].cell(original, attack.key).mean,
        original.mean(attack.key),
        step.cell(original, attack.key).mean,
    )
    return next((value for value in values if value is not None), None)


def _name(key: str) -> str:
    return describe(key).label.removeprefix("forget ")
