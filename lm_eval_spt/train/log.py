"""The log of a training run: one JSON object a line, the settings first, then a line per epoch."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import write

logger = logging.getLogger(__name__)


class TrainingLog:
    """A log that is whole at any time, and that a run can do without.

    Args:
        path: of the file; what is there is replaced.
        rows: what it begins with.
    """

    def __init__(self, path: Path, rows: Sequence[dict[str, Any]]) -> None:
        self._path = path
        self._text = ""
        self._failed = False
        self.add(*rows)

    def add(self, *rows: dict[str, Any]) -> None:
        """Add lines. Where they can not be written the run goes on, and a warning says so, once."""
        self._text += "".join(json.dumps(row) + "\n" for row in rows)
        try:
            write(self._path, self._text.encode())
        except UserError as error:
            if not self._failed:
                logger.warning("the log of the training is not complete: %s", error)
            self._failed = True
