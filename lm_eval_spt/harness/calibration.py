"""Calibration: what a model thinks of the choices whatever the text is taken off its answers.

A prompt that was learned in one language often makes the model prefer some labels in another one. How much it prefers
them shows in its answers to all documents of a task, without their labels. Nothing is learned and nothing is read once
more. There are two ways:

* batch calibration (arXiv 2309.17249) takes off the mean preference: it assumes that labels are about equally frequent;
* prior matching (arXiv 2309.04992, there with equal frequencies) makes the labels as frequent among the answers as
  they are known to be, from the documents that the prompt was learned from or because the user says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

import numpy as np
from lm_eval.api.instance import Instance
from numpy.typing import NDArray

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.grouped import log_sums
from lm_eval_spt.harness.documents import choices_of, documents_of, positions_of
from lm_eval_spt.prompt.ensemble import Average

LABEL_PRIOR = "label_prior"
"""Prior matching, with the label counts of the prompt's record. The counts themselves can be given instead."""

MOST_STEPS = 1000
CLOSE_ENOUGH = 1e-9  # nats


def as_calibration(value: Any) -> str | None:
    """Return what was given as ``calibration``: a kind, or label counts such as ``"20+30+50"``.

    Raises:
        UserError: there is no such kind.
    """
    kinds = (*get_args(Average), LABEL_PRIOR)
    if value is None or value in kinds or _counts_in(value):
        return value
    raise UserError(
        f"calibration is {value!r}, expected {', '.join(map(repr, kinds))}, or how frequent the labels are, as "
        "positive numbers in the labels' order: 20+30+50"
    )


def label_counts(calibration: str | None, record: Mapping[str, Any]) -> list[float] | None:
    """Return the label counts that prior matching needs, in the labels' order; None for another kind, or none.

    Args:
        calibration: of :func:`as_calibration`.
        record: of the prompt, tuned model or adapter: see :mod:`lm_eval_spt.prompt.metadata`.

    Raises:
        UserError: the record does not know them.
    """
    if calibration is None or calibration in get_args(Average):
        return None
    if calibration != LABEL_PRIOR:
        return _counts_in(calibration)
    counts = record.get("label_counts")
    if not isinstance(counts, list) or not all(isinstance(count, int) and count > 0 for count in counts):
        raise UserError(
            f"calibration={LABEL_PRIOR} takes how frequent the labels are from the record of what was learned, and "
            f"{'that does not say it for all' if record else 'there is none'}: give their frequencies in their order, "
            "for example calibration=20+30+50"
        )
    return list(counts)


