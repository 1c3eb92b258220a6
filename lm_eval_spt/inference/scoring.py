"""The fast scorer: tokenised requests in, log-likelihoods out, each context read once.

The harness hands over one request for each choice of a document. Here the requests of one context become one
:class:`~lm_eval_spt.inference.token_tree.ScoringRequest`, requests of similar length share a batch, and a batch is as
large as a budget of tokens allows. The answers are those of the harness's own loop (`_loglikelihood_tokens`), to
rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference.capabilities import capabilities
from lm_eval_spt.inference.forward import LONG, ScoredStates, forward_tree, join, loglikelihoods, prefill
from lm_eval_spt.inference.kv_cache import KVCache
from lm_eval_spt.inference.token_tree import ScoringRequest, row_length, text_length
from lm_eval_spt.inference.transformers_internals import device_of, layers_and_width
from lm_eval_spt.inference.virtual_tokens import is_virtual, pad_left, place, virtual_tokens

logger = logging.getLogger(__name__)

TokenPair = tuple[list[int], list[int]]
"""The token ids of a context and a continuation."""

# Hidden states that wait for the vocabulary head before it runs.
NODES_AT_ONCE = 512

Answer = tuple[float, bool]
"""A continuation's log-likelihood, and whether greedy decoding would produce it."""


def truncate(context: list[int], continuation: list[int], max_length: int) -> list[int]:
    """Return the end of the context that fits before the continuation, as the harness does.

    The model reads everything but the continuation's last token, so `max_length` + 1 tokens fit in all.

    Raises:
        UserError: the continuation alone does not fit.
    """
    room = max_length + 1 - len(continuation)
    if room < 1:
        raise UserError(
            f"a continuation of {len(continuation)} tokens does not fit into {max_length} tokens: shorten the task's "
            "answers, or use a model that reads more"
        )
    return context[-room:]


def score(
    model: PreTrainedModel, requests: Sequence[TokenPair], vectors: Tensor | None, max_batch_tokens: int
) -> Iterator[tuple[int, Answer]]:
    """Sort continuations of contexts, and return what yields a request's number and answer as soon as it is known.

    Args:
        model: a causal LM in evaluation mode.
        requests: (context, continuation) as token ids, virtual tokens marked; already truncated.
        vectors: `[P, d]`, the soft prompt, if any; or a deep prefix.
        max_batch_tokens: how many tokens, padding included, the model reads at once; halved when memory runs out.
    """
    before = _virtual_tokens_before(requests) if capabilities(model).cache else 0
    shared = _prefill_prefix(model, before, vectors)

    def answer(batch: Sequence[ScoringRequest]) -> Iterator[ScoredStates]:
        if shared is None or _is_slow(model, batch):
            yield forward_tree(model, batch, vectors)
        else:
            rest = [ScoringRequest(request.context[before:], request.continuations) for request in batch]
            yield forward_tree(model, rest, vectors, past=shared.fork(len(batch)))

    answers = _score_in_batches(model, requests, answer, max_batch_tokens)
    return ((number, answer_of_prompt) for number, (answer_of_prompt,) in answers)


def _virtual_tokens_before(requests: Sequence[TokenPair]) -> int:
    """Return with how many virtual tokens the contexts begin."""
    context = requests[0][0] if requests else []
    return next((index for index, token in enumerate(context) if not is_virtual(token)), len(context))


def _prefill_prefix(model: PreTrainedModel, before: int, vectors: Tensor | None) -> KVCache | None:
    """Return what the model makes of the virtual tokens before all texts, which they share; None without any."""
    if not before:
        return None
    ids, mask = (tensor.to(device_of(model)) for tensor in pad_left([place([], before, 0)]))
    with torch.inference_mode():
        return prefill(model, ids, mask, vectors)


def _is_slow(model: PreTrainedModel, batch: Sequence[ScoringRequest], more: int = 0) -> bool:
    """Tell whether a batch, which holds texts of one kind, is to be read plainly, without a cache."""
    return capabilities(model).reads_plainly(text_length(batch[0]) + more)


