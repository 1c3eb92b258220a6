"""What is right: one unpadded text through the model's own forward, embeddings put together by hand."""

from __future__ import annotations

import inspect
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
    """Return the logits `[1 + len(rest), vocabulary]` that predict each token of `rest` and the one behind it."""
    ids = torch.tensor([text.context + rest])
    count = len(rest) + 1
    prompted = len(text.before) + len(text.after) > 0
    if not prompted:
        return model(input_ids=ids, use_cache=False).logits[0, -count:]
    inputs = {"inputs_embeds": _around(text, model.get_input_embeddings()(ids))}
    decoder = model.get_decoder()
    if getattr(decoder, "hidden_size_per_layer_input", 0):  # of Gemma 3n and 4: for virtual tokens there is nothing
        own = {"input_ids": ids}
        if "inputs_embeds" in inspect.signature(decoder.get_per_layer_inputs).parameters:
            own["inputs_embeds"] = model.get_input_embeddings()(ids)
        of_text = decoder.get_per_layer_inputs(**own)
        nothing = [of_text.new_zeros(len(vectors), *of_text.shape[2:]) for vectors in (text.before, text.after)]
        inputs["per_layer_inputs"] = _around(Text(nothing[0], text.context, nothing[1]), of_text)
    return model(**inputs, use_cache=False).logits[0, -count:]


def _around(text: Text, whole: Tensor) -> Tensor:
    """Put prompts around the context in `whole` `[1, time, ...]`, behind which more may follow."""
    context, following = whole[:, : len(text.context)], whole[:, len(text.context) :]
    return torch.cat([text.before[None], context, text.after[None], following], dim=1)


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
