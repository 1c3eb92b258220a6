"""Deep prefixes: keys and values of every layer before the text, learned instead of read.

Prefix tuning (Li and Liang 2021, arXiv 2101.00190), P-tuning v2 (Liu et al. 2022, arXiv 2110.07602) and PEFT's
cartridges are this. As a tensor a deep prefix is `[layers, 2, kv_heads, P, head_dim]`, each layer's keys before its
values, with positions (RoPE) 0 to P - 1 applied to the keys. The text's first token has position P.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference.capabilities import FAILURES
from lm_eval_spt.inference.kv_cache import KVCache
from lm_eval_spt.inference.transformers_internals import (
    attention_chunk,
    cache_of,
    device_of,
    keys_and_values,
    plain_cache,
    sliding_window,
)

_KEY = "lm_eval_spt_keys_and_values_of_a_token"


def is_deep(vectors: Tensor | None) -> TypeGuard[Tensor]:
    """Tell a deep prefix from virtual tokens among embeddings, which are `[P, d]` or `[batch, P, d]`."""
    return vectors is not None and vectors.dim() == 5


def deep_prefix_cache(model: PreTrainedModel, key_values: Tensor, batch: int) -> KVCache:
    """Return a deep prefix as the cache that a batch of texts is read on from; gradients flow back to it.

    Args:
        model: a causal LM.
        key_values: `[layers, 2, kv_heads, P, head_dim]`; cast to the model's dtype.
        batch: number of texts. Nothing is copied for them.
    """
    states = []
    for pair, (like, _) in zip(key_values, _one_token(model), strict=True):
        keys, values = pair.to(like.device, like.dtype)[:, None].expand(-1, batch, -1, -1, -1)
        states.append((keys, values))
    mask = torch.ones(batch, key_values.shape[3], dtype=torch.long, device=device_of(model))
    return KVCache(cache_of(states), mask)


def key_values_in(cache: DynamicCache) -> Tensor:
    """Return what a model has read of one text, as a deep prefix."""
    device = keys_and_values(cache)[0][0].device
    return torch.stack([torch.stack([keys[0], values[0]]).to(device) for keys, values in keys_and_values(cache)])


def deep_prefix_size(model: PreTrainedModel) -> tuple[int, ...]:
    """Return `(layers, 2, kv_heads, head_dim)`, what a deep prefix has for each of its positions.

    Raises:
        UserError: it is an encoder-decoder model, or has no such keys and values.
    """
    shapes = {(*keys.shape[1::2], *values.shape[1::2]) for keys, values in _one_token(model)}
    (heads, width, *of_values), *others = shapes
    if others or [heads, width] != of_values:
        raise _no_deep_prefix(model, "its layers have keys and values of different shapes")
    return len(_one_token(model)), 2, heads, width


def check_deep_prefix(model: PreTrainedModel, length: int) -> None:
    """Make sure that a model can read on from a deep prefix of so many positions.

    Raises:
        UserError: it takes none, or looks less far back.
    """
    deep_prefix_size(model)
    limits = [limit for limit in (sliding_window(model), attention_chunk(model)) if limit is not None]
    if length > min(limits, default=length):
        raise UserError(
            f"a deep prefix of {length} positions is longer than what some layers of {type(model).__name__} look back "
            f"({min(limits)} tokens): use a shorter one"
        )


def _one_token(model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values `[1, kv_heads, 1, head_dim]` that each layer makes of some token, found by trying."""
    known: list[tuple[Tensor, Tensor]] | None = vars(model).get(_KEY)
    if known is None:
        if model.config.is_encoder_decoder:
            raise _no_deep_prefix(model, "it is an encoder-decoder model")
        text = 1 if getattr(model.config, "pad_token_id", None) == 0 else 0  # transformers warns of padding
        token = {"input_ids": torch.full((1, 1), text, device=device_of(model))}
        try:
            with torch.no_grad():
                known = keys_and_values(plain_cache(model, token))
            if not known or not all(tensor.dim() == 4 and tensor.shape[2] == 1 for pair in known for tensor in pair):
                raise ValueError("no keys and values of one token")
        except FAILURES as error:
            raise _no_deep_prefix(model, "not every layer keeps keys and values") from error
        vars(model)[_KEY] = known
    return known


def _no_deep_prefix(model: PreTrainedModel, reason: str) -> UserError:
    return UserError(f"{type(model).__name__} takes no deep prefix ({reason}): use a prompt of embeddings")
