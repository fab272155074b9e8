"""The last check before a trained model is written: it must still give answers."""

import math
from collections.abc import Sequence

from expunge.data import Encoder
from expunge.errors import DivergedError
from expunge.methods.descent import mean_nll
from expunge.models import Loaded
from expunge.models.finite import broken
from expunge.request import Example

LOOKS = 8  # examples of each set; an overflow in the weights shows on any of them


def check_outcome(loaded: Loaded, sets: Sequence[Sequence[Example]], encoder: Encoder, who: str) -> None:
    """Raise DivergedError if `who` left a weight that is not finite, or a model whose loss (NLL) is not.

    sets: of the examples, the first `LOOKS` of each are scored.
    """
    name = broken(loaded.model)
    if name is not None:
        raise DivergedError(
            f"{who} left NaN, infinite or overflowing values in {name}. Nothing was written. Try a smaller lr."
        )
    examples = tuple(example for rows in sets for example in rows[:LOOKS])
    if examples and not math.isfinite(nll := mean_nll(loaded, examples, encoder, LOOKS)):
        raise DivergedError(
            f"{who} left a model that gives no answers: its loss on the examples is {nll}. Nothing was written. Try a "
            "smaller lr."
        )
