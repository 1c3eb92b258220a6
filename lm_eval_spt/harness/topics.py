"""The topic classification tasks in Python: where their documents come from, and macro-F1 with its standard error.

SIB-200 and mini_topics share one layout, ``<folder>/<language>/{train,dev,test}.tsv`` with the columns ``index_id``,
``category`` and ``text``, and the seven categories of :data:`CATEGORIES`. What a model is shown and which answers it
chooses among stands in the YAML files under ``tasks/``; they name the classes and functions of this module.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint
from huggingface_hub import HfApi
from lm_eval.api.task import ConfigurableTask

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder

CATEGORIES = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
"""The categories in the order of their labels: a document's ``label`` is the position of its category here."""

COLUMNS = ("index_id", "category", "text")
SPLIT_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
FEATURES = datasets.Features(
    {
        "index_id": datasets.Value("int64"),
        "category": datasets.Value("string"),
        "text": datasets.Value("string"),
        "label": datasets.Value("int64"),
    }
)

HUB_TIMEOUT = 10.0
"""Seconds that the Hugging Face Hub has to answer before only its local cache is used."""

RESAMPLES = 1000
"""Bootstrap resamples behind a standard error of macro-F1; from seed to seed the estimate varies by about 2%."""


class TopicTask(ConfigurableTask):
    """A YAML task that gets its documents from :meth:`documents`.

    The YAML names a subclass under ``class:``. The harness's other way, a function under ``custom_dataset:``, logs a
    warning for every task, and its default way can not read these files as fast or say what is wrong with them.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Set the task up from the parsed YAML; the harness leaves the ``class`` key in, and can not take it."""
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Set ``self.dataset``. The harness calls this; its arguments are for ``load_dataset`` and are not used."""
        self.dataset = self.documents(self.config.dataset_name)

    def documents(self, language: str) -> datasets.DatasetDict:
        """Return the splits of a language such as ``eng_Latn``, as :func:`read_language` does."""
        raise NotImplementedError


class MiniTopicsTask(TopicTask):
    """mini_topics, whose data lies beside its YAML files."""

    def documents(self, language: str) -> datasets.DatasetDict:
        return read_language(tasks_folder() / "mini_topics" / "data", language)


class SIB200Task(TopicTask):
    """SIB-200, from a local copy where one is named, otherwise from the Hugging Face Hub.

    ``--metadata sib200_dir=FOLDER`` names the local copy, or else the environment variable ``SIB200_DIR``. Raises
    :class:`UserError` where the documents can not be had, and where a file of the local copy is not as expected.
    """

    def documents(self, language: str) -> datasets.DatasetDict:
        hub_id = self.config.dataset_path
        folder = (self.config.metadata or {}).get("sib200_dir") or os.environ.get("SIB200_DIR")
        local_way = "set SIB200_DIR or --metadata sib200_dir=... to a folder with <language>/{train,dev,test}.tsv"
        if folder:
            try:
                return read_language(Path(str(folder)).expanduser(), language)
            except OSError as error:
                raise UserError(
                    f"SIB-200: can not read {error.filename} ({error.strerror}); {local_way}, "
                    f"or set neither, to download {hub_id} from the Hugging Face Hub"
                ) from error
        try:
            return download_language(hub_id, language)
        except Exception as error:  # load_dataset raises errors of every kind; what the user can do is the same
            raise UserError(
                f"SIB-200: can not download {language} of {hub_id} from the Hugging Face Hub "
                f"({type(error).__name__}); check the network, or {local_way}"
            ) from error


def read_language(folder: Path, language: str) -> datasets.DatasetDict:
    """Read ``<folder>/<language>/{train,dev,test}.tsv``.

    Returns the splits ``train``, ``validation`` and ``test`` with the columns ``index_id``, ``category``, ``text`` and
    ``label``. Raises ``OSError`` where a file can not be read, :class:`UserError` where it is not as expected.
    """
    return datasets.DatasetDict({split: read_file(folder / language / name) for split, name in SPLIT_FILES.items()})


def read_file(path: Path) -> datasets.Dataset:
    """Read one file of :func:`read_language`: tab-separated, quoted like CSV, UTF-8, with a header."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text ({error})") from error
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    try:
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}; expected a header with {', '.join(COLUMNS)}")
        documents = [_check_row(row) for row in rows]
        if not documents:
            raise ValueError("no documents after the header; expected at least one")
        return _dataset(documents)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {rows.reader.line_num}: {error}") from error


