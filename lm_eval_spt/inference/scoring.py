"""The fast scorer: tokenised requests in, log-likelihoods out, each context read once.

The harness hands over one request for each choice of a document. Here the requests of one context become one
:class:`~lm_eval_spt.inference.token_tree.ScoringRequest`, requests of similar length share a batch, and a batch is as
large as a budget of tokens allows. The answers are those of the harness's own loop (`_loglikelihood_tokens`), to
rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference.forward import (
    LONG,
    KVCache,
    ScoredStates,
    forward_tree,
    join,
    loglikelihoods,
    prefill,
    takes_trees,
)
from lm_eval_spt.inference.token_tree import ScoringRequest, row_length
from lm_eval_spt.inference.transformers_internals import device_of
from lm_eval_spt.inference.virtual_tokens import is_virtual, model_inputs, pad_left, place, virtual_tokens

logger = logging.getLogger(__name__)

Request = tuple[list[int], list[int]]
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
    model: PreTrainedModel, requests: Sequence[Request], vectors: Tensor | None, max_batch_tokens: int
) -> Iterator[tuple[int, Answer]]:
    """Sort continuations of contexts, and return what yields a request's number and answer as soon as it is known.

    Args:
        model: a causal LM in evaluation mode.
        requests: (context, continuation) as token ids, virtual tokens marked; already truncated.
        vectors: `[P, d]`, the soft prompt, if any.
        max_batch_tokens: how many tokens, padding included, the model reads at once; halved when memory runs out.
    """
    before = _virtual_tokens_before(requests)
    shared = _read_prefix(model, before, vectors)

    def answer(requests: Sequence[ScoringRequest]) -> Iterator[ScoredStates]:
        if shared is None:
            yield forward_tree(model, requests, vectors)
        else:
            rest = [ScoringRequest(request.context[before:], request.continuations) for request in requests]
            yield forward_tree(model, rest, vectors, past=shared.fork(len(requests)))

    found = _score_in_batches(model, requests, answer, max_batch_tokens)
    return ((number, of_prompt) for number, (of_prompt,) in found)


def _virtual_tokens_before(requests: Sequence[Request]) -> int:
    """Return with how many virtual tokens the contexts begin."""
    context = requests[0][0] if requests else []
    return next((index for index, token in enumerate(context) if not is_virtual(token)), len(context))


def _read_prefix(model: PreTrainedModel, before: int, vectors: Tensor | None) -> KVCache | None:
    """Return what the model makes of the virtual tokens before all texts, which they share; None without any."""
    if not before:
        return None
    ids, mask = (tensor.to(device_of(model)) for tensor in pad_left([place([], before, 0)]))
    with torch.inference_mode():
        return prefill(model, ids, mask, vectors)


def score_suffixes(
    model: PreTrainedModel, requests: Sequence[Request], prompts: Sequence[Tensor], max_batch_tokens: int
) -> Iterator[tuple[int, list[Answer]]]:
    """Score continuations of contexts with every one of several suffix prompts, reading each context once for all.

    What the model makes of a text does not depend on what follows it, so that the prompts share its keys and values;
    as many as fit are branches of one tree, so that short prompts do not make small batches.

    Args:
        model: a causal LM in evaluation mode.
        requests: (context, continuation) as token ids, without virtual tokens; each fits with the longest prompt.
        prompts: vectors `[P, d]`, P may differ.
        max_batch_tokens: as in :func:`score`.

    Yields:
        A request's number, and its answers prompt by prompt.
    """

    def answer(requests: Sequence[ScoringRequest]) -> Iterator[ScoredStates]:
        ids, mask = (tensor.to(device_of(model)) for tensor in pad_left([request.context for request in requests]))
        branches = max(row_length(ScoringRequest([], request.continuations)) for request in requests)
        most = min(LONG, max_batch_tokens // len(requests)) if takes_trees(model) else 0
        groups = list(_groups(prompts, branches, most))
        past = prefill(model, ids, mask).preallocate(
            max(sum(map(len, group)) + len(group) * branches for group in groups)
        )
        for group in groups:
            lengths = [len(vectors) for vectors in group]
            marks = [virtual_tokens(length, sum(lengths[:which])) for which, length in enumerate(lengths)]
            prompted = [
                ScoringRequest([], [[*m, *c] for c in request.continuations for m in marks]) for request in requests
            ]
            yield forward_tree(model, prompted, torch.cat(group), past=past.fork())

    return _score_in_batches(model, requests, answer, max_batch_tokens)


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
    requests: Sequence[Request],
    answer: Callable[[Sequence[ScoringRequest]], Iterable[ScoredStates]],
    max_batch_tokens: int,
) -> Iterator[tuple[int, list[Answer]]]:
    """Put requests of one context together at once, and return what batches the contexts and yields every answer.

    What takes no part in the time that a document needs is done before the first is asked for: the time left is told
    from the time that those before have taken.
    """
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(requests):
        numbers.setdefault(tuple(context), []).append(number)
    by_context = [
        ScoringRequest(list(context), [requests[number][1] for number in members])
        for context, members in numbers.items()
    ]
    # Longest first: if memory does not suffice, it shows at once, and the time left is not underestimated.
    by_length = sorted(
        zip(map(row_length, by_context), by_context, numbers.values(), strict=True), key=lambda row: -row[0]
    )
    return _in_batches(model, by_length, answer, max_batch_tokens)


@torch.inference_mode()
def _in_batches(
    model: PreTrainedModel,
    by_length: Sequence[tuple[int, ScoringRequest, list[int]]],
    answer: Callable[[Sequence[ScoringRequest]], Iterable[ScoredStates]],
    max_batch_tokens: int,
) -> Iterator[tuple[int, list[Answer]]]:
    """Yield the answers to requests, given as (length, request, the requests' numbers) from the longest on.

    The vocabulary head runs when enough hidden states wait for it: its weights are read once for all of them.
    """
    waiting: list[tuple[list[int], list[ScoredStates]]] = []
    start = 0
    while start < len(by_length):
        size = _batch_size([length for length, _, _ in by_length[start : start + max_batch_tokens]], max_batch_tokens)
        batch = by_length[start : start + size]
        try:
            states = list(answer([request for _, request, _ in batch]))
        except torch.OutOfMemoryError:
            if size == 1:
                raise UserError(
                    f"a text and its answers, {batch[0][0]} tokens, do not fit into the memory of {device_of(model)}: "
                    "load the model in half precision (dtype=bfloat16), give max_length, or use a larger device"
                ) from None
            max_batch_tokens //= 2
            torch.cuda.empty_cache()
            logger.warning("out of memory with %d contexts: going on with %d tokens", size, max_batch_tokens)
            continue
        start += size
        waiting.append(([number for _, _, of in batch for number in of], states))
        if start == len(by_length) or sum(len(part.hidden) for _, of in waiting for part in of) >= NODES_AT_ONCE:
            yield from _resolve(model, waiting)
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


def _resolve(
    model: PreTrainedModel, waiting: Sequence[tuple[Sequence[int], Sequence[ScoredStates]]]
) -> Iterator[tuple[int, list[Answer]]]:
    """Yield the numbers of requests with their answers, prompt by prompt.

    Args:
        model: a causal LM.
        waiting: batch by batch the requests' numbers, and what was asked for some of the prompts, then for others; in
            each the answers to a request stand together.
    """
    sums, greedy = loglikelihoods(model, join([states for _, of_batch in waiting for states in of_batch]))
    found = iter(zip(sums.tolist(), greedy.tolist(), strict=True))
    for numbers, of_batch in waiting:
        answers: list[list[Answer]] = [[] for _ in numbers]
        for states in of_batch:
            for of_request in answers:
                of_request += islice(found, states.continuations // len(numbers))
        yield from zip(numbers, answers, strict=True)


def tokens_that_fit(model: PreTrainedModel, device: torch.device) -> int:
    """Estimate from free memory how many tokens the model can read at once.

    A token needs its keys and values, a few hidden states, and its share of the attention and of the logits; the
    estimate takes half of the free memory and is generous with the rest.
    """
    config = model.config.get_text_config()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    size = next(model.parameters()).element_size()
    cache = 2 * config.num_hidden_layers * config.hidden_size * size
    hidden = 32 * config.hidden_size * max(size, 4)
    ceiling = 65536 if device.type == "cuda" else 2048  # beyond, a batch gains nothing
    return int(max(256, min(ceiling, free / 2 / (16 * cache + hidden))))


def agrees_with_plain_pass(
    model: PreTrainedModel, vectors: Tensor | None, make_context: Callable[[list[int]], list[int]]
) -> bool:
    """Tell whether reading in steps gives the log-likelihoods that one pass over the whole sequence gives.

    Some architectures have no key-value cache that can be branched (recurrent ones, for example), or treat padding in
    ways of their own. A few tokens show it, once, before anything is scored.
    """
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(4, vocabulary, (16,), generator=torch.Generator().manual_seed(0)).tolist()
    short, long = make_context(tokens[:3]), make_context(tokens[3:8])
    requests = [(short, tokens[8:11]), (short, tokens[8:9]), (long, tokens[11:13])]
    try:
        fast = dict(score(model, requests, vectors, 64))
        with torch.inference_mode():
            plain = [plain_loglikelihood(model, context, continuation, vectors) for context, continuation in requests]
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        logger.info("the fast scorer does not work with %s: %r", type(model).__name__, error)
        return False
    half_precision = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    tolerance = 0.05 if half_precision else 1e-3
    return all(abs(fast[index][0] - value) <= tolerance * max(1.0, abs(value)) for index, value in enumerate(plain))


def plain_loglikelihood(
    model: PreTrainedModel, context: list[int], continuation: list[int], vectors: Tensor | None
) -> float:
    """Return a continuation's log-likelihood from one pass over one sequence: no cache, padding, mask or positions."""
    ids = torch.tensor([context + continuation[:-1]], device=device_of(model))
    logits = model(**model_inputs(model, ids, vectors), use_cache=False).logits[0, -len(continuation) :]
    logprobs = logits.float().log_softmax(dim=-1)
    return float(logprobs[range(len(continuation)), continuation].sum())
