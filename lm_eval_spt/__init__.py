"""Soft prompt tuning for EleutherAI's lm-evaluation-harness.

Importing this package makes it known to lm_eval (see :mod:`lm_eval_spt.harness.discovery`) and is quick: the
names below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from lm_eval_spt.harness.discovery import arm

if TYPE_CHECKING:
    from lm_eval_spt.harness.classify import classify
    from lm_eval_spt.harness.evaluate import evaluate_prompts
    from lm_eval_spt.harness.lm import SPTLM
    from lm_eval_spt.prompt.compose import compose
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt
    from lm_eval_spt.train.config import TrainingConfig
    from lm_eval_spt.train.loop import train

__version__ = "0.1.0"
__all__ = [
    "SPTLM",
    "SoftPrompt",
    "TrainingConfig",
    "__version__",
    "classify",
    "compose",
    "evaluate_prompts",
    "train",
]

_HOMES = {
    "SPTLM": "harness.lm",
    "SoftPrompt": "prompt.soft_prompt",
    "TrainingConfig": "train.config",
    "classify": "harness.classify",
    "compose": "prompt.compose",
    "evaluate_prompts": "harness.evaluate",
}

arm()


def __getattr__(name: str) -> object:
    if name == "train":  # the subpackage, which can be called
        return import_module("lm_eval_spt.train")
    if name in _HOMES:
        return getattr(import_module(f"lm_eval_spt.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