def download_language(hub_id: str, language: str) -> datasets.DatasetDict:
    """Load one language of the dataset ``hub_id`` from the Hugging Face Hub, or from an earlier download.

    Returns what :func:`read_language` returns. Raises whatever ``load_dataset`` does.
    """
    with _cache_only(not _hub_answers(hub_id)):
        downloaded = datasets.load_dataset(hub_id, language)
    splits = {}
    for split in SPLIT_FILES:
        rows = downloaded[split]
        categories, category = rows["category"], rows.features["category"]
        if isinstance(category, datasets.ClassLabel):
            categories = category.int2str(list(categories))
        splits[split] = _dataset(zip(rows["index_id"], categories, rows["text"], strict=True))
    return datasets.DatasetDict(splits)


@functools.cache
def _hub_answers(hub_id: str) -> bool:
    """Ask the Hub once per process: ``load_dataset`` would try for over 20 seconds, for every language anew."""
    try:
        HfApi().dataset_info(hub_id, timeout=HUB_TIMEOUT)
    except Exception:
        return False
    return True


@contextmanager
def _cache_only(switch: bool) -> Iterator[None]:
    """Make ``load_dataset`` look only at earlier downloads, as the environment variable HF_HUB_OFFLINE would."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or switch
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _check_row(row: Mapping[str | None, Any]) -> tuple[int, str, str]:
    """Return a row's index_id, category and text; raises ``ValueError`` where it is not as expected."""
    if None in row or None in row.values():
        raise ValueError("the number of fields is not that of the header")
    if not row["index_id"].isdecimal() or len(row["index_id"]) > 18:  # what fits into 64 bits
        raise ValueError(f"index_id is {row['index_id']!r}; expected a whole number")
    if row["category"] not in CATEGORIES:
        raise ValueError(f"unknown category {row['category']!r}; expected one of {', '.join(CATEGORIES)}")
    if not row["text"].strip():
        raise ValueError("the text is empty")
    return int(row["index_id"]), row["category"], row["text"]


def _dataset(documents: Iterable[tuple[int, str, str]]) -> datasets.Dataset:
    """Make (index_id, category, text) a dataset, with the labels added."""
    index_ids, categories, texts = zip(*documents, strict=True)
    labels = [CATEGORIES.index(category) for category in categories]
    columns = {"index_id": index_ids, "category": categories, "text": texts, "label": labels}
    # Dataset.from_dict takes ten times as long, most of it to hash the content for caches that are not used here.
    return datasets.Dataset(pa.table(columns, schema=FEATURES.arrow_schema), fingerprint=generate_random_fingerprint())


def process_results(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Score one document: the answer is the choice with the highest log-likelihood.

    Args:
        doc: A document; only its ``label`` is used.
        results: For each choice, in the order of :data:`CATEGORIES`, its log-likelihood and whether it is greedy.

    Returns:
        ``acc``, 0 or 1, and for :func:`macro_f1` and :func:`macro_f1_stderr` the pair (label, predicted label).
    """
    label, predicted = doc["label"], int(np.argmax([log_likelihood for log_likelihood, _ in results]))
    # The harness has no standard error for a metric it does not know and writes "N/A" under macro_f1_stderr.
    # A metric of that name, coming after macro_f1, overwrites it.
    return {
        "acc": float(predicted == label),
        "macro_f1": (label, predicted),
        "macro_f1_stderr": (label, predicted),
    }


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """Return the unweighted mean, over the classes, of F1 = 2 TP / (2 TP + FP + FN).

    The classes are those that occur as a label or as a prediction, which is scikit-learn's definition.

    Args:
        pairs: (label, predicted label) of every document.
    """
    return float(_macro_f1(_confusion(pairs)))


def macro_f1_stderr(pairs: Sequence[tuple[int, int]]) -> float | str:
    """Return the standard error of :func:`macro_f1`: its standard deviation over bootstrap resamples of the documents.

    The same documents give the same number: the seed is fixed. One document has no standard error: ``"N/A"``, as the
    harness writes it.

    Args:
        pairs: (label, predicted label) of every document.
    """
    if len(pairs) < 2:
        return "N/A"
    confusion = _confusion(pairs)
    # Drawing documents with replacement is a multinomial draw over the cells that they fall in.
    draws = np.random.default_rng(0).multinomial(len(pairs), confusion.ravel() / len(pairs), size=RESAMPLES)
    return float(_macro_f1(draws.reshape(RESAMPLES, *confusion.shape)).std(ddof=1))


def _confusion(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Count the documents of each (label, predicted label): ``[C, C]``."""
    labels, predicted = np.asarray(pairs).T
    classes = int(max(labels.max(), predicted.max())) + 1
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Macro-F1 of each confusion matrix: ``[..., C, C]`` to ``[...]``."""
    true_positives = np.diagonal(confusion, axis1=-2, axis2=-1)
    occurrences = confusion.sum(axis=-1) + confusion.sum(axis=-2)  # as a label and as a prediction: 2 TP + FN + FP
    f1 = 2 * true_positives / np.maximum(occurrences, 1)
    return f1.sum(axis=-1) / (occurrences > 0).sum(axis=-1)
