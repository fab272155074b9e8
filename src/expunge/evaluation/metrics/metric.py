"""What is known of one metric."""

from dataclasses import dataclass

LOWER, HIGHER, AS_RETRAINED, NEITHER = "↓", "↑", "→", ""


@dataclass(frozen=True)
class Metric:
    """One metric.

    name: the part of a result's key after the set ("extraction_strength" of "forget.extraction_strength"), or the whole
    key of a suite-level number. label: its name in words. formula: in symbols, l being the mean negative log-likelihood
    per token. definition: one or two sentences for a person. better: LOWER, HIGHER, AS_RETRAINED (best where the
    retrained model's is) or NEITHER, on what must be forgotten or of the suite as a whole. kept: the same on sets that
    must stay; "" where it is as `better`. source: the paper. needs: what must be given for it to be there. on_sets:
    whether each set has its own.
    """

    name: str
    label: str
    formula: str
    definition: str
    better: str
    kept: str = ""
    source: str = ""
    needs: str = "nothing else"
    on_sets: bool = True

    def direction(self, forget: bool) -> str:
        """Which way is better on a set to forget (`forget`), or on one to keep."""
        return self.better if forget or not self.kept else self.kept
