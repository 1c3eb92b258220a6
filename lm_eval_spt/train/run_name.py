"""How a run is called that differs from others: by the settings in which it does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def run_name(start: str, settings: Mapping[str, Any]) -> str:
    """Return a run's name, such as ``frozen-prompt_length5-seed0``.

    Sweeps find by it what is done already: the same settings must always give the same name.

    Args:
        start: what comes first, such as the name of an arm; may be empty.
        settings: names and values, in order; a model or task stands for itself.

    Returns:
        A name for files and folders: ASCII letters, digits and ``_.+-``, not hidden, never ``..`` or empty.
    """
    parts = [start] if start else []
    for setting, value in settings.items():
        text = "none" if value is None else str(value)
        if setting in ("model", "task"):
            parts.append(text.rstrip("/").split("/")[-1])
        else:
            parts.append(f"{setting}_{text}" if text[:1].isalpha() else f"{setting}{text}")
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts), flags=re.ASCII).lstrip(".") or "run"
