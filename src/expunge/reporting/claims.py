"""The four things a person wants to be true of an unlearned model, each with its evidence and a level."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expunge.reporting.attacks import Attack, Outcome, outcome
from expunge.reporting.metrics import describe, number, percent, short
from expunge.reporting.results import Row, floor
from expunge.reporting.thresholds import (
    ALPHA,
    BADNESS,
    CLOSE,
    DAMAGED,
    FAILED,
    GIVEN_AWAY,
    GOOD,
    INTACT,
    PARTIAL,
    TELLING,
    UNKNOWN,
    UNTOUCHED,
)

CHANCE = 0.5  # AUC of a test that cannot tell
SINGLE = ("mia.min_k.auc", "mia.loss.auc")  # without a retrained model only these are near .5 for unseen text
# name -> (the claim, what its evidence does not show)
TITLES = {
    "recites": (
        "It no longer recites the data",
        "Examples are asked for as they were given. The same fact through another question, in another language or "
        "through a chain of hints may still come out.",
    ),
    "membership": (
        "A membership test cannot tell",
        "The tests look at how likely the examples are. A test that knows the method used, or compares with the "
        "original model, may tell more.",
    ),
    "kept": (
        "What must stay has stayed",
        "Usefulness is measured on the sets listed here; what they do not cover may have changed.",
    ),
    "attacks": (
        "It stays forgotten under attack",
        "Each attack was run with the budget written below, no more. A stronger or cleverer one may succeed where "
        "these did not.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`name` is a key of TITLES. `level`: good, partial, failed or unknown. `parts`: each attack's outcome."""

    name: str
    level: str
    text: str
    parts: tuple[Outcome, ...] = ()

    @property
    def title(self) -> str:
        return TITLES[self.name][0]


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The measures judged by, and the models they are compared with."""

    forget: str | None
    utility: str | None
    original: Row | None
    retrained: Row | None


def claims(
    row: Row, scales: Scales, remaining: float | None, kept: float | None, done: Sequence[Outcome]
) -> tuple[Claim, ...]:
    """The four claims for one unlearned row; see `Verdict` for `remaining` and `kept`, `outcome` for the attacks `done`."""
    return (
        _recites(row, scales, remaining, kept),
        _membership(row, scales),
        _kept(row, scales, kept),
        _attacked(done),
    )


def outcomes(row: Row, rows: Sequence[Row], found: Sequence[Attack]) -> tuple[Outcome, ...]:
    """How the row stood each of the attacks that was run on it."""
    return tuple(one for attack in found if (one := outcome(attack, row, rows)) is not None)


def differs(row: Row, control: str, key: str) -> bool | None:
    """Whether the row's metric differs from the control's beyond noise in most of its runs; None where not compared."""
    flags = [
        bool(one["beyond_noise"])
        for run in row.runs
        for one in (run.get("against") or {}).get(control) or []
        if one["metric"] == key
    ]
    return sum(flags) * 2 > len(flags) if flags else None


def findings(row: Row) -> dict[str, dict[str, Any]]:
    """What the detectors found in the row's runs, by name, the first run's of each."""
    found: dict[str, dict[str, Any]] = {}
    for run in row.runs:
        for one in run.get("findings") or []:
            found.setdefault(one["name"], one)
    return found


def _mean(row: Row | None, key: str | None) -> float | None:
    return None if row is None or key is None else row.mean(key)


def _recites(row: Row, scales: Scales, remaining: float | None, kept: float | None) -> Claim:
    if kept is not None and kept < DAMAGED:
        level = UNKNOWN if remaining is not None and remaining <= CLOSE else FAILED
        return Claim(name="recites", level=level, text=_emptied(row, scales.forget, remaining))
    level = (
        UNKNOWN if remaining is None else FAILED if remaining > UNTOUCHED else PARTIAL if remaining > CLOSE else GOOD
    )
    text = _forgetting(row, scales, remaining)
    noise = differs(row, "retrained", scales.forget or "")
    if level == GOOD and noise is not None:
        text += f" Example by example, the difference is {'beyond' if noise else 'within'} noise."
    return Claim(name="recites", level=level, text=text)


def _forgetting(row: Row, scales: Scales, remaining: float | None) -> str:
    key = scales.forget
    after, before, goal = _mean(row, key), _mean(scales.original, key), _mean(scales.retrained, key)
    if key is None or after is None:
        return "How much it still remembers was not measured."
    measure = describe(key).label.removeprefix("forget ")
    if before is None:
        return f"What it still remembers: {measure} {short(after)}; without the original's, nothing to compare it with."
    if remaining is None:
        known = f" and {short(goal)} for the retrained model" if goal is not None else ""
        return (
            f"There is little to forget: {measure} was {short(before)} for the original{known} "
            f"and is {short(after)} now, so these numbers say little."
        )
    against = f"{measure} {short(after)} against {short(goal)}, from {short(before)}" if goal is not None else (
        f"{measure} {short(after)}, from {short(before)}"
    )  # fmt: skip
    if remaining > UNTOUCHED:
        return f"It still remembers what it should forget ({against})."
    if remaining > CLOSE:
        return f"It still remembers about {percent(remaining)} of what it should have forgotten ({against})."
    if goal is None:
        return f"It hardly remembers what it should forget ({against})."
    if goal - after > TELLING:
        return (
            f"It remembers less than a model that never saw the data ({against}), which can itself betray that "
            "something was removed."
        )
    return f"Forgetting is close to the retrained model's ({against})."


def _emptied(row: Row, key: str | None, remaining: float | None) -> str:
    """What a damaged model's forgetting is worth."""
    after = _mean(row, key)
    if key is None or after is None:
        return "How much it still remembers was not measured."
    value = f"{describe(key).label.removeprefix('forget ')} {short(after)}"
    if remaining is not None and remaining <= CLOSE:
        return f"That it no longer recites the data ({value}) says little: a broken model recites nothing."
    return f"Even so it still remembers some of what it should forget ({value})."


