"""Tiny random models of many architectures, each made from its configuration alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

POSITIONS = 128
ATTENTION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.15,
}
HEADS = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "initializer_range": 0.15}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
STATE = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}


@dataclass(frozen=True)
class Architecture:
    """A model type of transformers and what makes it small.

    kind: what it stands for in the documentation. settings: its configuration's fields beside the vocabulary.
    """

    name: str
    model_type: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, vocabulary: int, seed: int = 0) -> PreTrainedModel:
        """The model with random weights, the same for the same seed, in evaluation mode."""
        torch.manual_seed(seed)
        tokens = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        config = AutoConfig.for_model(self.model_type, **{**tokens, **self.settings})
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for param in model.parameters():  # a decay or a gate at its initial 0 or 1 would hide what it does
                param.add_(0.02 * torch.randn_like(param))
        return model.eval()


def _dense(name: str, model_type: str | None = None, kind: str = "dense", **further: Any) -> Architecture:
    return Architecture(name, model_type or name, kind, {**ATTENTION, **further})


def _experts(name: str, model_type: str | None = None, **further: Any) -> Architecture:
    return _dense(name, model_type, "mixture of experts", **{**EXPERTS, **further})


WINDOW = {"sliding_window": 8, "use_sliding_window": True}

ARCHITECTURES = (
    _dense("llama"),
    _dense("llama-tied", "llama", tie_word_embeddings=True),
    _dense("mistral-window", "mistral", "sliding window", **WINDOW, **HEADS),
    _dense("qwen2"),
    _dense("qwen3", **HEADS),
    _dense("gemma2", kind="sliding window", sliding_window=8, query_pre_attn_scalar=8, **HEADS),
    _dense("gemma3_text", kind="sliding window", sliding_window=8, query_pre_attn_scalar=8, **HEADS),
    _dense(
        "gemma3n_text",
        kind="sliding window",
        sliding_window=8,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=512,
        hidden_size_per_layer_input=8,
        intermediate_size=[48, 48],
        activation_sparsity_pattern=[0.0, 0.0],
        laurel_rank=8,
        layer_types=["sliding_attention", "full_attention"],
        **HEADS,
    ),
    _dense(
        "gemma4_text",
        kind="sliding window",
        sliding_window=8,
        global_head_dim=16,
        num_kv_shared_layers=0,
        vocab_size_per_layer_input=512,
        hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"],
        **HEADS,
    ),
    _dense("phi"),
    _dense("phi3"),
    _dense(
        "phi3-longrope",
        "phi3",
        original_max_position_embeddings=24,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 24,
        },
    ),
    _dense("llama-dynamic", "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}),
    Architecture("gpt2", "gpt2", "dense", GPT),
    Architecture("openai-gpt", "openai-gpt", "dense", GPT),
    Architecture("gptj", "gptj", "dense", {**GPT, "rotary_dim": 8}),
    Architecture(
        "gpt_neo",
        "gpt_neo",
        "sliding window",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": POSITIONS,
            "window_size": 8,
            "attention_types": [[["global", "local"], 1]],
            "intermediate_size": 48,
            "initializer_range": 0.15,
        },
    ),
    Architecture("gpt_bigcode", "gpt_bigcode", "dense", GPT),
    Architecture("codegen", "codegen", "dense", {**GPT, "rotary_dim": 4, "n_ctx": POSITIONS}),
    Architecture("ctrl", "ctrl", "dense", {**GPT, "dff": 48}),
    _dense("gpt_neox"),
    _dense("opt", ffn_dim=48, word_embed_proj_dim=32, init_std=0.15),
    _dense("opt-projected", "opt", ffn_dim=48, word_embed_proj_dim=16, init_std=0.15, do_layer_norm_before=False),
    Architecture("bloom", "bloom", "dense", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.15}),
    Architecture(
        "mpt",
        "mpt",
        "dense",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "initializer_range": 0.15},
    ),
    _dense("falcon", alibi=False, new_decoder_architecture=False),
    _dense("stablelm"),
    _dense("olmo2"),
    _dense("granite", logits_scaling=2.0, residual_multiplier=0.5),
    _dense("cohere2", kind="sliding window", sliding_window=8, logit_scale=0.5, **HEADS),
    _dense("smollm3"),
    _dense("nemotron"),
    _dense("exaone4", kind="sliding window", sliding_window=8, sliding_window_pattern=2, **HEADS),
    _dense("xglm", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, init_std=0.15),
    _dense("biogpt"),
    _experts("mixtral"),
    _experts("qwen3_moe", decoder_sparse_step=1, mlp_only_layers=[], **HEADS),
    _experts("olmoe"),
    _experts(
        "deepseek_v3",
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        num_key_value_heads=4,
        **LATENT,
    ),
    _experts("gpt_oss", sliding_window=8, **HEADS),
    _experts("minimax", layer_types=["linear_attention", "full_attention"], block_size=8, **HEADS),
    _experts("llama4_text", intermediate_size_mlp=48, interleave_moe_layer_step=1, attention_chunk_size=8, **HEADS),
    _experts("granitemoe"),
    _experts("phimoe"),
    _experts("jetmoe", kv_channels=8, num_key_value_heads=2),
    Architecture(
        "dbrx",
        "dbrx",
        "mixture of experts",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": POSITIONS,
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
            "attn_config": {"kv_n_heads": 2},
        },
    ),
    _dense("lfm2", kind="hybrid", conv_L_cache=3, block_multiple_of=8, layer_types=["conv", "full_attention"]),
    _experts(
        "qwen3_next",
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        shared_expert_intermediate_size=24,
        **HEADS,
    ),
    _dense(
        "qwen3_5_text",
        kind="hybrid",
        layer_types=["linear_attention", "full_attention"],
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        **HEADS,
    ),
    _dense(
        "jamba",
        kind="hybrid",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        **EXPERTS,
        **STATE,
    ),
    _dense(
        "bamba",
        kind="hybrid",
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
        **STATE,
    ),
    _dense(
        "falcon_h1",
        kind="hybrid",
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
        mamba_d_ssm=64,
        lm_head_multiplier=0.5,
        **STATE,
        **HEADS,
    ),
    _experts(
        "granitemoehybrid",
        layer_types=["mamba", "attention"],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
        shared_intermediate_size=24,
        **STATE,
    ),
    _dense(
        "zamba2",
        kind="hybrid",
        layers_block_type=["mamba", "hybrid"],
        mamba_ngroups=1,
        n_mamba_heads=8,
        mamba_headdim=8,
        chunk_size=8,
        num_mem_blocks=1,
        adapter_rank=4,
        attention_head_dim=16,
        attention_hidden_size=64,
        mamba_d_state=8,
        num_key_value_heads=4,
    ),
    _dense(
        "nemotron_h",
        kind="hybrid",
        layers_block_type=["mamba", "attention"],
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=1,
        ssm_state_size=8,
        chunk_size=8,
        **HEADS,
    ),
    _dense(
        "recurrent_gemma",
        kind="recurrent",
        lru_width=32,
        attention_window_size=8,
        num_key_value_heads=1,
        block_types=["recurrent", "attention"],
        w_init_variance_scale=0.3,
    ),
    Architecture(
        "mamba",
        "mamba",
        "recurrent",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.15},
    ),
    Architecture(
        "mamba2",
        "mamba2",
        "recurrent",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "initializer_range": 0.15,
        },
    ),
    Architecture(
        "falcon_mamba",
        "falcon_mamba",
        "recurrent",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.15},
    ),
    Architecture(
        "rwkv",
        "rwkv",
        "recurrent",
        {"hidden_size": 32, "num_hidden_layers": 2, "context_length": POSITIONS, "attention_hidden_size": 32},
    ),
    _dense("bert-decoder", "bert", "decoder of an encoder family", is_decoder=True, add_cross_attention=False),
    _dense("roberta-decoder", "roberta", "decoder of an encoder family", is_decoder=True, add_cross_attention=False),
    _dense("deepseek_v4", kind="hybrid"),
    _dense("xlnet", n_layer=2, d_model=32, n_head=4, d_inner=48),
    _dense("bert", kind="encoder"),
    _dense("roberta", kind="encoder"),
    _dense(
        "bart",
        kind="encoder-decoder",
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    ),
)
NAMES = {architecture.name: architecture for architecture in ARCHITECTURES}
