"""What training minimizes and validation reports, both from the log-likelihoods that the harness decides by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_eval_spt import encoder_decoder
from lm_eval_spt.forward import ask, resolve_with_spread
from lm_eval_spt.inject import place
from lm_eval_spt.train.contexts import ContextCache
from lm_eval_spt.train.examples import Example
from lm_eval_spt.tree import Question


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


def evaluate(
    model: PreTrainedModel,
    examples: Sequence[Example],
    vectors: Tensor | None,
    before: int,
    loss: str,
    cache: ContextCache | None = None,
    label_smoothing: float = 0.0,
) -> Outcome:
    """Score every choice of every example and compare with the right one.

    Args:
        model: the base model.
        examples: a batch.
        vectors: `[P, d]`, as the model receives them; None without a prompt.
        before: how many of them stand before the text; the others stand after it.
        loss: `choices`, cross-entropy over the log-likelihoods of an example's choices; or `target`, cross-entropy of
            the right answer's tokens over the vocabulary. Examples without choices have only the latter.
        cache: keys and values of the examples' contexts, for a suffix prompt.
        label_smoothing: share of the target that is spread evenly over the choices, or over the vocabulary.
    """
    length = 0 if vectors is None else len(vectors)
    contexts, questions, positions = _questions(examples)
    if cache is not None:
        past = cache.read(contexts)
        for question in questions:
            question.context = place([], 0, length)
    else:
        past = None
        for question, context in zip(questions, contexts, strict=True):
            question.context = place(context, before, length - before)
    over_vocabulary = loss == "target" or not any(example.has_choices for example in examples)
    if model.config.is_encoder_decoder:
        values, greedy, spread = encoder_decoder.loglikelihoods(model, questions, vectors)
    else:
        asked = ask(model, questions, vectors, past=past)
        values, greedy, spread = resolve_with_spread(model, asked, over_vocabulary and label_smoothing > 0)

    # [batch, most choices], what an example does not have being impossible.
    most = max(len(example.pairs) for example in examples)
    cells = torch.tensor([row * most + choice for row, choice in positions], device=values.device)
    impossible = values.new_full((len(examples) * most,), -torch.inf)
    table = impossible.index_copy(0, cells, values).view(len(examples), most)
    gold = torch.tensor([example.gold for example in examples], device=values.device)

    correct = table.argmax(dim=1) == gold
    if most == 1:
        correct = greedy
    if not over_vocabulary:
        losses = nn.functional.cross_entropy(table, gold, reduction="none")
        if label_smoothing:
            logprobs, here = table.log_softmax(dim=1), table.isfinite()
            spread = -logprobs.masked_fill(~here, 0.0).sum(dim=1) / here.sum(dim=1)
            losses = torch.lerp(losses, spread, label_smoothing)
        return Outcome(losses.sum(), len(examples), int(correct.sum()))
    right = table.gather(1, gold[:, None]).sum()
    if label_smoothing:
        spread = impossible.index_copy(0, cells, spread).view_as(table).gather(1, gold[:, None]).sum()
        right = torch.lerp(right, spread, label_smoothing)
    tokens = sum(len(example.pairs[example.gold][1]) for example in examples)
    return Outcome(-right, tokens, int(correct.sum()))


def _questions(examples: Sequence[Example]) -> tuple[list[tuple[int, ...]], list[Question], list[tuple[int, int]]]:
    """Return the contexts, a question for each, and for every continuation which example's which choice it is."""
    contexts: list[tuple[int, ...]] = []
    questions: list[Question] = []
    positions: list[tuple[int, int]] = []
    for row, example in enumerate(examples):
        by_context: dict[tuple[int, ...], list[int]] = {}
        for choice, (context, _) in enumerate(example.pairs):
            by_context.setdefault(context, []).append(choice)
        for context, choices in by_context.items():
            contexts.append(context)
            questions.append(Question([], [list(example.pairs[choice][1]) for choice in choices]))
            positions += [(row, choice) for choice in choices]
    return contexts, questions, positions
