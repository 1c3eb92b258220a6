"""Rows of labelled data in files: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_eval_spt.common.errors import UserError, shown
from lm_eval_spt.common.files import parse_json

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*SEPARATORS, ".jsonl", ".parquet")
"""The endings of files that :func:`read_rows` reads."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, as column to value; values from CSV and TSV files are text.

    Args:
        path: a file with one of :data:`ENDINGS`, in UTF-8 where it is text.

    Raises:
        OSError: it can not be read.
        UserError: it is malformed, or has no rows.
    """
    if path.suffix in SEPARATORS:
        return [row for _, row in read_table(path)]
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            rows = parquet.read_table(path).to_pylist()
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} is not a Parquet file ({error})") from error
    elif path.suffix == ".jsonl":
        rows = [_json_object(line, f"{path}, line {number}") for number, line in _lines(path) if line.strip()]
    else:
        raise UserError(f"{path}: expected a file that ends in {', '.join(ENDINGS)}")
    if not rows:
        raise UserError(f"{path} has no rows; expected at least one")
    return rows


def read_table(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Give the rows of a CSV or TSV file with a header, and the line in which each ends.

    Args:
        path: the file: UTF-8, quoted as in CSV; the ending says what separates the columns.
        columns: those that it must have; it may have others.

    Raises:
        OSError: it can not be read.
        UserError: it is malformed; the message names the file and the line.
    """
    text = io.StringIO(_decode(path), newline="")
    rows = csv.DictReader(text, delimiter=SEPARATORS[path.suffix], strict=True)
    try:
        names = list(rows.fieldnames or ())
        if not names:
            expected = f" with {', '.join(columns)}" if columns else ""
            raise UserError(f"{path}: the file is empty, expected a header{expected}")
        if missing := [column for column in columns if column not in names]:
            raise ValueError(f"no column {', '.join(missing)}; expected a header with {', '.join(columns)}")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the header has the column {twice[0]!r} twice: each needs a name of its own")
        empty = True
        for row in rows:
            if None in row or None in row.values():
                raise ValueError("the number of fields is not that of the header")
            empty = False
            yield rows.reader.line_num, row
        if empty:
            raise ValueError("no documents after the header; expected at least one")
    except (ValueError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}, line {rows.reader.line_num}: {error}") from error


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text ({error})") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    return enumerate(_decode(path).split("\n"), 1)


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}): expected an object in each line") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} is {shown(value)}: expected an object in each line")
    return value
