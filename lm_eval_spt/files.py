"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lm_eval_spt.errors import UserError


def write(path: Path, data: bytes) -> None:
    """Put `data` into `path`, whole or not at all: write beside it, make it durable, then rename.

    Raises:
        UserError: `path` can not be written; what was there before is still there.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
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
