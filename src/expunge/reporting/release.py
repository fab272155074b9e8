"""Whether an unlearned model may go out, in one line with the next step: the weakest of its claims decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from expunge.reporting.claims import Claim
from expunge.reporting.thresholds import BADNESS, FAILED, GOOD, PARTIAL, UNKNOWN
from expunge.reporting.verdict import Verdict, best_first

Answer = Literal["yes", "not yet", "no", "not known"]
# claim -> what to do where it fails or holds in part only, and where it could not be judged
NEXT = {
    "kept": (
        "Start again from the original with a smaller --set lr= or fewer --set steps=, or give more --retain examples.",
        "Measure what must stay, with --retain, beside the original model.",
    ),
    "recites": (
        "Raise --set steps= or --set lr=, or choose another --method.",
        "Measure the original model beside it, on examples it knew.",
    ),
    "corrected": (
        "Train the new answers further: more --set steps=, or a method with a retain loss.",
        "Give more corrections, or ask for these in several ways.",
    ),
    "attacks": (
        "Forget more deeply, with more --set steps= or another --method, and attack again.",
        "Try to bring the data back: expunge attack.",
    ),
    "membership": (
        "Stop earlier, or choose a --method that ends nearer to the retrained model's likelihoods.",
        "Give --holdout examples that were never trained on, or a retrained --reference.",
    ),
}
OTHER = ("Read this claim's evidence in report.html.", "Read in report.html what is missing.")


@dataclass(frozen=True, kw_only=True)
class Release:
    """The answer, the claim that decides it (None where all hold) and the next step."""

    answer: Answer
    claim: Claim | None
    step: str

    @property
    def text(self) -> str:
        """One line: `Release: no. What must stay has stayed: partly. Start again …`."""
        if self.claim is None:
            return f"Release: {self.answer}. {self.step}"
        said = {FAILED: "no", PARTIAL: "partly", UNKNOWN: "not known"}[self.claim.level]
        return f"Release: {self.answer}. {self.claim.title}: {said}. {self.step}"


def release(given: Sequence[Verdict]) -> Release:
    """The decision on the best of the verdicts.

    A failed claim means no, one that holds in part not yet, one that could not be judged not yet if the data is
    forgotten and the model useful, and not known otherwise. The order of NEXT decides between claims of one level.
    """
    if not given:
        return Release(
            answer="not known", claim=None, step="These results hold no unlearned model: run expunge unlearn."
        )
    verdict = best_first(given)[0]
    order = list(NEXT)
    claims = sorted(verdict.claims, key=lambda claim: order.index(claim.name) if claim.name in order else len(order))
    weakest = max(claims, key=lambda claim: BADNESS.index(claim.level), default=None)
    if weakest is None or weakest.level == GOOD:
        if verdict.level != GOOD:
            return Release(answer="not yet", claim=None, step=f"{verdict.word}. {OTHER[0]}")
        step = "As far as these tests show; keep run.json and results.json as evidence."
        return Release(answer="yes", claim=None, step=step)
    step = NEXT.get(weakest.name, OTHER)[weakest.level == UNKNOWN]
    if weakest.unpowered:
        step = "Measure more examples, or let a person read the answers: see how many it takes in the claim."
    answers: dict[str, Answer] = {FAILED: "no", PARTIAL: "not yet", UNKNOWN: "not yet"}
    answer = answers[weakest.level]
    if weakest.level == UNKNOWN and weakest.name in ("kept", "recites"):
        answer = "not known"
    return Release(answer=answer, claim=weakest, step=step)
