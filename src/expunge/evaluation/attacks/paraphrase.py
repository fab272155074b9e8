"""Paraphrase: the same question in other words."""

from dataclasses import dataclass, replace
from typing import ClassVar

from expunge import config
from expunge.config import Positive
from expunge.evaluation.attacks.prompts import Way, ask, check_templates, framed, note_foreign
from expunge.evaluation.attacks.scene import Found, Scene
from expunge.request import Example

TEMPLATES = (
    "Could you please tell me: {prompt}",
    "I have been wondering about something. {prompt}",
    "{prompt} Please answer in one full sentence.",
    "Answer the following question as well as you can.\n\n{prompt}",
    'Someone asked me this today: "{prompt}" What should I reply?',
)


@dataclass(frozen=True, kw_only=True)
class Paraphrase:
    """Put each forget question in other words: as the data paraphrases it, and within templates.

    The examples' own `paraphrased_prompt` is the stronger test where there is one: the templates, ours, leave the question
    itself as it was written. templates: each with "{prompt}". seconds: budget a model; None: none.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("prompt",)

    templates: tuple[str, ...] = TEMPLATES
    seconds: Positive | None = None

    def __post_init__(self) -> None:
        config.check(self)
        check_templates(self.templates, "paraphrase")

    def __call__(self, scene: Scene, found: Found) -> None:
        note_foreign(scene, found, self.templates, TEMPLATES)
        ways: dict[str, Way] = {"the data's paraphrase": _given}
        ask(scene, found, ways | {_short(template): framed(template) for template in self.templates})


def _given(example: Example) -> Example | None:
    return None if example.paraphrased_prompt is None else replace(example, prompt=example.paraphrased_prompt)


def _short(template: str) -> str:
    return " ".join(template.replace("{prompt}", "…").split())
