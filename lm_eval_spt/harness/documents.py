"""Which of the harness's requests belong together: the choices of one document, and one choice in all documents."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from lm_eval.api.instance import Instance
from numpy.typing import NDArray

from lm_eval_spt.common.errors import UserError


def documents_of(requests: Sequence[Instance]) -> NDArray[np.int64]:
    """Return which document each request belongs to, `[requests]`, as whole numbers from 0.

    Some metrics ask for each choice once more without the text: these are documents by themselves.
    """
    return _numbered(
        (request.task_name, request.doc_id if request.doc_id is not None else request.args[0], request.args[0] == "")
        for request in requests
    )


def choices_of(requests: Sequence[Instance], documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which choice of its task each request asks for, `[requests]`, as whole numbers from 0.

    Requests without the text have numbers of their own.

    Args:
        requests: all requests.
        documents: of :func:`documents_of`.

    Raises:
        UserError: the documents of a task have different choices.
    """
    choices = _numbered((request.task_name, request.args[1], request.args[0] == "") for request in requests)
    of_document: dict[int, set[int]] = {}
    for document, choice in zip(documents.tolist(), choices.tolist(), strict=True):
        of_document.setdefault(document, set()).add(choice)
    first: dict[tuple[str | None, bool], set[int]] = {}
    for request, document in zip(requests, documents.tolist(), strict=True):
        known = first.setdefault((request.task_name, request.args[0] == ""), of_document[document])
        if known != of_document[document]:
            raise UserError(
                f"the choices of the task {request.task_name!r} differ from document to document: calibration needs "
                "the same ones in each, leave it out"
            )
    return choices


def positions_of(requests: Sequence[Instance]) -> NDArray[np.int64]:
    """Return the position of the choice that each request asks for among those of its task, `[requests]`, from 0."""
    of_task: dict[Hashable, dict[str, int]] = {}
    positions = []
    for request in requests:
        known = of_task.setdefault((request.task_name, request.args[0] == ""), {})
        positions.append(known.setdefault(request.args[1], len(known)))
    return np.array(positions, dtype=np.int64)


def _numbered(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """Number keys from 0 in the order in which they first come, `[keys]`."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
