"""What is measured against the model retrained without the forget set: forget quality, PrivLeak, the reference attack.

The retrained model's evaluation is made once and used again, also from a file. It must have been asked the same.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from expunge.errors import ConfigurationError
from expunge.evaluation import statistics
from expunge.evaluation.conditions import Conditions, alike
from expunge.evaluation.measure import Measured, Plan
from expunge.evaluation.metrics import membership, quality
from expunge.evaluation.metrics.truth_ratio import Form
from expunge.evaluation.result import Evaluation
from expunge.evaluation.summary import Summary

UNRECORDED = (
    "the reference's results are of an earlier version and do not say how it was measured (lengths, template, dtype): "
    "that it was measured like this model is taken on trust"
)
NONE_GIVEN = "no model retrained without the forget set was given"


def asked(plan: Plan, form: Form) -> str:
    """A hash of what was asked of a set, whatever its order: examples, right and wrong answers, form of the truth ratio."""
    rows = [
        json.dumps([example.context, *shown, example.paraphrased_response, sorted(example.wrong_responses)])
        for example, shown in zip(plan.examples, plan.shown, strict=True)
    ]
    told = "\n".join([form if plan.wrong else "", *sorted(rows)])
    return hashlib.sha256(told.encode()).hexdigest()


def check_reference(
    plans: Sequence[Plan], reference: Evaluation | None, form: Form, conditions: Conditions
) -> str | None:
    """Before any work: the reference must have seen the very examples of the suite's forget set, in the same way.

    Returns a note where it is not known how it was measured.
    """
    if reference is None:
        return None
    here = {plan.name: asked(plan, form) for plan in plans}
    if reference.conditions is not None:
        words = conditions.unlike(reference.conditions, alike(here, reference.asked))
        if words:
            raise ConfigurationError(
                f"The reference was measured otherwise (here and there): {'; '.join(words)}. Its numbers cannot be "
                "compared with these. Evaluate both alike, or give the reference's model folder instead of its results."
            )
    _check_examples(plans, reference, form)
    return None if reference.conditions else UNRECORDED


def _check_examples(plans: Sequence[Plan], reference: Evaluation, form: Form) -> None:
    rows = reference.examples.get("forget")
    forget = next((each for each in plans if each.name == "forget"), None)
    if rows is None or forget is None:
        return
    if sorted((row["prompt"], row["response"]) for row in rows) != sorted(forget.shown):
        raise ConfigurationError(
            "The reference was evaluated on another forget set than this suite's: "
            f"{len(rows)} examples there, {len(forget.shown)} here. Evaluate both on the same suite "
            "and limit, with the same examples left out."
        )
    if reference.asked.get("forget", asked(forget, form)) != asked(forget, form):
        raise ConfigurationError(
            "The reference was evaluated on this forget set with other paraphrases or wrong answers, or another form of "
            "the truth ratio. Evaluate both alike."
        )


def known(reference: Evaluation | None, measured: Measured, field: str) -> np.ndarray | None:
    """The reference's value of a field for each example of a set: [n], or None where it lacks one of them."""
    rows = reference.examples.get(measured.name, []) if reference is not None else []
    values = {(row["prompt"], row["response"]): row.get(field) for row in rows}
    found = [values.get(shown) for shown in measured.shown]
    return None if any(value is None for value in found) else np.array(found, dtype=np.float64)


def forget_quality(forget: Measured, reference: Evaluation | None) -> tuple[dict[str, float], str | None]:
    """Forget quality, or why there is none."""
    if forget.ratio is None:
        return {}, "forget_quality is absent: the forget examples have no wrong_responses"
    if reference is None:
        return {}, f"forget_quality is absent: {NONE_GIVEN}"
    rows = reference.examples.get("forget", [])
    other = np.array([row["truth_ratio"] for row in rows if row.get("truth_ratio") is not None])
    if not other.size:
        return {}, "forget_quality is absent: the reference's evaluation holds no truth ratios"
    p_value = quality.forget_quality(forget.ratio[~np.isnan(forget.ratio)], other)
    return {"forget_quality": p_value, "forget_quality_log10": quality.log10(p_value)}, None


def reference_scores(
    measured: Mapping[str, Measured], reference: Evaluation | None
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], str | None]:
    """The reference attack's scores of the forget and the holdout set, or why there are none."""
    if reference is None:
        return {}, f"mia.reference and privleak are absent: {NONE_GIVEN}"
    pair = []
    for name in ("forget", "holdout"):
        nll = known(reference, measured[name], "nll")
        if nll is None:
            return {}, f"mia.reference and privleak are absent: the reference was not evaluated on this {name} set"
        pair.append(membership.reference(measured[name].records, nll))
    return {"reference": (pair[0], pair[1])}, None


def privleak(
    measured: Mapping[str, Measured], reference: Evaluation, weights: Mapping[str, np.ndarray]
) -> tuple[Summary, str | None]:
    """PrivLeak with its interval, in which both models see the same resamples; or why there is none."""
    sets = [measured[name] for name in ("forget", "holdout")]
    other = [known(reference, each, "min_k") for each in sets]
    if other[0] is None or other[1] is None:
        return {}, "privleak is absent: the reference's evaluation holds no min-k scores; evaluate it again"
    own, theirs = [membership.min_k(each.records) for each in sets], [other[0], other[1]]
    value = membership.privleak(membership.auc(*own), membership.auc(*theirs))
    if np.isnan(value):
        return {}, "privleak is absent: to min-k all forgotten examples look trained on in the retrained model too"
    pair = weights["forget"], weights["holdout"]
    auc = statistics.aucs(own[0], own[1], *pair)
    retrained = statistics.aucs(theirs[0], theirs[1], *pair)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = 100 * (retrained - auc) / (1 - retrained)
    return {"privleak": (value, statistics.interval(draws))}, None
