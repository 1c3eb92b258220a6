"""Read a text once, then score any number of continuations of it.

The one way in which this package runs a causal LM, shared by scoring and training. :func:`prefill` fills a KV cache
with texts; :func:`forward_tree` runs the model over requests, each a tree whose every token is read once, and returns
the hidden states where something is scored; :func:`loglikelihoods` runs the vocabulary head on these. Everything is
differentiable in the prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lm_eval_spt.inference import lm_head, transformers_internals
from lm_eval_spt.inference.token_tree import ScoringRequest, TreeBatch, causal, collate, text_positions
from lm_eval_spt.inference.transformers_internals import (
    PreallocatedLayer,
    cache_of,
    device_of,
    keys_and_values,
    preallocate,
)
from lm_eval_spt.inference.virtual_tokens import model_inputs, pad_left

logger = logging.getLogger(__name__)

# Logits of one call: 2**27 values are half a gigabyte in fp32.
MAX_LOGITS = 2**27
# Tokens in a row beyond which its context is read first: a mask of everything by everything grows with the square.
LONG = 2048
# Rows of logits that are normalized at once: few enough to stay in a processor's cache between the passes over them.
ROWS_IN_CACHE = 8


@dataclass
class KVCache:
    """What the model has read so far: texts, without branches.

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
                cache.layers = [layer.again() for layer in self.cache.layers]  # type: ignore[union-attr]
                return KVCache(cache, self.mask)
            return KVCache(cache_of(self._states()), self.mask)
        states = [(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)) for keys, values in self._states()]
        return KVCache(cache_of(states), self.mask.expand(batch, -1))

    def preallocate(self, room: int) -> KVCache:
        """Return the same with room for so many tokens, so that branches, read one after the other, copy nothing."""
        return KVCache(preallocate(self.cache, room), self.mask)

    def _states(self) -> list[tuple[Tensor, Tensor]]:
        return keys_and_values(self.cache)


def prefill(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, vectors: Tensor | None = None, *, past: KVCache | None = None
) -> KVCache:
    """Run the model over texts, to read on from them.

    Args:
        model: a causal LM.
        ids: `[batch, time]`, padded on the left, virtual tokens marked (:mod:`lm_eval_spt.inference.virtual_tokens`).
        mask: `[batch, time]`, 1 for a token and 0 for padding.
        vectors: the soft prompt, as for :func:`forward_tree`, needed where `ids` holds virtual tokens.
        past: what the same rows have read before; it is used up.
    """
    step = _Step(model, mask, None, past)
    cache = past.cache if past is not None else DynamicCache()
    step.hidden_states(model_inputs(model, ids, vectors), cache)
    return KVCache(cache, step.whole_mask)


@dataclass
class ScoredStates:
    """Hidden states that wait for the vocabulary head.

    Attributes:
        hidden: `[nodes, d]`.
        targets: (node, token, continuation) `[targets, 3]`: whose log-probability counts for which continuation.
        continuations: how many there are.
    """

    hidden: Tensor
    targets: Tensor
    continuations: int


def forward_tree(
    model: PreTrainedModel,
    requests: Sequence[ScoringRequest],
    vectors: Tensor | None = None,
    *,
    past: KVCache | None = None,
) -> ScoredStates:
    """Run the model over contexts and the branches of their continuations, every distinct token once.

    Args:
        model: a causal LM.
        requests: contexts with their continuations.
        vectors: the soft prompt, `[P, d]`, or one for each request, `[requests, P, d]`.
        past: what has been read before the contexts, one row for each request; it is used up.
    """
    if not takes_trees(model):
        alone = [ScoringRequest(request.context, [one]) for request in requests for one in request.continuations]
        of = [row for row, request in enumerate(requests) for _ in request.continuations]
        rows = torch.tensor(of, device=device_of(model))
        past = past.select(rows) if past is not None else None
        vectors = (
            vectors.index_select(0, rows.to(vectors.device)) if vectors is not None and vectors.dim() == 3 else vectors
        )
        requests = alone
    return _forward_tree(model, requests, vectors, past)


