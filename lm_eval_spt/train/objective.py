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


@dataclass(frozen=True)
class Asking:
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


def evaluate(model: PreTrainedModel, askings: Sequence[Asking], cache: ContextCache | None = None) -> list[Outcome]:
    """Score every choice of every example and compare with the right one.

    Args:
        model: the base model.
        askings: of one run or several, read in one batch; their prompts have one length and one placement.
        cache: keys and values of the examples' contexts, for suffix prompts.

    Returns:
        An outcome for each.
    """
    of_askings = [_questions(asking.examples) for asking in askings]
    contexts = [context for of_asking in of_askings for context in of_asking[0]]
    questions = [question for of_asking in of_askings for question in of_asking[1]]
    before, length = askings[0].before, askings[0].length
    past = None if cache is None else cache.read(contexts)
    for question, context in zip(questions, contexts, strict=True):
        question.context = place([] if past else context, before, length - before)
    if len(askings) == 1:
        vectors = askings[0].vectors
    else:
        of_rows = [
            asking.vectors.expand(len(own), -1, -1)
            for asking, (own, *_) in zip(askings, of_askings, strict=True)
            if asking.vectors is not None
        ]
        vectors = torch.cat(of_rows)
    if model.config.is_encoder_decoder:
        values, greedy, spread = encoder_decoder.loglikelihoods(model, questions, vectors)
    else:
        asked = ask(model, questions, vectors, past=past)
        values, greedy, spread = resolve_with_spread(model, asked, any(asking.over_vocabulary for asking in askings))
    sizes = [len(positions) for _, _, positions in of_askings]
    parts = zip(askings, of_askings, values.split(sizes), greedy.split(sizes), spread.split(sizes), strict=True)
    return [_outcome(asking, positions, *of) for asking, (_, _, positions), *of in parts]


def _outcome(
    asking: Asking, positions: Sequence[tuple[int, int]], values: Tensor, greedy: Tensor, spread: Tensor
) -> Outcome:
    """Compare an asking's answers, for its continuations at (example, choice) `positions`, with what is right."""
    examples, smoothing = asking.examples, asking.label_smoothing
    # [batch, most choices], what an example does not have being impossible.
    most = max(len(example.pairs) for example in examples)
    cells = torch.tensor([row * most + choice for row, choice in positions], device=values.device)
    impossible = values.new_full((len(examples) * most,), -torch.inf)
    table = impossible.index_copy(0, cells, values).view(len(examples), most)
    gold = torch.tensor([example.gold for example in examples], device=values.device)

    correct = table.argmax(dim=1) == gold
    if most == 1:
        correct = greedy
    weight = weight_of(examples, asking.loss)
    if over_choices(examples, asking.loss):
        losses = nn.functional.cross_entropy(table, gold, reduction="none")
        if smoothing:
            logprobs, here = table.log_softmax(dim=1), table.isfinite()
            evenly = -logprobs.masked_fill(~here, 0.0).sum(dim=1) / here.sum(dim=1)
            losses = torch.lerp(losses, evenly, smoothing)
        return Outcome(losses.sum(), weight, int(correct.sum()))
    right = table.gather(1, gold[:, None]).sum()
    if smoothing:
        evenly = impossible.index_copy(0, cells, spread).view_as(table).gather(1, gold[:, None]).sum()
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
