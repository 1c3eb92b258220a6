"""Files of one's own in the place of a task's data: a local copy of its data set, and columns under other names.

A task learns of both from its metadata, as ``lm_eval --metadata '{"data": {"nollysenti": "FOLDER"}}'`` and ``--data``
of this package's commands give it. The harness itself can not be told to read another place than ``dataset_path``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.tables import ENDINGS

if TYPE_CHECKING:
    import datasets
    from lm_eval.config.task import TaskConfig

TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")
"""The keys of a task's YAML that say what is made of a document's columns."""


def names_and_values(given: str | Mapping[str, str] | None, flag: str) -> dict[str, str]:
    """Return what ``name=value,name=value`` says; ``--metadata`` may give it as a JSON object.

    Args:
        given: the text.
        flag: where it comes from, for messages.

    Raises:
        UserError: a part is no ``name=value``, or a name comes twice.
    """
    if isinstance(given, Mapping):
        return {str(name): str(value) for name, value in given.items()}
    pairs = [part.partition("=")[::2] for part in (given or "").split(",") if part.strip()]
    named = {name.strip(): value.strip() for name, value in pairs}
    if not all((*named, *named.values())):
        raise UserError(f"{flag} is {given!r}: expected name=value, or several of these separated by commas")
    if len(named) < len(pairs):
        raise UserError(f"{flag} is {given!r}: expected each name once")
    return named


def metadata_of(data: str | None, columns: str | None) -> dict[str, dict[str, str]]:
    """Return the metadata by which tasks learn of local copies and renamed columns.

    Args:
        data: ``<data set>=<folder>``, comma separated.
        columns: ``<the task's column>=<the file's>``, comma separated.

    Raises:
        UserError: one of them is not of that form, a folder does not exist, or two columns would become one.
    """
    folders, renamed = names_and_values(data, "--data"), names_and_values(columns, "--columns")
    for name, folder in folders.items():
        if not Path(folder).expanduser().is_dir():
            raise UserError(f"--data {name}={folder}: there is no such folder")
    if len(set(renamed.values())) < len(renamed):
        raise UserError(f"--columns is {columns!r}: expected each of the file's columns once")
    return {name: value for name, value in (("data", folders), ("columns", renamed)) if value}


def local_copy(dataset_path: str | None, metadata: Mapping[str, Any] | None) -> str | None:
    """Return the folder that stands for a data set, None where none does.

    Args:
        dataset_path: what the task's YAML says, such as ``Davlan/nollysenti``; its last part is enough of a name.
        metadata: the task's.
    """
    folders = names_and_values((metadata or {}).get("data"), "--data")
    return next((folder for name, folder in folders.items() if is_called(dataset_path, name)), None)


def is_called(dataset_path: str | None, name: str) -> bool:
    """Tell whether a name is that of a data set: all of its ``dataset_path``, or the last part."""
    whole = (dataset_path or "").lower()
    return name.lower() in (whole, whole.rpartition("/")[2])


def read_local_copy(config: TaskConfig) -> datasets.DatasetDict | None:
    """Return a task's data set from its local copy; None where there is none.

    Raises:
        UserError: the copy can not be read, or lacks a column that the task's templates use.
    """
    folder = local_copy(config.dataset_path, config.metadata)
    if folder is None:
        return None
    import datasets  # takes seconds, and lm_eval imports this module early

    place, name = Path(folder).expanduser(), config.dataset_name
    of_language = place / str(name or "")
    arguments: dict[str, Any] = {}
    if any(path.suffix in (".csv", ".tsv") for path in of_language.glob("*.*")):
        arguments["keep_default_na"] = False  # "null" and "NA" are texts
    if not of_language.is_dir():
        arguments |= {"name": name} | {
            key: value for key, value in (config.dataset_kwargs or {}).items() if key in ("data_dir", "data_files")
        }
        of_language = place
    try:
        dataset = datasets.load_dataset(str(of_language), **arguments)
    except Exception as error:  # of every kind
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"{folder} can not be read in the place of {config.dataset_path} ({reason}): expected "
            f"{place / str(name or '')} with a file for each split, such as train.tsv, dev.tsv and test.tsv "
            f"({', '.join(ENDINGS)}), or a copy of the data set's repository"
        ) from error
    columns = (config.metadata or {}).get("columns")
    renamed = {}
    for split, rows in dataset.items():
        where = f"{of_language}, split {split}"
        renamed[split] = rows.rename_columns(new_names(rows.column_names, columns, where))
        if config.process_docs is None:
            check_columns(config, renamed[split].column_names, where)
    return datasets.DatasetDict(renamed)


def new_names(
    columns: Sequence[str], renaming: str | Mapping[str, str] | None, where: str, flag: str = "--columns"
) -> dict[str, str]:
    """Return the file's columns that get another name, and which.

    Args:
        columns: those of a file. One that has the task's name already, and not the other, stays as it is.
        renaming: the task's name to the file's, which may be a pattern such as ``*_review``.
        where: the file, for messages.
        flag: where `renaming` comes from.

    Raises:
        UserError: there is no such column, a pattern matches several, or the file has the task's name, too.
    """
    names = {}
    for wanted, pattern in names_and_values(renaming, flag).items():
        found = fnmatch.filter(columns, pattern) if pattern not in columns else [pattern]
        if wanted in found or (wanted in columns and not found):
            continue
        if len(found) != 1 or wanted in columns:
            reason = (
                f"has the column {wanted!r} as well" if wanted in columns else
                f"has {len(found)} such columns ({', '.join(found)})" if found else "has no such column"
            )  # fmt: skip
            raise UserError(f"{flag} {wanted}={pattern}: {where} {reason}; its columns are {', '.join(columns)}")
        names[found[0]] = wanted
    return names


def check_columns(config: TaskConfig, columns: Iterable[str], where: str) -> None:
    """Make sure that a file has the columns that a task's templates use.

    Raises:
        UserError: it lacks one.
    """
    columns = list(columns)
    if missing := [column for column in template_columns(config) if column not in columns]:
        raise UserError(
            f"{where} has no column {', '.join(missing)}, which the task {config.task!r} uses; it has "
            f"{', '.join(columns)}: rename with --columns {missing[0]}=NAME"
        )


def template_columns(config: TaskConfig) -> list[str]:
    """Return the columns that a task's templates name, as far as that can be told: functions may use others."""
    import jinja2  # lm_eval's start-up, which reads this module, has no use for it
    from jinja2 import meta

    names: list[str] = []
    for key in TEMPLATES:
        template = getattr(config, key)
        if isinstance(template, str) and template.isidentifier():
            names.append(template)
        elif isinstance(template, str):
            names += sorted(meta.find_undeclared_variables(jinja2.Environment().parse(template)))
    return list(dict.fromkeys(names))
