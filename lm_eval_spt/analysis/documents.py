"""An arm's answers to each document, and the bootstrap over documents.

The documents of SIB-200 are the same sentences in every language, in the same order. A sentence that is hard in one
language is hard in others, so that languages are not independent: documents are resampled together in all languages.
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
"""The most documents that are resampled: 10,000 rows of their counts take 0.8 GB."""

MAX_CLASSES = 1000
"""The most classes for which macro-F1 is resampled."""

CLASSES_METRIC = "macro_f1"
"""The metric that is not a mean over documents: for each document the harness logs (label, predicted label)."""


@dataclass(frozen=True)
class Answers:
    """The answers of an arm's runs.

    Attributes:
        languages: the languages.
        labels: the documents' right answers `[documents]`; two arms with equal labels had the same documents.
        values: the metric of every document, or for macro-F1 the predicted label: `[runs, languages, documents]`.
    """

    languages: Sequence[str]
    labels: np.ndarray
    values: np.ndarray

    def resampled(self, metric: str, counts: np.ndarray) -> np.ndarray:
        """Return the arm's score, the mean over its runs, in every resample of the documents.

        Args:
            metric: the metric that `values` holds.
            counts: how often each document was drawn: `[resamples, documents]`.

        Returns:
            The scores `[resamples, languages]`.
        """
        if metric != CLASSES_METRIC:
            return counts @ self.values.mean(axis=0, dtype=np.float32).T / counts.shape[1]
        scores = [[_macro_f1(self.labels, predicted, counts) for predicted in run] for run in self.values]
        return np.mean(scores, axis=0).T


def read_answers(runs: Sequence[EvaluationRun], languages: Sequence[str], metric: str) -> Answers:
    """Read the ``samples_*.jsonl`` files that ``--log_samples`` put beside the results files.

    Args:
        runs: the runs of one arm.
        languages: the languages to read.
        metric: such as ``acc``.

    Raises:
        UserError: a file is missing, can not be read, lacks the metric, or does not hold the same documents as the
            others.
    """
    labels: np.ndarray | None = None
    values = []
    for run in runs:
        run_values = []
        for language in languages:
            path = run.samples_file(language)
            file_labels, file_values = _read(path, metric)
            if labels is None:
                labels = file_labels
            elif not np.array_equal(labels, file_labels):
                raise UserError(f"{path} does not hold the documents that the other languages have")
            run_values.append(file_values)
        values.append(run_values)
    if labels is None:
        raise UserError("there are no languages to read answers of")
    return Answers(languages, labels, np.array(values))


def _read(path: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels and the metric of each document, in the order of their ids."""
    try:
        documents: dict[int, tuple[Any, Any]] = {}
        with path.open(encoding="utf-8") as file:
            for sample in _samples(file):
                # A task with several filters has a line for each: the first filter's is reported.
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
        # As objects: in an array of text each document would take the space of the longest.
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
    """Macro-F1 in each resample `[resamples]`, over the classes that occur in it as a label or as a prediction.

    The definition is that of :func:`lm_eval_spt.harness.text_classification.macro_f1`.
    """
    classes = np.union1d(labels, predicted)
    is_label, is_predicted = labels[:, None] == classes, predicted[:, None] == classes
    true_positives = counts @ (is_label & is_predicted).astype(np.float32)
    occurrences = counts @ (is_label.astype(np.float32) + is_predicted)
    f1 = 2 * true_positives / np.maximum(occurrences, 1)
    return f1.sum(axis=1) / (occurrences > 0).sum(axis=1)
