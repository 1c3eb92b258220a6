"""Read a text once, then score any number of continuations of it.

The one way in which this package runs a causal LM, shared by scoring and training. :func:`prefill` fills a KV cache
with texts; :func:`forward_tree` runs the model over requests and returns the hidden states where something is scored;
:func:`loglikelihoods` runs the vocabulary head on these. Everything is differentiable in the prompt.

How requests are laid out depends on what the model can do (:mod:`lm_eval_spt.inference.capabilities`): as trees whose
every token is read once where it can read these, else in plainer and slower ways, down to one unpadded sequence for
each continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lm_eval_spt.inference import lm_head, transformers_internals
from lm_eval_spt.inference.capabilities import capabilities
from lm_eval_spt.inference.deep_prefix import deep_prefix_cache, is_deep
from lm_eval_spt.inference.kv_cache import KVCache
from lm_eval_spt.inference.token_tree import (
    ScoringRequest,
    TreeBatch,
    causal_mask,
    collate,
    text_length,
    text_positions,
)
from lm_eval_spt.inference.transformers_internals import device_of
from lm_eval_spt.inference.virtual_tokens import model_inputs, pad_left

# Logits of one call: 2**27 values are half a gigabyte in fp32.
MAX_LOGITS = 2**27
# Tokens in a row beyond which its context is read first: a mask of everything by everything grows with the square.
LONG = 2048
# Rows of logits that are normalized at once: few enough to stay in a processor's cache between the passes over them.
ROWS_IN_CACHE = 8


@dataclass
class ScoredStates:
    """What the model makes of the places where something is scored.

    Attributes:
        hidden: hidden states `[nodes, d]` that wait for the vocabulary head; of a model whose head can not be run by
            itself its logits `[nodes, vocabulary]`.
        targets: (node, token, continuation) `[targets, 3]`: whose log-probability counts for which continuation.
        continuations: how many there are.
        are_logits: whether `hidden` holds logits.
    """

    hidden: Tensor
    targets: Tensor
    continuations: int
    are_logits: bool = False


def prefill(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, vectors: Tensor | None = None, *, past: KVCache | None = None
) -> KVCache:
    """Run the model over texts, to read on from them.

    Args:
        model: a causal LM that can read on from a cache.
        ids: `[batch, time]`, padded on the left, virtual tokens marked (:mod:`lm_eval_spt.inference.virtual_tokens`).
        mask: `[batch, time]`, 1 for a token and 0 for padding.
        vectors: the soft prompt, as for :func:`forward_tree`, needed where `ids` holds virtual tokens.
        past: what the same rows have read before; it is used up.
    """
    vectors, past = _deep_prefix_read(model, len(ids), vectors, past)
    step = _Step(model, mask, None, past)
    cache = past.cache if past is not None else DynamicCache()
    step.hidden_states(model_inputs(model, ids, vectors), cache)
    return KVCache(cache, step.whole_mask)


def forward_tree(
    model: PreTrainedModel,
    requests: Sequence[ScoringRequest],
    vectors: Tensor | None = None,
    *,
    past: KVCache | None = None,
) -> ScoredStates:
    """Run the model over contexts and the branches of their continuations.

    Args:
        model: a causal LM.
        requests: contexts with their continuations.
        vectors: the soft prompt, `[P, d]`, or one for each request, `[requests, P, d]`, or a deep prefix.
        past: what has been read before the contexts, one row for each request; it is used up. Only for models that
            read on from a cache, and texts that they read fast.
    """
    known = capabilities(model)
    more = vectors.shape[3] if is_deep(vectors) else 0
    slow = [number for number, request in enumerate(requests) if known.reads_plainly(text_length(request) + more)]
    if slow and past is None:
        fast = [number for number in range(len(requests)) if number not in set(slow)]
        groups = [(fast, forward_tree), (slow, _forward_equal)]
        return _forward_groups(model, requests, vectors, [group for group in groups if group[0]])
    if known.layout != "tree":
        requests, vectors, past = _chains(model, requests, vectors, past)
    if known.layout == "rows" and past is None:
        return _forward_rows(model, requests, vectors)
    return _forward_padded(model, requests, *_deep_prefix_read(model, len(requests), vectors, past))


def _deep_prefix_read(
    model: PreTrainedModel, batch: int, vectors: Tensor | None, past: KVCache | None
) -> tuple[Tensor | None, KVCache | None]:
    """Return a deep prefix as what has been read before the texts, unless something has; other prompts as they are."""
    if not is_deep(vectors):
        return vectors, past
    return None, past or deep_prefix_cache(model, vectors, batch)


def _chains(
    model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None, past: KVCache | None
) -> tuple[list[ScoringRequest], Tensor | None, KVCache | None]:
    """Return a request for each continuation alone, with the vectors and the cache that belong to each."""
    chains = [ScoringRequest(request.context, [chosen]) for request in requests for chosen in request.continuations]
    numbers = [row for row, request in enumerate(requests) for _ in request.continuations]
    rows = torch.tensor(numbers, dtype=torch.long, device=device_of(model))
    if vectors is not None and vectors.dim() == 3:
        vectors = vectors.index_select(0, rows.to(vectors.device))
    return chains, vectors, past.select(rows) if past is not None else None


# -- with padding, masks and positions -------------------------------------------------------------------------------


def _forward_padded(
    model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None, past: KVCache | None
) -> ScoredStates:
    device = device_of(model)
    # Without masks of its own a model may count slots: behind a cache there must be no padding before the new tokens.
    known = capabilities(model)
    batch = collate(requests, padding="right" if past is not None and known.layout == "padded" else "left")
    if batch.visible is not None and batch.ids.shape[1] > LONG and any(len(row.context) > 1 for row in requests):
        if past is None and not known.cache:
            requests, vectors, past = _chains(model, requests, vectors, past)  # no mask of everything by everything
        else:
            requests, past = _prefill_contexts(model, requests, vectors, past)
        batch = collate(requests)
    step = _Step(model, batch.mask.to(device), batch, past)
    inputs = model_inputs(model, batch.ids.to(device), vectors)
    hidden = step.hidden_states(inputs, past.cache if past is not None else None)
    row, slot = batch.scored.to(hidden.device)
    return ScoredStates(hidden[row, slot], batch.targets.to(hidden.device), batch.continuations)


def _prefill_contexts(
    model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None, past: KVCache | None
) -> tuple[list[ScoringRequest], KVCache]:
    """Read all but the last token of every context: a mask of everything by everything would be too large."""
    ids, mask = (tensor.to(device_of(model)) for tensor in pad_left([request.context[:-1] for request in requests]))
    rest = [ScoringRequest(request.context[-1:], request.continuations) for request in requests]
    return rest, prefill(model, ids, mask, vectors, past=past)


class _Step:
    """Masks and positions of new tokens behind a KV cache, as `transformers_internals.hidden_states` takes them."""

    def __init__(self, model: PreTrainedModel, mask: Tensor, batch: TreeBatch | None, past: KVCache | None) -> None:
        self._model = model
        self.whole_mask = mask
        self._positions = batch.positions.to(mask.device) if batch is not None else text_positions(mask)
        self._key_positions = self._positions
        self._visible = batch.visible.to(mask.device) if batch is not None and batch.visible is not None else None
        if past is None:
            return
        self.whole_mask = torch.cat([past.mask, mask], dim=1)
        self._positions = self._positions + past.mask.sum(dim=1, keepdim=True)
        self._key_positions = torch.cat([text_positions(past.mask), self._positions], dim=1)
        if self._visible is None and transformers_internals.looks_nearby(model):
            self._visible = causal_mask(mask)  # a window must not count the padding between past and present
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


# -- as plain sequences ------------------------------------------------------------------------------------------------


def _forward_groups(
    model: PreTrainedModel,
    requests: Sequence[ScoringRequest],
    vectors: Tensor | None,
    groups: Sequence[tuple[list[int], Callable[..., ScoredStates]]],
) -> ScoredStates:
    """Run groups of requests apart, each in its way, and number their continuations as if they had been run together.

    Args:
        groups: the requests' numbers, and the function that runs them.
    """
    sizes = [len(request.continuations) for request in requests]
    firsts = [sum(sizes[:number]) for number in range(len(sizes))]
    parts, numbers = [], []
    for members, run in groups:
        own = vectors[members] if vectors is not None and vectors.dim() == 3 else vectors
        parts.append(run(model, [requests[number] for number in members], own))
        numbers += [firsts[number] + choice for number in members for choice in range(sizes[number])]
    joined = join(parts)
    nodes, tokens, continuations = joined.targets.unbind(dim=1)
    order = torch.tensor(numbers, dtype=torch.long, device=nodes.device)
    return replace(joined, targets=torch.stack([nodes, tokens, order[continuations]], dim=1))


def _forward_equal(model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None) -> ScoredStates:
    """Run each continuation behind its context, rows of one length together: nothing is padded."""
    chains, vectors, _ = _chains(model, requests, vectors, None)
    by_length: dict[int, list[int]] = {}
    for number, chain in enumerate(chains):
        by_length.setdefault(text_length(chain), []).append(number)
    return _forward_groups(model, chains, vectors, [(members, _forward_rows) for members in by_length.values()])


def _forward_rows(model: PreTrainedModel, requests: Sequence[ScoringRequest], vectors: Tensor | None) -> ScoredStates:
    """Run requests of one continuation each as rows padded on the right, and nothing but tokens given to the model."""
    split = capabilities(model).split
    transformers_internals.forget_longer_texts(model)
    batch = collate(requests, padding="right")
    inputs = model_inputs(model, batch.ids.to(device_of(model)), vectors)
    run = transformers_internals.plain_hidden_states if split else transformers_internals.plain_logits
    states = run(model, inputs)
    row, slot = batch.scored.to(states.device)
    chosen = states[row, slot]
    return ScoredStates(chosen, batch.targets.to(chosen.device), batch.continuations, are_logits=not split)


# -- log-likelihoods ---------------------------------------------------------------------------------------------------


def join(parts: Sequence[ScoredStates]) -> ScoredStates:
    """Put the states of several calls together."""
    nodes = continuations = 0
    targets = []
    for part in parts:
        targets.append(part.targets + part.targets.new_tensor([nodes, 0, continuations]))
        nodes, continuations = nodes + len(part.hidden), continuations + part.continuations
    hidden = torch.cat([part.hidden for part in parts])
    return ScoredStates(hidden, torch.cat(targets), continuations, parts[0].are_logits)


def loglikelihoods(model: PreTrainedModel, states: ScoredStates) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood of every continuation and whether greedy decoding would produce it.

    Returns:
        Two tensors `[continuations]`: fp32 log-likelihoods, and booleans. A continuation without tokens is certain.
    """
    sums, greedy, _ = loglikelihoods_with_mean(model, states, mean=False)
    return sums, greedy


