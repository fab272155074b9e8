"""Attacks: ways to draw forgotten content out of a model again, each run alike on the unlearned model and its controls.

An attack is a frozen dataclass in a file of its own: its fields are its settings, with their defaults and sources, and
called with a `Scene` (one model and what it is asked) and a `Found` it adds points to, the first of them the model before
it. `NEEDS` names what it cannot do without: forget examples with a "prompt", a "retain" set, the "original" model. The
model's weights are afterwards what they were, bit for bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from expunge import config
from expunge.config import canonical, lookup
from expunge.errors import ConfigurationError, DivergedError
from expunge.evaluation.attacks.fewshot import FewShot
from expunge.evaluation.attacks.jailbreak import Jailbreak
from expunge.evaluation.attacks.merge import Merge
from expunge.evaluation.attacks.paraphrase import Paraphrase
from expunge.evaluation.attacks.prefill import Prefill
from expunge.evaluation.attacks.prune import Prune
from expunge.evaluation.attacks.quantize import Quantize
from expunge.evaluation.attacks.relearn import Relearn
from expunge.evaluation.attacks.sample import Sample
from expunge.evaluation.attacks.scene import Found, Scene, SpentError, bare
from expunge.evaluation.attacks.translate import Translate
from expunge.request import Example

Attack = Callable[[Scene, Found], None]
ATTACKS: dict[str, type] = config.table(
    {
        "relearn": Relearn,
        "quantize": Quantize,
        "sample": Sample,
        "prefill": Prefill,
        "paraphrase": Paraphrase,
        "fewshot": FewShot,
        "jailbreak": Jailbreak,
        "translate": Translate,
        "prune": Prune,
        "merge": Merge,
    }
)
WITHOUT = {
    "prompt": "needs questions, and the forget set is running text: attack it by relearn, quantize, sample, prefill, "
    "prune or merge, or give questions about it",
    "retain": "needs solved examples of a retain set: give --retain",
    "original": "needs the model before unlearning: give --original",
}
__all__ = ["ATTACKS", "Attack", "Found", "Scene", "attacks", "bare", "lacks", "run"]


def attacks(kinds: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The attacks of these kinds ("all": every one), with settings "<kind>.<setting>": value.

    Raises ConfigurationError, naming the nearest, for an unknown kind or setting, and for settings of kinds not asked for.
    """
    named = [canonical(kind.strip()) for kind in kinds if kind.strip()]
    if not named:
        raise ConfigurationError(f"Name at least one attack: {', '.join(ATTACKS)}, or all.")
    if "all" in named:
        named = list(ATTACKS)
    chosen = {kind: lookup(ATTACKS, kind, "attack") for kind in dict.fromkeys(named)}
    own: dict[str, dict[str, Any]] = {kind: {} for kind in chosen}
    for key, value in settings.items():
        kind, dot, setting = key.partition(".")
        if not dot:
            raise ConfigurationError(f"--set {key}: say of which attack, as in --set {next(iter(chosen))}.{key}=...")
        lookup(ATTACKS, kind, "attack")
        if canonical(kind) not in own:
            raise ConfigurationError(
                f"--set {key}: the attack {kind} is not among those asked for ({', '.join(chosen)})."
            )
        own[canonical(kind)][setting] = _tuple(value)
    return {kind: config.build(cls, own[kind]) for kind, cls in chosen.items()}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def lacks(attack: Any, forget: Sequence[Example], *, retain: bool, original: bool) -> str | None:
    """What keeps an attack from being run on this, as the end of a sentence; None if nothing does."""
    there = {"prompt": any(example.prompt for example in forget), "retain": retain, "original": original}
    return next((WITHOUT[need] for need in attack.NEEDS if not there[need]), None)


def run(kind: str, attack: Any, scene: Scene) -> dict[str, Any]:
    """Run one attack on one model: {"kind", "settings", "points", "seconds", "notes", "examples"}.

    An attack that runs out of its budget, or whose training diverges, keeps the points it reached, and says so.
    """
    found = Found(attack.seconds)
    try:
        with suppress(SpentError):
            attack(scene, found)
    except DivergedError as error:
        found.notes.append(f"stopped: {error}")
    return {
        "kind": kind,
        "settings": config.to_dict(attack),
        "points": found.points,
        "seconds": round(found.spent, 3),
        "notes": found.notes,
        "examples": found.examples(),
    }
