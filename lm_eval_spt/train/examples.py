"""From a harness task to token ids: the examples that a prompt learns from.

They are the harness's own requests for the task's training documents, shots and chat template included, and are encoded
by the model class that scores them later. So training reads what is scored.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from lm_eval_spt.common.errors import UserError, shown
from lm_eval_spt.harness import patches
from lm_eval_spt.harness.contexts import (
    ChatTemplate,
    as_scored,
    build_requests,
    fixed_shots,
    selected_template,
)
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.local_data import metadata_of
from lm_eval_spt.harness.options import BY_TASK, ContextOptions
from lm_eval_spt.harness.patches import label_and_choices, task_manager
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.splits import Rows, training_rows, validation_rows

logger = logging.getLogger(__name__)

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
    """A document as text; the attributes are those of :class:`Example`, and whether the harness scores it as well."""

    pairs: tuple[tuple[str, str], ...]
    gold: int
    label: str = ""
    scored: bool = False


def load_tasks(
    names: Sequence[str], include_path: str | None = None, data: str | None = None, columns: str | None = None
) -> list[ConfigurableTask]:
    """Return the harness's tasks of these names, each group and tag as its tasks.

    Args:
        names: of tasks, groups and tags.
        include_path: folder with further tasks.
        data, columns: see :func:`lm_eval_spt.harness.local_data.metadata_of`.

    Raises:
        UserError: there is no such task, one comes twice, or one can not be loaded.
    """
    manager = task_manager(names, include_path, metadata_of(data, columns))
    return list(patches.load_tasks(manager, names)["tasks"].values())


def read_documents(
    task: ConfigurableTask,
    rows: Rows,
    options: ContextOptions = BY_TASK,
    chat_template: ChatTemplate | None = None,
) -> list[Document]:
    """Return documents, each with the requests that the harness would make of it.

    Left out, each with a warning that says how many: documents without a label, and those that the task itself gives
    as shots.

    Args:
        task: the task.
        rows: the documents, from :func:`~lm_eval_spt.train.splits.training_rows` or ``validation_rows``.
        options: what the contexts hold.
        chat_template: the model's, for chats.

    Raises:
        UserError: the task asks for something that has no right answer to learn (such as rolling perplexity), a label
            is none of the choices, a context can not be put together, or no document is left.
    """
    answers = [_answer(task, row, rows.name(number, task)) for number, row in enumerate(rows.documents)]
    ready = as_scored(task, options, rows.splits)
    given = fixed_shots(ready)
    documents = []
    for number, (row, answer) in enumerate(zip(rows.documents, answers, strict=True)):
        requests = build_requests(ready, row, options, chat_template)  # of all rows: each draws its shots
        if answer is not None and row not in given:
            document = _document(ready, requests, answer, bool(options.apply_chat_template))
            documents.append(replace(document, scored=number in rows.scored))
    unlabelled, shots = answers.count(None), sum(row in given for row in rows.documents)
    for count, reason in ((unlabelled, "have no label (-1)"), (shots, "are among the shots")):
        if count:
            every = len(rows.documents)
            logger.warning("%s: %d of %d %s documents %s: left out", task.task_name, count, every, rows.purpose, reason)
    if not documents:
        raise UserError(
            f"the task {task.task_name!r} has no {rows.purpose} documents with a label: choose another task"
        )
    if len({_choices(document) for document in documents}) > 1:  # the class names mean something else in each document
        documents = [replace(document, label="") for document in documents]
    return documents


def _choices(document: Document) -> tuple[str, ...]:
    return tuple(continuation for _, continuation in document.pairs) if len(document.pairs) > 1 else ()


@dataclass(frozen=True)
class _Answer:
    """What a document says of its right answer: the choices' number, the right one's position and text."""

    choices: int
    gold: int
    text: str


def _answer(task: ConfigurableTask, row: dict[str, Any], where: str) -> _Answer | None:
    """Return a document's right answer; None without a label. For messages, `where` says which document it is.

    Raises:
        UserError: the task has no answers to learn, or the label is none of the choices.
    """
    if task.OUTPUT_TYPE == "multiple_choice":
        label, choices = label_and_choices(task, row)
    elif task.OUTPUT_TYPE == "generate_until" and task.config.doc_to_choice is not None:
        label, choices = task.doc_to_target(row), task.doc_to_choice(row)
    elif task.OUTPUT_TYPE in ("generate_until", "loglikelihood"):
        target = task.doc_to_target(row)
        return _Answer(1, 0, str(target[0] if isinstance(target, list) else target))
    else:
        raise UserError(f"the task {task.task_name!r} ({task.OUTPUT_TYPE}) has no answers to learn from")
    gold = _gold(label, choices, where)
    return None if gold is None else _Answer(len(choices), gold, choices[gold])


def _document(task: ConfigurableTask, requests: Sequence[Instance], answer: _Answer, chat: bool) -> Document:
    """Return a document, from the requests that the harness makes of it; `chat`: whether its context is one."""
    if task.OUTPUT_TYPE == "multiple_choice":
        # Unconditional requests (for mutual information) follow those of the choices; they teach nothing.
        pairs = tuple(request.args[:2] for request in requests[: answer.choices])
        contexts_differ = len({context for context, _ in pairs}) > 1  # then these are the choices
        return Document(pairs, answer.gold, "" if contexts_differ else answer.text)
    if task.OUTPUT_TYPE == "loglikelihood":
        return Document((requests[0].args[:2],), 0)
    # The reference answer follows the context as the harness has a choice follow it.
    prefix = task.config.gen_prefix
    apart = not chat or (prefix and not prefix[-1].isspace())
    return Document(((requests[0].args[0], f"{task.config.target_delimiter if apart else ''}{answer.text}"),), 0)


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
        num_fewshot: task to the shots in its contexts.
        scored: how many of them, of either kind, the harness scores as well.
        label_counts: how many documents of the tasks' training splits, of which the training examples are drawn, have
            each label; None where documents have choices of their own, or tasks different numbers of labels.
    """

    training: list[Example]
    validation: list[Example]
    sizes: list[int]
    num_fewshot: dict[str, int] = field(default_factory=dict)
    scored: Counter[str] = field(default_factory=Counter)
    label_counts: list[int] | None = None


