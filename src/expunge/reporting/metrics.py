"""What each shown number means, in one sentence, and which way is better."""

from dataclasses import dataclass

LOWER = "lower is better"
HIGHER = "higher is better"
AS_RETRAINED = "best where the retrained model's is"
ARROWS = {LOWER: "↓", HIGHER: "↑", AS_RETRAINED: "→"}


@dataclass(frozen=True)
class Metric:
    """A metric key such as `forget.rouge_l`: its name in words, its definition in one sentence, which way is better.

    `measure` is the name without the set it was measured `on` ("" for a suite-level number). `better` is LOWER,
    HIGHER, AS_RETRAINED or "" (not known).
    """

    key: str
    label: str
    definition: str
    better: str
    measure: str = ""
    on: str = ""

    @property
    def arrow(self) -> str:
        return ARROWS.get(self.better, "")


# measure -> (label, definition); measured on a set of examples, the key's first part
MEASURES = {
    "extraction_strength": (
        "extraction strength",
        "The share of an answer the model completes word for word by itself: 1 − k/T, where k is the smallest number "
        "of the answer's T tokens it must be given so that it gets every later one right. Of running text the answer "
        "is what follows the part it is given to go on from.",
    ),
    "exact_memorization": (
        "exact memorization",
        "The share of an answer's tokens the model would choose itself, given all the tokens before.",
    ),
    "probability": (
        "probability",
        "How likely the model finds the recorded answer, per token: exp(−mean negative log-likelihood), from 0 to 1.",
    ),
    "probability_with_options": (
        "probability among options",
        "The recorded answer's probability as a share of its own and the wrong answers' together.",
    ),
    "rouge_l": (
        "ROUGE-L",
        "The share of the recorded answer's words that come back, in order, in the answer the model writes.",
    ),
    "rouge_l_f1": (
        "ROUGE-L F1",
        "As ROUGE-L, but words the model adds count against it: the harmonic mean of recall and precision.",
    ),
    "truth_ratio": (
        "truth ratio",
        "How the wrong answers' probability compares with that of a right answer in other words (ratio R): "
        "min(R, 1/R) on the forget set, max(0, 1 − R) elsewhere.",
    ),
    "accuracy": (
        "accuracy",
        "The share of multiple-choice questions where the model finds the right option's letter the likeliest. Guessing "
        "one of four gets 0.25: hazardous knowledge that is gone leaves no more than that.",
    ),
    "accuracy_text": (
        "accuracy by text",
        "The share of multiple-choice questions where, asked without the options, the model finds the right one's text "
        "the likeliest for its length. Guessing one of four gets 0.25.",
    ),
    "option_accuracy": (
        "accuracy among options",
        "The share of questions where the model finds the right answer likelier than each of the other options.",
    ),
    "auc": (
        "AUC",
        "How often a question whose answer is Yes gets a larger log p(Yes) − log p(No) than one whose answer is No: the "
        "area under the ROC curve, 0.5 for guessing.",
    ),
    "hit_ratio": (
        "HitRatio@1",
        "The share of the model's valid written answers, each naming exactly one candidate, that name the right one.",
    ),
    "valid_ratio": ("valid ratio", "The share of the model's written answers that name exactly one of the candidates."),
    "perplexity": (
        "perplexity",
        "How many tokens the model in effect wavers between at each token of the running texts: exp(mean negative "
        "log-likelihood over all of their tokens), 1 for a text known by heart.",
    ),
    "nll": ("loss", "The mean negative log-likelihood of the recorded answer per token, in nats."),
}
SUITE = {
    "model_utility": (
        "model utility",
        "The harmonic mean of probability, ROUGE-L and truth ratio, where defined, over the sets that must be kept: "
        "one number for how useful the model still is; it is near 0 as soon as one part is.",
        HIGHER,
    ),
    "forget_quality": (
        "forget quality",
        "The p-value of a Kolmogorov–Smirnov test that compares the truth ratios of the unlearned and the retrained "
        "model on the forget set: near 1, they cannot be told apart; below 0.05, they can.",
        HIGHER,
    ),
    "forget_quality_log10": ("forget quality (log10)", "The base-10 logarithm of forget quality, 0 at best.", HIGHER),
    "privleak": (
        "PrivLeak",
        "By how many per cent the min-k membership test's AUC differs from the retrained model's; 0 at best.",
        AS_RETRAINED,
    ),
}
ATTACKS = {
    "loss": ("loss", "the loss on an example"),
    "zlib": ("zlib", "the loss on an example divided by its compressed length"),
    "min_k": ("min-k", "the mean log-probability of an example's least likely tokens"),
    "min_k_20": ("min-k (20 %)", "the mean log-probability of the least likely fifth of an example's tokens"),
    "min_k_plus_plus": ("min-k++", "the log-probabilities of an example's least likely tokens, standardised per token"),
    "reference": ("reference", "the loss on an example less another model's"),
    "gradnorm": ("gradient-norm", "the norm of an example's gradient"),
}
MEMBERSHIP = {
    "auc": (
        "AUC",
        "How well {score} tells forgotten examples from ones never seen: the area under the ROC curve; 0.5 means not "
        "at all, and a value far from the retrained model's, on either side, betrays the forgotten data.",
        AS_RETRAINED,
    ),
    "tpr_at_1_fpr": (
        "true positives at 1 % false ones",
        "The share of forgotten examples that {score} gives away when 1 % of never-seen ones may be accused wrongly.",
        LOWER,
    ),
}


