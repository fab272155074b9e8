"""Prune: the smallest weights become 0, as when a model is made smaller."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expunge import config
from expunge.config import Positive
from expunge.errors import ConfigurationError
from expunge.evaluation.attacks.scene import Found, Scene
from expunge.evaluation.attacks.weights import kept, linear_weights, merged

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Set the ⌊share · N⌋ weights of smallest |w| of each of the linear layers' matrices to 0, without further training.

    The layer-wise magnitude pruning that Wanda compares with (arXiv 2306.11695); the output layer stays. An adapter is
    merged first. shares: one point each, each from the whole model (ours). seconds: budget a model; None: none.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ()

    shares: tuple[Share, ...] = (0.1, 0.2, 0.3, 0.5)
    seconds: Positive | None = None

    def __post_init__(self) -> None:
        config.check(self)
        if not self.shares:
            raise ConfigurationError("prune.shares is empty: give at least one share of the weights.")

    def __call__(self, scene: Scene, found: Found) -> None:
        found.add(0, "as it is", scene.untouched(), last=True)
        whole = merged(scene.loaded)
        for share in self.shares:
            with kept(whole.model), torch.no_grad():
                for weight in linear_weights(whole.model).values():
                    weight.copy_(pruned(weight, share))
                measured = scene.measure(loaded=whole)
            found.add(share, f"{share:.0%} pruned", measured, last=share == self.shares[-1])


def pruned(weight: Tensor, share: float) -> Tensor:
    """The weight with its ⌊share · N⌋ entries of smallest magnitude set to 0; of equal ones the first."""
    count = int(share * weight.numel() + 1e-9)
    order = weight.detach().abs().flatten().sort(stable=True).indices
    result = weight.detach().clone().flatten()
    result[order[:count]] = 0
    return result.view_as(weight)
