"""WAGLE: weights that matter for forgetting, corrected for what they matter for retaining."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from expunge.attribution.contract import Attribution, Scores, View
from expunge.errors import ConfigurationError
from expunge.gradients import global_norm

# The paper's γ by task (arXiv 2410.17509, appendix on implementation); its release uses them with sums of gradients.
PRESETS = {"tofu": 1e-6, "wmdp": 1e-6, "whp": 1e4, "detox": 1e6}


@dataclass(frozen=True, kw_only=True)
class Wagle(Attribution):
    """S_i = (θ_i − ḡ_r,i/γ) · ḡ_f,i; the weights with the largest |S_i| are trained (arXiv 2410.17509, NeurIPS 2024).

    S_i is how much the forget loss changes if weight i is scaled while the others are re-fitted to the retain data,
    whose Hessian is taken as γ I. ḡ_f: gradient of the forget loss in use, at the original model; ḡ_r: of the retain
    NLL on as many random retain examples as there are forget examples. γ → ∞ gives SNIP |θ ḡ_f|, γ → 0 |ḡ_r ḡ_f|.

    gamma: a number > 0; a task of the paper ("tofu" 1e-6, "wmdp" 1e-6, "whp" 1e4, "detox" 1e6); or "auto":
    ‖ḡ_r‖/‖θ‖, at which both terms weigh the same. "auto" is ours: the paper sets γ by hand and names the norm of the
    retain gradient as its guide (small for a sample of the fine-tuning data, large for generic text).
    reduction: of the gradients over N examples, "mean"; or "sum" as the paper's release has it: γ with "sum" is γ/N
    with "mean". ratio: .8 to .95 in the paper (TOFU: GradDiff .95, NPO .95, PO .80; WMDP: .40 and .60).
    retain_examples: "match" the forget set as the release does, "all", or a number.

    Raises RequestError without a retain set.
    """

    gamma: Annotated[float, Field(gt=0)] | Literal["tofu", "wmdp", "whp", "detox", "auto"] = "tofu"
    reduction: Literal["mean", "sum"] = "mean"
    retain_examples: Annotated[int, Field(gt=0)] | Literal["match", "all"] = "match"

    def __post_init__(self) -> None:
        if isinstance(self.gamma, str) and self.gamma not in (*PRESETS, "auto"):
            raise ConfigurationError(
                f"Wagle.gamma = {self.gamma!r} is no number > 0 and none of {', '.join(PRESETS)}, auto."
            )
        super().__post_init__()

    def scores(self, view: View) -> Scores:
        forget, retain = view.gradient("forget"), view.gradient("retain", self._count(view))
        gamma = self.damping(view)
        many_f, many_r = self._factors(view)

        def score(name: str) -> Tensor:
            weight = view.params[name].detach().float()
            return ((weight - many_r / gamma * retain[name]) * (many_f * forget[name])).abs()

        return score

    def damping(self, view: View) -> float:
        """γ as a number."""
        if self.gamma != "auto":
            return PRESETS[self.gamma] if isinstance(self.gamma, str) else self.gamma
        gradients = view.gradient("retain", self._count(view))
        weights = global_norm([param.detach() for param in view.params.values()])
        slope = self._factors(view)[1] * global_norm(list(gradients.values()))
        if slope == 0 or weights == 0:
            raise ConfigurationError("gamma=auto needs weights and a retain gradient that are not zero; give a number.")
        return slope / weights

    def info(self, view: View) -> dict[str, Any]:
        used = len(view.chosen("retain", self._count(view)))
        return super().info(view) | {"gamma": self.damping(view), "retain_examples": used}

    def _count(self, view: View) -> int | None:
        if self.retain_examples == "match":
            return len(view.request.forget)
        return None if self.retain_examples == "all" else int(self.retain_examples)

    def _factors(self, view: View) -> tuple[int, int]:
        """What to multiply the mean gradients of forget and retain with."""
        if self.reduction == "mean":
            return 1, 1
        return len(view.request.forget), len(view.chosen("retain", self._count(view)))
