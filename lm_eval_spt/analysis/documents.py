"""An arm's answers document by document, and the bootstrap over documents.

The documents of SIB-200 are the same sentences in every language, in one order, so that they are resampled together in
all languages: a sentence that is hard in one language is hard in others, and languages are not independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_spt.analysis.results import MAX_SCORE, EvaluationRun
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import parse_json

MAX_DOCUMENTS = 20_000
"""Documents that are resampled: their counts, 10,000 rows of them, take 0.8 GB."""

MAX_CLASSES = 1000
"""Classes of which macro-F1 is resampled."""

CLASSES_METRIC = "macro_f1"
"""The metric that is not a mean over documents: of each document the harness logs (label, predicted label)."""


@dataclass(frozen=True)
class Answers:
    """What an arm's runs answered.

    Attributes:
        languages: L of them.
        labels: `[documents]`: what makes the documents of two arms the same.
        values: `[runs, L, documents]`: the metric of every document; for macro-F1 the predicted label.
    """

    languages: Sequence[str]
    labels: np.ndarray
    values: np.ndarray

    def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray:
        """Return the arm's score, the mean over its runs, in every resample of the documents.

        Args:
            metric: what `values` are of.
            counts: `[resamples, documents]`, how often each document was drawn.

        Returns:
            `[resamples, L]`
        """
        if metric != CLASSES_METRIC:
            return counts @ self.values.mean(axis=0, dtype=np.float32).T / counts.shape[1]
        of_runs = [[_macro_f1(self.labels, predicted, counts) for predicted in run] for run in self.values]
        return np.mean(of_runs, axis=0).T


def read_answers(runs: Sequence[EvaluationRun], languages: Sequence[str], metric: str) -> Answers:
    """Read the ``samples_*.jsonl`` files that ``--log_samples`` put beside the results files.

    Args:
        runs: the runs of one arm.
        languages: the languages to read.
        metric: such as ``acc``.

    Raises:
        UserError: they are not there for all runs and languages, can not be read, lack the metric, or do not hold the
            same documents in every language.
    """
    labels: np.ndarray | None = None
    values = []
    for run in runs:
        of_run = []
        for language in languages:
            path = run.samples_file(language)
            their_labels, of_language = _read(path, metric)
            if labels is None:
                labels = their_labels
            elif not np.array_equal(labels, their_labels):
                raise UserError(f"{path} does not hold the documents that the other languages have")
            of_run.append(of_language)
        values.append(of_run)
    if labels is None:
        raise UserError("there are no languages to read answers of")
    return Answers(languages, labels, np.array(values))


def _read(path: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels and the metric of each document, in the order of their ids."""
    try:
        documents: dict[int, tuple[Any, Any]] = {}
        with path.open(encoding="utf-8") as file:
            for sample in _samples(file):
                # Where a task applies several filters there is a line for each: the first is the one that is reported.
                documents.setdefault(sample["doc_id"], (sample["target"], sample[metric]))
        if not 0 < len(documents) <= MAX_DOCUMENTS:
            raise UserError(f"{path} holds {len(documents):,} documents, 1 to {MAX_DOCUMENTS:,} can be resampled")
        ordered = [documents[key] for key in sorted(documents)]
        if metric == CLASSES_METRIC:
            labels, predicted = np.array([(int(label), int(answer)) for _, (label, answer) in ordered]).T
            if len(np.union1d(labels, predicted)) > MAX_CLASSES:
                raise UserError(f"{path} has more than {MAX_CLASSES} classes: macro-F1 is not resampled")
            return labels, predicted
        values = np.array([float(value) for _, value in ordered])
        if not (np.abs(values) < MAX_SCORE).all():
            raise ValueError(f"{metric} is not a number")
        # As objects: an array of text would give each document the room of the longest.
        return np.array([str(target) for target, _ in ordered], dtype=object), values.astype(np.float32)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no {path.name} beside the results: score with --log_samples to have one") from None
    except OSError as error:
        raise UserError(f"{path} can not be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} is not a samples file with {metric!r} in every line ({reason})") from error


def _samples(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    return (parse_json(line) for line in lines if line.strip())


def _macro_f1(labels: np.ndarray, predicted: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Macro-F1 in each resample, of the classes that occur in it as a label or as a prediction: `[resamples]`.

    The definition is that of :func:`lm_eval_spt.harness.topics.macro_f1`.
    """
    classes = np.union1d(labels, predicted)
    is_label, is_predicted = labels[:, None] == classes, predicted[:, None] == classes
    true_positives = counts @ (is_label & is_predicted).astype(np.float32)
    occurrences = counts @ (is_label.astype(np.float32) + is_predicted)
    f1 = 2 * true_positives / np.maximum(occurrences, 1)
    return f1.sum(axis=1) / (occurrences > 0).sum(axis=1)
