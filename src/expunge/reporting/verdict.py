"""What the numbers say, in words: how much is still remembered, what it cost, and what could not be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expunge.reporting.metrics import describe, number, percent, short
from expunge.reporting.results import CHOICE_COLUMNS, FORGET_KEYS, QUIZ_COLUMNS, UTILITY_KEYS, Row, floor, pick

CLOSE = 0.1  # remaining memory, as a share of what was to be forgotten, up to which forgetting counts as done
UNTOUCHED = 0.9  # remaining memory above which nothing was forgotten
INTACT = 0.95  # share of the original's utility from which the model counts as intact
DAMAGED = 0.5  # share of it below which the model counts as damaged
TELLING = 0.1  # difference of AUC or of a forget measure to the retrained model's that is worth a sentence
ALPHA = 0.05  # level of the test behind forget quality


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the numbers of one unlearned model say.

    `level` is "good", "partial", "failed" or "unknown"; `word` says it in a few words, `text` in sentences.
    `remaining` is (u − r)/(o − r) of the forget measure for the original o, the unlearned u and the retrained r (if
    there is none, 0, or chance for an accuracy): 1 nothing was forgotten, 0 as much as by retraining, below 0 more.
    `kept` is u/o of the utility measure, of an accuracy what is above chance. Both are None where they cannot be
    computed.
    """

    row: Row
    level: str
    word: str
    text: str
    remaining: float | None
    kept: float | None

    @property
    def cost(self) -> float | None:
        """max(|remaining|, 1 − kept): 0 is a perfect result, None if either is unknown."""
        if self.remaining is None or self.kept is None:
            return None
        return max(abs(self.remaining), 1 - self.kept)


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """One verdict for each unlearned row, in the rows' order."""
    original = next((row for row in rows if row.model == "original"), None)
    retrained = next((row for row in rows if row.model == "retrained"), None)
    forget, utility = pick(rows, FORGET_KEYS), pick(rows, UTILITY_KEYS)
    return [_judge(row, original, retrained, forget, utility) for row in rows if row.model == "unlearned"]


def _judge(row: Row, original: Row | None, retrained: Row | None, forget: str | None, utility: str | None) -> Verdict:
    remaining = _remaining(row, original, retrained, forget)
    kept = _kept(row, original, utility)
    level, word = _grade(remaining, kept, _overshot(row, retrained, forget), retrained is not None)
    if kept is not None and kept < DAMAGED:
        sentences = [_usefulness(row, original, utility, kept), _emptied(row, forget, remaining)]
    else:
        sentences = [
            _forgetting(row, original, retrained, forget, remaining),
            _usefulness(row, original, utility, kept),
            _tests(row, retrained),
        ]
    text = " ".join(sentence for sentence in sentences if sentence)
    return Verdict(row=row, level=level, word=word, text=text, remaining=remaining, kept=kept)


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


def _grade(remaining: float | None, kept: float | None, overshot: bool, gold: bool) -> tuple[str, str]:
    if kept is not None and kept < DAMAGED:
        return "failed", "Model damaged"
    if remaining is None:
        return "unknown", "Forgetting cannot be judged"
    if remaining > UNTOUCHED:
        unchanged = kept is not None and abs(kept - 1) <= 1 - INTACT
        return "failed", "Nothing changed" if unchanged else "Not forgotten"
    if remaining > CLOSE:
        return "partial", "Partly forgotten"
    if overshot:
        return "partial", "Forgotten more than by retraining"
    if kept is None:
        return "unknown", "Forgotten, usefulness not measured"
    if kept < INTACT:
        return "partial", "Forgotten at a cost"
    return "good", "Close to the retrained model" if gold else "Forgotten, as far as measured"


def _forgetting(row: Row, original: Row | None, retrained: Row | None, key: str | None, remaining: float | None) -> str:
    after, before, goal = _mean(row, key), _mean(original, key), _mean(retrained, key)
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


def _usefulness(row: Row, original: Row | None, key: str | None, kept: float | None) -> str:
    after = _mean(row, key)
    if key is None or after is None:
        return "Whether it is still useful was not measured."
    measure = describe(key).label
    if kept is None:
        reason = "the original's is missing" if _mean(original, key) is None else "the original had next to none"
        return f"Its {measure} is {short(after)}; {reason}, so what was kept cannot be told."
    measure += " above chance" if floor(key) else ""
    if kept < DAMAGED:
        return f"The model is damaged: {measure} is {percent(kept)} of the original's."
    if kept < INTACT:
        return f"Some usefulness was lost: {measure} is {percent(kept)} of the original's."
    return f"{measure[0].upper()}{measure[1:]} kept at {percent(kept)} of the original's."


def _tests(row: Row, retrained: Row | None) -> str:
    sentences = []
    quality = row.mean("forget_quality")
    if quality is not None:
        verb = "can" if quality < ALPHA else "cannot"
        sentences.append(
            f"A statistical test {verb} tell it from the retrained model (forget quality {number(quality, 2)})."
        )
    leak, goal = row.mean("mia.min_k.auc"), _mean(retrained, "mia.min_k.auc")
    if leak is not None and goal is not None and abs(leak - goal) > TELLING:
        sentences.append(
            f"A membership test sees a difference: AUC {short(leak)} against {short(goal)} for the retrained model."
        )
    return " ".join(sentences)


def best(given: Sequence[Verdict]) -> Verdict | None:
    """The verdict with the smallest cost; None if no method has both."""
    judged = [(verdict.cost, index) for index, verdict in enumerate(given)]
    known = [(cost, index) for cost, index in judged if cost is not None]
    return given[min(known)[1]] if known else None


def summary(rows: Sequence[Row], given: Sequence[Verdict]) -> str:
    """One or two sentences over all methods; the page opens with them."""
    if not given:
        return "These results hold no unlearned model: there is nothing to judge yet."
    control = "" if any(row.model == "retrained" for row in rows) else (
        " The comparison with the gold standard, a model retrained without the data, is missing."
    )  # fmt: skip
    if len(given) == 1:
        return f"{given[0].row.label}: {_lower(given[0].word)}.{control}"
    winner = best(given)
    if winner is None:
        return f"{len(given)} methods were run; none can be judged by these numbers.{control}"
    good = [verdict.row.label for verdict in given if verdict.level == "good"]
    if good:
        count = f"{len(good)} of {len(given)} methods forgot the data and kept the model useful"
        return f"{count}; {winner.row.label} gives the best balance.{control}"
    if winner.level == "failed":
        return f"None of the {len(given)} methods worked: each left the data in place or damaged the model.{control}"
    return (
        f"None of the {len(given)} methods fully forgot the data and kept the model intact; {winner.row.label} "
        f"comes closest.{control}"
    )


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
