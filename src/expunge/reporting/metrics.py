"""What each shown number means, in one sentence, and which way is better."""

import re
from dataclasses import dataclass

from expunge.evaluation.metrics import METRICS
from expunge.evaluation.metrics.suite_table import SCORES

LOWER = "lower is better"
HIGHER = "higher is better"
AS_RETRAINED = "best where the retrained model's is"
ARROWS = {LOWER: "↓", HIGHER: "↑", AS_RETRAINED: "→"}
WORDS = {arrow: words for words, arrow in ARROWS.items()}
NEW_ATTACK = "loss"  # the attack whose words stand for those of one this version does not know


@dataclass(frozen=True)
class Metric:
    """A metric key such as `forget.rouge_l`: its name in words, its definition in one sentence, which way is better.

    `measure` is the name without the set it was measured `on` ("" for a suite-level number). `better` is LOWER,
    HIGHER, AS_RETRAINED or "" (neither, or not known). Everything but the set's name is from the table METRICS.
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


def describe(key: str) -> Metric:
    """The metric of a key: `<set>.<measure>`, `mia.<attack>.<measure>` or a suite-level name.

    A key not known here keeps its own words as label, with no definition and no direction.
    """
    known = METRICS.get(key)
    if known is not None and not known.on_sets:
        return Metric(key, known.label, known.definition, WORDS.get(known.better, ""), known.label)
    head, _, tail = key.partition(".")
    if head == "mia" and tail:
        return _membership(key, tail)
    if tail in METRICS:
        found = METRICS[tail]
        better = WORDS.get(found.direction(head == "forget" or head.startswith(("wmdp", "request_"))), "")
        return Metric(key, f"{_words(head)} {found.label}", found.definition, better, found.label, _words(head))
    return Metric(key, _words(key), "", "")


def label_of(measure: str) -> str:
    """A measure's name in words; of one not known here, its own."""
    return METRICS[measure].label if measure in METRICS else _words(measure)


def _membership(key: str, tail: str) -> Metric:
    """An attack the table does not know: what its measure says of the loss, with the attack's own name in place of it."""
    attack, _, measure = tail.rpartition(".")
    like = METRICS.get(f"mia.{NEW_ATTACK}.{measure}")
    if like is None:
        return Metric(key, f"membership: {_words(tail)}", "", "")
    label = f"{_words(attack)} {like.label.removeprefix(SCORES[NEW_ATTACK][0]).strip()}"
    definition = like.definition.replace(SCORES[NEW_ATTACK][1], f"the score “{_words(attack)}”")
    return Metric(key, label, definition, WORDS.get(like.better, ""), label)


KEY = re.compile(r"\b[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*\b")


def worded(text: str) -> str:
    """A sentence with the labels of metrics in place of their keys: `retain.rouge_l` becomes "retain ROUGE-L"."""
    return KEY.sub(lambda match: _worded_key(match.group()), text)


def _worded_key(word: str) -> str:
    if "_" not in word and "." not in word and word != "uds":
        return word
    metric = describe(word)
    if metric.definition:
        return metric.label
    attack = word.removeprefix("mia.")
    return f"the {_words(attack)} membership test" if attack != word and "." not in attack else word


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
