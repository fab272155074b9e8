"""Corrections: is the old answer gone, and is the new one given?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.evaluation.metrics.leakage import holds, key_words

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Corrected:
    """Of n corrected or rewritten examples, [n] booleans each: the old answer is gone, the new one is given."""

    old_gone: np.ndarray
    new_given: np.ndarray

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """made: both. [n] zeros and ones each."""
        made = self.old_gone & self.new_given
        return {
            "made": made.astype(np.float64),
            "old_gone": self.old_gone.astype(np.float64),
            "new_given": self.new_given.astype(np.float64),
        }


def corrected(forget: Sequence[Row], replacement: Sequence[Row]) -> Corrected | None:
    """Judge each forget row that something new takes the place of; None where there is none whose answers were written.

    A forget row names in `new` the prompt and response that replace it, as the row of `replacement` has them. The old
    answer is gone if what is written after the old prompt lacks one of its key words that the new answer does not have;
    the new one is given if what is written after the new prompt holds all of its key words. A rewritten example keeps its
    answer, which must no longer come after the old prompt. Source: ours.
    """
    asked = {(row["prompt"], row["response"]): row for row in replacement}
    gone, given = [], []
    for old in forget:
        prompt, response = old.get("new") or (None, None)
        new = asked.get((prompt, response))
        if new is None or old.get("generation") is None or new.get("generation") is None:
            continue
        before, after = key_words(old["prompt"], old["response"]), key_words(new["prompt"], new["response"])
        lost = before - after if old["prompt"] == new["prompt"] and before - after else before
        gone.append(len(holds(old["generation"], lost)) < len(lost))
        given.append(len(holds(new["generation"], after)) == len(after))
    return Corrected(np.array(gone), np.array(given)) if gone else None
