"""PerTA: task arithmetic, rescaled parameter by parameter by importance for forgetting against retaining."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field

from expunge.attribution import Importance, View
from expunge.attribution.insight import describe
from expunge.config import NonNegative
from expunge.errors import ConfigurationError, RequestError
from expunge.methods.contract import Context
from expunge.methods.task_vector import TaskVector
from expunge.models import Loaded
from expunge.models.mask import Mask
from expunge.models.weights import Weights, holding
from expunge.request import Request
from expunge.training import History


@dataclass(frozen=True, kw_only=True)
class PerTA(TaskVector):
    """θ_u = θ_full − α w ⊙ τ, w_i = a_f^p / (a_f^p + ρ a_r^p) (arXiv 2601.22030), a the size of the mean NLL gradient.

    p = 1 is PerTA-grad (|ḡ|), p = 2 PerTA-fisher (ḡ²); τ, θ_0 and α as in `taskvector`. See `attribution.Importance` for
    rho, fisher, debias, retain_fraction, hard and shuffle.

    at: where the gradients are taken, at θ_0 ("base", the paper's default) or at θ_full ("full"; the paper reports a
    negligible difference). At a LoRA adapter with B = 0 the gradient of A is 0, so A stays as it is.

    Raises RequestError without a retain set.
    """

    p: Annotated[float, Field(ge=0)] = 1.0
    rho: NonNegative = 1.0
    fisher: Literal["mean", "per_example"] = "mean"
    debias: bool = False
    retain_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    hard: bool = False
    shuffle: bool = False
    at: Literal["base", "full"] = "base"

    def check(self, request: Request, *, adapter: bool | None) -> None:
        """As of `TaskVector`; the retain set is always needed."""
        super().check(request, adapter=adapter)
        if not (request.replacements or request.retain):
            raise RequestError("perta weighs forgetting against retaining, and the retain set is empty: give --retain.")

    def weights(
        self, loaded: Loaded, models: Mapping[str, Weights], request: Request, context: Context, history: History
    ) -> Weights:
        """w, from the forget and retain gradients at θ_0 or θ_full."""
        importance = self.importance
        kept = max(1, round(self.retain_fraction * len(request.retain)))
        view = View(loaded, request, context.encoder, batch_size=self.batch_size, seed=self.seed)
        with holding(loaded, models[self.at]):
            forget = view.moments("forget", squares=importance.needs_squares)
            retain = view.moments("retain", kept, squares=importance.needs_squares)
        found = importance.weights(forget, retain, self.seed)
        history.found["attribution"] = describe(Mask.of(found))
        mean = sum(float(w.double().sum()) for w in found.values()) / sum(w.numel() for w in found.values())
        history.notes.append(f"mean weight {mean:.3f} over {forget.count} forget and {retain.count} retain examples")
        if not self.debias and forget.count != retain.count and self.fisher == "mean":
            history.notes.append(
                "unequal counts by themselves move w towards the smaller set; debias=true takes that out"
            )
        return found

    @property
    def importance(self) -> Importance:
        """The settings that decide w."""
        return Importance(**{item.name: getattr(self, item.name) for item in fields(Importance)})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance.p == 0 and self.hard:
            raise ConfigurationError("PerTA: with p = 0 every weight is the same; hard=true would keep all or none.")
