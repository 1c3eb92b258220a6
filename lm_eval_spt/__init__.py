"""Soft prompt tuning for EleutherAI's lm-evaluation-harness.

Importing this package makes it known to lm_eval (see :mod:`lm_eval_spt.harness.discovery`) and is quick: the
names below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module

from lm_eval_spt.harness.discovery import arm

__version__ = "0.1.0"
__all__ = ["SPTLM", "SoftPrompt", "__version__"]

_HOMES = {"SoftPrompt": "lm_eval_spt.prompt.soft_prompt", "SPTLM": "lm_eval_spt.harness.lm"}

arm()


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
