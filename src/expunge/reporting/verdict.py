"""What the numbers say, in words: how much is still remembered, what it cost, and what could not be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expunge.reporting.attacks import Attack, attacks
from expunge.reporting.claims import Claim, Scales, claims, findings, outcomes
from expunge.reporting.metrics import describe
from expunge.reporting.results import CHOICE_COLUMNS, FORGET_KEYS, QUIZ_COLUMNS, UTILITY_KEYS, Row, floor, pick
from expunge.reporting.thresholds import CLOSE, DAMAGED, FAILED, GOOD, INTACT, PARTIAL, TELLING, UNKNOWN, UNTOUCHED


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the numbers of one unlearned model say.

    `level` is "good", "partial", "failed" or "unknown"; `word` says it in a few words, `claims` with their evidence.
    `warnings` is what the detectors say of it.
    `remaining` is (u − r)/(o − r) of the forget measure for the original o, the unlearned u and the retrained r (if
    there is none, 0, or chance for an accuracy): 1 nothing was forgotten, 0 as much as by retraining, below 0 more.
    `kept` is u/o of the utility measure, of an accuracy what is above chance. Both are None where they cannot be
    computed.
    """

    row: Row
    level: str
    word: str
    claims: tuple[Claim, ...]
    warnings: tuple[str, ...]
    remaining: float | None
    kept: float | None

    @property
    def text(self) -> str:
        """The claims' evidence in one paragraph."""
        return " ".join(claim.text for claim in self.claims)

    @property
    def cost(self) -> float | None:
        """max(|remaining|, 1 − kept): 0 is a perfect result, None if either is unknown."""
        if self.remaining is None or self.kept is None:
            return None
        return max(abs(self.remaining), 1 - self.kept)


def verdicts(rows: Sequence[Row], found: Sequence[Attack] | None = None) -> list[Verdict]:
    """One verdict for each unlearned row, in the rows' order; `found`: the rows' attacks, where known already."""
    scales = Scales(
        forget=pick(rows, FORGET_KEYS),
        utility=pick(rows, UTILITY_KEYS),
        original=next((row for row in rows if row.model == "original"), None),
        retrained=next((row for row in rows if row.model == "retrained"), None),
    )
    found = attacks(rows) if found is None else found
    return [_judge(row, scales, rows, found) for row in rows if row.model == "unlearned"]


def _judge(row: Row, scales: Scales, rows: Sequence[Row], found: Sequence[Attack]) -> Verdict:
    original, retrained = scales.original, scales.retrained
    remaining = _remaining(row, original, retrained, scales.forget)
    kept = _kept(row, original, scales.utility)
    given = claims(row, scales, remaining, kept, outcomes(row, rows, found))
    detected = findings(row)
    by_name = {claim.name: claim for claim in given}
    supported = by_name["recites"], by_name["kept"]
    level, word = _grade(remaining, kept, _overshot(row, retrained, scales.forget), retrained is not None, *supported)
    levels = {claim.name: claim.level for claim in given}
    level, word = _lowered(level, word, levels, detected)
    if level != FAILED and original is not None and "never_memorised" in findings(original):
        level, word = UNKNOWN, "Nothing to forget"
    ordered = sorted(given, key=lambda claim: claim.name != "kept") if word == "Model damaged" else given
    covered = {"over_forgotten": levels["membership"] == FAILED, "damaged": word == "Model damaged"}
    warned = tuple(one["text"] for name, one in detected.items() if not covered.get(name))
    return Verdict(
        row=row, level=level, word=word, claims=tuple(ordered), warnings=warned, remaining=remaining, kept=kept
    )


