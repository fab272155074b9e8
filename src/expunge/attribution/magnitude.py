"""Magnitude: the largest weights."""

from dataclasses import dataclass

from expunge.attribution.contract import Attribution, Scores, View


@dataclass(frozen=True, kw_only=True)
class Magnitude(Attribution):
    """|θ_i|: blind to the data; a baseline (as in magnitude pruning, Han et al., arXiv 1506.02626)."""

    def scores(self, view: View) -> Scores:
        return lambda name: view.params[name].detach().float().abs()
