"""From a harness task to token ids: the examples that a prompt learns from.

They come from the task's own ``construct_requests`` on its training documents and are encoded by the model class that
scores them later, so that training reads what is scored.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from lm_eval.api.task import ConfigurableTask

from lm_eval_spt.common.errors import UserError, shown
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.patches import construct_requests, label_and_choices, task_manager
from lm_eval_spt.train.config import TrainingConfig

logger = logging.getLogger(__name__)

Split = Literal["training", "validation"]

HELD_OUT = 10  # every tenth training document validates where a task has no validation split


@dataclass(frozen=True)
class Example:
    """A document as token ids.

    Attributes:
        pairs: (context, continuation) of each choice; a document without choices has one pair.
        gold: the number of the right pair.
        label: the document's class for few shots: the right choice's text where all documents have the same choices,
            else empty.
    """

    pairs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    gold: int
    label: str = ""

    @property
    def has_choices(self) -> bool:
        return len(self.pairs) > 1


@dataclass(frozen=True)
class Document:
    """A document as text; the attributes are those of :class:`Example`."""

    pairs: tuple[tuple[str, str], ...]
    gold: int
    label: str = ""


def load_tasks(names: Sequence[str], include_path: str | None = None) -> list[ConfigurableTask]:
    """Return the harness's tasks of these names, each group as its tasks.

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

    Documents without a label are left out, and a warning says how many.

    Raises:
        UserError: the task asks for something that has no right answer to learn (such as rolling perplexity), a label
            is none of the choices, or no document is left.
    """
    rows: Any = task.training_docs() if split == "training" else task.validation_docs()
    read = [_document(task, row, f"{split} document {number} of {task.task_name}") for number, row in enumerate(rows)]
    documents = [document for document in read if document is not None]
    if len(documents) < len(read):
        left_out = len(read) - len(documents)
        logger.warning(
            "%s: %d of %d %s documents have no label (-1): left out", task.task_name, left_out, len(read), split
        )
    if not documents:
        raise UserError(f"the task {task.task_name!r} has no {split} documents with a label: choose another task")
    if len({_choices(document) for document in documents}) > 1:  # the class names mean something else in each document
        documents = [Document(document.pairs, document.gold) for document in documents]
    return documents


def _choices(document: Document) -> tuple[str, ...]:
    return tuple(continuation for _, continuation in document.pairs) if len(document.pairs) > 1 else ()


def _document(task: ConfigurableTask, row: dict[str, Any], where: str) -> Document | None:
    """Return a document; None without a label. For messages, `where` says which document it is."""
    context = task.fewshot_context(row, 0)
    requests = construct_requests(task, row, context)
    if task.OUTPUT_TYPE == "multiple_choice":
        label, choices = label_and_choices(task, row)
        gold = _gold(label, choices, where)
        if gold is None:
            return None
        # Unconditional requests (for mutual information) follow those of the choices; they teach nothing.
        pairs = tuple(request.args[:2] for request in requests[: len(choices)])
        return Document(pairs, gold, "" if isinstance(context, list) else choices[gold])
    if task.OUTPUT_TYPE == "loglikelihood":
        return Document((requests[0].args[:2],), 0)
    if task.OUTPUT_TYPE == "generate_until":
        target = task.doc_to_target(row)
        if task.config.doc_to_choice is not None:
            choices = task.doc_to_choice(row)
            gold = _gold(target, choices, where)
            if gold is None:
                return None
            target = choices[gold]
        target = target[0] if isinstance(target, list) else target
        return Document(((requests[0].args[0], f"{task.config.target_delimiter}{target}"),), 0)
    raise UserError(f"the task {task.task_name!r} ({task.OUTPUT_TYPE}) has no answers to learn from")


def _gold(label: Any, choices: Sequence[Any], where: str) -> int | None:
    """Return the number of the right choice; None for -1, by which data sets mark a document without a label.

    Raises:
        UserError: the label is none of the choices.
    """
    if isinstance(label, list) and label:
        label = label[0]
    if isinstance(label, str) and label in choices:
        return choices.index(label)
    try:
        number = len(choices) if isinstance(label, str) or int(label) != label else int(label)
    except (TypeError, ValueError, OverflowError):  # nothing, NaN, infinity
        number = len(choices)
    if number == -1:
        return None
    if not 0 <= number < len(choices):
        raise UserError(
            f"{where} has the label {shown(label)}: expected a choice's text, its number from 0 to {len(choices) - 1}, "
            "or -1 for no label"
        )
    return number


def choose(documents: Sequence[Document], per_class: int | None, seed: int, what: str) -> list[Document]:
    """Return `per_class` documents of every class, drawn with the seed; all documents where it is None.

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
        documents: the documents.
        lm: gives the tokens; it need not have a prompt yet.
        placement: the prompt's; a suffix separates the tokens of context and continuation.
        length: P, the number of virtual tokens.
        max_length: how many tokens of text, prompt and answer the model may read.
        truncation_side: the side on which a context that is too long is cut; the harness cuts on the left.

    Raises:
        UserError: an answer and the prompt leave no room for text.
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
    """The examples of a run.

    Attributes:
        training: training examples, task by task.
        validation: validation examples, task by task.
        sizes: how many training examples each task has.
    """

    training: list[Example]
    validation: list[Example]
    sizes: list[int]


class ExampleReader:
    """Reads the examples of runs; documents that several runs share are read once.

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
    """Return training and validation documents; some of the training documents validate where no others are there."""
    documents = read_documents(task, "training")
    if task.has_validation_docs():
        return documents, read_documents(task, "validation")
    if len(documents) < 2:
        raise UserError(
            f"the task {task.task_name!r} has one training document and no validation split: expected two documents or "
            "more, of which one validates"
        )
    logger.warning("%s has no validation split: every tenth training document validates", task.task_name)
    rest = [document for index, document in enumerate(documents) if index % HELD_OUT]
    return rest, documents[::HELD_OUT]
