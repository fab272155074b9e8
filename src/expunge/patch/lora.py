"""A LoRA adapter as a change of its base's weights: W + s·B·A, with s = alpha/r (rank-stabilised: alpha/√r)."""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.errors import PatchError
from expunge.models.adapter_config import check_patterns, read_adapter_config
from expunge.models.checkpoint import Stored, rewrite, stored
from expunge.models.folders import ADAPTER_CONFIG
from expunge.models.loading import Loaded, load
from expunge.models.saving import save_model, write_adapter
from expunge.patch.format import Change, finite
from expunge.reading import foreign

PREFIX = "base_model.model."
PLAIN_INITS = (None, True, False, "gaussian", "orthogonal")  # others change the base weights when they are loaded
# What else of an adapter's configuration decides which function it is.
DECISIVE = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules",
    "modules_to_save", "fan_in_fan_out", "bias",
)  # fmt: skip


@dataclass(frozen=True)
class LowRank:
    """The pair of adapter tensors that changes one weight: `a` (r, in), `b` (out, r); `transposed`: W is (in, out)."""

    a: str
    b: str
    scale: float
    transposed: bool

    def delta(self, tensor: Callable[[str], Tensor]) -> Tensor:
        """s·B·A in fp32, of the weight's shape."""
        product = (tensor(self.b).float() @ tensor(self.a).float()) * self.scale  # (out, in)
        return product.T if self.transposed else product


def read_config(folder: Path) -> dict[str, Any]:
    return read_adapter_config(folder)


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an adapter's configuration that must agree for two adapters to differ in their tensors only."""
    values = {name: config.get(name) for name in DECISIVE}
    return {name: sorted(value) if isinstance(value, list) else value for name, value in values.items()}


def low_rank(
    config: Mapping[str, Any], adapter: Mapping[str, Stored], base: Mapping[str, Stored]
) -> dict[str, LowRank] | None:
    """For each weight of the base the adapter changes, how.

    None where the adapter is more than plain LoRA on linear layers the base stores one by one (DoRA, embeddings,
    biases, whole modules, fused experts). Raises PatchError where a pair does not fit its weight.
    """
    from peft.utils.other import get_pattern_key

    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        return None
    if config.get("init_lora_weights") not in PLAIN_INITS or config.get("layer_replication"):
        return None
    found: dict[str, LowRank] = {}
    pairs = {name.removesuffix(".lora_A.weight") for name in adapter if name.endswith(".lora_A.weight")}
    if {f"{pair}.lora_{half}.weight" for pair in pairs for half in "AB"} != set(adapter):
        return None
    check_patterns(config, pairs, ADAPTER_CONFIG)
    for pair in sorted(pairs):
        module = pair.removeprefix(PREFIX)
        # A checkpoint of the bare transformer lacks the first part of the name the causal LM gives.
        names = [f"{module}.weight", f"{module}.weight".partition(".")[2]]
        name = next((name for name in names if name in base), None)
        if name is None:
            return None
        a, b = f"{pair}.lora_A.weight", f"{pair}.lora_B.weight"
        alphas = config.get("alpha_pattern") or {}
        rank = adapter[a].shape[0]
        alpha = alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        found[name] = LowRank(a, b, scale, bool(config.get("fan_in_fan_out")))
        shape = (adapter[b].shape[0], adapter[a].shape[1])
        if base[name].shape != (shape[::-1] if found[name].transposed else shape):
            raise PatchError(f"The adapter changes {name} as a matrix {shape}; the base has {base[name].shape}.")
    return found


def measure_low_rank(pair: LowRank, tensor: Callable[[str], Tensor], weight: Stored) -> Change:
    """The statistics of s·B·A against the weight it is added to; `changed` counts where s·B·A is not 0."""
    delta = pair.delta(tensor)
    norms = [float(torch.linalg.vector_norm(item, dtype=torch.float64)) for item in (delta, weight.read().float())]
    largest = float(delta.abs().max()) if delta.numel() else 0.0
    return Change(
        weight.shape, weight.dtype, finite(norms[0]), finite(norms[1]), finite(largest), int(delta.count_nonzero())
    )


def merge(
    base: Path, config: Mapping[str, Any], adapter: Mapping[str, Stored], tensor: Callable[[str], Tensor], out: Path
) -> None:
    """Write the base with the adapter merged into its weights: fp32 arithmetic, rounded once to the base's dtype.

    Plain LoRA is merged tensor by tensor; anything else by peft, with the whole model in memory. Raises PatchError
    where a merge would change a tied weight's other use too, or where a merged weight is too large for its dtype.
    """
    _refuse_tied(base, adapter)
    pairs = low_rank(config, adapter, stored(base))
    if pairs is None:
        _merge_whole(base, config, {name: tensor(name) for name in adapter}, out)
        return
    plain = pairs

    def merged(name: str, old: Tensor) -> Tensor:
        wide = old if old.dtype == torch.float64 else old.float()
        new = (wide + plain[name].delta(tensor)).to(old.dtype)
        if not bool(new.isfinite().all()):
            raise PatchError(f"Merged, {name} has values too large for {old.dtype}. Apply the patch without --merge.")
        return new

    rewrite(base, plain, merged, out)


def _merge_whole(base: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], out: Path) -> None:
    folder = out.with_name(out.name + ".adapter")
    try:
        write_adapter(folder, {**config, "base_model_name_or_path": str(base.resolve())}, state)
        loaded = load(folder, device="cpu")
        model = loaded.model.merge_and_unload()  # type: ignore[operator]
        save_model(Loaded(model, loaded.tokenizer, base), out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_tied(base: Path, adapter: Iterable[str]) -> None:
    ends = re.compile(r"(embed_tokens|embed_in|wte|lm_head|embed_out)\.|lora_embedding_")
    touched = next((name for name in adapter if ends.search(name)), None)
    if touched is None:
        return
    from transformers import AutoConfig

    with foreign(base):
        tied = getattr(AutoConfig.from_pretrained(base).get_text_config(), "tie_word_embeddings", False)
    if tied:
        raise PatchError(
            f"The adapter changes one of the two uses of a tied weight ({touched}); merged, both would change. "
            "Apply the patch without --merge."
        )
