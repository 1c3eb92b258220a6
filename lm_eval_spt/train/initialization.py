"""What a prompt is before training: vectors, before the embedding's scale, or a deep prefix."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.offloading import input_device, loaded
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.deep_prefix import deep_prefix_size, key_values_in
from lm_eval_spt.inference.transformers_internals import plain_cache
from lm_eval_spt.inference.virtual_tokens import model_inputs, virtual_tokens
from lm_eval_spt.prompt.metadata import scored_documents
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.config import INITIALIZATIONS, TrainingConfig
from lm_eval_spt.train.examples import Example


def embedding_scale(embedding: nn.Module) -> float:
    """Return the factor by which an embedding module multiplies its rows: sqrt(d) in XGLM and Gemma, 1 elsewhere.

    Vectors are learned before this scale, as in the paper: a step of the optimizer then moves a virtual token as much
    as it would move a token of the vocabulary.
    """
    weight: Tensor = embedding.weight  # type: ignore[assignment]
    tokens = torch.arange(min(64, len(weight)), device=input_device(embedding))
    with torch.no_grad():
        scaled = embedding(tokens).float().norm()
        return float(scaled.cpu() / _rows(embedding)[: len(tokens)].float().norm().cpu())


def _rows(embedding: nn.Module) -> Tensor:
    """Return an embedding's weights `[V, d]`, before its scale."""
    with loaded(embedding):
        weight: Tensor = embedding.weight  # type: ignore[assignment]
        return weight.detach()


def starting_prompt(lm: SPTLM, config: TrainingConfig) -> SoftPrompt | None:
    """Return the trained prompt that ``--init`` names, or None where it names another way to start.

    Raises:
        UserError: there is no such prompt, or it was trained for another base model.
    """
    if config.init in INITIALIZATIONS:
        return None
    try:
        prompt = SoftPrompt.from_pretrained(config.init)
        if prompt.kind == "kv" and config.prompt_kind != "kv":
            raise UserError("it is a deep prefix, from which only --prompt-kind kv starts")
        if prompt.kind != "kv" and prompt.placement != "prefix" and config.prompt_kind == "kv":
            raise UserError(f"its placement is {prompt.placement}, and a deep prefix stands before the text")
        if prompt.kind == "kv" and prompt.length != config.prompt_length:
            raise UserError(
                f"it has {prompt.length} positions, give --prompt-length {prompt.length}: its keys belong to them"
            )
        prompt.check_fits(lm.size_of_a_virtual_token(prompt.kind), lm.fingerprint, lm.base_model_name)
    except UserError as error:
        expected = f"expected {', '.join(INITIALIZATIONS)} or a trained prompt"
        raise UserError(f"--init {config.init}: {error} ({expected})") from None
    return prompt


def record_of(start: SoftPrompt, length: int) -> dict[str, Any]:
    """Return the metadata entry on the prompt `start`, for a prompt of `length` vectors that was learned from it."""
    change = "none" if start.length == length else "cut at its beginning" if start.length > length else "repeated"
    record = {"name": start.name, "digest": start.digest, "num_virtual_tokens": start.length, "change": change}
    counts = scored_documents([start.metadata])
    return record | ({"scored_documents": counts} if counts else {})


def initial_vectors(
    lm: SPTLM, config: TrainingConfig, examples: Sequence[Example], start: SoftPrompt | None = None
) -> Tensor:
    """Return the initial vectors `[P, d]`, fp32, on the CPU.

    Args:
        lm: gives the embeddings and the tokenizer.
        config: the settings.
        examples: the training documents.
        start: what :func:`starting_prompt` returned. Its last P vectors are taken, after it was repeated where it is
            shorter: the last vectors are nearest to the answer, and stay there.
    """
    embedding = lm.model.get_input_embeddings()
    length = config.prompt_length
    if start is not None:
        return start.vectors.repeat(-(-length // start.length), 1)[-length:] / embedding_scale(embedding)
    weight = _rows(embedding).float().cpu()
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


def initial_deep_prefix(
    lm: SPTLM, config: TrainingConfig, examples: Sequence[Example], start: SoftPrompt | None = None
) -> Tensor:
    """Return the initial deep prefix `[layers, 2, kv_heads, P, head_dim]`, fp32, on the CPU.

    It is what the model makes of the vectors of :func:`initial_vectors`; where texts begin with the BOS token, so do
    these. With ``uniform`` the keys and values themselves are drawn.

    Args:
        lm: the base model, which reads the vectors.
        config, examples, start: as for :func:`initial_vectors`; a `start` that is a deep prefix is taken as it is.
    """
    length = config.prompt_length
    if start is not None and start.kind == "kv":
        return start.vectors
    if config.init == "uniform":
        *layers, width = deep_prefix_size(lm.model)
        return torch.rand(*layers, length, width, generator=torch.Generator().manual_seed(config.seed)) - 0.5
    embedding = lm.model.get_input_embeddings()
    vectors = initial_vectors(lm, config, examples, start)
    first = examples[0].pairs[0][0][:1]
    if start is None and first == (lm.prefix_token_id,):
        vectors[0] = _rows(embedding)[lm.prefix_token_id].float().cpu()
    ids = torch.tensor([virtual_tokens(length)], device=input_device(embedding))
    with torch.no_grad():
        inputs = model_inputs(lm.model, ids, vectors * embedding_scale(embedding))
        return key_values_in(plain_cache(lm.model, inputs)).float().cpu()


def _sampled_tokens(examples: Sequence[Example], number: int, seed: int) -> list[int]:
    """Return tokens of the training texts, drawn with their frequencies."""
    tokens = [token for example in examples for token in example.pairs[0][0]]
    return random.Random(seed).choices(tokens, k=number)


def _labels(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """Return the distinct answers' tokens, in the order of the first document's choices."""
    return list(dict.fromkeys(continuation for example in examples for _, continuation in example.pairs))
