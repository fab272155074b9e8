"""Prefill: the answer's first words are put into the model's mouth, and it goes on."""

from dataclasses import dataclass, replace
from typing import ClassVar

from expunge import config
from expunge.config import Count, Positive
from expunge.data import Encoded
from expunge.data.encoding import spelling
from expunge.errors import ConfigurationError
from expunge.evaluation.attacks.prompts import answer_some
from expunge.evaluation.attacks.scene import Found, Scene
from expunge.evaluation.measure import Plan as SetPlan
from expunge.evaluation.metrics import words


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Give the first words of each answer (of running text, of what follows its prefix) and measure the rest.

    All measures are of what was not given, so a point says how much of the *remaining* answer comes out. An answer that
    has no more words than are given is left out of that point. The prefix injection of safety evaluations (e.g.
    arXiv 2404.02151) with the true answer's words. words: how many are given, one point each (ours);
    characters where a script does not separate words. seconds: budget a
    model; None: none.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ()

    words: tuple[Count, ...] = (1, 3, 5)
    seconds: Positive | None = None

    def __post_init__(self) -> None:
        config.check(self)
        if not self.words:
            raise ConfigurationError("prefill.words is empty: give at least one number of words.")

    def __call__(self, scene: Scene, found: Found) -> None:
        base = scene.untouched()["forget"]
        whole = scene.plan("forget", base.examples)
        found.add(0, "as it is", {"forget": base}, last=True)
        for number in self.words:
            given = [_given(scene, whole, row, number) for row in range(len(base.examples))]
            rows = [row for row, cut in enumerate(given) if cut is not None]
            if not rows:
                found.notes.append(f"no answer has more than {number} words: that point is left out")
                continue
            if len(rows) < len(given):
                found.notes.append(f"{len(given) - len(rows)} answers have no more than {number} words: left out there")
            plan = _shifted(scene, whole, {row: cut for row, cut in enumerate(given) if cut is not None})
            label = f"{number} word{'s' if number > 1 else ''} given"
            measured = answer_some(scene, base, plan, rows)
            found.add(number, label, {"forget": measured}, last=number == self.words[-1])


def _given(scene: Scene, plan: SetPlan, row: int, number: int) -> int | None:
    """How many tokens hold the first `number` words of what follows; None where no more words follow them."""
    item, begin = plan.responses[row], plan.begins[row]
    if begin is None:
        return None
    tokenizer = scene.encoder.tokenizer
    own = item.ids[begin : len(item) - item.ended]
    text = spelling(tokenizer, own)
    ends = words.ends(text)
    if len(ends) <= number:
        return None
    for count in range(1, len(own)):
        if len(spelling(tokenizer, own[:count])) >= ends[number - 1]:
            return count
    return None


def _shifted(scene: Scene, plan: SetPlan, given: dict[int, int]) -> SetPlan:
    """The plan of the rows in `given`, in which the model begins so many tokens later."""
    responses, begins, shown, examples = [], [], [], []
    for row, count in given.items():
        item, begin = plan.responses[row], plan.begins[row]
        assert begin is not None
        start = begin + count
        responses.append(Encoded(item.ids, start, ended=item.ended, cut=item.cut))
        begins.append(start)
        prefix = spelling(scene.encoder.tokenizer, item.ids[begin:start])
        rest = spelling(scene.encoder.tokenizer, item.ids[start : start + scene.max_new_tokens]).strip()
        shown.append((f"{plan.shown[row][0]} → {prefix.strip()}", rest))
        examples.append(plan.examples[row])
    return replace(
        plan, examples=examples, responses=responses, right=[], wrong=[], begins=begins, shown=shown
    )  # fmt: skip
