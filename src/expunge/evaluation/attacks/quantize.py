"""Quantize: weights rounded to 8 or 4 bits, as when a model is deployed on a smaller machine."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from expunge import config
from expunge.config import Count, Positive
from expunge.errors import ConfigurationError
from expunge.evaluation.attacks.rounding import SUPPORTED, Backend, Format, fake_quantize, installed, quantize
from expunge.evaluation.attacks.scene import Found, Scene
from expunge.evaluation.attacks.weights import kept, linear_weights, matching, merged
from expunge.models import Loaded


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Round the linear layers' weights to a format and back, and measure again (arXiv 2410.16454: 4 bits undo unlearning).

    Unlearning moves weights little; where a weight rounds to the same code as before, its change is gone. The static test
    says how often: `codes_changed`, of the weights that differ from the original's the share whose code differs from the
    original's too. It needs the original model.

    formats: one point each. group: entries that share a scale in int4 (128, torchao's and GPTQ's usual). block: in nf4 (64,
    QLoRA's); int8 has one scale a row. backends: the pure-torch quantizer, and torchao's and bitsandbytes' own where they
    are installed and know the format, as points of their own. The output layer and the embedding stay; an adapter is merged
    first. seconds: budget a model; None: none.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ()

    formats: tuple[Format, ...] = ("int8", "int4", "nf4")
    group: Count = 128
    block: Count = 64
    backends: tuple[Backend, ...] = ("torch", "torchao", "bitsandbytes")
    static: bool = True
    seconds: Positive | None = None

    def __post_init__(self) -> None:
        config.check(self)
        if not self.formats or not self.backends:
            raise ConfigurationError("quantize: give at least one of formats and one of backends.")
        if not any(installed(backend) for backend in self.backends):
            raise ConfigurationError(
                f"quantize.backends: {', '.join(self.backends)} is not installed; `torch` always is."
            )

    def __call__(self, scene: Scene, found: Found) -> None:
        found.add(0, "as it is", scene.untouched(), last=True)
        missing = [backend for backend in self.backends if not installed(backend)]
        if missing:
            found.notes.append(f"not installed, so not tried: {', '.join(missing)}")
        whole = merged(scene.loaded)
        original = merged(scene.original) if self.static and scene.original and scene.role != "original" else None
        if self.static and scene.original is None:
            found.notes.append("codes_changed is absent: the static test needs the original model (--original)")
        tries = [
            (form, backend)
            for form in self.formats
            for backend in self.backends
            if installed(backend) and form in SUPPORTED[backend]
        ]
        bits = {"int8": 8, "int4": 4, "nf4": 4}
        for form, backend in tries:
            further = self.codes_changed(whole, original, form) if original and backend == "torch" else {}
            with kept(whole.model):
                why = self._round(whole, form, backend)
                measured = {} if why else scene.measure(loaded=whole)
            if why:
                found.notes.append(why)
                continue
            label = form if backend == "torch" else f"{form} ({backend})"
            found.add(bits[form], label, measured, metrics=further, last=(form, backend) == tries[-1])

    def _round(self, whole: Loaded, form: Format, backend: Backend) -> str | None:
        """Round every linear layer's weights in place; or say why the backend cannot."""
        with torch.no_grad():
            for rows in linear_weights(whole.model).values():
                try:
                    rows.copy_(quantize(rows, form, backend, group=self._group(form)))
                except ConfigurationError as error:
                    return f"{form} ({backend}) is left out: {error}"
        return None

    def _group(self, form: Format) -> int:
        return self.block if form == "nf4" else self.group

    def codes_changed(self, one: Loaded, original: Loaded, form: Format) -> dict[str, float]:
        """Of the linear layers' weights: the share whose code changed among those that were edited; nothing if none was."""
        matching(one, original)
        before = linear_weights(original.model)
        edited = changed = 0
        for name, rows in linear_weights(one.model).items():
            old = before[name].to(rows.device)
            differ = rows != old
            codes = [fake_quantize(each, form, group=self._group(form)).codes for each in (rows, old)]
            edited += int(differ.sum())
            changed += int((differ & (codes[0] != codes[1])).sum())
        return {"codes_changed": changed / edited} if edited else {}
