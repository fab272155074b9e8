"""Relearn: a little training on some text, and what was suppressed may come back as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from expunge import config
from expunge.config import Count, NonNegative, Positive
from expunge.data.turns import units
from expunge.errors import ConfigurationError
from expunge.evaluation.attacks.facts import FACTS
from expunge.evaluation.attacks.scene import Found, Scene, SpentError, bare
from expunge.evaluation.attacks.weights import kept
from expunge.evaluation.measure import Measured
from expunge.request import Example, read_examples
from expunge.training import Constant, Finetuning

AT = (0, 1, 10, 50, 100, 500, 1000)
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Relearn:
    """Fine-tune on `on` and measure the forget set along the way (targeted relearning, arXiv 2406.13356).

    on "forget": a `share` of the forget set; only the rest of it is measured, since what is trained on is no evidence.
    Examples of one subject stay on one side. "related": the file `data`, of text on the same topics that does not hold the
    forgotten answers. "retain": the retain set. "unrelated": the file `data`, or some common facts of our own. A model that
    truly lacks the content needs as many steps as the retrained control; a curve that rises before the control's says that
    it was hidden.

    steps: how many in all; the curve has points at 0, 1, 10, 50, 100, 500 and 1000 of them (`at`) and at the last. lr 1e-4
    constant, AdamW without decay, batch 16: ours, an attacker chooses freely. seconds (600): budget a model; what is
    reached then is the last point. Weights are trained as `expunge finetune` trains them: of an adapter, the adapter.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ()

    on: Literal["forget", "related", "retain", "unrelated"] = "forget"
    steps: Count = 1000
    at: tuple[Annotated[int, Field(ge=0)], ...] = AT
    share: Share = 0.5
    data: str | tuple[str, ...] | None = None
    lr: Positive = 1e-4
    batch_size: Count = 16
    weight_decay: NonNegative = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    seed: int = 0
    seconds: Positive | None = 600.0

    def __post_init__(self) -> None:
        config.check(self)
        if self.on == "related" and self.data is None:
            raise ConfigurationError(
                "relearn.on = related trains on text on the same topics that does not hold the forgotten answers, which "
                "only you can choose: give its file with --set relearn.data=FILE."
            )

    def __call__(self, scene: Scene, found: Found) -> None:
        learned, tested = self._material(scene, found)
        sets = dict(scene.sets) | {"forget": tested}
        whole = len(tested) == len(scene.sets["forget"])
        start = scene.untouched() if whole else {**scene.untouched(), **scene.measure({"forget": tested})}
        found.add(0, "0 steps", start, last=True)
        wanted = {step for step in self.at if step <= self.steps} | {self.steps}

        def told(entry: dict[str, Any], steps: int) -> None:
            done = entry["step"] + 1
            if scene.step is not None:
                scene.step(entry, steps)
            spent = self.seconds is not None and found.spent > self.seconds
            if done in wanted or spent:
                self._point(scene, found, sets, done)
            if spent and done < steps:
                found.notes.append(f"the budget of {self.seconds:g} s was used up after {done} of {steps} steps")
                raise SpentError

        recipe = Finetuning(
            rate=Constant(), optimizer=self.optimizer, lr=self.lr, steps=self.steps, batch_size=self.batch_size,
            weight_decay=self.weight_decay, checkpoint_every=0, seed=self.seed,
        )  # fmt: skip
        with kept(scene.loaded.model):
            history = recipe(scene.loaded, learned, scene.encoder, progress=told)
        found.notes.extend(history.notes)

    def _point(self, scene: Scene, found: Found, sets: dict[str, tuple[Example, ...]], done: int) -> None:
        measured: dict[str, Measured] = scene.measure(sets)
        found.add(done, f"{done} step{'s' if done > 1 else ''}", measured, last=True)

    def _material(self, scene: Scene, found: Found) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """What is trained on, and the forget examples that are measured."""
        tested = scene.sets["forget"]
        if self.on == "forget":
            return self._split(scene, found)
        if self.data is not None:
            learned = bare(self.on, units(read_examples(self.data), scene.encoder.wording.targets))
            known = {example.key for example in scene.known["forget"]}
            shared = sum(example.key in known for example in learned)
            if shared:
                raise ConfigurationError(
                    f"{self.data}: {shared} examples stand in the forget set. Take them out, or use relearn.on=forget, "
                    "which measures only what it does not train on."
                )
            return learned, tested
        if self.on == "unrelated":
            return FACTS, tested
        if not scene.known.get("retain"):
            raise ConfigurationError("relearn.on = retain trains on the retain set: give --retain.")
        return scene.known["retain"], tested

    def _split(self, scene: Scene, found: Found) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """A share of the subjects of all forget examples to train on, and the measured examples of the others."""
        everything = scene.known["forget"]
        learned = self._drawn(everything)
        keys = {example.key for example in learned}
        tested = tuple(example for example in scene.sets["forget"] if example.key not in keys)
        if self.share == 1 or not tested:
            found.notes.append(
                "all forget examples are trained on and measured: this shows how fast they are learned, no more"
            )
            return everything, scene.sets["forget"]
        found.notes.append(
            f"trained on {len(learned)} of {len(everything)} forget examples, measured on {len(tested)} others"
        )
        return learned, tested

    def _drawn(self, examples: Sequence[Example]) -> tuple[Example, ...]:
        """The `share` of the examples to train on, drawn by the seed; a subject's together where there are several."""
        by_subject = len({example.subject for example in examples}) > 1
        names = [example.subject if by_subject else example.id for example in examples]
        groups = sorted(set(names))
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(self.seed)).tolist()
        count = min(max(1, round(self.share * len(groups))), len(groups))
        chosen = {groups[index] for index in order[:count]}
        return tuple(example for example, name in zip(examples, names, strict=True) if name in chosen)
