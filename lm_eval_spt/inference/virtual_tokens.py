"""Where a soft prompt goes: from token ids to what the model receives.

A virtual token is written into a list of token ids as a negative mark, so that a prompted text stays an ordinary list
that can be sorted, truncated, padded and batched. Only at the model's door are the marks replaced by vectors.

A deep prefix has no marks: it is a KV cache, from which the model reads on (:func:`deep_prefix_cache`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_spt.inference.deep_prefix import deep_prefix_cache, is_deep
from lm_eval_spt.inference.transformers_internals import cache_argument, decoder_of, per_layer_inputs


def is_virtual(token: int) -> bool:
    """Tell a virtual token's mark from a token's id."""
    return token < 0  # no tokenizer uses a negative id


def place(context: Sequence[int], before: int, after: int) -> list[int]:
    """Return the context's token ids with so many virtual tokens before and after them.

    All before is what PEFT's prompt tuning does; all after, with the answer read at the last virtual token, is what the
    paper's code does (arXiv 2402.03782).
    """
    virtual = virtual_tokens(before + after)
    return virtual[:before] + list(context) + virtual[before:]


def virtual_tokens(length: int, first: int = 0) -> list[int]:
    """Return the marks of `length` virtual tokens, from the `first` of the vectors on."""
    return [-1 - number for number in range(first, first + length)]


def pad_left(rows: Sequence[Sequence[int]], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both `[batch, time]`, of rows padded on the left with the id `padding`.

    Padding stands before everything, so it never falls between prompt and text.
    """
    time = max(map(len, rows))
    ids = torch.tensor([[padding] * (time - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (time - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both `[batch, time]`, of rows padded on the right."""
    time = max(1, max(map(len, rows)))
    ids = torch.tensor([[*row, *[0] * (time - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (time - len(row)) for row in rows])
    return ids, mask


def model_inputs(model: PreTrainedModel, ids: Tensor, vectors: Tensor | None) -> dict[str, Any]:
    """Return the arguments with which `model` reads `ids`.

    Args:
        model: a causal LM; its input embedding is called as a module, because some (XGLM, Gemma) scale inside it.
        ids: `[batch, time]`, virtual tokens marked: mark -1 is the prompt's first vector, -2 its second, and so on.
        vectors: the soft prompt, `[P, d]`, or one for each row, `[batch, P, d]`, or a deep prefix; cast to the
            embedding's dtype. Gradients flow back to it.

    Returns:
        `input_ids` where no virtual token occurs, else `inputs_embeds` `[batch, time, d]`, and what else a model makes
        of ids. With a deep prefix its cache, which can be used once, and the attention mask of it and the ids, without
        which some models (Moshi) take the new tokens for the first.

    Raises:
        ValueError: a virtual token that `vectors` does not have.
    """
    if is_deep(vectors):
        past = deep_prefix_cache(model, vectors, len(ids))
        mask = torch.cat([past.mask, torch.ones_like(ids)], dim=1)
        return {"input_ids": ids, cache_argument(decoder_of(model)): past.cache, "attention_mask": mask}
    virtual = ids < 0
    if not virtual.any():
        return {"input_ids": ids}
    if vectors is None or -int(ids.min()) > vectors.shape[-2]:
        raise ValueError(f"the ids hold virtual token {-int(ids.min())}: the prompt has no such vector")
    embeds: Tensor = model.get_input_embeddings()(ids.clamp(min=0))
    row, time = virtual.nonzero(as_tuple=True)
    number = -1 - ids[row, time]
    vectors = vectors.to(embeds.device, embeds.dtype)
    chosen = vectors[row, number] if vectors.dim() == 3 else vectors[number]
    embeds = embeds.index_put((row, time), chosen)
    return {"inputs_embeds": embeds, **per_layer_inputs(model, ids, embeds)}