def describe(key: str) -> Metric:
    """The metric of a key: `<set>.<measure>`, `mia.<attack>.<measure>` or a suite-level name.

    A key not known here keeps its own words as label, with no definition and no direction.
    """
    if key in SUITE:
        label, definition, better = SUITE[key]
        return Metric(key, label, definition, better, label)
    head, _, tail = key.partition(".")
    if head == "mia" and tail:
        return _membership(key, tail)
    if tail in MEASURES:
        label, definition = MEASURES[tail]
        better = LOWER if head == "forget" or head.startswith("wmdp") else HIGHER
        if tail in ("nll", "perplexity"):
            better = HIGHER if head == "forget" else LOWER
        if (head, tail) == ("forget", "truth_ratio"):
            better = AS_RETRAINED
        return Metric(key, f"{_words(head)} {label}", definition, better, label, _words(head))
    return Metric(key, _words(key), "", "")


def _membership(key: str, tail: str) -> Metric:
    attack, _, measure = tail.rpartition(".")
    if measure not in MEMBERSHIP:
        return Metric(key, f"membership: {_words(tail)}", "", "")
    label, definition, better = MEMBERSHIP[measure]
    name, score = ATTACKS.get(attack, (_words(attack), f"the score “{_words(attack)}”"))
    return Metric(key, f"{name} {label}", definition.format(score=score), better, f"{name} {label}")


def _words(key: str) -> str:
    return key.replace("_", " ").replace(".", " ")


def number(value: float | None, digits: int = 3) -> str:
    """A number for a person: `digits` decimals, fewer from 10 on, powers of ten where it would round to 0; – if None."""
    if value is None:
        return "–"
    size = abs(value)
    if 0 < size < 0.5 * 10**-digits:
        digits_of, _, power = f"{value:.0e}".partition("e")
        return f"{digits_of}e{int(power)}"
    if size >= 10:
        digits = 0 if size >= 100 else min(digits, 1)
    return f"{value:,.{digits}f}"


def short(value: float) -> str:
    """A share in running text: two decimals, with tiny ones said as "below 0.01" rather than rounded to 0."""
    return "below 0.01" if 0 < value < 0.005 else f"{value:.2f}"


def percent(value: float) -> str:
    """A ratio as whole per cent; "below 1 %" rather than 0 for a tiny one."""
    return "below 1\u00a0%" if 0 < value < 0.005 else f"{100 * value:.0f}\u00a0%"
