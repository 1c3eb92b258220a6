"""What is right: one unpadded text through the model's own forward, embeddings put together by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Text:
    """A context with prompts around it.

    Attributes:
        before, after: vectors `[P, d]` before and after the context.
        context: token ids.
    """

    before: Tensor
    context: list[int]
    after: Tensor


def next_logits(model: PreTrainedModel, text: Text, rest: list[int]) -> Tensor:
    """Return the logits `[1 + len(rest), vocabulary]` that predict each token of `rest` and the one behind it.

    The model is copied: what it remembers of other texts plays no part.
    """
    model = copy.deepcopy(model)
    ids = torch.tensor([text.context + rest])
    count = len(rest) + 1
    if not len(text.before) + len(text.after):
        return model(input_ids=ids, use_cache=False).logits[0, -count:]
    embeds = model.get_input_embeddings()(ids)
    context, following = embeds[:, : len(text.context)], embeds[:, len(text.context) :]
    inputs = {"inputs_embeds": torch.cat([text.before[None], context, text.after[None], following], dim=1)}
    decoder = model.get_decoder()
    if getattr(decoder, "hidden_size_per_layer_input", 0):  # of Gemma 3n and 4: id 0 stands for what is no text
        nothing = [torch.zeros(1, len(vectors), dtype=torch.long) for vectors in (text.before, text.after)]
        whole = torch.cat([nothing[0], ids[:, : len(text.context)], nothing[1], ids[:, len(text.context) :]], dim=1)
        inputs["per_layer_inputs"] = model.get_decoder().get_per_layer_inputs(
            *(
                (whole,)
                if model.config.get_text_config().model_type == "gemma3n_text"
                else (whole, inputs["inputs_embeds"])
            )
        )
    return model(**inputs, use_cache=False).logits[0, -count:]


def loglikelihood(model: PreTrainedModel, text: Text, continuation: list[int]) -> Tensor:
    """Return a continuation's log-likelihood."""
    logprobs = next_logits(model, text, continuation[:-1]).float().log_softmax(dim=-1)
    return logprobs[range(len(continuation)), continuation].sum()


def greedy(model: PreTrainedModel, text: Text, count: int) -> list[int]:
    """Return the `count` tokens that greedy decoding produces, each from a pass over everything before it."""
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(next_logits(model, text, tokens)[-1].argmax()))
    return tokens
