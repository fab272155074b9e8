"""SalUn: weights by their forget gradient."""

from dataclasses import dataclass

from expunge.attribution.contract import Attribution, Scores, View


@dataclass(frozen=True, kw_only=True)
class SalUn(Attribution):
    """|ḡ_f,i|: gradient-based weight saliency (arXiv 2310.12508, eq. 3), ḡ_f the mean gradient of the forget loss."""

    def scores(self, view: View) -> Scores:
        forget = view.gradient("forget")
        return lambda name: forget[name].abs()
