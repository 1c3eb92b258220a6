"""Requests as the harness makes them, in all versions of lm_eval that are supported."""

from __future__ import annotations

import lm_eval.api.task
from lm_eval.api.instance import Instance


def request(kind: str, arguments: tuple, number: int = 0) -> Instance:
    """Return a request of its own document.

    Args:
        kind: the method of the model class that answers it.
        arguments: what `kind` takes; for ``loglikelihood_rolling`` the text alone.
        number: of the document, and of the request in it.
    """
    if kind == "loglikelihood_rolling" and hasattr(lm_eval.api.task, "LoglikelihoodRollingTask"):
        arguments = ("", *arguments)  # lm_eval 0.5 gives these requests an empty context
    return Instance(kind, {}, arguments, idx=number, task_name="", doc_id=number)
