"""The loss that training minimizes and validation reports, from the log-likelihoods that the harness decides by.

An example's loss and weight depend on it alone, not on the batch that it is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_eval_spt.inference import encoder_decoder
from lm_eval_spt.inference.deep_prefix import is_deep
from lm_eval_spt.inference.forward import forward_tree, loglikelihoods_with_mean
from lm_eval_spt.inference.token_tree import ScoringRequest
from lm_eval_spt.inference.virtual_tokens import place
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import Example


@dataclass
class Outcome:
    """Loss and accuracy of a batch of examples.

    Attributes:
        loss: the sum of the examples' losses, differentiable.
        weight: what to divide it by, the sum of the examples' weights: 1 for cross-entropy over choices, the number of
            the answer's tokens for cross-entropy over the vocabulary.
        correct: how many examples the harness would count as right.
    """

    loss: Tensor
    weight: int
    correct: int


@dataclass(frozen=True)
class LossRequest:
    """A batch of examples whose loss under a prompt is asked for.

    Attributes:
        examples: the batch.
        vectors: the prompt `[P, d]`, or a deep prefix, as the model receives it; None without a prompt.
        before: how many of the vectors stand before the text; the others stand after it. No matter with a deep prefix.
        loss: `choices`, cross-entropy over the log-likelihoods of an example's choices; or `target`, cross-entropy of
            the right answer's tokens over the vocabulary. Examples without choices always have the latter.
        label_smoothing: share of the target that is spread evenly over the choices, or over the vocabulary.
    """

    examples: Sequence[Example]
    vectors: Tensor | None
    before: int
    loss: str
    label_smoothing: float = 0.0

    @property
    def length(self) -> int:
        """Number of virtual tokens among the embeddings."""
        return 0 if self.vectors is None or is_deep(self.vectors) else len(self.vectors)

    @property
    def over_vocabulary(self) -> bool:
        """Whether label smoothing spreads the target of an example over the vocabulary."""
        return self.label_smoothing > 0 and not all(over_choices(example, self.loss) for example in self.examples)


def evaluate(
    model: PreTrainedModel, loss_requests: Sequence[LossRequest], cache: ContextCache | None = None
) -> list[Outcome]:
    """Score every choice of every example and compare with the right one.

    Args:
        model: the base model.
        loss_requests: requests of one run or several, read in one batch; their prompts have one length and one
            placement.
        cache: keys and values of the examples' contexts, for suffix prompts.

    Returns:
        An outcome for each request.
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
        smooth = any(loss_request.over_vocabulary for loss_request in loss_requests)
        values, greedy, mean_logprobs = loglikelihoods_with_mean(model, states, smooth)
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
    """Return a request's loss and accuracy.

    Args:
        loss_request: the request.
        positions: (example, choice) of each continuation.
        values: `[continuations]`, log-likelihoods.
        greedy: `[continuations]`, whether greedy decoding would produce it.
        mean_logprobs: `[continuations]`, what label smoothing over the vocabulary mixes in.
    """
    examples, smoothing = loss_request.examples, loss_request.label_smoothing
    device = values.device
    most = max(len(example.pairs) for example in examples)
    cells = torch.tensor([row * most + choice for row, choice in positions], device=device)
    # [batch, most choices]; the choices that an example does not have are impossible.
    impossible = values.new_full((len(examples) * most,), -torch.inf)
    table = impossible.index_copy(0, cells, values).view(len(examples), most)
    gold = torch.tensor([example.gold for example in examples], device=device)
    gold_cells = torch.tensor([row * most + example.gold for row, example in enumerate(examples)], device=device)

    produced = torch.zeros(table.numel(), dtype=torch.bool, device=device).index_copy(0, cells, greedy)
    has_choices = torch.tensor([example.has_choices for example in examples], device=device)
    correct = torch.where(has_choices, table.argmax(dim=1) == gold, produced[gold_cells])

    by_choice = nn.functional.cross_entropy(table, gold, reduction="none")
    by_token = -table.flatten()[gold_cells]
    if smoothing:
        logprobs, exists = table.log_softmax(dim=1), table.isfinite()
        evenly = -logprobs.masked_fill(~exists, 0.0).sum(dim=1) / exists.sum(dim=1)
        by_choice = torch.lerp(by_choice, evenly, smoothing)
        by_token = torch.lerp(by_token, -impossible.index_copy(0, cells, mean_logprobs)[gold_cells], smoothing)
    chooses = torch.tensor([over_choices(example, loss_request.loss) for example in examples], device=device)
    losses = torch.where(chooses, by_choice, by_token)
    return Outcome(losses.sum(), weight_of(examples, loss_request.loss), int(correct.sum()))


def over_choices(example: Example, loss: str) -> bool:
    """Tell whether the loss of an example is over its choices, and not over the vocabulary."""
    return loss == "choices" and example.has_choices


def weight_of(examples: Sequence[Example], loss: str) -> int:
    """Return what the summed loss of examples is divided by: see :class:`Outcome`."""
    return sum(1 if over_choices(example, loss) else len(example.pairs[example.gold][1]) for example in examples)


@dataclass
class _Batch:
    """Examples as scoring requests.

    Attributes:
        contexts: the distinct contexts of each example.
        requests: a request for each context, to which the context is not yet added.
        positions: (example, choice) of every continuation.
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