def _forward_tree(
    model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None, past: KVCache | None
) -> ScoredStates:
    device = device_of(model)
    rows = collate(requests)
    if rows.visible is not None and rows.ids.shape[1] > LONG and any(len(request.context) > 1 for request in requests):
        requests, past = _read_most(model, requests, vectors, past)
        rows = collate(requests)
    step = _Step(model, rows.mask.to(device), rows, past)
    inputs = model_inputs(model, rows.ids.to(device), vectors)
    hidden = step.hidden_states(inputs, past.cache if past is not None else None)
    row, slot = rows.scored.to(hidden.device)
    return ScoredStates(hidden[row, slot], rows.targets.to(hidden.device), rows.continuations)


def _read_most(
    model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None, past: KVCache | None
) -> tuple[list[ScoringRequest], KVCache]:
    """Read all but the last token of every context: a mask of everything by everything would be too large."""
    ids, mask = (tensor.to(device_of(model)) for tensor in pad_left([request.context[:-1] for request in requests]))
    rest = [ScoringRequest(request.context[-1:], request.continuations) for request in requests]
    return rest, prefill(model, ids, mask, vectors, past=past)


class _Step:
    """Masks and positions of new tokens behind a KV cache, as `transformers_internals.hidden_states` takes them."""

    def __init__(self, model: PreTrainedModel, mask: Tensor, rows: TreeBatch | None, past: KVCache | None) -> None:
        self._model = model
        self.whole_mask = mask
        self._positions = rows.positions.to(mask.device) if rows is not None else text_positions(mask)
        self._key_positions = self._positions
        self._visible = rows.visible.to(mask.device) if rows is not None and rows.visible is not None else None
        if past is None:
            return
        self.whole_mask = torch.cat([past.mask, mask], dim=1)
        self._positions = self._positions + past.mask.sum(dim=1, keepdim=True)
        self._key_positions = torch.cat([text_positions(past.mask), self._positions], dim=1)
        if self._visible is None and transformers_internals.sliding_window(model) is not None:
            self._visible = causal(mask)  # a window must not count the padding between past and present
        if self._visible is not None:
            before = past.mask.bool()[:, None, :].expand(-1, mask.shape[1], -1)
            self._visible = torch.cat([before, self._visible], dim=2)

    def hidden_states(self, inputs: dict[str, Tensor], cache: DynamicCache | None) -> Tensor:
        """Return the decoder's output for the new tokens, `[batch, new, d]`."""
        return transformers_internals.hidden_states(
            self._model,
            inputs,
            self.whole_mask,
            self._positions,
            visible=self._visible,
            key_positions=self._key_positions if self._visible is not None else None,
            cache=cache,
        )


def join(parts: Sequence[ScoredStates]) -> ScoredStates:
    """Put what was asked in several calls together."""
    nodes = continuations = 0
    targets = []
    for part in parts:
        targets.append(part.targets + part.targets.new_tensor([nodes, 0, continuations]))
        nodes, continuations = nodes + len(part.hidden), continuations + part.continuations
    return ScoredStates(torch.cat([part.hidden for part in parts]), torch.cat(targets), continuations)


