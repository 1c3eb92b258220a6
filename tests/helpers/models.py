"""Tiny random models of every supported family, and random prompts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from lm_eval_spt.inference.capabilities import Capabilities, set_capabilities
from lm_eval_spt.inference.deep_prefix import deep_prefix_size
from lm_eval_spt.inference.transformers_internals import prepare
from lm_eval_spt.prompt.fingerprint import embedding_fingerprint
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

VOCABULARY = 20480
HIDDEN = 32

_small = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": HIDDEN, "intermediate_size": 48}
_grouped = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
FAMILIES = {
    "bloom": {"n_layer": 2, "n_head": 4, "hidden_size": HIDDEN},
    "xglm": {
        "num_layers": 2, "attention_heads": 4, "d_model": HIDDEN, "ffn_dim": 48,
        "scale_embedding": True, "max_position_embeddings": 128,
    },
    "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": HIDDEN, "n_positions": 128},
    "gpt_neox": {**_small, "max_position_embeddings": 128},
    "opt": {
        "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": HIDDEN, "ffn_dim": 48,
        "word_embed_proj_dim": HIDDEN, "max_position_embeddings": 128,
    },
    "llama": {**_small, **_grouped},
    "mistral": {**_small, **_grouped, "sliding_window": 12},
    "qwen3": {**_small, **_grouped},
    "gemma3_text": {
        **_small, **_grouped, "query_pre_attn_scalar": 8, "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {**_small, "num_key_value_heads": 2, "max_position_embeddings": 128},
}  # fmt: skip


def build_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Return a tiny random model in fp32 and evaluation mode, with weights large enough that answers differ."""
    config = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, **FAMILIES[family]
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3 if "embed" in name or "wte" in name or "wpe" in name else 0.2)
    return model.eval()


def build_encoder_decoder(family: str, vocab_size: int = VOCABULARY) -> PreTrainedModel:
    """Return a tiny random encoder-decoder in fp32 and evaluation mode."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    if family == "prophetnet":
        sizes = {"hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_encoder_layers": 2}
        sizes |= {"num_decoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4}
    elif family == "bart":
        sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 2}
        sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128}
    config = AutoConfig.for_model(
        family, vocab_size=vocab_size, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=0,
        n_positions=64, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    return model.eval()


def random_prompt(model: PreTrainedModel, length: int = 4, placement: str = "prefix", seed: int = 0) -> SoftPrompt:
    """Return a random prompt that fits `model`, of the size of its embeddings."""
    embedding = model.get_input_embeddings()
    tokens = torch.arange(10, 10 + length)
    spread = embedding(tokens).detach().std()
    vectors = torch.randn(length, embedding.weight.shape[1], generator=torch.Generator().manual_seed(seed)) * spread
    metadata = {"placement": placement, "embedding_fingerprint": embedding_fingerprint(embedding)}
    if placement == "both":
        metadata["num_prefix_tokens"] = (length + 1) // 2
    return SoftPrompt(vectors, metadata, name=f"random-{placement}-{length}")


def random_prompt_files(model: PreTrainedModel, folder: Path, *kinds: tuple[str, int]) -> list[str]:
    """Write a random prompt of the embedded model for each (placement, length); return the files' names."""
    files = []
    for seed, (placement, length) in enumerate(kinds):
        prompt = random_prompt(model, length, placement, seed)
        file = folder / f"{placement}{seed}.safetensors"
        SoftPrompt(prompt.vectors, {**prompt.metadata, "base_model": "mini"}).save(file)
        files.append(str(file))
    return files


def random_deep_prefix(model: PreTrainedModel, length: int = 4, seed: int = 0) -> SoftPrompt:
    """Return a random deep prefix that fits `model`."""
    *size, width = deep_prefix_size(model)
    key_values = torch.randn(*size, length, width, generator=torch.Generator().manual_seed(seed))
    metadata = {"embedding_fingerprint": embedding_fingerprint(model.get_input_embeddings())}
    return SoftPrompt(key_values, metadata, name=f"random-deep-{length}")


def as_fast(model: PreTrainedModel, **capabilities: Any) -> PreTrainedModel:
    """Have a model that no model class has loaded run in the fastest way, or as `capabilities` says."""
    prepare(model)
    set_capabilities(model, Capabilities(**{"layout": "tree", "cache": True, "split": True} | capabilities))
    return model
