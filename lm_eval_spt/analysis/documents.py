"""What single documents add to scores, read from the samples beside results files.

Samples are the compact Parquet file that ``lm-eval-spt evaluate`` and ``sweep`` write, or the files of the harness's
``--log_samples``. A document has an id. Documents of the same id in two languages are translations of each other: one
that is hard in one language is hard in others, so that languages are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_spt.analysis.results import IN_GROUP, MAX_SCORE, EvaluationRun
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import parse_json
from lm_eval_spt.harness.samples import document_ids, first_filter, samples_path

MAX_CELLS = 2**28
"""The most numbers that are kept, runs times languages times documents: they take 1 GB."""

MAX_DOCUMENTS = 200_000
"""The most documents of a task."""

MAX_CLASSES = 1000
"""The most classes for which macro-F1 is computed."""

CLASSES_METRIC = "macro_f1"
"""The metric that is not a mean over documents: for each document the harness logs (label, predicted label)."""

TOLERANCE = 1e-4
"""How much a score may differ from the one that its samples give; half-precision sums of other tools do, a little."""

HOW_TO_GET = "score again with lm-eval-spt evaluate or sweep, which keep samples, or with lm_eval --log_samples"


@dataclass(frozen=True)
class Answers:
    """What one run answered.

    Attributes:
        documents: the ids of the documents, in an order that all runs with the same documents share.
        targets: the right answers, as text, `[languages, documents]`; None where a language lacks the document.
        values: the metric of each document, NaN where a language lacks it: `[languages, documents]`; for macro-F1 label
            and prediction `[languages, documents, 2]`.
    """

    documents: Sequence[str]
    targets: np.ndarray
    values: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Which documents each language has `[languages, documents]`."""
        return ~np.isnan(self.values if self.values.ndim == 2 else self.values[..., 0])


def read_influence(runs: Sequence[EvaluationRun], languages: Sequence[str], metric: str) -> np.ndarray:
    """Return how much each document moves each score of each run.

    It is the jackknife's: by how much the score is less without the document than without another one, times
    sqrt((n - 1) / n). Its sum of squares is the score's variance, its sum of products with another score's influence
    the covariance. For a mean over n documents it is (y_d - mean) / sqrt(n (n - 1)). Languages that have no document in
    common have no covariance.

    Args:
        runs: runs on the same documents.
        languages: the languages to read.
        metric: such as ``acc``.

    Returns:
        `[runs, languages, documents]`, float32; the documents are those of all languages together.

    Raises:
        UserError: samples are missing, can not be read, are not those of the run or not of the same documents as the
            others', or there is a single document.
    """
    result: np.ndarray | None = None
    first: Answers | None = None
    for position, run in enumerate(runs):
        answers = read_answers(run, languages, metric)
        if first is None or result is None:
            first = answers
            if len(runs) * answers.values[..., :1].size * len(answers.documents) > MAX_CELLS:
                raise UserError(
                    f"{len(runs)} runs of {len(languages)} languages with {len(answers.documents):,} documents are too "
                    "many: compare fewer at a time"
                )
            result = np.empty((len(runs), *answers.known.shape), np.float32)
        elif answers.documents != first.documents or not np.array_equal(answers.targets, first.targets):
            raise UserError(
                f"{_place(run)} and {_place(runs[0])} were not scored on the same documents: compare runs on the same"
            )
        result[position] = _checked_influence(run, languages, metric, answers)
    if result is None:
        raise UserError("there are no runs to read samples of")
    return result


def read_answers(run: EvaluationRun, languages: Sequence[str], metric: str) -> Answers:
    """Read a run's samples.

    Raises:
        UserError: they are missing, can not be read, or lack the metric.
    """
    path = samples_path(run.path)
    try:
        if path.is_file():
            return _from_parquet(path, run, languages, metric)
        return _from_lines(run, languages, metric)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there are no samples beside {_place(run)}: {HOW_TO_GET}") from None
    except OSError as error:
        raise UserError(f"the samples beside {_place(run)} can not be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"the samples beside {_place(run)} are not samples with {metric!r} ({reason})") from error


def _place(run: EvaluationRun) -> str:
    """The results file, by its folder and name: reports do not depend on where the results lie."""
    return "/".join(run.path.parts[-2:])


def _from_parquet(path: Path, run: EvaluationRun, languages: Sequence[str], metric: str) -> Answers:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if metric not in parquet.read_schema(path).names:
            raise UserError(f"{path} has no {metric!r}: {HOW_TO_GET}")
        table = parquet.read_table(path, columns=["task", "doc_id", "target", metric])
        (tasks, task_names), (ids, id_names), (targets, target_names) = (
            _codes(table[name].combine_chunks()) for name in ("task", "doc_id", "target")
        )
        column = table[metric].combine_chunks()
        if metric == CLASSES_METRIC:
            values = column.cast(pa.list_(pa.float64(), 2)).flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)
        else:
            values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    rows = {name.rpartition(IN_GROUP)[2]: position for position, name in enumerate(task_names)}
    row_of = np.full(len(rows) + 1, -1)  # the last for what has no task
    for row, language in enumerate(languages):
        task = run.tasks.get(language, f"{run.family}_{language}")
        if task not in rows:
            raise UserError(f"{path} has no samples of {task}: {HOW_TO_GET}")
        row_of[rows[task]] = row
    row = row_of[tasks]
    chosen = row >= 0
    return _joined(
        row[chosen], id_names[ids[chosen]], target_names[targets[chosen]], values[chosen], len(languages), metric
    )


