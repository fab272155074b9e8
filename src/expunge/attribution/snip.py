"""SNIP: weights by how much the forget loss would change without them."""

from dataclasses import dataclass

from expunge.attribution.contract import Attribution, Scores, View


@dataclass(frozen=True, kw_only=True)
class SNIP(Attribution):
    """|θ_i ḡ_f,i|: connection sensitivity (arXiv 1810.02340, eq. 5) of the forget loss; WAGLE's limit for γ → ∞."""

    def scores(self, view: View) -> Scores:
        forget = view.gradient("forget")
        return lambda name: (view.params[name].detach().float() * forget[name]).abs()
