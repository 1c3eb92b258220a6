"""Paths of the files that ship with the package."""

from __future__ import annotations

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


def model_path(name: str) -> str:
    """Return what ``from_pretrained`` understands: the embedded model's folder for ``mini``, else `name` itself."""
    return str(mini_model_folder()) if name == MINI else name
