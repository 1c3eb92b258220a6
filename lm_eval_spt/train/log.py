"""The log of a training run: one JSON object a line, the settings first, then a line per epoch."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import write

MAX_SETTINGS = 2**20
"""Characters of a log's first line."""

logger = logging.getLogger(__name__)


def log_path(output: Path) -> Path:
    """Return where the log of a run is: beside its prompt."""
    return output.with_suffix(".jsonl")


def check_replaceable(path: Path) -> None:
    """Raise UserError where a file is there that is no log of a training."""
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline(MAX_SETTINGS) or '{"settings": {}}')
    except (OSError, ValueError, RecursionError):
        first = None
    if not (isinstance(first, dict) and "settings" in first):
        raise UserError(f"{path} is there, where the log of the training goes, and is none: choose another --output")


class TrainingLog:
    """A log whose file is complete after every row. A run can do without it.

    Args:
        path: the file, which is replaced; None writes nothing.
        rows: the first rows.
    """

    def __init__(self, path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
        self._path = path
        self._text = ""
        self._failed = False
        self.add(*rows)

    def add(self, *rows: dict[str, Any]) -> None:
        """Add rows. Where they can not be written the run goes on, and a warning says so, once."""
        if self._path is None:
            return
        self._text += "".join(json.dumps(row) + "\n" for row in rows)
        try:
            write(self._path, self._text.encode())
        except UserError as error:
            if not self._failed:
                logger.warning("the log of the training is not complete: %s", error)
            self._failed = True