def _codes(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Texts of an Arrow array as positions in the array of the texts that occur."""
    encoded = column.dictionary_encode()
    if encoded.null_count:
        raise ValueError("a task, an id or a target is missing")
    return encoded.indices.to_numpy(), np.array(encoded.dictionary.to_pylist(), dtype=object)


def _from_lines(run: EvaluationRun, languages: Sequence[str], metric: str) -> Answers:
    """Read what the harness's ``--log_samples`` wrote, a file for each task."""
    rows: list[int] = []
    ids: list[str] = []
    targets: list[str] = []
    values: list[Any] = []
    for row, language in enumerate(languages):
        with run.samples_file(language).open(encoding="utf-8") as file:
            samples = first_filter(parse_json(line) for line in file if line.strip())
        rows += [row] * len(samples)
        ids += document_ids(samples)
        targets += [str(sample["target"]) for sample in samples]
        values += [sample[metric] for sample in samples]
    id_texts, target_texts = np.array(ids, dtype=object), np.array(targets, dtype=object)
    numbers = np.array(values, dtype=np.float64)
    return _joined(np.array(rows), id_texts, target_texts, numbers, len(languages), metric)


def _joined(
    rows: np.ndarray, ids: np.ndarray, targets: np.ndarray, values: np.ndarray, languages: int, metric: str
) -> Answers:
    """Put the languages' documents side by side, those with the same id in the same column.

    Args:
        rows: the language's position, for each of n answers.
        ids, targets: texts `[n]`.
        values: `[n]`, or `[n, 2]` for macro-F1.
        languages: their number.
        metric: the metric's name.
    """
    if values.shape[1:] != ((2,) if metric == CLASSES_METRIC else ()):
        raise ValueError(f"{metric} has another form")
    if not (np.abs(values) < MAX_SCORE).all():
        raise ValueError(f"{metric} is not a number")
    counts = np.bincount(rows, minlength=languages)
    if not 0 < counts.min() <= counts.max() <= MAX_DOCUMENTS:
        raise ValueError(f"{counts.min():,} to {counts.max():,} documents, expected 1 to {MAX_DOCUMENTS:,}")
    documents = sorted(set(ids))
    positions = {key: position for position, key in enumerate(documents)}
    columns = np.array([positions[key] for key in ids])
    if languages * len(documents) > MAX_CELLS:
        raise UserError(f"{languages} languages with {len(documents):,} documents are too many to analyse")
    if len(np.unique(rows * len(documents) + columns)) < len(rows):
        raise ValueError("two documents of one task have the same id")
    all_targets = np.full((languages, len(documents)), None, dtype=object)
    all_values = np.full((languages, len(documents), *values.shape[1:]), np.nan)
    all_targets[rows, columns] = targets
    all_values[rows, columns] = values
    return Answers(documents, all_targets, all_values)


def influence_of(values: np.ndarray, known: np.ndarray, metric: str = "acc") -> tuple[np.ndarray, np.ndarray]:
    """Return scores `[languages]` and how much each document moves each of them `[languages, documents]`.

    Args:
        values: of :class:`Answers`.
        known: which documents each language has; two at least.
        metric: the metric's name.
    """
    count = known.sum(axis=1)
    scores, without = (_macro_f1 if metric == CLASSES_METRIC else _mean)(values, known, count)
    mean = np.where(known, without, 0).sum(axis=1) / count
    return scores, np.where(known, mean[:, None] - without, 0) * np.sqrt((count - 1) / count)[:, None]


def _checked_influence(run: EvaluationRun, languages: Sequence[str], metric: str, answers: Answers) -> np.ndarray:
    """The influence of each document, once the samples have turned out to be the run's own."""
    if answers.known.sum(axis=1).min() < 2:
        raise UserError(f"{_place(run)} has one document in a language: what others would have changed is not known")
    scores, influence = influence_of(answers.values, answers.known, metric)
    for language, score in zip(languages, scores, strict=True):
        recorded = run.scores[metric][language].value
        if not abs(score - recorded) <= TOLERANCE * max(1, abs(recorded)):
            raise UserError(
                f"the samples beside {_place(run)} give {metric} {score:.4f} in {language}, its results "
                f"{recorded:.4f}: they are not of that run, or the metric is no mean over documents"
            )
    return influence


def _mean(values: np.ndarray, known: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over documents in each language, and what it is without each document."""
    values = np.where(known, values, 0)
    sums = values.sum(axis=1)
    return sums / count, (sums[:, None] - values) / (count - 1)[:, None]


def _macro_f1(pairs: np.ndarray, known: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Macro-F1 in each language, and what it is without each document.

    The definition is that of :func:`lm_eval_spt.harness.text_classification.macro_f1`: the mean of 2 TP / (labels +
    predictions) over the classes that occur as one or the other.
    """
    classes = np.unique(pairs[known])
    if len(classes) > MAX_CLASSES:
        raise UserError(f"there are more than {MAX_CLASSES} classes: macro-F1 is not analysed")
    scores, present = np.zeros(len(pairs)), np.zeros(len(pairs))
    without, still_present = np.zeros(known.shape), np.zeros(known.shape)
    for one in classes:
        is_label, is_predicted = pairs[..., 0] == one, pairs[..., 1] == one
        hits, occurrences = is_label & is_predicted, is_label.astype(np.float64) + is_predicted
        all_hits, all_occurrences = hits.sum(axis=1), occurrences.sum(axis=1)
        scores += 2 * all_hits / np.maximum(all_occurrences, 1)
        present += all_occurrences > 0
        other_hits, other_occurrences = all_hits[:, None] - hits, all_occurrences[:, None] - occurrences
        without += 2 * other_hits / np.maximum(other_occurrences, 1)
        still_present += other_occurrences > 0
    return scores / present, without / np.maximum(still_present, 1)
