"""What the model has read so far, to read on from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import DynamicCache

from lm_eval_spt.inference.transformers_internals import PreallocatedLayer, cache_of, keys_and_values, preallocate


@dataclass
class KVCache:
    """Keys and values of texts, without branches.

    Attributes:
        cache: keys and values of all layers, `[batch, heads, time, head_dim]` each.
        mask: `[batch, time]`, 1 for a token and 0 for padding.
    """

    cache: DynamicCache
    mask: Tensor

    def select(self, rows: Tensor) -> KVCache:
        """Return the batch of `rows` `[new batch]`, repetitions allowed."""
        states = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self._states()]
        return KVCache(cache_of(states), self.mask.index_select(0, rows))

    def fork(self, batch: int | None = None) -> KVCache:
        """Return the same to read on from, leaving this as it is; or its only row for each of a new batch.

        Nothing is copied: a cache that grows makes new tensors.
        """
        if batch is None:
            if isinstance(self.cache.layers[0], PreallocatedLayer):
                cache = DynamicCache()
                cache.layers = [layer.fork() for layer in self.cache.layers]  # type: ignore[union-attr]
                return KVCache(cache, self.mask)
            return KVCache(cache_of(self._states()), self.mask)
        states = [(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)) for keys, values in self._states()]
        return KVCache(cache_of(states), self.mask.expand(batch, -1))

    def preallocate(self, tokens: int) -> KVCache:
        """Return the same with room for so many tokens, so that forks, read one after the other, copy nothing."""
        return KVCache(preallocate(self.cache, tokens), self.mask)

    def _states(self) -> list[tuple[Tensor, Tensor]]:
        return keys_and_values(self.cache)
