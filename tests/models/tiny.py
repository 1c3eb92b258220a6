"""A tiny random model of every causal-LM architecture that the installed transformers has.

A configuration is made from its defaults: the sizes that it names become small ones, and of its layers as many stay as
there are kinds of them. Few architectures need more than that; what they need is in `SPECIAL`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES: dict[str, str] = dict(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()))
"""The `model_type` of every causal LM, and the name of its class."""

VOCABULARY = 512
SPECIAL_TOKENS = 480
"""Ids from here on are those of images, sounds and the like."""
WINDOW = 16
MAX_LENGTH = 128

_SMALL: dict[int, tuple[str, ...]] = {
    VOCABULARY: (
        "vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size",
        "pronunciation_vocab_size", "shape_vocab_size", "ngram_vocab_size_base", "encoder_hash_byte_group_vocab",
    ),
    MAX_LENGTH: (
        "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "model_max_length", "max_target_positions",
        "max_source_positions", "context_length", "rel_extent", "position_bias_max_distance", "relative_max_distance",
    ),
    48: (
        "intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "dim_ff", "dff", "ffn_hidden_size",
        "d_inner", "n_inner", "feed_forward_size", "dense_intermediate_size", "intermediate_size_mlp",
    ),
    32: (
        "hidden_size", "d_model", "n_embd", "emb_dim", "word_embed_proj_dim", "embedding_size", "embedding_dim",
        "attention_hidden_size", "lru_width", "input_embedding_size", "output_embedding_size", "ple_embed_dim",
        "shape_embed_dim", "dim_model_base", "pronunciation_embed_dim",
    ),
    WINDOW: (
        # With few heads in an indexer many scores are exactly 0, and which of equals are chosen is left to chance.
        "index_n_heads", "index_topk",
        "sliding_window", "window_size", "attention_window_size", "sliding_window_size", "local_attention",
        "attention_chunk_size", "chunk_size", "mamba_chunk_size", "moe_intermediate_size",
        "shared_expert_intermediate_size", "shared_intermediate_size", "shared_experts_intermediate_size",
        "moe_shared_expert_intermediate_size", "expert_ffn_hidden_size", "router_hidden_size", "swa_head_dim_v",
    ),
    8: (
        "head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank", "swa_head_dim",
        "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "index_head_dim", "mamba_d_state",
        "state_size", "ssm_state_size", "kv_channels", "d_head", "dim_head", "attention_head_size", "d_kv",
        "hidden_size_per_layer_input", "mamba_d_head", "mamba_head_dim", "mamba_headdim", "o_lora_rank", "hc_lowrank",
        "mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "global_head_dim", "laurel_rank", "adapter_rank",
        "time_step_rank", "mamba_dt_rank", "index_block_size", "block_size", "d_rel", "rotary_dim",
    ),
    4: (
        "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads",
        "attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads", "swa_num_attention_heads",
        "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "ffn_num_experts",
        "linear_num_key_heads", "linear_num_value_heads", "linear_num_heads", 
        "index_topk_blocks", "chroma_length", "gated_norm_rank",
    ),
    2: (
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
        "num_decoder_layers", "num_encoder_layers", "num_key_value_heads", "num_kv_heads", "num_global_key_value_heads",
        "swa_num_key_value_heads", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts",
        "num_blocks", "num_layers_per_stack", "n_groups", "o_groups", "zero_expert_num", "num_query_groups",
        "max_window_layers", "prompt_length",
    ),
    1: (
        "n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers",
        "moe_layer_start_index", "num_codebooks", "num_mem_blocks",
    ),
    0: ("pad_token_id", "num_kv_shared_layers", "num_nextn_predict_layers"),
}  # fmt: skip
SMALL = {name: size for size, names in _SMALL.items() for name in names} | {
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "is_decoder": True, "use_cache": True,
    "use_mamba_kernels": False,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "encoder_no_repeat_ngram_size": 0,
}  # fmt: skip
"""What the sizes of a configuration become. (Decoders that are made of encoders are causal with `is_decoder` alone.)"""

_OPTIONAL = ("head_dim", "num_key_value_heads", "n_routed_experts", "num_experts_per_tok")
"""Sizes that are set where the defaults name none."""

_KEYS_SHARED = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
"""The last layers read the keys and values of earlier ones."""

SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt_global_transformer": {"hidden_size": 64, "head_dim": 16},
    "blt_local_decoder": {"hidden_size_global": 64},
    "blt_local_encoder": {"hidden_size_global": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dots3_note_text": {"head_dim": 16, "per_layer_config": {}},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"intermediate_size": 48, "activation_sparsity_pattern": None, **_KEYS_SHARED},
    "gemma4_text": {"global_head_dim": 16, **_KEYS_SHARED},
    "gemma4_unified_text": {"global_head_dim": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "llama4_text": {"moe_layers": [1]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"], "local_attn_chunk_length": WINDOW},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "n_mamba_heads": 2,
        "attention_hidden_size": 64, "attention_head_dim": 16, "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What an architecture needs beside small sizes, by `model_type`."""


