"""How lm_eval finds this package, for versions of lm_eval that do not look for plugins themselves.

1. An install puts the start-up file ``lm_eval_spt.pth`` into site-packages. Every interpreter reads it: it places a
   finder in front of ``sys.meta_path`` that imports this package when lm_eval is imported. Where lm_eval is not
   imported, or this package is gone, nothing happens.
2. Importing this package calls :func:`arm`. It places a second finder, which lets the ordinary finders find and load
   the lm_eval modules in `AFTER_IMPORT`, and afterwards calls the function of :mod:`lm_eval_spt.harness.patches` that
   belongs to each.

Where start-up files are not read (``python -S``), ``python -m lm_eval_spt`` stands in for ``lm_eval``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

logger = logging.getLogger(__name__)

# lm_eval module -> function of lm_eval_spt.harness.patches to call with it, once it is imported
AFTER_IMPORT = {
    "lm_eval.models": "register_model",
    "lm_eval.api.task": "use_local_data",
    "lm_eval.evaluator": "announce_contexts",
    "lm_eval.tasks._index": "add_installed_tasks",
    "lm_eval.loggers.evaluation_tracker": "name_results_after_prompt",
}


class LmEvalFinder:
    """A meta-path finder that finds nothing by itself, and sees to it that `AFTER_IMPORT` is kept."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the other finders' spec for the modules in `AFTER_IMPORT`, and None for all others."""
        if name not in AFTER_IMPORT:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            _adapt_after_loading(spec)
        return spec


def _adapt_after_loading(spec: ModuleSpec) -> None:
    """Make `spec`'s loader adapt the next module that it executes.

    The loader keeps its type and, once it has run, its own method: nothing that looks at a module's loader sees us.
    """
    loader = spec.loader
    assert loader is not None
    execute = loader.exec_module

    def execute_and_adapt(module: ModuleType) -> None:
        vars(loader).pop("exec_module", None)
        execute(module)
        _adapt(module)

    loader.exec_module = execute_and_adapt  # type: ignore[method-assign]


def _adapt(module: ModuleType) -> None:
    """Call what `AFTER_IMPORT` says. An lm_eval that has changed must work on without us, so a failure is a warning."""
    step = AFTER_IMPORT[module.__name__]
    try:
        from lm_eval_spt.harness import patches

        getattr(patches, step)(module)
    except Exception as error:
        logger.warning("this version of lm_eval has another %s, so %s is left out: %r", module.__name__, step, error)


def arm() -> None:
    """Place the finder, and adapt what was imported before. Calling it again changes nothing."""
    if any(type(finder).__module__ == __name__ for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, LmEvalFinder())
    for name in AFTER_IMPORT:
        if name in sys.modules:
            _adapt(sys.modules[name])