def _lowered(level: str, word: str, levels: dict[str, str], detected: dict[str, Any]) -> tuple[str, str]:
    """The grade after what the membership tests, the attacks and the detectors found."""
    if "no_op" in detected and level != UNKNOWN:
        return FAILED, "Nothing changed"
    if "damaged" in detected or ("gibberish" in detected and level == GOOD):
        return (level, word) if level == FAILED else (PARTIAL, "Forgotten, but answers fell apart")
    if level != GOOD:
        return level, word
    if "new_disclosure" in detected:
        return PARTIAL, "Forgotten, but gives other records away"
    if levels.get("corrected") in (PARTIAL, FAILED):
        return PARTIAL, "Forgotten, but corrections are missing"
    if levels["attacks"] == FAILED:
        return FAILED, "Comes back under attack"
    if levels["attacks"] == PARTIAL:
        return PARTIAL, "Partly comes back under attack"
    if levels["membership"] == FAILED:
        return PARTIAL, "Forgotten, but a test can tell"
    return level, word


def _mean(row: Row | None, key: str | None) -> float | None:
    return None if row is None or key is None else row.mean(key)


def _remaining(row: Row, original: Row | None, retrained: Row | None, key: str | None) -> float | None:
    before, after, goal = _mean(original, key), _mean(row, key), _mean(retrained, key) or floor(key)
    if before is None or after is None or before - goal < 0.05:  # the original hardly knew it: the ratio is noise
        return None
    return (after - goal) / (before - goal)


def _kept(row: Row, original: Row | None, key: str | None) -> float | None:
    before, after, least = _mean(original, key), _mean(row, key), floor(key)
    if before is None or after is None or before - least < (0.05 if least else 0.01):
        return None
    return max(0.0, after - least) / (before - least)


def _overshot(row: Row, retrained: Row | None, key: str | None) -> bool:
    after, goal = _mean(row, key), _mean(retrained, key)
    return after is not None and goal is not None and goal - after > TELLING


def _grade(
    remaining: float | None, kept: float | None, overshot: bool, gold: bool, recites: Claim, useful: Claim
) -> tuple[str, str]:
    if kept is not None and kept < DAMAGED and not useful.unpowered:
        return FAILED, "Model damaged"
    if remaining is None:
        return UNKNOWN, "Forgetting cannot be judged"
    if recites.unpowered:
        return UNKNOWN, "Too few examples to tell"
    if remaining > UNTOUCHED:
        unchanged = kept is not None and abs(kept - 1) <= 1 - INTACT and not useful.unpowered
        return FAILED, "Nothing changed" if unchanged else "Not forgotten"
    if remaining > CLOSE or recites.level == PARTIAL:
        return PARTIAL, "Partly forgotten"
    if overshot:
        return PARTIAL, "Forgotten more than by retraining"
    if kept is None:
        return UNKNOWN, "Forgotten, usefulness not measured"
    if useful.unpowered:
        return UNKNOWN, "Forgotten, too few examples for what must stay"
    if kept < INTACT:
        return PARTIAL, "Forgotten at a cost"
    near = recites.evidence is None or recites.evidence.low >= -CLOSE
    return GOOD, "Close to the retrained model" if gold and near else "Forgotten, as far as measured"


def best_first(given: Sequence[Verdict]) -> list[Verdict]:
    """The methods by level, then by `cost`; those that cannot be judged after those that partly did well."""
    order = (GOOD, PARTIAL, UNKNOWN, FAILED)
    return sorted(given, key=lambda one: (order.index(one.level), float("inf") if one.cost is None else one.cost))


def best(given: Sequence[Verdict]) -> Verdict | None:
    """The first of `best_first` whose cost is known; None if no method's is."""
    return next((verdict for verdict in best_first(given) if verdict.cost is not None), None)


