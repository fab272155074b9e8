"""Random: which weights are trained is left to chance."""

import zlib
from dataclasses import dataclass

import torch

from expunge.attribution.contract import Attribution, Scores, View


@dataclass(frozen=True, kw_only=True)
class Random(Attribution):
    """Uniform scores drawn by the view's seed and the parameter's name: the baseline any attribution must beat."""

    def scores(self, view: View) -> Scores:
        def drawn(name: str) -> torch.Tensor:
            generator = torch.Generator().manual_seed(view.seed * 0x1_0000_0001 + zlib.crc32(name.encode()))
            return torch.rand(view.params[name].shape, generator=generator)

        return drawn