def calibrator(
    requests: Sequence[Instance], calibration: str, counts: Sequence[float] | None
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return what calibrates the log-likelihoods `[requests]` of some requests, each task's by themselves.

    Args:
        requests: of one or several tasks.
        calibration: of :func:`as_calibration`.
        counts: of :func:`label_counts`.

    Raises:
        UserError: the documents of a task have different choices, or there are more or fewer of them than counts.
    """
    documents = documents_of(requests)
    choices = choices_of(requests, documents)
    if counts is None:
        average = cast(Average, calibration)
        return lambda values: calibrate(values, documents, choices, average)
    positions = positions_of(requests)
    numbers: dict[str | None, int] = {}
    for request, position in zip(requests, positions.tolist(), strict=True):
        numbers[request.task_name] = max(numbers.get(request.task_name, 0), position + 1)
    shares = {task: label_shares(counts, task, number) for task, number in numbers.items()}
    pairs = zip(requests, positions.tolist(), strict=True)
    prior = np.array([shares[request.task_name][position] for request, position in pairs])
    return lambda values: match_prior(values, documents, choices, prior)


def label_shares(counts: Sequence[float], task: str | None, choices: int) -> NDArray[np.float64]:
    """Return how frequent each of a task's choices is, `[choices]`, 1 in the sum, from the label counts.

    Raises:
        UserError: the task has more or fewer choices than there are counts.
    """
    if len(counts) != choices:
        given = "+".join(f"{count:g}" for count in counts)
        raise UserError(
            f"calibration is by the label counts {given}, of {len(counts)} labels, the task {task!r} has {choices} "
            "choices: give how frequent these are, for example calibration=20+30+50, or calibrate by probability"
        )
    return np.array(counts) / sum(counts)


def _counts_in(value: Any) -> list[float] | None:
    try:
        counts = [float(count) for count in str(value).split("+")]
    except ValueError:
        return None
    return counts if len(counts) > 1 and all(0 < count < math.inf for count in counts) else None


def calibrate(
    values: NDArray[np.float64], documents: NDArray[np.int64], choices: NDArray[np.int64], average: Average
) -> NDArray[np.float64]:
    """Return log-likelihoods less the mean preference for each choice: batch calibration.

    With p(c | x) a choice's share in the probabilities of a document's choices, log p(c | x) loses the logarithm of the
    mean of p(c | x) over the documents x, or the mean of log p(c | x).

    Args:
        values: `[requests]`, log-likelihoods in nats.
        documents: `[requests]`, which requests are the choices of one document, as whole numbers from 0.
        choices: `[requests]`, which of them ask for the same choice of the same task, likewise.
        average: what is averaged over the documents: the choices' probabilities, as in the paper, or their logarithms.

    Raises:
        UserError: there is one document, of which nothing would be left.

    Example:
        >>> calibrate(np.log([0.8, 0.2, 0.6, 0.4]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), "probability")
        array([ 0.13353139, -0.40546511, -0.15415068,  0.28768207])
    """
    if not len(values):
        return values
    numbers = _documents_of_each(choices)
    logarithms = values - log_sums(values, documents)[documents]
    if average == "log_probability":
        means = np.bincount(choices, logarithms) / numbers
    else:
        means = log_sums(logarithms, choices) - np.log(numbers)
    return np.asarray(values - means[choices])


def match_prior(
    values: NDArray[np.float64],
    documents: NDArray[np.int64],
    choices: NDArray[np.int64],
    prior: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return log-likelihoods plus a constant for each choice, with which choices are as frequent as they should be.

    The constants are those with which a choice's mean probability over the documents is its prior. There is one such
    set, up to a shift of all; it is found by turns (Sinkhorn's algorithm): add to each what its mean lacks, share anew.

    Args:
        values, documents, choices: as for :func:`calibrate`.
        prior: `[requests]`, how frequent the choice is that the request asks for; 1 in the sum over a document's.

    Raises:
        UserError: there is one document, whose answer the prior alone would be.

    Example:
        >>> documents, choices, prior = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([0.25, 0.75] * 2)
        >>> found = match_prior(np.log([0.8, 0.2, 0.6, 0.4]), documents, choices, prior)
        >>> odds = np.exp(found[::2] - found[1::2])  # of the first choice; were 4 and 1.5
        >>> shares = odds / (1 + odds)
        >>> print(shares.round(2), shares.mean().round(2))
        [0.35 0.15] 0.25
    """
    if not len(values):
        return values
    log_numbers = np.log(_documents_of_each(choices))
    log_prior = np.empty(len(log_numbers))
    log_prior[choices] = np.log(prior)
    constants = np.zeros(len(log_numbers))
    for _ in range(MOST_STEPS):
        shifted = values + constants[choices]
        means = log_sums(shifted - log_sums(shifted, documents)[documents], choices) - log_numbers
        constants += log_prior - means
        if np.abs(log_prior - means).max() < CLOSE_ENOUGH:
            break
    return np.asarray(values + constants[choices])


def _documents_of_each(choices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many documents have each choice, `[choices]`.

    Raises:
        UserError: it is one.
    """
    numbers = np.bincount(choices)
    if numbers.min() < 2:
        raise UserError("calibration compares a task's documents: it needs two or more, and one was given")
    return numbers
