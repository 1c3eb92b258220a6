"""Plain restatements of how tokens are chosen."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def plain_beams(model: PreTrainedModel, context: Tensor, steps: int, beams: int = 2) -> list[int]:
    """The likeliest of the beams after so many tokens, none of them the end of a sequence (2).

    Args:
        context: embeddings `[1, time, d]`; everything is read anew at every step.
    """
    embedding = model.get_input_embeddings()
    kept: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(steps):
        grown = []
        for total, tokens in kept:
            embeds = torch.cat([context, embedding(torch.tensor([tokens], dtype=torch.long))], dim=1)
            with torch.no_grad():
                logprobs = model(inputs_embeds=embeds, use_cache=False).logits[0, -1].log_softmax(-1)
            logprobs[2] = -torch.inf
            best = logprobs.topk(beams)
            pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            grown += [(total + value, [*tokens, token]) for value, token in pairs]
        kept = sorted(grown, reverse=True)[:beams]
    return kept[0][1]
