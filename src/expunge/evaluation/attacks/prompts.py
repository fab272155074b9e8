"""What attacks by prompt share: the same questions put in other ways, one point a way, and the worst of all of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from expunge.errors import ConfigurationError
from expunge.evaluation.attacks.scene import KEPT, Found, Scene
from expunge.evaluation.measure import Measured
from expunge.evaluation.measure import Plan as SetPlan
from expunge.evaluation.metrics.languages import language
from expunge.request import Example

Way = Callable[[Example], Example | None]  # the example as it is put this way; None: it cannot be


def framed(template: str) -> Way:
    """The way that sets the example's prompt into a template in the place of "{prompt}"."""
    return lambda example: replace(example, prompt=template.replace("{prompt}", example.prompt))


def check_templates(templates: Sequence[str], who: str) -> None:
    """Raise ConfigurationError unless there is a template and each has a place for the prompt."""
    if not templates:
        raise ConfigurationError(f"{who} needs at least one template.")
    for template in templates:
        if "{prompt}" not in template:
            raise ConfigurationError(
                f'{who}: the template {template!r} has no place for the question: write "{{prompt}}".'
            )


def note_foreign(scene: Scene, found: Found, templates: Sequence[str], known: Iterable[str]) -> None:
    """Note how many forget examples are in another language than this attack's own English templates around them."""
    asked = [example for example in scene.sets["forget"] if not example.is_text]
    other = sum(language(f"{example.prompt} {example.response}") != "en" for example in asked)
    if other and set(templates) & set(known):
        found.notes.append(
            f"{other} of {len(asked)} forget examples are not in English, and the templates are: such an attack is weaker. "
            "Give templates in their language"
        )


def ask(scene: Scene, found: Found, ways: Mapping[str, Way]) -> None:
    """A point for the forget set as it is, one for every way, and one for the strongest of all, example by example.

    Running text has no prompt that could be put in another way; it is left out, and said so.
    """
    base = with_prompts(scene, found)
    found.add(0, "as it is", {"forget": base}, last=True)
    tried = [base]
    for number, (label, way) in enumerate(ways.items(), start=1):
        put = [way(example) for example in base.examples]
        fitting = [example if example and scene.encoder.fits(example) else None for example in put]
        if (long := sum(map(bool, put)) - sum(map(bool, fitting))) > 0:
            found.notes.append(
                f"{label}: {long} of {len(put)} prompts have more than {scene.encoder.max_length} tokens: left out"
            )
        put = fitting
        rows = [index for index, example in enumerate(put) if example is not None]
        if not rows:
            continue
        if len(rows) < len(put):
            found.notes.append(f"{label}: asked of {len(rows)} of {len(put)} forget examples")
        plan = scene.plan("forget", [example for example in put if example is not None])
        measured = answer_some(scene, base, plan, rows, [base.examples[index].prompt for index in rows])
        tried.append(measured)
        found.add(number, label, {"forget": measured}, last=number == len(ways))
    if len(tried) > 2:
        found.add(len(ways) + 1, f"the strongest of {len(tried)}", {"forget": strongest(tried)}, last=True)


def with_prompts(scene: Scene, found: Found) -> Measured:
    """The forget examples that have a prompt, as the model answers them before the attack."""
    base = scene.untouched()["forget"]
    asked = [example for example in base.examples if example.prompt]
    if len(asked) == len(base.examples):
        return base
    left = len(base.examples) - len(asked)
    found.notes.append(f"{left} of {len(base.examples)} forget examples have no prompt: left out")
    return scene.measure({"forget": asked})["forget"]


def answer_some(
    scene: Scene, base: Measured, plan: SetPlan, rows: Sequence[int], asked: Sequence[str] | None = None
) -> Measured:
    """The plan's answers as a measure of all examples of `base`: `rows` says which they are, the others have none."""
    own = scene.answer([plan], asked=None if asked is None else {"forget": asked})["forget"]
    columns = {}
    for name in KEPT:
        if name in own.columns:
            columns[name] = np.full(len(base.examples), np.nan)
            columns[name][list(rows)] = own.columns[name]
    generations: list[str | None] = [None] * len(base.examples)
    shown = list(base.shown)
    for place, row in enumerate(rows):
        generations[row], shown[row] = own.generations[place], own.shown[place]
    return replace(base, columns=columns, generations=generations, shown=shown)


def strongest(tried: Sequence[Measured]) -> Measured:
    """Each example's highest value of every measure, whichever way drew it out; the answer is that of highest ROUGE-L."""
    base = tried[0]
    columns = {
        name: np.fmax.reduce([measured.columns[name] for measured in tried if name in measured.columns])
        for name in KEPT
        if name in base.columns
    }
    rouge = np.stack([np.nan_to_num(measured.columns.get("rouge_l", np.zeros(1)), nan=-1.0) for measured in tried])
    best = np.broadcast_to(rouge, (len(tried), len(base.examples))).argmax(0)
    generations = [tried[way].generations[row] for row, way in enumerate(best.tolist())]
    shown = [tried[way].shown[row] for row, way in enumerate(best.tolist())]
    return replace(base, columns=columns, generations=generations, shown=shown)
