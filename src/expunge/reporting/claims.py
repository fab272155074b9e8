"""What a user wants to be true of an unlearned model, each claim with its evidence and a level.

A level other than unknown takes an interval that supports it, where the results have one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expunge.reporting import evidence
from expunge.reporting.attacks import Attack, Outcome, outcome
from expunge.reporting.evidence import Evidence
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
    HALF,
    INTACT,
    KEPT,
    LEAST_CORRECTIONS,
    MADE,
    PARTIAL,
    RETURNED,
    TELLING,
    UNKNOWN,
    UNTOUCHED,
)

Measured = tuple[str, float, float, Evidence | None]  # a membership test: key, AUC, the one to reach, how far it is
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
    "corrected": (
        "What was to be corrected is corrected",
        "Each correction is asked for as it was given, once. An answer counts by its key words.",
    ),
    "attacks": (
        "It stays forgotten under attack",
        "Each attack was run with the budget written below, no more. A stronger or cleverer one may succeed where "
        "these did not.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`name` is a key of TITLES. `level`: good, partial, failed or unknown. `parts`: each attack's outcome.

    evidence: the interval that supports the level; None where the results have none, or the claim takes none. unpowered:
    whether the level is unknown because the examples are too few.
    """

    name: str
    level: str
    text: str
    parts: tuple[Outcome, ...] = ()
    evidence: Evidence | None = None
    unpowered: bool = False

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
    """The claims for one unlearned row; see `Verdict` for `remaining` and `kept`, `outcome` for the attacks `done`.

    That of corrections is there only where the request has some.
    """
    made = _corrected(row)
    return (
        _recites(row, scales, remaining, kept),
        *([made] if made is not None else []),
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
        text += f" Example by example, the difference is {'' if noise else 'not '}beyond noise."
    interval = evidence.left(row, scales.original, scales.retrained, scales.forget) if remaining is not None else None
    if interval is None or remaining is None:
        return Claim(name="recites", level=level, text=text)
    supported = interval.high <= CLOSE if level == GOOD else interval.low > CLOSE
    if supported or interval.low > CLOSE:
        text += f" Left of it: {percent(remaining)} ({interval.said})."
    if level == GOOD and interval.low > CLOSE:
        text += " Its tokens are still likely." if interval.unit == evidence.TOKENS else ""
        return Claim(name="recites", level=PARTIAL, text=text, evidence=interval)
    if not supported:
        after, before = (number(_mean(each, scales.forget), 2) for each in (row, scales.original))
        label = describe(scales.forget or "").label.removeprefix("forget ")
        text = (
            f"{evidence.missing(interval, remaining, CLOSE)} On these, {label} is {after}, from {before}: "
            f"{percent(remaining)} of what is to be forgotten is left ({interval.said})."
        )
        return Claim(name="recites", level=UNKNOWN, text=text, evidence=interval, unpowered=True)
    return Claim(name="recites", level=level, text=text, evidence=interval)


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
    interval = evidence.kept(row, scales.original, key)
    level = FAILED if kept < DAMAGED else PARTIAL if kept < INTACT else GOOD
    text = {
        FAILED: f"The model is damaged: {measure} is {percent(kept)} of the original's.",
        PARTIAL: f"Some usefulness was lost: {measure} is {percent(kept)} of the original's.",
        GOOD: f"{measure[0].upper()}{measure[1:]} kept at {percent(kept)} of the original's.",
    }[level]
    if interval is not None:
        text = f"{text[:-1]} ({interval.said})."
        if not (interval.low >= KEPT if level == GOOD else interval.high < 1):
            line = KEPT if level == GOOD else 1.0
            text = (
                f"{evidence.missing(interval, kept, line)} On these, {measure} is {percent(kept)} of the original's "
                f"({interval.said})."
            )
            return Claim(name="kept", level=UNKNOWN, text=text, evidence=interval, unpowered=True)
    near, before = row.mean("neighbours.probability"), _mean(scales.original, "neighbours.probability")
    if level == GOOD and near is not None and before is not None and before >= TELLING and near < INTACT * before:
        text += f" What is most like the forgotten suffered: probability {percent(near / before)} of the original's."
        level = PARTIAL
    return Claim(name="kept", level=level, text=text, evidence=interval)


def _corrected(row: Row) -> Claim | None:
    """How many of the corrections were made: the old answer is gone and the new one given."""
    share, bounds = row.mean("replacement.made"), evidence.interval_of(row, "replacement.made")
    if share is None:
        return None
    gone, new = row.mean("replacement.old_gone"), row.mean("replacement.new_given")
    level = GOOD if share >= MADE else PARTIAL if share >= RETURNED else FAILED
    text = f"{percent(share)} of the corrections are made"
    text += f" (95 % interval {percent(bounds[0])} to {percent(bounds[1])})" if bounds is not None else ""
    parts = [
        f"{what} in {percent(value)}"
        for what, value in (("the old answer is gone", gone), ("the new one is given", new))
        if value is not None
    ]
    text += f": {', '.join(parts)}." if parts else "."
    interval = Evidence(low=bounds[0], high=bounds[1]) if bounds is not None else None
    if level == GOOD and interval is not None and interval.low <= HALF:
        text += f" Not known of others: too few corrections; it takes about {LEAST_CORRECTIONS}."
        return Claim(name="corrected", level=UNKNOWN, text=text, evidence=interval, unpowered=True)
    return Claim(name="corrected", level=level, text=text, evidence=interval)


def _membership(row: Row, scales: Scales) -> Claim:
    gold = scales.retrained is not None
    measured = [
        (key, value, goal, evidence.membership(row, key, value, goal, gold)) for key, value, goal in _aucs(row, scales)
    ]
    gaps = [one for one in measured if _beyond(row, scales, *one)]
    quality = row.mean("forget_quality")
    sentences, level, unpowered, interval = [], UNKNOWN, False, None
    if not measured:
        sentences.append("No membership test was run: that takes examples never trained on, a holdout set.")
    elif gaps:
        against = " for the retrained model" if gold else " of a test that cannot tell"
        key, value, goal, interval = max(gaps, key=lambda one: abs(one[1] - one[2]))
        level = FAILED if abs(value - goal) > GIVEN_AWAY else PARTIAL
        way = "still look trained on" if value > goal else "stand out as less likely than unseen text"
        sentences.append(
            f"A membership test sees a difference: AUC {short(value)} against {short(goal)}{against} "
            f"({describe(key).label.removesuffix(' AUC')}); the forgotten examples {way}."
        )
    else:
        level, sentence, interval = _no_difference(measured, gold)
        unpowered = level == UNKNOWN
        sentences.append(sentence)
    if quality is not None:
        said = "can tell it from" if quality < ALPHA else "finds no difference to"
        sentences.append(f"A statistical test {said} the retrained model (forget quality {number(quality, 2)}).")
        if quality < ALPHA:
            level = FAILED if level == FAILED else PARTIAL
    return Claim(
        name="membership", level=level, text=" ".join(sentences), evidence=interval, unpowered=unpowered
    )  # fmt: skip


def _no_difference(measured: Sequence[Measured], gold: bool) -> tuple[str, str, Evidence | None]:
    """The level of membership tests none of which sees a difference: good if every interval lies within ± TELLING."""
    against = " for the retrained model" if gold else " of a test that cannot tell"
    unsure = [one for one in measured if one[3] is None or not (one[3].low >= -TELLING and one[3].high <= TELLING)]
    if not unsure:
        key, value, goal, interval = measured[0]
        count = f"{len(measured)} membership tests see" if len(measured) > 1 else "A membership test sees"
        numbers = f"{describe(key).label} {short(value)} against {short(goal)}{against}"
        return GOOD, f"{count} no difference ({numbers}; by {TELLING} at most, at 95 %).", interval
    key, value, goal, interval = unsure[0]
    numbers = f"{describe(key).label} {short(value)}"
    if interval is None:
        return UNKNOWN, f"Not known: {numbers} against {short(goal)}{against} has no interval.", None
    numbers += f" [{short(goal + interval.low)}, {short(goal + interval.high)}] against {short(goal)}{against}"
    takes = f"; it takes about {interval.needed} of each set" if interval.needed else ""
    return UNKNOWN, f"Not known: too few examples to tell ({numbers}){takes}.", interval


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


def _beyond(row: Row, scales: Scales, key: str, value: float, goal: float, interval: Evidence | None) -> bool:
    """Whether an AUC differs tellingly, and beyond noise where that is known."""
    if abs(value - goal) <= TELLING:
        return False
    known = differs(row, "retrained", key) if scales.retrained is not None else None
    if known is not None:
        return known
    return interval is None or interval.excludes_zero


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
