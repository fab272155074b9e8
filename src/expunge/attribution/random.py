"""Random: which weights are trained is left to chance."""

import hashlib
from dataclasses import dataclass

import torch

from expunge.attribution.contract import Attribution, Scores, View


@dataclass(frozen=True, kw_only=True)
class Random(Attribution):
    """Uniform scores drawn by the view's seed and the parameter's name: the baseline any attribution must beat."""

    def scores(self, view: View) -> Scores:
        def drawn(name: str) -> torch.Tensor:
            digest = hashlib.sha256(f"{view.seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:4]))
            return torch.rand(view.params[name].shape, generator=generator)

        return drawn
