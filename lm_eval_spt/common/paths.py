"""Paths of the files that ship with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def tasks_folder() -> Path:
    """Return the folder of the task definitions: inside an installed package, beside the package in a checkout."""
    installed = _PACKAGE / "tasks"
    return installed if installed.is_dir() else _PACKAGE.parent / "tasks"


def mini_model_folder() -> Path:
    """Return the folder of the embedded base model, as ``from_pretrained`` takes it."""
    return _PACKAGE / "mini"
