"""A tiny Llama, written as a GGUF file and, as what it must be the same as, saved as a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN, LAYERS, HEADS, LENGTH = 64, 2, 2, 1024
TEXTS = ["The river ran over 12345 stones.", "A goal in the final!", "Don't stop: THE  old town hall\n\n"]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
"""llama.cpp's names of a layer's weights."""


@dataclass(frozen=True)
class Pair:
    """The same model twice: `file`, its weights in blocks of 8 bits, and `folder`, which holds the values of these."""

    file: Path
    folder: Path


def byte_level_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer that was learned from a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def write_pair(folder: Path) -> Pair:
    """Write the tiny model in both forms into `folder`."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    tokenizer = byte_level_tokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=HIDDEN, intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=1, max_position_embeddings=LENGTH,
        rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    tensors = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1 if weight.dim() == 1 else 0, 0.2)
            if weight.dim() == 1:
                tensors[name] = weight.numpy().copy()
            else:  # a row's blocks stay together where rows change their places
                blocks = quantize(weight.numpy(), GGMLQuantizationType.Q8_0)
                weight.copy_(torch.from_numpy(dequantize(blocks, GGMLQuantizationType.Q8_0)))
                tensors[name] = blocks
    model.save_pretrained(folder / "plain")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(folder / "plain")
    (folder / "packed").mkdir()
    write_gguf(folder / "packed" / "tiny.gguf", tensors, tokenizer)
    return Pair(folder / "packed" / "tiny.gguf", folder / "plain")


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    tokenizer: Tokenizer | None,
    *,
    architecture: str = "llama",
    split: str = "default",
) -> None:
    """Write a GGUF file.

    Args:
        path: the file.
        tensors: by transformers' names; blocks of 8 bits are bytes.
        tokenizer: None leaves it out.
        architecture, split: llama.cpp's names of the architecture and of the way to split texts.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_context_length(LENGTH)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    if tokenizer is not None:
        content = json.loads(tokenizer.to_str())["model"]
        vocabulary = sorted(content["vocab"], key=content["vocab"].get)
        writer.add_vocab_size(len(vocabulary))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split)
        writer.add_token_list(vocabulary)
        writer.add_token_types([3, 3] + [1] * (len(vocabulary) - 2))
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in content["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
    for name, values in tensors.items():
        kind = {"raw_dtype": GGMLQuantizationType.Q8_0} if values.dtype == np.uint8 else {}
        writer.add_tensor(_gguf_name(name), _permuted(name, values), **kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """Return a file's tensors by llama.cpp's names, as they lie in it."""
    from gguf import GGUFReader

    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


def _gguf_name(name: str) -> str:
    whole: dict[str, Any] = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module = name.removesuffix(".weight")
    if module in whole:
        return f"{whole[module]}.weight"
    if not module.startswith("model.layers."):
        return name  # is llama.cpp's already
    number, _, part = module.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{NAMES[part]}.weight"


def _permuted(name: str, values: np.ndarray) -> np.ndarray:
    """Return a query or key matrix with its rows as llama.cpp's RoPE pairs them: neighbours, not halves of a head."""
    heads = {"q_proj": HEADS, "k_proj": 1}.get(name.split(".")[-2] if "proj" in name else "", 0)
    if not heads:
        return values
    return np.ascontiguousarray(values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape))
