"""Read a text once, then score any number of continuations of it.

The one way in which this package calls a causal LM, shared by scoring and training: :func:`read` runs the model over
new tokens and keeps its keys and values, and :func:`loglikelihoods` branches from there into every continuation.
The vocabulary head runs only at positions whose next token is scored. Everything is differentiable in the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from lm_eval_spt.inject import model_inputs, pad_left

# Logits of one call: 2**27 values are half a gigabyte in fp32.
MAX_LOGITS = 2**27
# Padding read along with branches of unequal length before it is cheaper to read them in another call.
MAX_PADDING = 64


@dataclass
class Read:
    """What the model has read so far.

    Attributes:
        cache: keys and values of all layers, `[batch, heads, time, head_dim]` each.
        mask: `[batch, time]`, 1 for a token and 0 for padding.
    """

    cache: DynamicCache
    mask: Tensor

    def select(self, rows: Tensor) -> Read:
        """Return the batch of `rows` `[new batch]`, repetitions allowed."""
        states = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self._states()]
        return Read(cache_of(states), self.mask.index_select(0, rows))

    def branch(self, batch: int | None = None) -> Read:
        """Return the same to read on from, leaving this as it is; or its only row for each of a new batch.

        Nothing is copied: a cache that grows makes new tensors.
        """
        if batch is None:
            return Read(cache_of(self._states()), self.mask)
        states = [(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)) for keys, values in self._states()]
        return Read(cache_of(states), self.mask.expand(batch, -1))

    def _states(self) -> list[tuple[Tensor, Tensor]]:
        return keys_and_values(self.cache)


def cache_of(states: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    """Return a cache of these keys and values of each layer, `[batch, heads, time, head_dim]`, without copying them."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(states):
        cache.update(keys[:, :, :0], values[:, :, :0], index)  # makes the layer
        layer: Any = cache.layers[index]
        layer.keys, layer.values = keys, values
    return cache


def keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's keys and values, `[batch, heads, time, head_dim]`."""
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]


def device_of(model: PreTrainedModel) -> torch.device:
    """Return where the model expects its input."""
    return model.get_input_embeddings().weight.device  # type: ignore[return-value]


