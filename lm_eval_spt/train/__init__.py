"""Training: settings -> harness task -> examples -> frozen model -> loss -> prompt file."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """This package, which is also the function ``lm_eval_spt.train``.

    Python sets the attribute ``train`` of the package ``lm_eval_spt`` to this module once anything in it is imported,
    whatever stood there before. So the module itself takes calls: ``from lm_eval_spt import train`` gives the same
    thing in every order of imports.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Learn a soft prompt: see :func:`lm_eval_spt.train.loop.train`."""
        return import_module(f"{__name__}.loop").train(*arguments, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (__name__,)  # as a function is pickled: by its name


sys.modules[__name__].__class__ = _CallableModule
