"""Answers to single documents in a compact form: one Parquet file for each results file.

``samples_<date>.parquet`` lies beside ``results_<date>.json``. It has a row for each task and document:

==================  ================================================================================================
``task``            the task's name
``doc_id``          the document's own id, where its data set has one, else its position in the task
``target``          the right answer, as text
``acc`` ...         a column for each metric: its value for this document, or a list of whole numbers for metrics that
                    are computed from pairs, such as (label, prediction) for macro-F1
``loglikelihoods``  those of the choices, in their order; empty where nothing was chosen
==================  ================================================================================================

The harness's own ``samples_<task>_<date>.jsonl`` (``--log_samples``) hold the texts, too, and are some forty times as
large.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ID_FIELDS = ("id", "index_id", "doc_id", "idx", "question_id", "ID")
"""Under these names data sets give their documents' ids."""

RESERVED = ("task", "doc_id", "target", "loglikelihoods")


def samples_path(results: Path) -> Path:
    """Return where the compact samples of a results file are."""
    return results.with_name(f"samples_{results.stem.removeprefix('results_')}.parquet")


def document_ids(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of a task's documents: the data set's own if it has some that tell them apart, else positions.

    Args:
        samples: one of the harness's samples for each document.
    """
    documents = [sample.get("doc") for sample in samples]
    for field in ID_FIELDS:
        ids = [str(document[field]) for document in documents if isinstance(document, dict) and field in document]
        if len(set(ids)) == len(samples):
            return ids
    return [str(sample["doc_id"]) for sample in samples]


def first_filter(samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one sample for each document: of a task with several filters, the first filter's, which is reported."""
    documents: dict[Any, Mapping[str, Any]] = {}
    for sample in samples:
        documents.setdefault(sample["doc_id"], sample)
    return list(documents.values())


def as_parquet(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Return the compact form of the samples of a run.

    Args:
        samples: task to the samples that ``simple_evaluate`` returns.
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows: list[Mapping[str, Any]] = []
    tasks: list[str] = []
    ids: list[str] = []
    for task, of_task in samples.items():
        documents = first_filter(of_task)
        rows += documents
        tasks += [task] * len(documents)
        ids += document_ids(documents)
    columns: dict[str, Any] = {
        "task": pa.array(tasks, pa.string()),
        "doc_id": pa.array(ids, pa.string()),
        "target": pa.array([str(row.get("target")) for row in rows], pa.string()),
    }
    metrics = dict.fromkeys(name for row in rows for name in row.get("metrics", ()))
    for name in metrics:
        column = _column([row.get(name) for row in rows])
        if name not in RESERVED and column is not None:
            columns[name] = column
    columns["loglikelihoods"] = pa.array([_loglikelihoods(row) for row in rows], pa.list_(pa.float32()))
    answers = "loglikelihoods.list.element"
    target = io.BytesIO()
    parquet.write_table(
        pa.table(columns),
        target,
        compression="zstd",
        use_dictionary=[name for name in columns if name != "loglikelihoods"],
        use_byte_stream_split=[answers],
    )
    return target.getvalue()


def _column(values: Sequence[Any]) -> Any:
    """A metric's values as an Arrow array; None where they are neither numbers nor lists of whole numbers."""
    import pyarrow as pa

    if all(value is None or isinstance(value, bool | int | float | np.number) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    try:
        lists = [None if value is None else [int(item) for item in value] for value in values]
        if any(len(one) != 2 for one in lists if one is not None):
            return None
        return pa.array(lists, pa.list_(pa.int32()))
    except (TypeError, ValueError, OverflowError):
        return None


def _loglikelihoods(sample: Mapping[str, Any]) -> list[float]:
    """The log-likelihoods of a document's choices; none where the model generated text."""
    answers = sample.get("filtered_resps") or []
    try:
        return [float(answer[0]) for answer in answers if len(answer) == 2 and not isinstance(answer, str)]
    except (TypeError, ValueError):
        return []
