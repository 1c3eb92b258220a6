"""The frozen model's keys and values of the texts, computed once for a whole training run.

A suffix prompt comes after the text and attention is causal, so a text's keys and values do not depend on the prompt.
The text is read once, and every step reads only the prompt and the answers.

The keys and values are kept where they fit: on the model's device, in host memory, or in a temporary file that is
mapped into memory. The file is deleted as soon as it is open: its space is freed when the process ends, however it
ends, and no other run can open it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_spt.inference.forward import prefill
from lm_eval_spt.inference.kv_cache import KVCache
from lm_eval_spt.inference.scoring import free_memory
from lm_eval_spt.inference.transformers_internals import cache_of, device_of, keys_and_values
from lm_eval_spt.inference.virtual_tokens import pad_left

logger = logging.getLogger(__name__)

Context = tuple[int, ...]
Medium = Literal["device", "host", "disk"]
MEDIA: tuple[Medium, ...] = get_args(Medium)

SHARE = 0.5  # how much of a medium's free room may be taken


class ContextCache:
    """Keys and values of contexts (token ids without prompt), from which the model goes on reading.

    Args:
        model: the frozen causal LM.
        max_batch_tokens: how many tokens, padding included, are read at once.
    """

    def __init__(self, model: PreTrainedModel, max_batch_tokens: int) -> None:
        self._model = model
        self._max_batch_tokens = max_batch_tokens
        self._device = device_of(model)
        # For each context the keys and values, as _views has them.
        self._states: dict[Context, list[Tensor]] = {}
        self._warned: set[str] = set()
        self._groups: dict[tuple[int, int], list[int]] = {}
        self._batch = torch.zeros(0, dtype=model.dtype, device=self._device)

    def __contains__(self, context: Context) -> bool:
        return context in self._states

    def add(self, contexts: Iterable[Context], medium: Medium | None = None) -> bool:
        """Read the contexts that are not in the cache yet, and keep their keys and values.

        Args:
            contexts: the texts.
            medium: where to keep them; default: the first of device, host and disk that has room.

        Returns:
            Whether all are in the cache now; False where they do not fit.
        """
        waiting = sorted(set(contexts) - set(self._states), key=len)
        if not waiting:
            return True
        per_token = self._values_per_token()
        room = self._room(per_token * sum(map(len, waiting)), medium)
        if room is None:
            return False
        start = 0
        while waiting:
            # Small batches: while a batch is copied to its place, its keys and values take memory twice.
            size = max(1, self._max_batch_tokens // 4 // len(waiting[-1]))
            batch, waiting = waiting[-size:], waiting[:-size]
            ids, mask = (tensor.to(self._device) for tensor in pad_left(batch))
            with torch.no_grad():
                layers = keys_and_values(prefill(self._model, ids, mask).cache)
            tensors = [tensor for layer in layers for tensor in layer]
            for row, context in enumerate(batch):
                end = start + per_token * len(context)
                state = self._views(room[start:end], 1, len(context))
                for view, members in zip(state, self._groups.values(), strict=True):
                    for place, number in enumerate(members):
                        view[place, 0] = tensors[number][row, :, -len(context) :]
                self._states[context] = state
                start = end
        return True

    def read(self, contexts: Sequence[Context]) -> KVCache:
        """Return the KV cache of these contexts, a row for each, padded on the left; valid until the next call."""
        time = max(map(len, contexts))
        size = self._values_per_token() * len(contexts) * time
        if size > len(self._batch):  # kept for the next call: new memory costs more than the copy into it
            self._batch = self._batch.new_zeros(size)
        # Padding is masked. It holds zeros, or values of an earlier batch.
        batch = self._views(self._batch[:size], len(contexts), time)
        for row, context in enumerate(contexts):
            for view, state in zip(batch, self._states[context], strict=True):
                view[:, row, :, time - len(context) :] = state[:, 0]
        tensors: dict[int, Tensor] = {}
        for view, members in zip(batch, self._groups.values(), strict=True):
            tensors |= zip(members, view, strict=True)
        _, mask = pad_left(contexts)
        layers = ((tensors[number], tensors[number + 1]) for number in range(0, len(tensors), 2))
        return KVCache(cache_of(layers), mask.to(self._device))

    def bytes_of(self, contexts: Sequence[Context]) -> int:
        """Return how many bytes the KV cache of these contexts takes, padding included."""
        return self._values_per_token() * len(contexts) * max(map(len, contexts)) * self._model.dtype.itemsize

    def free(self) -> int:
        """Return the bytes that are free on the model's device, where batches are put together."""
        return _free("host" if self._device.type == "cpu" else "device", self._device)

    def _values_per_token(self) -> int:
        """Return how many numbers the keys and values of one token are."""
        if not self._groups:
            ids = torch.ones(1, 1, dtype=torch.long, device=self._device)
            with torch.no_grad():
                layers = keys_and_values(prefill(self._model, ids, torch.ones_like(ids)).cache)
            for number, tensor in enumerate(tensor for layer in layers for tensor in layer):
                self._groups.setdefault((tensor.shape[1], tensor.shape[3]), []).append(number)
        return sum(heads * width * len(members) for (heads, width), members in self._groups.items())

    def _views(self, memory: Tensor, rows: int, time: int) -> list[Tensor]:
        """Return memory as keys and values, those of one shape together: in most models, all.

        Args:
            memory: `[values]`, as many as there are.
            rows: number of texts.
            time: their length in tokens.

        Returns:
            For each pair of heads and width in `_groups` the keys (number 2 i for layer i) and values (2 i + 1) that
            have it, `[members, rows, heads, time, head_dim]`.
        """
        shapes = [(len(members), rows, heads, time, width) for (heads, width), members in self._groups.items()]
        parts = memory.split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    # -- where ---------------------------------------------------------------------------------------------------------

    def _room(self, values: int, medium: Medium | None) -> Tensor | None:
        """Return room for so many values on this medium or the next that has it; None where no medium has.

        Args:
            values: how many numbers of the model's dtype.
            medium: the first to try; default: the first of all.
        """
        size = values * self._model.dtype.itemsize
        media = [medium for medium in MEDIA if not (medium == "device" and self._device.type == "cpu")]
        if medium is not None:
            media = media[media.index("host" if medium == "device" and medium not in media else medium) :]
        for candidate in media:
            free = _free(candidate, self._device)
            if size <= SHARE * free:
                try:
                    return self._allocate(candidate, values, size)
                except (OSError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
                    logger.info("no %.1f GB on the %s: %s", size / 1e9, candidate, error)
            self._warn(candidate, size, free)
        return None

    def _allocate(self, medium: Medium, values: int, size: int) -> Tensor:
        dtype = self._model.dtype
        if medium == "device":
            return torch.empty(values, dtype=dtype, device=self._device)
        if medium == "host":
            return torch.empty(values, dtype=dtype, pin_memory=self._device.type == "cuda")
        descriptor, path = tempfile.mkstemp(prefix="lm_eval_spt-")
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here; later it would be a crash
                os.posix_fallocate(descriptor, 0, size)
            return torch.from_file(path, shared=True, size=values, dtype=dtype)
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _warn(self, medium: Medium, size: int, free: int) -> None:
        """Warn once for each medium that it has not enough room."""
        if medium in self._warned:
            return
        self._warned.add(medium)
        then = "the disk is tried" if medium != "disk" else "they are read anew in every step"
        if medium == "device":
            then = "host memory is tried"
        logger.warning(
            "the texts' keys and values need %.1f GB, the %s has %.1f GB of which half may be taken: %s",
            size / 1e9, medium, free / 1e9, then,
        )  # fmt: skip


def _free(medium: Medium, device: torch.device) -> int:
    """Return the bytes that are free on a medium."""
    if medium == "device":
        return free_memory(device) if device.type == "cuda" else 0
    if medium == "host":
        return free_memory(torch.device("cpu"))
    return shutil.disk_usage(tempfile.gettempdir()).free
