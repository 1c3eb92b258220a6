"""Which runs share a batch: several training loops of one base model, served side by side."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lm_eval_spt.inference.transformers_internals import activation_checkpointing
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.objective import LossRequest, Outcome, evaluate

SHARE = 0.25  # of the memory that is free where batches are put together: what one batch's contexts may take


@dataclass(frozen=True)
class BatchRequest:
    """What a training loop waits for.

    Attributes:
        loss_request: the examples and the prompt.
        cache: holds the examples' contexts; None where they are read with the prompt.
        divisor: the gradient of the loss divided by this is added to the prompt's gradient; None: no gradient.
        activation_checkpointing: whether the backward pass computes activations again.
    """

    loss_request: LossRequest
    cache: ContextCache | None
    divisor: int | None = None
    activation_checkpointing: bool = False

    def shares_batch_with(self, other: BatchRequest) -> bool:
        """Tell whether one pass of the model can serve both: prompts of one length after texts in one cache."""
        return (
            self.cache is not None
            and self.cache is other.cache
            and self.loss_request.length == other.loss_request.length
            and (self.divisor is None) == (other.divisor is None)
        )


Program = Generator[BatchRequest, Outcome, None]
"""A training loop: it yields what it waits for, and is sent the outcome."""


class _Job:
    """A training loop, what it waits for, and how often it was served."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.request: BatchRequest
        self.served = 0

    def advance(self, outcome: Outcome | None = None) -> bool:
        """Run the loop up to its next request; returns False at its end."""
        self.served += 1
        try:
            self.request = next(self._program) if outcome is None else self._program.send(outcome)
        except StopIteration:
            return False
        return True


def run_side_by_side(model: PreTrainedModel, programs: Iterable[Program]) -> None:
    """Run training loops to their ends, giving each what it waits for.

    Args:
        model: the base model of all.
        programs: the loops. Each reads as if it ran by itself.
    """
    waiting = [job for job in map(_Job, programs) if job.advance()]
    while waiting:
        together = _next_batch(waiting)
        outcomes = _answer(model, [job.request for job in together])
        waiting = [job for job in waiting if job not in together]
        waiting += [job for job, outcome in zip(together, outcomes, strict=True) if job.advance(outcome)]


def _next_batch(waiting: Sequence[_Job]) -> list[_Job]:
    """Return the job that is furthest behind, and those that can share its batch, as far as memory allows."""
    first = min(waiting, key=lambda job: job.served)
    cache = first.request.cache
    if cache is None:
        return [first]
    room = cache.free() * SHARE
    together: list[_Job] = []
    size = 0
    for job in sorted(waiting, key=lambda job: job is not first):
        if job.request.shares_batch_with(first.request):
            size += cache.bytes_of([example.pairs[0][0] for example in job.request.loss_request.examples])
            if together and size > room:
                break
            together.append(job)
    return together


def _answer(model: PreTrainedModel, requests: Sequence[BatchRequest]) -> list[Outcome]:
    """Return the outcomes of requests that share a batch, and add the gradients that they ask for."""
    first = requests[0]
    training = first.divisor is not None
    again = training and first.cache is None and first.activation_checkpointing
    with torch.set_grad_enabled(training), activation_checkpointing(model) if again else nullcontext():
        outcomes = evaluate(model, [request.loss_request for request in requests], first.cache)
    if training:
        losses = [
            outcome.loss / request.divisor
            for outcome, request in zip(outcomes, requests, strict=True)
            if request.divisor is not None
        ]
        sum(losses, torch.tensor(0.0)).backward()
        outcomes = [Outcome(outcome.loss.detach(), outcome.weight, outcome.correct) for outcome in outcomes]
    return outcomes
