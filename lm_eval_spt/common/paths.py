"""Paths of the files that ship with the package, and of those that it keeps."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

MINI = "mini"
"""Name of the base model that ships with the package."""

_PACKAGE = Path(__file__).parents[1]


def tasks_folder() -> Path:
    """Return the folder of the task definitions: inside an installed package, beside the package in a checkout."""
    installed = _PACKAGE / "tasks"
    return installed if installed.is_dir() else _PACKAGE.parent / "tasks"


def mini_model_folder() -> Path:
    """Return the folder of the embedded base model, as ``from_pretrained`` takes it."""
    return _PACKAGE / "mini"


def user_cache() -> Path:
    """Return the folder of what can be made again: ``lm_eval_spt`` in ``XDG_CACHE_HOME`` or ``~/.cache``.

    A user without a home folder, as in some containers, gets one among the temporary files.
    """
    home = os.path.expanduser("~")
    cache = os.path.join(tempfile.gettempdir() if home == "~" else home, ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or cache) / "lm_eval_spt"


def model_path(name: str) -> str:
    """Return what ``from_pretrained`` understands: the embedded model's folder for ``mini``, else `name` itself."""
    return str(mini_model_folder()) if name == MINI else name
