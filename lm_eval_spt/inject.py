"""Where the vectors of a soft prompt go: from token ids to what the model receives.

A virtual token is written into a list of token ids as :data:`VIRTUAL`, so that a prompted text stays an ordinary list
that can be sorted, truncated, padded and batched. Only at the model's door are the marks replaced by vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

VIRTUAL = -1  # no tokenizer uses a negative id


def place(context: Sequence[int], before: int, after: int) -> list[int]:
    """Return the context's token ids with so many virtual tokens before and after them.

    All before is what PEFT's prompt tuning does; all after, with the answer read at the last virtual token, is what the
    paper's code does (arXiv 2402.03782).
    """
    return [VIRTUAL] * before + list(context) + [VIRTUAL] * after


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both `[batch, time]`, of rows padded on the left.

    Padding stands before everything, so it never falls between prompt and text.
    """
    time = max(map(len, rows))
    ids = torch.tensor([[0] * (time - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (time - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def model_inputs(model: PreTrainedModel, ids: Tensor, vectors: Tensor | None) -> dict[str, Any]:
    """Return the arguments with which `model` reads `ids`.

    Args:
        model: a causal LM; its input embedding is called as a module, because some (XGLM, Gemma) scale inside it.
        ids: `[batch, time]`, virtual tokens marked by :data:`VIRTUAL`; a row holds none or exactly P of them.
        vectors: `[P, d]`, the soft prompt, cast to the embedding's dtype; gradients flow back to it.

    Returns:
        `input_ids` where no virtual token occurs, else `inputs_embeds` `[batch, time, d]`.

    Raises:
        ValueError: virtual tokens without vectors, or a row with another number of them than P.
    """
    virtual = ids == VIRTUAL
    if not virtual.any():
        return {"input_ids": ids}
    if vectors is None:
        raise ValueError("the ids hold virtual tokens, but no prompt vectors were given")
    prompted = virtual.any(dim=1)
    if (virtual.sum(dim=1)[prompted] != len(vectors)).any():
        raise ValueError(f"every prompted row must hold {len(vectors)} virtual tokens, one for each vector")
    embeds: Tensor = model.get_input_embeddings()(ids.clamp(min=0))
    rows = vectors.to(embeds.device, embeds.dtype).expand(int(prompted.sum()), -1, -1)
    return {"inputs_embeds": embeds.masked_scatter(virtual[..., None], rows)}
