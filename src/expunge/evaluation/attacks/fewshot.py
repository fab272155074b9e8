"""Few-shot: solved examples before the question show the model the form in which answers are given."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from expunge import config
from expunge.config import Count, Positive
from expunge.data import Encoder
from expunge.errors import ConfigurationError
from expunge.evaluation.attacks.prompts import Way, ask
from expunge.evaluation.attacks.scene import Found, Scene
from expunge.request import Example


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Put solved questions of the retain set before each forget question, the same ones before all of them.

    In-context examples can bring back a behaviour that training suppressed (eight methods to evaluate robust unlearning,
    arXiv 2402.16835, probe with them). shots: numbers of solved examples, one point each (ours). seed: which are drawn;
    those of a smaller number are among those of a larger one. seconds: budget a model; None: none.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("prompt", "retain")

    shots: tuple[Count, ...] = (2, 5)
    seed: int = 0
    seconds: Positive | None = None

    def __post_init__(self) -> None:
        config.check(self)
        if not self.shots:
            raise ConfigurationError("fewshot.shots is empty: give at least one number of solved examples.")

    def __call__(self, scene: Scene, found: Found) -> None:
        solved = [example for example in scene.known["retain"] if example.prompt]
        if len(solved) < max(self.shots):
            raise ConfigurationError(
                f"fewshot.shots asks for {max(self.shots)} solved questions; the retain set has {len(solved)}. "
                "Ask for fewer, or give a larger --retain."
            )
        order = torch.randperm(len(solved), generator=torch.Generator().manual_seed(self.seed)).tolist()
        drawn = [solved[index] for index in order[: max(self.shots)]]
        asked = [example for example in scene.sets["forget"] if example.prompt]
        for count in self.shots:
            fewer = sum(_fitting(example, drawn[:count], scene.encoder) < count for example in asked)
            if fewer:
                found.notes.append(
                    f"{count} shots: {fewer} of {len(asked)} prompts have room for fewer solved questions in "
                    f"{scene.encoder.max_length} tokens and are given as many as fit; raise --max-length for all"
                )
        ask(scene, found, {f"{count} shots": _after(drawn[:count], scene.encoder) for count in self.shots})


def _after(solved: Sequence[Example], encoder: Encoder) -> Way:
    return lambda example: _with(example, solved[: _fitting(example, solved, encoder)])


def _fitting(example: Example, solved: Sequence[Example], encoder: Encoder) -> int:
    """How many of the solved questions, the first ones, fit before the example's own."""
    numbers = range(len(solved), 0, -1)
    return next((number for number in numbers if encoder.fits(_with(example, solved[:number]))), 0)


def _with(example: Example, solved: Sequence[Example]) -> Example:
    turns = tuple(turn for one in solved for turn in (("user", one.prompt), ("assistant", one.response)))
    first = next((place for place, (role, _) in enumerate(example.context) if role != "system"), len(example.context))
    return replace(example, context=(*example.context[:first], *turns, *example.context[first:]))