_DRAFT = "it drafts for another model, whose keys and values it reads"
_SOUND = "AutoModelForCausalLM can not make one: its decoder has no configuration of its own"
UNBUILT: dict[str, str] = {
    "gemma3n": "its vision tower needs timm; its text is read as gemma3n_text",
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "musicgen": _SOUND,
    "musicgen_melody": _SOUND,
}
"""Why there is no tiny model of an architecture."""


class NotBuilt(Exception):
    """There is no tiny model of an architecture; says why."""


def tiny_config(kind: str) -> PretrainedConfig:
    """Return the configuration of a tiny model of the architecture `kind`, a `model_type`."""
    return CONFIG_MAPPING[kind](**_shrunk(CONFIG_MAPPING[kind]()))


def _shrunk(default: PretrainedConfig) -> dict[str, Any]:
    """Return small settings for what a configuration's defaults name, those of the configurations in it included."""
    named = {
        **default.to_dict(),
        **{name: getattr(default, name) for name in default.attribute_map if hasattr(default, name)},
    }
    settings = {name: SMALL[name] for name in named if name in SMALL and (named[name] is not None or name in _OPTIONAL)}
    special = [name for name in named if name.endswith(("_token_id", "_token_index")) and name not in SMALL]
    settings |= {name: SPECIAL_TOKENS + place for place, name in enumerate(special) if type(named[name]) is int}
    if named.get("num_key_value_heads") == named.get("num_attention_heads"):
        settings.pop("num_key_value_heads", None)
        settings |= {"num_key_value_heads": SMALL["num_attention_heads"]} if "num_key_value_heads" in named else {}
    layers = getattr(default, "num_hidden_layers", None)
    by_layer = {
        name: list(value)
        for name, value in named.items()
        if isinstance(value, list | tuple)
        and layers
        and len(value) == layers
        and name in vars(default)
        and len(set(map(repr, value))) < layers
    }
    if by_layer:
        kinds = list(zip(*by_layer.values(), strict=True))
        kept = sorted({kinds.index(layer) for layer in kinds} | {0, 1})
        settings |= {name: [value[number] for number in kept] for name, value in by_layer.items()}
        settings |= {name: len(kept) for name in ("num_hidden_layers", "n_layer", "num_layers") if name in settings}
    for name in default.sub_configs:
        inner = getattr(default, name, None)
        if isinstance(inner, PretrainedConfig):
            settings[name] = {"model_type": inner.model_type, **_shrunk(inner)}
    return settings | SPECIAL.get(default.model_type, {})


def tiny_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """Return a tiny random model of the architecture `kind`, in fp32 and evaluation mode.

    Its matrices are large enough that answers differ.

    Raises:
        NotBuilt: there is none; says why.
    """
    if kind in UNBUILT:
        raise NotBuilt(UNBUILT[kind])
    torch.manual_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32)
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    return model.eval().requires_grad_(False)