def score_suffixes(
    model: PreTrainedModel, requests: Sequence[TokenPair], prompts: Sequence[Tensor], max_batch_tokens: int
) -> Iterator[tuple[int, list[Answer]]]:
    """Score continuations of contexts with every one of several suffix prompts, reading each context once for all.

    What the model makes of a text does not depend on what follows it, so that the prompts share its keys and values;
    as many as fit are branches of one tree, so that short prompts do not make small batches. A model that can not read
    on from a cache reads the context with each prompt.

    Args:
        model: a causal LM in evaluation mode.
        requests: (context, continuation) as token ids, without virtual tokens; each fits with the longest prompt.
        prompts: vectors `[P, d]`, P may differ.
        max_batch_tokens: as in :func:`score`.

    Yields:
        A request's number, and its answers prompt by prompt.
    """
    known = capabilities(model)
    longest_prompt = max(map(len, prompts))

    def answer(batch: Sequence[ScoringRequest]) -> Iterator[ScoredStates]:
        if not known.cache or _is_slow(model, batch, longest_prompt):
            for vectors in prompts:
                prompted = [
                    ScoringRequest(place(request.context, 0, len(vectors)), request.continuations) for request in batch
                ]
                yield forward_tree(model, prompted, vectors)
            return
        ids, mask = (tensor.to(device_of(model)) for tensor in pad_left([request.context for request in batch]))
        branches = max(row_length(ScoringRequest([], request.continuations)) for request in batch)
        most = min(LONG, max_batch_tokens // len(batch)) if known.layout == "tree" else 0
        groups = list(_groups(prompts, branches, most))
        most_tokens = max(sum(map(len, group)) + len(group) * branches for group in groups)
        past = prefill(model, ids, mask).preallocate(most_tokens)
        for group in groups:
            lengths = [len(vectors) for vectors in group]
            marks = [virtual_tokens(length, sum(lengths[:which])) for which, length in enumerate(lengths)]
            prompted = [
                ScoringRequest([], [[*mark, *chosen] for chosen in request.continuations for mark in marks])
                for request in batch
            ]
            yield forward_tree(model, prompted, torch.cat(group), past=past.fork())

    return _score_in_batches(model, requests, answer, max_batch_tokens, longest_prompt)


def _groups(prompts: Sequence[Tensor], branches: int, most: int) -> Iterator[list[Tensor]]:
    """Yield prompts in groups that have, with so many tokens of answers each, not more than `most` tokens, or one."""
    group: list[Tensor] = []
    size = 0
    for vectors in prompts:
        if group and size + len(vectors) + branches > most:
            yield group
            group, size = [], 0
        group.append(vectors)
        size += len(vectors) + branches
    yield group


def _score_in_batches(
    model: PreTrainedModel,
    requests: Sequence[TokenPair],
    answer: Callable[[Sequence[ScoringRequest]], Iterable[ScoredStates]],
    max_batch_tokens: int,
    more: int = 0,
) -> Iterator[tuple[int, list[Answer]]]:
    """Put requests of one context together at once, and return what batches the contexts and yields every answer.

    All sorting is done before the first answer is asked for, so that a progress bar times the model alone.

    Args:
        answer: runs the model over a batch: states for some of the prompts, then for others.
        more: tokens that `answer` adds to each text.
    """
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(requests):
        numbers.setdefault(tuple(context), []).append(number)
    rows = []
    for tokens, members in numbers.items():
        request = ScoringRequest(list(tokens), [requests[number][1] for number in members])
        slow = capabilities(model).reads_plainly(text_length(request) + more)
        rows.append(_Row(row_length(request), slow, request, members))
    # Longest first: if memory does not suffice, it shows at once, and the time left is not underestimated.
    return _in_batches(model, sorted(rows, key=lambda row: (not row.slow, -row.length)), answer, max_batch_tokens)


@dataclass(frozen=True)
class _Row:
    """A context with its continuations: its length, whether it is read plainly, and its requests' numbers."""

    length: int
    slow: bool
    request: ScoringRequest
    numbers: list[int]


@torch.inference_mode()
def _in_batches(
    model: PreTrainedModel,
    rows: Sequence[_Row],
    answer: Callable[[Sequence[ScoringRequest]], Iterable[ScoredStates]],
    max_batch_tokens: int,
) -> Iterator[tuple[int, list[Answer]]]:
    """Yield the answers to rows, which are sorted: those read plainly first, and the longest of each kind.

    The vocabulary head runs when enough hidden states wait for it: its weights are read once for all of them.
    """
    waiting: list[tuple[list[int], list[ScoredStates]]] = []
    start = 0
    while start < len(rows):
        following = rows[start : start + max_batch_tokens]
        lengths = [row.length for row in following if row.slow == following[0].slow]
        size = _batch_size(lengths, max_batch_tokens)
        batch = following[:size]
        try:
            states = list(answer([row.request for row in batch]))
        except torch.OutOfMemoryError:
            if size == 1:
                raise UserError(
                    f"a text and its answers, {batch[0].length} tokens, do not fit into the memory of "
                    f"{device_of(model)}: load the model in half precision (dtype=bfloat16), give max_length, or use a "
                    "larger device"
                ) from None
            max_batch_tokens //= 2
            torch.cuda.empty_cache()
            logger.warning("out of memory with %d contexts: going on with %d tokens", size, max_batch_tokens)
            continue
        start += size
        waiting.append(([number for row in batch for number in row.numbers], states))
        if start == len(rows) or sum(len(part.hidden) for _, parts in waiting for part in parts) >= NODES_AT_ONCE:
            yield from _answers(model, waiting)
            waiting = []


def _batch_size(lengths: Sequence[int], max_tokens: int) -> int:
    """Return how many of the next rows, of falling length, to read at once.

    Not more than fit; and fewer where the padding would cost more than the time that a larger batch saves.
    """
    width, padding = lengths[0], 0
    for size, length in enumerate(lengths):
        padding += width - length
        if size and ((size + 1) * width > max_tokens or padding > max_tokens / 12):
            return size
    return len(lengths)


def _answers(
    model: PreTrainedModel, waiting: Sequence[tuple[Sequence[int], Sequence[ScoredStates]]]
) -> Iterator[tuple[int, list[Answer]]]:
    """Yield the numbers of requests with their answers, prompt by prompt.

    Args:
        model: a causal LM.
        waiting: batch by batch the requests' numbers, and the states for some of the prompts, then for others; in each
            the answers to a request stand together.
    """
    sums, greedy = loglikelihoods(model, join([states for _, parts in waiting for states in parts]))
    answers = iter(zip(sums.tolist(), greedy.tolist(), strict=True))
    for numbers, parts in waiting:
        by_request: list[list[Answer]] = [[] for _ in numbers]
        for states in parts:
            for answers_of_request in by_request:
                answers_of_request += islice(answers, states.continuations // len(numbers))
        yield from zip(numbers, by_request, strict=True)


def free_memory(device: torch.device) -> int:
    """Return how many bytes of a device's memory are free."""
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def tokens_that_fit(model: PreTrainedModel, device: torch.device) -> int:
    """Estimate from free memory how many tokens the model can read at once.

    A token needs its keys and values, a few hidden states, and its share of the attention and of the logits; the
    estimate takes half of the free memory and is generous with the rest.
    """
    layers, width = layers_and_width(model)
    free = free_memory(device)
    size = next(model.parameters()).element_size()
    cache = 2 * layers * width * size
    hidden = 32 * width * max(size, 4)
    ceiling = 65536 if device.type == "cuda" else 2048  # beyond, a batch gains nothing
    return int(max(256, min(ceiling, free / 2 / (16 * cache + hidden))))
