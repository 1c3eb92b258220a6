"""The frozen model's keys and values of the texts, computed once for a whole training run.

A suffix prompt comes after the text, attention is causal: what the model makes of the text does not depend on the
prompt. So the text is read once, and every step reads only the prompt and the answers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_spt.causal_lm import cache_of, device_of, keys_and_values
from lm_eval_spt.forward import Read, read
from lm_eval_spt.inject import pad_left

logger = logging.getLogger(__name__)

Context = tuple[int, ...]


class ContextCache:
    """Keys and values of contexts, to be read on from.

    Args:
        model: the frozen causal LM.
        max_batch_tokens: how many tokens, padding included, are read at once.
    """

    def __init__(self, model: PreTrainedModel, max_batch_tokens: int) -> None:
        self._model = model
        self._max_batch_tokens = max_batch_tokens
        self._device = device_of(model)
        # For each context and layer the keys and values, [2, heads, time, head_dim].
        self._states: dict[Context, list[Tensor]] = {}

    def add(self, contexts: Iterable[Context]) -> None:
        """Read the contexts (token ids, without prompt) that are not here yet."""
        waiting = sorted(set(contexts) - set(self._states), key=len)
        while waiting:
            size = max(1, self._max_batch_tokens // len(waiting[-1]))
            batch, waiting = waiting[-size:], waiting[:-size]
            ids, mask = (tensor.to(self._device) for tensor in pad_left(batch))
            with torch.no_grad():
                state = read(self._model, ids, mask)
            for row, context in enumerate(batch):
                self._states[context] = [
                    torch.stack([keys[row, :, -len(context) :], values[row, :, -len(context) :]])
                    for keys, values in keys_and_values(state.cache)
                ]

    def read(self, contexts: Sequence[Context]) -> Read:
        """Return what the model has read after these contexts, one row for each."""
        states = [self._states[context] for context in contexts]
        time = max(map(len, contexts))
        layers = []
        for layer, first in enumerate(states[0]):
            both = first.new_zeros(2, len(contexts), first.shape[1], time, first.shape[3])
            for row, state in enumerate(states):
                both[:, row, :, time - state[layer].shape[2] :] = state[layer]
            layers.append((both[0], both[1]))
        _, mask = pad_left(contexts)
        return Read(cache_of(layers), mask.to(self._device))


def fits(model: PreTrainedModel, contexts: Sequence[Context]) -> bool:
    """Tell whether the contexts' keys and values fit into half of the memory that is free where the model is."""
    config = model.config.get_text_config()
    device = device_of(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * head_size * model.dtype.itemsize
    needed = per_token * sum(map(len, set(contexts)))
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    if needed > free / 2:
        logger.warning(
            "the texts' keys and values need %.1f GB, of which %.1f GB are free: they are read anew in every step",
            needed / 1e9,
            free / 1e9,
        )
        return False
    return True
