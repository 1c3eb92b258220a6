"""From a harness task to token ids: the examples that a prompt learns from.

They come from the task's own ``construct_requests`` on its training documents and are encoded by the model class that
scores them later, so that training and scoring can not drift apart.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from lm_eval.api.task import ConfigurableTask

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.patches import construct_requests, right_choice, task_manager
from lm_eval_spt.train.config import TrainingConfig

logger = logging.getLogger(__name__)

Split = Literal["training", "validation"]

HELD_OUT = 10  # every tenth training document validates where a task has no validation split


@dataclass(frozen=True)
class Example:
    """A document as the model meets it.

    Attributes:
        pairs: for each choice the token ids of (context, continuation); a document without choices has one pair.
        gold: which of them is right.
        label: the right choice's text where all documents have the same choices, else empty: the class for few shots.
    """

    pairs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    gold: int
    label: str = ""

    @property
    def has_choices(self) -> bool:
        return len(self.pairs) > 1


@dataclass(frozen=True)
class Document:
    """A document as text: (context, continuation) for each choice, which of them is right, and its class."""

    pairs: tuple[tuple[str, str], ...]
    gold: int
    label: str = ""


def load_tasks(names: Sequence[str], include_path: str | None = None) -> list[ConfigurableTask]:
    """Return the harness's tasks of these names, groups resolved into their tasks.

    Raises:
        UserError: no such task, or one without training documents.
    """
    manager = task_manager(names, include_path)
    for name in names:
        if name not in manager.all_tasks:
            near = [other for other in manager.all_subtasks if other.startswith(name[:6])][:3]
            hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists all"
            raise UserError(f"there is no task {name!r}; {hint} (tasks of your own: --include-path FOLDER)")
    tasks: list[ConfigurableTask] = list(manager.load(list(names))["tasks"].values())
    for task in tasks:
        if not task.has_training_docs():
            raise UserError(f"the task {task.task_name!r} has no training split: choose a task that has one")
    return tasks


def read_documents(task: ConfigurableTask, split: Split) -> list[Document]:
    """Return the documents of a split, each with the requests that the harness would make of it.

    Raises:
        UserError: the task asks for something that has no right answer to learn (such as rolling perplexity).
    """
    rows: Any = task.training_docs() if split == "training" else task.validation_docs()
    documents = [_document(task, row) for row in rows]
    if len({_choices(document) for document in documents}) > 1:  # the class names mean something else in each document
        documents = [Document(document.pairs, document.gold) for document in documents]
    return documents


def _choices(document: Document) -> tuple[str, ...]:
    return tuple(continuation for _, continuation in document.pairs) if len(document.pairs) > 1 else ()


def _document(task: ConfigurableTask, row: dict[str, Any]) -> Document:
    context = task.fewshot_context(row, 0)
    requests = construct_requests(task, row, context)
    if task.OUTPUT_TYPE == "multiple_choice":
        gold, choices = right_choice(task, row)
        # Unconditional requests (for mutual information) follow those of the choices; they teach nothing.
        pairs = tuple(request.args[:2] for request in requests[: len(choices)])
        return Document(pairs, gold, "" if isinstance(context, list) else choices[gold])
    if task.OUTPUT_TYPE == "loglikelihood":
        return Document((requests[0].args[:2],), 0)
    if task.OUTPUT_TYPE == "generate_until":
        target = task.doc_to_target(row)
        if task.config.doc_to_choice is not None:
            target = task.doc_to_choice(row)[target]
        target = target[0] if isinstance(target, list) else target
        return Document(((requests[0].args[0], f"{task.config.target_delimiter}{target}"),), 0)
    raise UserError(f"the task {task.task_name!r} ({task.OUTPUT_TYPE}) has no answers to learn from")


def choose(documents: Sequence[Document], per_class: int | None, seed: int, what: str) -> list[Document]:
    """Return `per_class` documents of every class, drawn with the seed; all of them where it is None.

    Documents without a class (other choices in each document, or none) count as one class.

    Raises:
        UserError: a class has fewer.
    """
    if per_class is None:
        return list(documents)
    classes: dict[str, list[Document]] = {}
    for document in documents:
        classes.setdefault(document.label, []).append(document)
    chosen: list[Document] = []
    for label in sorted(classes):
        members = classes[label]
        if len(members) < per_class:
            name = f"the class {label.strip()!r}" if label else "the task"
            raise UserError(
                f"{per_class} {what} documents per class were asked for, but {name} has {len(members)}: ask for fewer"
            )
        chosen += random.Random(f"{seed} {label}").sample(members, per_class)
    return chosen


def encode(
    documents: Sequence[Document], lm: SPTLM, placement: str, length: int, max_length: int, truncation_side: str
) -> list[Example]:
    """Encode documents as the model class does when it scores them.

    Args:
        documents: what to encode.
        lm: gives the tokens; it need not have a prompt yet.
        placement: of the prompt: a suffix separates the tokens of context and continuation.
        length: P, the number of virtual tokens.
        max_length: tokens of text, prompt and answer that the model may read.
        truncation_side: where a context that is too long is cut; the harness cuts on the left.
    """
    encoded = iter(lm.encode_pairs([pair for document in documents for pair in document.pairs], placement))
    examples = []
    for document in documents:
        pairs = []
        for context, continuation in islice(encoded, len(document.pairs)):
            # An encoder's input leaves the decoder's room alone.
            room = max_length - length + (1 - len(continuation) if lm.backend == "causal" else 0)
            if room < 1:
                raise UserError(
                    f"a target of {len(continuation)} tokens and a prompt of {length} do not fit into {max_length}"
                )
            fitting = context[-room:] if truncation_side == "left" else context[:room]
            pairs.append((tuple(fitting), tuple(continuation)))
        examples.append(Example(tuple(pairs), document.gold, document.label))
    return examples


@dataclass(frozen=True)
class Examples:
    """What a run learns from.

    Attributes:
        training: task by task.
        validation: the same.
        sizes: how many training examples each task has.
    """

    training: list[Example]
    validation: list[Example]
    sizes: list[int]


class ExampleReader:
    """Reads the examples that settings ask for; documents that several runs ask for are read once.

    Args:
        lm: gives the tokens.
    """

    def __init__(self, lm: SPTLM) -> None:
        self._lm = lm
        self._documents: dict[tuple[str, str | None], list[tuple[list[Document], list[Document]]]] = {}

    def read(self, config: TrainingConfig) -> Examples:
        """Return the examples of a run.

        Raises:
            UserError: no such task, too few documents, or a prompt that leaves no room for text.
        """
        lm = self._lm
        max_length = min(config.max_length or lm.max_length, lm.max_length)
        if config.prompt_length >= max_length:
            raise UserError(
                f"--prompt-length {config.prompt_length} leaves no room for text: {config.model!r} reads at most "
                f"{max_length} tokens"
            )
        placed = (lm, config.placement, config.prompt_length, max_length, config.truncation_side)
        examples = Examples([], [], [])
        for training, validation in self._read_documents(config):
            chosen = encode(choose(training, config.shots, config.seed, "training"), *placed)
            examples.training.extend(chosen)
            examples.sizes.append(len(chosen))
            held_out = choose(validation, config.validation_shots, config.seed, "validation")
            examples.validation.extend(encode(held_out, *placed))
        return examples

    def _read_documents(self, config: TrainingConfig) -> list[tuple[list[Document], list[Document]]]:
        """Return the training and validation documents of each task."""
        key = config.task, config.include_path
        if key not in self._documents:
            self._documents[key] = [_both_splits(task) for task in load_tasks(config.tasks, config.include_path)]
        return self._documents[key]


def _both_splits(task: ConfigurableTask) -> tuple[list[Document], list[Document]]:
    documents = read_documents(task, "training")
    if task.has_validation_docs():
        return documents, read_documents(task, "validation")
    logger.warning("%s has no validation split: every tenth training document validates", task.task_name)
    rest = [document for index, document in enumerate(documents) if index % HELD_OUT]
    return rest, documents[::HELD_OUT]