def loglikelihoods_with_mean(
    model: PreTrainedModel, states: ScoredStates, mean: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`loglikelihoods` does, and what label smoothing mixes in.

    Returns:
        A third tensor `[continuations]`: the mean log-probability of all tokens of the vocabulary, summed over the
        places where the continuation's tokens are scored; zeros if it is not wanted.
    """
    exact = torch.promote_types(states.hidden.dtype, torch.float32)
    sums = torch.zeros(states.continuations, dtype=exact, device=states.hidden.device)
    means = torch.zeros_like(sums)
    greedy = torch.ones(states.continuations, dtype=torch.bool, device=states.hidden.device)
    nodes, tokens, numbers = states.targets.unbind(dim=1)
    weight = None if mean or states.are_logits else _head_to_read_once(model, states.hidden)
    if weight is not None:
        scored, normalizers, best = lm_head.scored_logits(states.hidden, weight, nodes, tokens)
        sums = sums.index_add(0, numbers, (scored - normalizers).to(exact))
        greedy[numbers[best[nodes] != tokens]] = False
        return sums, greedy, means
    for start, logits in _logits(model, states):
        normalizers, best = _normalize(logits)
        here = (nodes >= start) & (nodes < start + len(logits))
        row, token, number = nodes[here] - start, tokens[here], numbers[here]
        sums = sums.index_add(0, number, logits[row, token].to(exact) - normalizers[row].to(exact))
        if mean:
            means = means.index_add(0, number, (logits.to(exact).mean(dim=-1) - normalizers.to(exact))[row])
        greedy[number[best[row] != token]] = False
    return sums, greedy, means


def _logits(model: PreTrainedModel, states: ScoredStates) -> Iterator[tuple[int, Tensor]]:
    """Yield the first node's number and the logits `[nodes, vocabulary]` of some nodes after the other."""
    if states.are_logits:
        yield 0, states.hidden
        return
    size = max(1, MAX_LOGITS // model.config.get_text_config().vocab_size)
    for start in range(0, len(states.hidden), size):
        yield start, transformers_internals.logits(model, states.hidden[start : start + size])


def _head_to_read_once(model: PreTrainedModel, hidden: Tensor) -> Tensor | None:
    """Return the head's weights where :mod:`~lm_eval_spt.inference.lm_head` is right and pays: on a CPU.

    In bfloat16 a model, and the harness's loop, round each logit to three digits; here those that matter are not.
    """
    if hidden.device.type != "cpu" or not capabilities(model).plain_head:
        return None
    weight = transformers_internals.head_weight(model)
    return weight if weight is not None and weight.device == hidden.device and weight.dtype == hidden.dtype else None


def _normalize(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's log of the sum of exponentials, in fp32, and its largest entry's index, both `[rows]`."""
    rows = ROWS_IN_CACHE if logits.device.type == "cpu" else len(logits)
    pieces = logits.split(max(1, rows))
    normalizers = [piece.float().logsumexp(dim=-1) for piece in pieces]
    # `max` finds the index that `argmax` finds, the first of equals, in half of the time on CPUs.
    return torch.cat(normalizers), torch.cat([piece.max(dim=-1).indices for piece in pieces])