def _accepts_positions(model: PreTrainedModel) -> bool:
    """Tell whether the model takes `position_ids`; an adapter around it (PEFT) hands on what it does not know."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return _has_parameter(type(inner).forward, "position_ids")


@lru_cache(maxsize=8)
def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


@contextmanager
def head_only_at(model: PreTrainedModel, scored: Tensor) -> Iterator[None]:
    """Within this context the vocabulary head sees only the positions of the boolean mask `scored` `[batch, time]`.

    The model's logits are then `[1, scored positions, vocabulary]`, in row order. A hook on the output embeddings does
    it for every architecture alike, whatever it is called and whatever is done to the logits afterwards.
    """

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][scored.to(inputs[0].device)][None], *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def read(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    vectors: Tensor | None = None,
    *,
    past: Read | None = None,
    scored: Tensor | None = None,
    keep: bool = True,
) -> tuple[Tensor, Read | None]:
    """Run the model over new tokens.

    Args:
        model: a causal LM.
        ids: `[batch, new]`, virtual tokens marked (see :mod:`lm_eval_spt.inject`).
        mask: `[batch, new]`, 1 for a token and 0 for padding.
        vectors: `[P, d]`, the soft prompt, needed where `ids` holds virtual tokens.
        past: what the same rows have read before; it is extended in place.
        scored: boolean `[batch, new]`, where logits are wanted; nowhere by default.
        keep: whether to keep keys and values, so that reading can go on.

    Returns:
        The logits at the scored positions, `[scored positions, vocabulary]`, and what has been read by now.
    """
    if past is not None:
        mask = torch.cat([past.mask, mask], dim=1)
    arguments = model_inputs(model, ids, vectors)
    if _accepts_positions(model):
        arguments["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    cache = past.cache if past is not None else DynamicCache() if keep else None
    with head_only_at(model, torch.zeros_like(ids, dtype=torch.bool) if scored is None else scored):
        logits = model(
            **arguments, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, return_dict=True
        ).logits[0]
    return logits, Read(cache, mask) if keep and cache is not None else None


@dataclass
class Question:
    """A context and the continuations to score, as token ids; the context may hold virtual tokens."""

    context: list[int]
    continuations: list[list[int]]


def loglikelihoods(
    model: PreTrainedModel,
    questions: Sequence[Question],
    vectors: Tensor | None = None,
    *,
    past: Read | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood of every continuation and whether greedy decoding would produce it.

    Each context is read once; the first tokens of all its continuations are scored there, and continuations of more
    than one token branch off its keys and values.

    Args:
        model: a causal LM.
        questions: contexts with their continuations.
        vectors: `[P, d]`, the soft prompt.
        past: what has been read before the contexts, one row for each question.

    Returns:
        Two tensors `[number of continuations]`, question by question: fp32 log-likelihoods, and booleans.
    """
    device = device_of(model)
    tally = _Tally(sum(len(question.continuations) for question in questions), device)
    ids, mask = (tensor.to(device) for tensor in pad_left([question.context for question in questions]))
    last = torch.zeros_like(mask, dtype=torch.bool)
    last[:, -1] = True

    firsts: list[tuple[int, int, int]] = []  # logit row, token, index of the continuation
    branches: dict[tuple[int, tuple[int, ...]], list[tuple[int, list[int]]]] = {}
    index = 0
    for row, question in enumerate(questions):
        for continuation in question.continuations:
            if continuation:  # nothing is certain: log-likelihood 0
                firsts.append((row, continuation[0], index))
            if len(continuation) > 1:
                branches.setdefault((row, tuple(continuation[:-1])), []).append((index, continuation))
            index += 1

    logits, context = read(model, ids, mask, vectors, past=past, scored=last, keep=bool(branches))
    tally.add(logits, firsts)
    if context is None:
        return tally.result()
    for chunk in _chunks(branches, MAX_LOGITS // logits.shape[-1]):
        rows = torch.tensor([row for row, _ in chunk], device=device)
        time = max(len(tokens) for _, tokens in chunk)
        branch_ids = torch.tensor([list(tokens) + [0] * (time - len(tokens)) for _, tokens in chunk], device=device)
        lengths = torch.tensor([len(tokens) for _, tokens in chunk], device=device)
        scored = torch.arange(time, device=device)[None] < lengths[:, None]  # the rest is padding
        targets: list[tuple[int, int, int]] = []
        start = 0
        for branch in chunk:
            for number, continuation in branches[branch]:
                targets += [(start + step, token, number) for step, token in enumerate(continuation[1:])]
            start += len(branch[1])
        logits, _ = read(model, branch_ids, scored.long(), past=context.select(rows), scored=scored, keep=False)
        tally.add(logits, targets)
    return tally.result()


class _Tally:
    """Sums the log-probabilities of a continuation's tokens as they become known."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._sums = torch.zeros(size, device=device)
        self._greedy = torch.ones(size, dtype=torch.bool, device=device)

    def add(self, logits: Tensor, targets: list[tuple[int, int, int]]) -> None:
        """Add, for each (row of `logits` `[rows, vocabulary]`, token, continuation), the token's log-probability."""
        if not targets:
            return
        rows, tokens, numbers = torch.tensor(targets, device=logits.device).unbind(dim=1)
        normalizers = torch.logsumexp(logits.float(), dim=-1)
        logprobs = logits[rows, tokens].float() - normalizers[rows]
        self._sums = self._sums.index_add(0, numbers, logprobs)
        missed = logits.argmax(dim=-1)[rows] != tokens
        self._greedy[numbers[missed]] = False

    def result(self) -> tuple[Tensor, Tensor]:
        return self._sums, self._greedy


def _chunks(
    branches: dict[tuple[int, tuple[int, ...]], Any], positions: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Yield branches of similar length together, at most `positions` scored positions or a single branch at a time."""
    chunk: list[tuple[int, tuple[int, ...]]] = []
    tokens = 0
    for branch in sorted(branches, key=lambda branch: len(branch[1])):
        padded = (len(chunk) + 1) * len(branch[1])
        if chunk and (padded > positions or padded - tokens - len(branch[1]) > MAX_PADDING):
            yield chunk
            chunk, tokens = [], 0
        chunk.append(branch)
        tokens += len(branch[1])
    if chunk:
        yield chunk