def _kept(row: Row, scales: Scales, kept: float | None) -> Claim:
    key = scales.utility
    after = _mean(row, key)
    if key is None or after is None:
        return Claim(name="kept", level=UNKNOWN, text="Whether it is still useful was not measured.")
    measure = describe(key).label
    if kept is None:
        reason = "the original's is missing" if _mean(scales.original, key) is None else "the original had next to none"
        text = f"Its {measure} is {short(after)}; {reason}, so what was kept cannot be told."
        return Claim(name="kept", level=UNKNOWN, text=text)
    measure += " above chance" if floor(key) else ""
    if kept < DAMAGED:
        text = f"The model is damaged: {measure} is {percent(kept)} of the original's."
        return Claim(name="kept", level=FAILED, text=text)
    if kept < INTACT:
        text = f"Some usefulness was lost: {measure} is {percent(kept)} of the original's."
        return Claim(name="kept", level=PARTIAL, text=text)
    text = f"{measure[0].upper()}{measure[1:]} kept at {percent(kept)} of the original's."
    near, before = row.mean("neighbours.probability"), _mean(scales.original, "neighbours.probability")
    if near is not None and before is not None and before >= TELLING and near < INTACT * before:
        text += f" What is most like the forgotten suffered: probability {percent(near / before)} of the original's."
        return Claim(name="kept", level=PARTIAL, text=text)
    return Claim(name="kept", level=GOOD, text=text)


def _membership(row: Row, scales: Scales) -> Claim:
    gaps = [(key, value, goal) for key, value, goal in _aucs(row, scales) if _beyond(row, scales, key, value, goal)]
    quality = row.mean("forget_quality")
    sentences, level = [], UNKNOWN
    measured = list(_aucs(row, scales))
    gold = scales.retrained is not None
    if measured:
        level, against = GOOD, " for the retrained model" if gold else " of a test that cannot tell"
        if gaps:
            key, value, goal = max(gaps, key=lambda one: abs(one[1] - one[2]))
            level = FAILED if abs(value - goal) > GIVEN_AWAY else PARTIAL
            way = "still look trained on" if value > goal else "stand out as less likely than unseen text"
            sentences.append(
                f"A membership test sees a difference: AUC {short(value)} against {short(goal)}{against} "
                f"({describe(key).label.removesuffix(' AUC')}); the forgotten examples {way}."
            )
        else:
            key, value, goal = measured[0]
            count = f"{len(measured)} membership tests see" if len(measured) > 1 else "A membership test sees"
            numbers = f"{describe(key).label} {short(value)} against {short(goal)}{against}"
            sentences.append(f"{count} no difference ({numbers}).")
    if quality is not None:
        verb = "can" if quality < ALPHA else "cannot"
        sentences.append(
            f"A statistical test {verb} tell it from the retrained model (forget quality {number(quality, 2)})."
        )
        if quality < ALPHA:
            level = FAILED if level == FAILED else PARTIAL
    if not measured:
        sentences.insert(0, "No membership test was run: that takes examples never trained on, a holdout set.")
    return Claim(name="membership", level=level, text=" ".join(sentences))


def _aucs(row: Row, scales: Scales) -> list[tuple[str, float, float]]:
    """(key, the row's AUC, the one to reach) of every membership attack that can be judged, min-k first."""
    keys = [key for key in row.metrics if key.startswith("mia.") and key.endswith(".auc")]
    keys = [key for key in SINGLE if key in keys] + [key for key in keys if key not in SINGLE]
    found = []
    for key in keys:
        value = row.mean(key)
        goal = _mean(scales.retrained, key) if scales.retrained is not None else CHANCE if key == SINGLE[0] else None
        if value is not None and goal is not None:
            found.append((key, value, goal))
    return found


def _beyond(row: Row, scales: Scales, key: str, value: float, goal: float) -> bool:
    """Whether an AUC differs tellingly, and beyond noise where that is known."""
    if abs(value - goal) <= TELLING:
        return False
    known = differs(row, "retrained", key) if scales.retrained is not None else None
    cell = row.cell(key)
    if known is not None or cell.low is None or cell.high is None:
        return known is not False
    return not cell.low <= goal <= cell.high


def _attacked(done: Sequence[Outcome]) -> Claim:
    if not done:
        text = "Not tested. The command “expunge attack” trains it on, rounds its weights, samples, asks in other ways."
        return Claim(name="attacks", level=UNKNOWN, text=text)
    judged = [one for one in done if one.level != UNKNOWN]
    level = max((one.level for one in judged), key=BADNESS.index, default=UNKNOWN)
    stood = sum(one.level == GOOD for one in judged)
    text = f"It withstood {stood} of {len(judged)} attacks." if judged else "Attacks were run, but none can be judged."
    worst_first = sorted(done, key=lambda one: -BADNESS.index(one.level))
    return Claim(name="attacks", level=level, text=text, parts=tuple(worst_first))
