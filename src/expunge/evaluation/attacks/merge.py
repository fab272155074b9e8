"""Merge: a little of the original model is mixed back in, as model merging does."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from expunge import config
from expunge.config import Positive
from expunge.errors import ConfigurationError
from expunge.evaluation.attacks.scene import Found, Scene
from expunge.evaluation.attacks.weights import kept, matching, merged

Weight = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Merge:
    """θ + w (θ_original − θ): how little of the original is enough for the forgotten content to come back.

    The linear interpolation of model merging (Model soups, arXiv 2203.05482). The retrained model is the control: mixing
    the original into it also brings the content back at some w. An adapter is merged into its base first. weights: the w,
    one point each; 1 is the original itself. seconds: budget a model; None: none.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("original",)

    weights: tuple[Weight, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    seconds: Positive | None = None

    def __post_init__(self) -> None:
        config.check(self)
        if not self.weights:
            raise ConfigurationError("merge.weights is empty: give at least one weight of the original.")

    def __call__(self, scene: Scene, found: Found) -> None:
        found.add(0, "as it is", scene.untouched(), last=True)
        if scene.role == "original" or scene.original is None:
            found.notes.append("this is the original model: merging it with itself changes nothing")
            return
        whole = merged(scene.loaded)
        params, target = matching(whole, merged(scene.original))
        start = {name: param.detach().clone() for name, param in params.items()}
        for weight in self.weights:
            with kept(whole.model), torch.no_grad():
                for name, param in params.items():
                    end = target[name].detach().to(param.device).float()
                    param.copy_(torch.lerp(start[name].float(), end, weight))
                measured = scene.measure(loaded=whole)
            found.add(weight, f"w = {weight:g}", measured, last=weight == self.weights[-1])
