"""The vectors that training starts from, before the embedding's scale."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lm_eval_spt.lm import SPTLM
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.examples import Example


def embedding_scale(embedding: nn.Module) -> float:
    """Return by how much an embedding module multiplies its rows: sqrt(d) in XGLM and Gemma, 1 elsewhere.

    Vectors are learned before this scale, as the paper's are: a step of the optimizer then moves a virtual token as
    much as it would move a token of the vocabulary.
    """
    weight: Tensor = embedding.weight  # type: ignore[assignment]
    tokens = torch.arange(min(64, len(weight)), device=weight.device)
    with torch.no_grad():
        return float(embedding(tokens).float().norm() / weight[tokens].float().norm())


def initial_vectors(lm: SPTLM, config: TrainingConfig, examples: Sequence[Example]) -> Tensor:
    """Return the initial vectors `[P, d]`, fp32, on the CPU."""
    weight = lm.model.get_input_embeddings().weight.detach().float().cpu()
    length = config.prompt_length
    if config.init == "uniform":
        generator = torch.Generator().manual_seed(config.seed)
        return torch.rand(length, weight.shape[1], generator=generator) - 0.5
    if config.init == "text":
        chosen = weight[lm.tok_encode(config.init_text, add_special_tokens=False)[-length:]]
    elif config.init == "labels":
        chosen = torch.stack([weight[list(label)].mean(dim=0) for label in _labels(examples)[:length]])
    else:
        chosen = weight[:0]
    return torch.cat([weight[_sampled_tokens(examples, length - len(chosen), config.seed)], chosen])


def _sampled_tokens(examples: Sequence[Example], number: int, seed: int) -> list[int]:
    tokens = [token for example in examples for token in example.pairs[0][0]]
    return random.Random(seed).choices(tokens, k=number)


def _labels(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """The answers' tokens, each once, in the order of the first document's choices."""
    return list(dict.fromkeys(continuation for example in examples for _, continuation in example.pairs))
