"""What training minimizes and validation reports, both from the log-likelihoods that the harness decides by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_eval_spt.inference import encoder_decoder
from lm_eval_spt.inference.forward import forward_tree, loglikelihoods_with_mean
from lm_eval_spt.inference.token_tree import ScoringRequest
from lm_eval_spt.inference.virtual_tokens import place
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import Example


@dataclass
class Outcome:
    """Of a batch of examples.

    Attributes:
        loss: summed over `weight` examples (loss `choices`) or tokens (loss `target`), differentiable.
        weight: by what to divide it.
        correct: how many examples the harness would count as right.
    """

    loss: Tensor
    weight: int
    correct: int


@dataclass(frozen=True)
class LossRequest:
    """What a run wants to know: how its prompt does on a batch of examples.

    Attributes:
        examples: the batch.
        vectors: `[P, d]`, as the model receives them; None without a prompt.
        before: how many of them stand before the text; the others stand after it.
        loss: `choices`, cross-entropy over the log-likelihoods of an example's choices; or `target`, cross-entropy of
            the right answer's tokens over the vocabulary. Examples without choices have only the latter.
        label_smoothing: share of the target that is spread evenly over the choices, or over the vocabulary.
    """

    examples: Sequence[Example]
    vectors: Tensor | None
    before: int
    loss: str
    label_smoothing: float = 0.0

    @property
    def length(self) -> int:
        """Number of virtual tokens, P."""
        return 0 if self.vectors is None else len(self.vectors)

    @property
    def over_vocabulary(self) -> bool:
        """Whether label smoothing spreads the target over the vocabulary."""
        return self.label_smoothing > 0 and not over_choices(self.examples, self.loss)


def evaluate(
    model: PreTrainedModel, loss_requests: Sequence[LossRequest], cache: ContextCache | None = None
) -> list[Outcome]:
    """Score every choice of every example and compare with the right one.

    Args:
        model: the base model.
        loss_requests: of one run or several, read in one batch; their prompts have one length and one placement.
        cache: keys and values of the examples' contexts, for suffix prompts.

    Returns:
        An outcome for each.
    """
    batches = [_scoring_requests(loss_request.examples) for loss_request in loss_requests]
    contexts = [context for batch in batches for context in batch.contexts]
    requests = [request for batch in batches for request in batch.requests]
    before, length = loss_requests[0].before, loss_requests[0].length
    past = None if cache is None else cache.read(contexts)
    for request, context in zip(requests, contexts, strict=True):
        request.context = place([] if past else context, before, length - before)
    if len(loss_requests) == 1:
        vectors = loss_requests[0].vectors
    else:
        vectors = torch.cat(
            [
                loss_request.vectors.expand(len(batch.requests), -1, -1)
                for loss_request, batch in zip(loss_requests, batches, strict=True)
                if loss_request.vectors is not None
            ]
        )
    if model.config.is_encoder_decoder:
        values, greedy, mean_logprobs = encoder_decoder.loglikelihoods(model, requests, vectors)
    else:
        states = forward_tree(model, requests, vectors, past=past)
        wanted = any(loss_request.over_vocabulary for loss_request in loss_requests)
        values, greedy, mean_logprobs = loglikelihoods_with_mean(model, states, wanted)
    sizes = [len(batch.positions) for batch in batches]
    answers = zip(values.split(sizes), greedy.split(sizes), mean_logprobs.split(sizes), strict=True)
    return [
        _outcome(loss_request, batch.positions, *answer)
        for loss_request, batch, answer in zip(loss_requests, batches, answers, strict=True)
    ]


def _outcome(
    loss_request: LossRequest,
    positions: Sequence[tuple[int, int]],
    values: Tensor,
    greedy: Tensor,
    mean_logprobs: Tensor,
) -> Outcome:
    """Compare the answers to a request's continuations, at (example, choice) `positions`, with what is right."""
    examples, smoothing = loss_request.examples, loss_request.label_smoothing
    # [batch, most choices], what an example does not have being impossible.
    most = max(len(example.pairs) for example in examples)
    cells = torch.tensor([row * most + choice for row, choice in positions], device=values.device)
    impossible = values.new_full((len(examples) * most,), -torch.inf)
    table = impossible.index_copy(0, cells, values).view(len(examples), most)
    gold = torch.tensor([example.gold for example in examples], device=values.device)

    correct = table.argmax(dim=1) == gold
    if most == 1:
        correct = greedy
    weight = weight_of(examples, loss_request.loss)
    if over_choices(examples, loss_request.loss):
        losses = nn.functional.cross_entropy(table, gold, reduction="none")
        if smoothing:
            logprobs, here = table.log_softmax(dim=1), table.isfinite()
            evenly = -logprobs.masked_fill(~here, 0.0).sum(dim=1) / here.sum(dim=1)
            losses = torch.lerp(losses, evenly, smoothing)
        return Outcome(losses.sum(), weight, int(correct.sum()))
    right = table.gather(1, gold[:, None]).sum()
    if smoothing:
        evenly = impossible.index_copy(0, cells, mean_logprobs).view_as(table).gather(1, gold[:, None]).sum()
        right = torch.lerp(right, evenly, smoothing)
    return Outcome(-right, weight, int(correct.sum()))


def over_choices(examples: Sequence[Example], loss: str) -> bool:
    """Tell whether the loss of these examples is over their choices, and not over the vocabulary."""
    return loss == "choices" and any(example.has_choices for example in examples)


def weight_of(examples: Sequence[Example], loss: str) -> int:
    """Return by what the loss of these examples is divided: their number, or their answers' tokens."""
    if over_choices(examples, loss):
        return len(examples)
    return sum(len(example.pairs[example.gold][1]) for example in examples)


@dataclass
class _Batch:
    """Examples as what the model is asked.

    Attributes:
        contexts: each distinct one of an example once.
        requests: one for each context, their own contexts still empty.
        positions: for every continuation which example's which choice it is.
    """

    contexts: list[tuple[int, ...]]
    requests: list[ScoringRequest]
    positions: list[tuple[int, int]]


def _scoring_requests(examples: Sequence[Example]) -> _Batch:
    batch = _Batch([], [], [])
    for row, example in enumerate(examples):
        by_context: dict[tuple[int, ...], list[int]] = {}
        for choice, (context, _) in enumerate(example.pairs):
            by_context.setdefault(context, []).append(choice)
        for context, choices in by_context.items():
            batch.contexts.append(context)
            batch.requests.append(ScoringRequest([], [list(example.pairs[choice][1]) for choice in choices]))
            batch.positions += [(row, choice) for choice in choices]
    return batch