def summary(rows: Sequence[Row], given: Sequence[Verdict]) -> str:
    """One or two sentences over all methods; the page opens with them."""
    if not given:
        return "These results hold no unlearned model: there is nothing to judge yet."
    control = "" if any(row.model == "retrained" for row in rows) else (
        " The comparison with the gold standard, a model retrained without the data, is missing."
    )  # fmt: skip
    if len(given) == 1:
        return f"{given[0].row.label}: {_lower(given[0].word)}.{_untested(given[0])}{control}"
    winner = best(given)
    if winner is None:
        return f"{len(given)} methods were run; none can be judged by these numbers.{control}"
    good = [verdict.row.label for verdict in given if verdict.level == GOOD]
    if good:
        count = f"{len(good)} of {len(given)} methods forgot the data and kept the model useful"
        return f"{count}; {winner.row.label} gives the best balance.{_untested(winner)}{control}"
    if winner.level == FAILED:
        return f"None of the {len(given)} methods worked: each left the data in place or damaged the model.{control}"
    return (
        f"None of the {len(given)} methods fully forgot the data and kept the model intact; {winner.row.label} "
        f"comes closest.{control}"
    )


def _untested(verdict: Verdict) -> str:
    """A caveat for a good verdict that no attack has tried."""
    tested = any(claim.name == "attacks" and claim.parts for claim in verdict.claims)
    return "" if tested or verdict.level != GOOD else " Whether it stays forgotten under attack was not tested."


def alarms(rows: Sequence[Row]) -> list[str]:
    """What the detectors say of the controls, which bears on every verdict."""
    return [one["text"] for row in rows if row.model != "unlearned" for one in findings(row).values()]


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def missing(results: dict[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(what these results lack, why it matters), most important first."""
    gaps = []
    models = {row.model for row in rows}
    unlearned = [row for row in rows if row.model == "unlearned"]
    if "unlearned" not in models:
        gaps.append(("No unlearned model", "Only controls were measured, so nothing can be said about forgetting."))
    if "original" not in models:
        gaps.append(("No original model", "What was forgotten and what it cost are changes from the original."))
    if "retrained" not in models:
        gaps.append((
            "No retrained model",
            "A model trained without the data is the gold standard. Without it forget quality and the distance to the "
            "standard cannot be computed, and low numbers may mean damage rather than forgetting.",
        ))  # fmt: skip
    gaps += _missing_metrics(unlearned, "retrained" in models)
    if unlearned and all(len(row.runs) < 2 for row in unlearned):
        gaps.append(("One run a method", "How far the numbers move with the random seed is not known; run three."))
    runs = results["runs"]
    if not any(run.get("intervals") for run in runs) and all(len(row.runs) < 2 for row in rows):
        gaps.append(("No intervals", "How far the numbers depend on the examples chosen is not known."))
    if unlearned and not any(run.get("log") for run in runs):
        gaps.append(("No training log", "Loss and learning-rate curves cannot be drawn."))
    if not any(any((run.get("examples") or {}).values()) for run in runs):
        gaps.append(("No answers", "What the models say before and after cannot be shown."))
    return gaps


def _missing_metrics(unlearned: Sequence[Row], has_retrained: bool) -> list[tuple[str, str]]:
    why = {
        "forget.extraction_strength": "It is the most trusted simple measure of what a model can still recite.",
        "retain.extraction_strength": "It shows whether what must be kept is still known.",
        "model_utility": "It needs answers generated on what must be kept; without it, damage shows only in part.",
        "mia.min_k.auc": "It needs held-out examples; without it, nothing is known about membership tests.",
    }
    if has_retrained:
        why["forget_quality"] = (
            "It needs truth ratios, thus paraphrased and wrong answers, of the retrained and the unlearned model; "
            "without it, no test says whether the two differ."
        )
    measured = {key for row in unlearned for key in row.metrics}
    if measured & (QUIZ_COLUMNS.keys() | CHOICE_COLUMNS.keys()) and not measured & why.keys():
        return []
    gaps = []
    for key, reason in why.items():
        lacking = [row.label for row in unlearned if row.mean(key) is None]
        if lacking:
            whom = "" if len(lacking) == len(unlearned) else f" for {', '.join(lacking)}"
            gaps.append((f"No {describe(key).label}{whom}", reason))
    return gaps
