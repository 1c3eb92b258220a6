"""Requests as the harness makes them, and answers as it keeps them, in all versions of lm_eval that are supported."""

from __future__ import annotations

from typing import Any

import lm_eval.api.task
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM


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


def rolling_loglikelihoods(lm: LM, requests: list[Instance]) -> list[float]:
    """Return a model's log-likelihoods of whole texts; since lm_eval 0.5 each comes with False for "greedy"."""
    answers: list[Any] = lm.loglikelihood_rolling(requests, disable_tqdm=True)  # type: ignore[call-arg]
    return [answer[0] if isinstance(answer, tuple) else answer for answer in answers]


def loglikelihoods(sample: dict[str, Any]) -> list[float]:
    """Return the log-likelihood of each choice of a logged sample; since lm_eval 0.5 each stands in a list."""
    answers = sample["filtered_resps"]
    return [float(answer[0][0] if isinstance(answer[0], list | tuple) else answer[0]) for answer in answers]