def loglikelihoods(model: PreTrainedModel, states: ScoredStates) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood of every continuation and whether greedy decoding would produce it.

    Returns:
        Two tensors `[continuations]`: fp32 log-likelihoods, and booleans. A continuation without tokens is certain.
    """
    sums, greedy, _ = loglikelihoods_with_mean(model, states, mean_logprob=False)
    return sums, greedy


def loglikelihoods_with_mean(
    model: PreTrainedModel, states: ScoredStates, mean_logprob: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`loglikelihoods` does, and what label smoothing mixes in.

    Returns:
        A third tensor `[continuations]`: the mean log-probability of all tokens of the vocabulary, summed over the
        places where the continuation's tokens are scored; zeros if it is not wanted.
    """
    sums = torch.zeros(states.continuations, device=states.hidden.device)
    mean_logprobs = torch.zeros_like(sums)
    greedy = torch.ones(states.continuations, dtype=torch.bool, device=states.hidden.device)
    nodes, tokens, numbers = states.targets.unbind(dim=1)
    if not mean_logprob and (weight := _weights_to_read_once(model, states.hidden)) is not None:
        normalizers, best = lm_head.logsumexp(states.hidden, weight)
        scored = (states.hidden[nodes] * weight[tokens]).sum(dim=-1)
        sums = sums.index_add(0, numbers, scored - normalizers[nodes])
        greedy[numbers[best[nodes] != tokens]] = False
        return sums, greedy, mean_logprobs
    size = max(1, MAX_LOGITS // model.config.get_text_config().vocab_size)
    for start in range(0, len(states.hidden), size):
        logits = transformers_internals.logits(model, states.hidden[start : start + size])
        normalizers, best = _normalize(logits)
        here = (nodes >= start) & (nodes < start + size)
        row, token, number = nodes[here] - start, tokens[here], numbers[here]
        sums = sums.index_add(0, number, logits[row, token].float() - normalizers[row])
        if mean_logprob:
            mean_logprobs = mean_logprobs.index_add(0, number, (logits.float().mean(dim=-1) - normalizers)[row])
        greedy[number[best[row] != token]] = False
    return sums, greedy, mean_logprobs


def _weights_to_read_once(model: PreTrainedModel, hidden: Tensor) -> Tensor | None:
    """Return the head's weights where :mod:`~lm_eval_spt.inference.lm_head` is right and pays: in float32, on a CPU.

    In half precision a model rounds its logits, and so does the harness's loop.
    """
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return None
    weight = transformers_internals.plain_head(model)
    return weight if weight is not None and weight.device == hidden.device and weight.dtype == hidden.dtype else None


def _normalize(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's log of the sum of exponentials, in fp32, and its largest entry's index, both `[rows]`."""
    rows = ROWS_IN_CACHE if logits.device.type == "cpu" else len(logits)
    pieces = logits.split(max(1, rows))
    normalizers = [piece.float().logsumexp(dim=-1) for piece in pieces]
    # `max` finds the index that `argmax` finds, the first of equals, in half of the time on CPUs.
    return torch.cat(normalizers), torch.cat([piece.max(dim=-1).indices for piece in pieces])


def score_requests(
    model: PreTrainedModel,
    requests: Sequence[ScoringRequest],
    vectors: Tensor | None = None,
    *,
    past: KVCache | None = None,
) -> tuple[Tensor, Tensor]:
    """Ask and resolve at once; arguments as for :func:`forward_tree`, results as of :func:`loglikelihoods`."""
    return loglikelihoods(model, forward_tree(model, requests, vectors, past=past))


# -- what a model can do -----------------------------------------------------------------------------------------------

_takes_trees: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def takes_trees(model: PreTrainedModel) -> bool:
    """Tell whether the model reads a tree as it would read its branches one by one: a few tokens show it, once.

    Not every architecture keeps to a mask that says which token may look at which; those read each continuation by
    itself.
    """
    if model not in _takes_trees:
        _takes_trees[model] = _reads_trees_right(model)
    return _takes_trees[model]


@torch.no_grad()
def _reads_trees_right(model: PreTrainedModel) -> bool:
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(4, vocabulary, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    first, second, third = tokens[4:6], tokens[6:9], tokens[9:11]
    requests = [
        ScoringRequest(tokens[:4], [first, second, [*second[:2], third[0]]]),
        ScoringRequest(tokens[1:3], [third, second]),
    ]
    alone = [ScoringRequest(request.context, [one]) for request in requests for one in request.continuations]
    try:
        together, apart = _forward_tree(model, requests, None, None), _forward_tree(model, alone, None, None)
        found, expected = (loglikelihoods(model, states)[0] for states in (together, apart))
        past_ids = torch.tensor([tokens[8:12]], device=device_of(model))
        past = prefill(model, past_ids, torch.ones_like(past_ids))
        after = _forward_tree(model, requests, None, past.fork(len(requests)))
        after_alone = _forward_tree(model, alone, None, past.fork(len(alone)))
        found_after, expected_after = (loglikelihoods(model, states)[0] for states in (after, after_alone))
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        logger.info("%s does not read trees: %r", type(model).__name__, error)
        return False
    tolerance = 0.05 if model.dtype in (torch.float16, torch.bfloat16) else 1e-3
    return all(
        torch.allclose(one, other, rtol=tolerance, atol=tolerance)
        for one, other in ((found, expected), (found_after, expected_after))
    )
