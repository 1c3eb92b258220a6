"""Which documents of a task a run learns from and validates with: splits of the task's data set, or files.

The harness scores the whole of one split. So a slice of that split is refused, and rows of a file that are documents of
it are left out, unless the settings allow them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
from lm_eval.api.task import ConfigurableTask

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.tables import SEPARATORS, read_rows
from lm_eval_spt.harness.local_data import check_columns, new_names, template_columns
from lm_eval_spt.harness.patches import label_and_choices
from lm_eval_spt.train.config import DocumentOptions

logger = logging.getLogger(__name__)

Purpose = Literal["training", "validation"]

WHOLE_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})")

BY_TASK = DocumentOptions()
"""What the task says."""


@dataclass(frozen=True)
class Rows:
    """Documents as a task's data set or a file has them.

    Attributes:
        purpose: what they are for.
        documents: each as column to value.
        splits: the data set's splits that they are from; none for those of a file.
        file: the file.
        scored: the positions of those that the harness scores as well.
        numbers: of the file's rows, from 1 on.
    """

    purpose: Purpose
    documents: Sequence[dict[str, Any]]
    splits: tuple[str, ...] = ()
    file: Path | None = None
    scored: frozenset[int] = frozenset()
    numbers: Sequence[int] = ()

    def name(self, position: int, task: ConfigurableTask) -> str:
        """Return what a document is called in messages."""
        if self.file is not None:
            return f"row {self.numbers[position]} of {self.file}"
        return f"{self.purpose} document {position} of {task.task_name}"


def training_rows(task: ConfigurableTask, options: DocumentOptions = BY_TASK) -> Rows:
    """Return the documents that a run learns from.

    Raises:
        UserError: there are none, a file or split can not be read, or the documents are also scored.
    """
    rows = _chosen(task, options, "training")
    if rows is None and not task.has_training_docs():
        raise UserError(
            f"the task {task.task_name!r} has no training split: name another of its splits ({_listed(task)}) with "
            "--train-split, or give documents of your own with --train-file"
        )
    if rows is None:
        documents, split = list(task.training_docs()), task.config.training_split
        scored = range(len(documents)) if split is not None and split == scored_split(task) else ()
        rows = Rows("training", documents, (split or "train",), scored=frozenset(scored))
    return _allowed(task, rows, options)


def validation_rows(task: ConfigurableTask, options: DocumentOptions, training: Rows) -> Rows | None:
    """Return the documents that a run validates with; None where some of the training documents have to do it.

    Raises:
        UserError: as :func:`training_rows`.
    """
    rows = _chosen(task, options, "validation")
    split = task.config.validation_split
    if rows is None and not task.has_validation_docs():
        logger.warning("%s has no validation split: every tenth training document validates", task.task_name)
        return None
    if rows is None and (not task.has_test_docs() or split == task.config.test_split or split in training.splits):
        reason = "also learned from" if split in training.splits else "the one that is scored"
        logger.warning(
            "%s: the validation split is %s: every tenth training document validates instead (--validation-split and "
            "--validation-file name others)", task.task_name, reason,
        )  # fmt: skip
        return None
    rows = rows or Rows("validation", list(task.validation_docs()), (split or "validation",))
    if options != BY_TASK:
        learned = {content(task, row) for row in training.documents}
        if both := sum(content(task, row) in learned for row in rows.documents):
            logger.warning(
                "%s: %d of %d validation documents are also learned from: validation will look better than it is",
                task.task_name, both, len(rows.documents),
            )  # fmt: skip
    return _allowed(task, rows, options)


def scored_split(task: ConfigurableTask) -> str | None:
    """Return the split that the harness scores; None where a task reads its documents by a program."""
    return task.config.test_split if task.has_test_docs() else task.config.validation_split


def content(task: ConfigurableTask, row: dict[str, Any]) -> str:
    """Return what a model is shown of a document, by which two documents are the same."""
    choices = label_and_choices(task, row)[1] if task.OUTPUT_TYPE == "multiple_choice" else ()
    return repr((task.doc_to_text(row), choices))


def _chosen(task: ConfigurableTask, options: DocumentOptions, purpose: Purpose) -> Rows | None:
    """Return the documents that the settings name; None where they leave it to the task."""
    file, split = (
        (options.train_file, options.train_split)
        if purpose == "training"
        else (options.validation_file, options.validation_split)
    )
    if file is not None:
        return _of_file(task, Path(file), options.columns, purpose)
    return None if split is None else _of_split(task, split, purpose)


def _allowed(task: ConfigurableTask, rows: Rows, options: DocumentOptions) -> Rows:
    """Return the rows without those that the harness scores, unless the settings allow these.

    Raises:
        UserError: they are of the split that is scored, or none is left.
    """
    if not rows.scored or options.allow_test_documents:
        return rows
    count = f"{len(rows.scored)} of {len(rows.documents)}"
    if rows.file is not None and len(rows.scored) < len(rows.documents):
        logger.warning(
            "%s: %s rows are documents that %s is scored on: left out (the first is %s; --allow-test-documents keeps "
            "them)", rows.file, count, task.task_name, rows.name(min(rows.scored), task),
        )  # fmt: skip
        kept = [position for position in range(len(rows.documents)) if position not in rows.scored]
        return replace(
            rows,
            documents=[rows.documents[position] for position in kept],
            numbers=[rows.numbers[position] for position in kept],
            scored=frozenset(),
        )
    flag = "train" if rows.purpose == "training" else "validation"
    of = f"rows of {rows.file}" if rows.file else f"{rows.purpose} documents"
    where = f"the whole split {scored_split(task)!r}" if scored_split(task) else "these"
    raise UserError(
        f"{count} {of} are also scored: {task.task_name} is scored on {where}. Choose others with --{flag}-split (the "
        f"splits are {_listed(task)}) or --{flag}-file, or give --allow-test-documents, which the record will say"
    )


def _listed(task: ConfigurableTask) -> str:
    return ", ".join(task.dataset)


def _of_split(task: ConfigurableTask, spec: str, purpose: Purpose) -> Rows:
    """Return the documents of a split or of a slice of one, in the notation of the library ``datasets``."""
    flag = f"--{'train' if purpose == 'training' else 'validation'}-split {spec}"
    if type(task).training_docs is not ConfigurableTask.training_docs:
        raise UserError(f"{flag}: the task {task.task_name!r} reads its documents by a program; it has no other splits")
    names = tuple(dict.fromkeys(re.split(r"[\[(]", part)[0].strip() for part in spec.split("+")))
    if unknown := [name for name in names if name not in task.dataset]:
        raise UserError(f"{flag}: {task.task_name} has no split {unknown[0]!r}, expected one of {_listed(task)}")
    process = task.config.process_docs or (lambda rows: rows)
    every = {name: list(process(task.dataset[name])) for name in names}
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute({name: len(rows) for name, rows in every.items()})
    except (ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{flag}: {reason}; expected a split such as train, train[:100] or train[10%:20%]") from error
    documents: list[dict[str, Any]] = []
    scored: list[int] = []
    for part in parts:
        if part.splitname == scored_split(task):
            scored += range(len(documents), len(documents) + max(0, part.to - part.from_))
        documents += every[part.splitname][part.from_ : part.to]
    if not documents:
        raise UserError(f"{flag}: {task.task_name} has no documents there: choose another slice")
    return Rows(purpose, documents, names, scored=frozenset(scored))


def _of_file(task: ConfigurableTask, path: Path, columns: str | None, purpose: Purpose) -> Rows:
    """Return the rows of a file, which stand in the place of a split: the task's own program runs over them, too."""
    try:
        rows = read_rows(path)
    except OSError as error:
        flag = "--train-file" if purpose == "training" else "--validation-file"
        raise UserError(f"{flag} {path} can not be read: {error.strerror or error}") from error
    names = {name: name for row in rows for name in row}
    names |= new_names(list(names), columns, str(path))
    rows = [{names[name]: value for name, value in row.items()} for row in rows]
    if path.suffix in SEPARATORS:
        rows = _typed(rows, _features(task))
    if task.config.process_docs is not None:
        try:
            rows = list(task.config.process_docs(datasets.Dataset.from_list(rows)))
        except Exception as error:  # of any kind, in a task's own program
            raise UserError(
                f"{path}: the task {task.task_name!r} can not read it ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}); its own data have the columns {', '.join(_features(task))}"
            ) from error
    check_columns(task.config, {name: None for row in rows for name in row}, str(path))
    found = Rows(purpose, rows, file=path, numbers=range(1, len(rows) + 1))
    used, contents = template_columns(task.config), []
    for number, row in enumerate(rows):
        if missing := [name for name in used if row.get(name) is None]:
            raise UserError(f"{found.name(number, task)} has no {missing[0]!r}: expected a value in every row")
        try:
            contents.append(content(task, row))
        except Exception as error:  # of any kind, in a task's templates or its own program
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{found.name(number, task)}: {task.task_name} can not show it ({reason})") from error
    tested = {content(task, row) for row in task.eval_docs}
    return replace(found, scored=frozenset(number for number, text in enumerate(contents) if text in tested))


def _features(task: ConfigurableTask) -> Mapping[str, Any]:
    """Return column to type in the task's own data."""
    return next((rows.features for rows in task.dataset.values() if getattr(rows, "features", None)), {})


def _typed(rows: Sequence[Mapping[str, str]], features: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows of texts with the types that the columns have in the task's own data.

    A column that is not there has numbers if all its values are whole numbers. A text that does not fit stays a text.
    """

    def converted(column: str, text: str) -> Any:
        feature = features.get(column)
        kind = getattr(feature, "dtype", "int64" if column in whole else "string")
        if isinstance(feature, datasets.ClassLabel) and text in feature.names:
            return feature.str2int(text)
        if kind == "bool":
            return {"true": True, "false": False}.get(text.lower(), text)
        if kind != "string" and WHOLE_NUMBER.fullmatch(text):
            return int(text)
        try:
            return float(text) if kind.startswith("float") else text
        except ValueError:
            return text

    unknown = [column for column in rows[0] if column not in features]
    whole = {column for column in unknown if all(WHOLE_NUMBER.fullmatch(row[column]) for row in rows)}
    return [{column: converted(column, text) for column, text in row.items()} for row in rows]
