"""Files: written whole or not at all, and read without trusting what is in them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lm_eval_spt.common.errors import UserError

MAX_NESTING = 64
"""Lists and objects within each other in a JSON text; what reads them recursively must not run out of stack."""

MAX_RESULTS_FILE = 2**27
"""Bytes of a results file of the harness; a file of 205 languages with many metrics has a hundredth of it."""


def write(path: Path, data: bytes) -> None:
    """Put `data` into `path`, whole or not at all: write beside it, make it durable, then rename.

    Raises:
        UserError: `path` can not be written; what was there before is still there.
    """
    # A name that no other write has: two processes, even on two machines, may write the same file.
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: can not be written ({error.strerror or error}): choose another place") from None
    # The rename itself becomes durable with its folder, where the file system offers that.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_writable(output: Path, *, is_folder: bool = False) -> None:
    """Find out before the work is done whether its output can be written, and leave nothing behind.

    Args:
        output: the file, or the folder in which files will be.

    Raises:
        UserError: it can not.
    """
    folder = (output if is_folder else output.parent).absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    probe = existing / f".{output.name}.probe"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)
        if not is_folder and output.is_dir():
            raise IsADirectoryError(21, "Is a directory")
    except OSError as error:
        raise UserError(f"--output {output} can not be written: {error.strerror or error}") from error


@contextlib.contextmanager
def written_together(target: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder for files that a library writes; on leaving, move each to `target`, whole.

    Args:
        target: the folder that the files belong in.
        last: beginning of the name of the file that is moved last: once it is there, all are.

    Raises:
        UserError: a file can not be written.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name.startswith(last), path)):
            write(target / path.relative_to(folder), path.read_bytes())


def read_text(path: Path, limit: int) -> str:
    """Return the text of a regular file, once it is known to be of a sensible size.

    Args:
        path: a file in UTF-8.
        limit: bytes that such a file may have.

    Raises:
        OSError: it can not be read.
        UserError: it is too large, or no regular file.
        ValueError: it is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file: give a file")
    size = path.stat().st_size
    if size > limit:
        raise UserError(f"{path} has {size:,} bytes, at most {limit:,} are read: this is not such a file")
    return path.read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is not JSON, is nested too deep, or holds half of a surrogate pair, which no file can take.
    """
    try:
        value = json.loads(text)
        if text.count("[") + text.count("{") > MAX_NESTING and _nesting(value) > MAX_NESTING:
            raise ValueError(f"nested more than {MAX_NESTING} deep")
    except RecursionError:
        raise ValueError(f"nested more than {MAX_NESTING} deep") from None
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


YAML_ERRORS = (
    yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip
"""What PyYAML raises over values such as ``!!int ''``, ``!!bool x`` or ``2026-02-30``."""


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says, which may be lists and mappings that hold themselves.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except YAML_ERRORS as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def read_yaml_mapping(path: Path, limit: int, content: str) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds.

    Args:
        path: the file.
        limit: bytes that such a file may have.
        content: what it must hold, for the message.

    Raises:
        UserError: it can not be read, is too large, is not YAML, or holds no mapping.
    """
    try:
        mapping = parse_yaml(read_text(path, limit))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} can not be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise UserError(f"{path} must hold {content}")
    return mapping


def is_text(value: Any) -> bool:
    """Tell whether something is text that paths and tokenizers take: without NUL or halves of surrogate pairs."""
    return isinstance(value, str) and not re.search("[\0\ud800-\udfff]", value)


def _nesting(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_nesting, inner), default=0)


def is_below_current_folder(name: str) -> bool:
    """Tell whether a path that a file names may be followed although the user has not named it."""
    try:
        return Path(name).resolve().is_relative_to(Path.cwd())
    except (OSError, ValueError, RuntimeError):  # no path at all, or a loop of links
        return False
