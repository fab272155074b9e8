"""The kinds of module a transformer is made of: what to call them, and in which order they stand in the model."""

# in the model's order: what a parameter's name holds -> how the report calls it
KINDS = {
    "embed_tokens": "embedding", "wte": "embedding", "wpe": "position embedding",
    "embed_positions": "position embedding",
    "q_proj": "attention q", "k_proj": "attention k", "v_proj": "attention v",
    "c_attn": "attention q, k, v", "qkv_proj": "attention q, k, v", "query_key_value": "attention q, k, v",
    "q_norm": "attention q norm", "k_norm": "attention k norm",
    "o_proj": "attention o", "out_proj": "attention o", "attn.c_proj": "attention o", "dense": "attention o",
    "gate_proj": "MLP gate", "gate_up_proj": "MLP gate, up",
    "up_proj": "MLP up", "mlp.c_fc": "MLP up", "c_fc": "MLP up", "fc1": "MLP up", "dense_h_to_4h": "MLP up",
    "down_proj": "MLP down", "mlp.c_proj": "MLP down", "fc2": "MLP down", "dense_4h_to_h": "MLP down",
    "input_layernorm": "norm before attention", "ln_1": "norm before attention",
    "self_attn_layer_norm": "norm before attention",
    "post_attention_layernorm": "norm before MLP", "ln_2": "norm before MLP", "final_layer_norm": "norm before MLP",
    "norm": "last norm", "ln_f": "last norm",
    "lm_head": "output head", "embed_out": "output head",
}  # fmt: skip
PARTS = {"bias": "bias", "lora_A": "LoRA A", "lora_B": "LoRA B", "lora_magnitude_vector": "DoRA size"}
_ORDER = {label: index for index, label in enumerate(dict.fromkeys(KINDS.values()))}
_UNKNOWN = _ORDER["norm before attention"]  # a kind not known here is most likely one more matrix


def name(module: str) -> str:
    """What a person reads for a kind of module, as "attention q" for "q_proj"; an unknown one keeps its own words."""
    base, part = _split(module)
    return f"{KINDS.get(base, base)}, {PARTS[part]}" if part else KINDS.get(base, base)


def order(module: str) -> tuple[float, int]:
    """Sorts kinds of module as they stand in the model; unknown ones come before the norms."""
    base, part = _split(module)
    label = KINDS.get(base, base)
    return _ORDER.get(label, _UNKNOWN - 0.5), list(PARTS).index(part) + 1 if part else 0


def is_matrix(module: str) -> bool:
    """Whether this is a weight matrix or a LoRA part of one; norms and biases have too few entries to tell much."""
    base, part = _split(module)
    return part in ("", "lora_A", "lora_B") and "norm" not in KINDS.get(base, base) and not base.startswith("ln_")


def _split(module: str) -> tuple[str, str]:
    base, _, part = module.rpartition(".")
    return (base, part) if base and part in PARTS else (module, "")