@dataclass(frozen=True)
class TaskRows:
    """A task, and the rows that a run learns from and validates with; `validation` is None where the former do both."""

    task: ConfigurableTask
    training: Rows
    validation: Rows | None


def rows_of(config: TrainingConfig) -> list[TaskRows]:
    """Return what a run reads of each of its tasks: all that can be told without a model.

    Raises:
        UserError: no such task, a split or file that can not be read, or documents that are scored as well.
    """
    found = []
    for task in load_tasks(config.tasks, config.include_path, config.data, config.columns):
        training = training_rows(task, config.documents)
        found.append(TaskRows(task, training, validation_rows(task, config.documents, training)))
    return found


@dataclass(frozen=True)
class _TaskDocuments:
    """The documents of a task, and the shots in their contexts."""

    task: str
    training: list[Document]
    validation: list[Document]
    num_fewshot: int


def _count_labels(documents: Sequence[Document]) -> list[int] | None:
    """Return how many documents have each label; None where they have choices of their own, or more than others."""
    sizes = {len(document.pairs) for document in documents}
    if len(sizes) > 1 or not all(document.label for document in documents):
        return None
    counts = Counter(document.gold for document in documents)
    return [counts[number] for number in range(sizes.pop())]


class ExampleReader:
    """Reads the examples of runs; documents that several runs share are read once.

    Args:
        lm: gives the tokens and the chat template.
        rows: what has been read already, by the settings that decide it.
    """

    def __init__(self, lm: SPTLM, rows: Mapping[Hashable, list[TaskRows]] | None = None) -> None:
        self._lm = lm
        self._rows = rows or {}
        self._documents: dict[Hashable, list[_TaskDocuments]] = {}

    def read(self, config: TrainingConfig) -> Examples:
        """Return the examples of a run.

        Raises:
            UserError: no such task, too few documents, no chat template, or a prompt that leaves no room for text.
        """
        lm = self._lm
        max_length = min(config.max_length or lm.max_length, lm.max_length)
        if config.prompt_length >= max_length:
            raise UserError(
                f"--prompt-length {config.prompt_length} leaves no room for text: {config.model!r} reads at most "
                f"{max_length} tokens"
            )
        placement = config.placement if config.prompt_length else "prefix"  # what scoring without a prompt takes
        placed = (lm, placement, config.prompt_length, max_length, config.truncation_side)
        examples = Examples([], [], [])
        seed = config.documents_seed
        every_task = self._read_documents(config)
        for documents in every_task:
            training = choose(documents.training, config.shots, seed, "training")
            validation = choose(documents.validation, config.validation_shots, seed, "validation")
            examples.training.extend(encode(training, *placed))
            examples.validation.extend(encode(validation, *placed))
            examples.sizes.append(len(training))
            examples.num_fewshot[documents.task] = documents.num_fewshot
            examples.scored["training"] += sum(document.scored for document in training)
            examples.scored["validation"] += sum(document.scored for document in validation)
        return replace(examples, label_counts=_count_labels([each for task in every_task for each in task.training]))

    def _read_documents(self, config: TrainingConfig) -> list[_TaskDocuments]:
        if config.reading not in self._documents:
            selected_template(self._lm, config.contexts)  # there is one, if it is needed
            tasks = self._rows.get(config.reading) or rows_of(config)
            self._documents[config.reading] = [
                _both_splits(rows, config.contexts, self._lm.apply_chat_template) for rows in tasks
            ]
        return self._documents[config.reading]


def _both_splits(rows: TaskRows, options: ContextOptions, chat_template: ChatTemplate) -> _TaskDocuments:
    """Return training and validation documents; some of the training documents validate where no others are there."""
    task, name, shots = rows.task, rows.task.task_name, options.shots(rows.task)
    documents = read_documents(task, rows.training, options, chat_template)
    if rows.validation is not None:
        return _TaskDocuments(name, documents, read_documents(task, rows.validation, options, chat_template), shots)
    if len(documents) < 2:
        raise UserError(
            f"the task {name!r} has one training document and no validation documents: expected two documents or more, "
            "of which one validates"
        )
    rest = [document for index, document in enumerate(documents) if index % HELD_OUT]
    return _TaskDocuments(name, rest, documents[::HELD_OUT], shots)
