"""Calibration: what a model thinks of the choices whatever the text is taken off its answers.

A prompt that was learned in one language often makes the model prefer some labels in another one. How much it prefers
them shows in its answers to all documents of a task, without their labels: batch calibration (arXiv 2309.17249).
Nothing is learned and nothing is read once more. What it assumes is that labels are about equally frequent.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lm_eval_spt.common.errors import UserError

Calibration = Literal["probability", "log_probability"]
"""What is averaged over the documents: the choices' probabilities, as in the paper, or their logarithms."""


def as_calibration(value: Any) -> Calibration | None:
    """Return what was given as ``calibration``.

    Raises:
        UserError: there is no such kind.
    """
    if value not in (None, *get_args(Calibration)):
        raise UserError(f"calibration is {value!r}, expected {' or '.join(map(repr, get_args(Calibration)))}")
    return value


def calibrate(
    values: NDArray[np.float64], documents: NDArray[np.int64], choices: NDArray[np.int64], average: Calibration
) -> NDArray[np.float64]:
    """Return log-likelihoods less the mean preference for each choice.

    With p(c | x) a choice's share in the probabilities of a document's choices, log p(c | x) loses the logarithm of the
    mean of p(c | x) over the documents x, or the mean of log p(c | x).

    Args:
        values: `[requests]`, log-likelihoods in nats.
        documents: `[requests]`, which requests are the choices of one document, as whole numbers from 0.
        choices: `[requests]`, which of them ask for the same choice of the same task, likewise.
        average: what is averaged.

    Raises:
        UserError: there is one document, of which nothing would be left.

    Example:
        >>> calibrate(np.log([0.8, 0.2, 0.6, 0.4]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), "probability")
        array([ 0.13353139, -0.40546511, -0.15415068,  0.28768207])
    """
    if not len(values):
        return values
    largest = np.full(documents.max() + 1, -np.inf)
    np.maximum.at(largest, documents, values)
    sums = np.bincount(documents, np.exp(values - largest[documents]))
    logarithms = values - largest[documents] - np.log(sums)[documents]
    counts = np.bincount(choices)
    if counts.min() < 2:
        raise UserError("calibration takes off a mean over documents: it needs two or more, and one was given")
    if average == "log_probability":
        means = np.bincount(choices, logarithms) / counts
    else:
        means = np.log(np.bincount(choices, np.exp(logarithms)) / counts)
    return np.asarray(values - means[choices])
