"""Text classification, the part in Python: reading the documents, and macro-F1 with its standard error.

SIB-200, mini_topics and NusaX hold the same documents in every language: ``<folder>/<language>/`` has a file for each
split. The YAML files under ``tasks/`` say what a model is shown and which answers it chooses among. They name the
classes and functions of this module.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint
from huggingface_hub import HfApi
from lm_eval.api.registry import metric_registry, register_metric

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.common.tables import read_table
from lm_eval_spt.harness.local_data import local_copy
from lm_eval_spt.harness.patches import multiple_choice_task


@dataclass(frozen=True)
class Layout:
    """What the files of a data set look like: UTF-8, quoted as in CSV, with a header.

    Attributes:
        files: split to file name; the ending says what separates the columns.
        columns: those of the document's number, its category and its text.
        categories: the categories; the ``label`` of a document is the position of its category here.
    """

    files: Mapping[str, str]
    columns: tuple[str, str, str]
    categories: tuple[str, ...]


CATEGORIES = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
TOPICS = Layout(
    {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}, ("index_id", "category", "text"), CATEGORIES
)
SENTIMENT = Layout(
    {"train": "train.csv", "validation": "valid.csv", "test": "test.csv"},
    ("id", "label", "text"),
    ("negative", "neutral", "positive"),
)
FEATURES = datasets.Features(
    {
        "index_id": datasets.Value("int64"),
        "category": datasets.Value("string"),
        "text": datasets.Value("string"),
        "label": datasets.Value("int64"),
    }
)

HUB_TIMEOUT = 10.0
"""Seconds to wait for the Hugging Face Hub. After that only its local cache is used."""

RESAMPLES = 1000
"""Bootstrap resamples for the standard error of macro-F1. With this many it varies by about 2% between seeds."""


class Documents(datasets.Dataset):
    """A dataset that gives its documents one by one in a tenth of the time; the harness goes through all, thrice."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.format["type"] is None and self.format["columns"] == self.column_names:
            return iter(self.data.to_pylist())
        return super().__iter__()


MultipleChoiceTask: Any = multiple_choice_task()


class ParallelTask(MultipleChoiceTask):
    """A YAML task whose documents come from :meth:`documents`.

    The YAML names a subclass under ``class:``. The harness has two other ways. A function under ``custom_dataset:``
    logs a warning for every task. ``load_dataset``, the default, reads these files slowly and does not say which line
    of which file is wrong.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Set up the task.

        Args:
            config: the parsed YAML. The harness leaves the key ``class`` in it but does not accept it here.
        """
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Set ``self.dataset``. The harness calls this; its arguments are meant for ``load_dataset``."""
        self.dataset = self.documents(self.config.dataset_name)

    def documents(self, language: str) -> datasets.DatasetDict:
        """Return the splits of a language such as ``eng_Latn``, as :func:`read_language` does."""
        raise NotImplementedError

    def aggregate(self, bootstrap_iters: int | None = None) -> tuple[dict[str, Any], int]:
        """Return the scores over all documents and the number of documents; lm-eval calls this since 0.5.

        It would bootstrap macro-F1, and its standard error too, with 100,000 resamples each: minutes for a task.
        :func:`macro_f1_stderr` takes milliseconds. For the accuracy lm-eval's formula stays.

        Args:
            bootstrap_iters: 0 or None for no standard errors.
        """
        scores, documents = super().aggregate(bootstrap_iters=0)
        if bootstrap_iters and documents > 1 and "acc,none" in scores:
            accuracy = scores["acc,none"]
            scores["acc_stderr,none"] = math.sqrt(accuracy * (1 - accuracy) / (documents - 1))
        return scores, documents


class MiniTopicsTask(ParallelTask):
    """mini_topics. Its data lies beside its YAML files."""

    def documents(self, language: str) -> datasets.DatasetDict:
        return read_language(tasks_folder() / "mini_topics" / "data", language)


class PublishedTask(ParallelTask):
    """A data set from a local copy if one is named, otherwise from the Hugging Face Hub.

    A local copy is named with ``--metadata sib200_dir=FOLDER`` (or what else :attr:`variable` says), with ``--data``,
    or by the environment variable; the first of these counts.

    Attributes:
        title: of the data set.
        variable: the environment variable; in small letters, the key of the metadata.
        layout: of the local copy's files.
    """

    title: str
    variable: str
    layout = TOPICS

    def folder_name(self, language: str) -> str:
        """Return what the local copy's folder of a language is called."""
        return language

    def hub_arguments(self, language: str) -> dict[str, Any]:
        """Return the arguments of ``load_dataset`` that choose a language."""
        return {"name": language}

    def documents(self, language: str) -> datasets.DatasetDict:
        """Return the splits of a language.

        Raises:
            UserError: the documents can not be read or downloaded, or a file of the local copy is malformed.
        """
        hub_id, metadata = self.config.dataset_path, self.config.metadata or {}
        key = self.variable.lower()
        folder = metadata.get(key) or local_copy(hub_id, metadata) or os.environ.get(self.variable)
        files = ",".join(self.layout.files.values())
        local_way = f"set {self.variable} or --metadata {key}=... to a folder with <language>/{{{files}}}"
        if folder:
            try:
                return read_language(Path(str(folder)).expanduser(), self.folder_name(language), self.layout)
            except OSError as error:
                raise UserError(
                    f"{self.title}: can not read {error.filename} ({error.strerror}); {local_way}, "
                    f"or set neither, to download {hub_id} from the Hugging Face Hub"
                ) from error
        try:
            return download_language(hub_id, self.hub_arguments(language), self.layout)
        except Exception as error:  # load_dataset raises errors of every kind; what the user can do is the same
            raise UserError(
                f"{self.title}: can not download {language} of {hub_id} from the Hugging Face Hub "
                f"({type(error).__name__}); check the network, or {local_way}"
            ) from error


class SIB200Task(PublishedTask):
    """SIB-200: topics in 205 languages."""

    title, variable = "SIB-200", "SIB200_DIR"


class NusaXTask(PublishedTask):
    """NusaX-Senti: sentiment in 12 languages."""

    title, variable, layout = "NusaX", "NUSAX_DIR", SENTIMENT
    folders: ClassVar = {
        "ace_Latn": "acehnese", "ban_Latn": "balinese", "bbc_Latn": "toba_batak", "bjn_Latn": "banjarese",
        "bug_Latn": "buginese", "eng_Latn": "english", "ind_Latn": "indonesian", "jav_Latn": "javanese",
        "mad_Latn": "madurese", "min_Latn": "minangkabau", "nij_Latn": "ngaju", "sun_Latn": "sundanese",
    }  # fmt: skip

    def folder_name(self, language: str) -> str:
        return self.folders[language]

    def hub_arguments(self, language: str) -> dict[str, Any]:
        # The repository holds a script, which `datasets` no longer runs; the Hub keeps its output in this branch.
        return {"data_dir": language.partition("_")[0], "revision": "refs/convert/parquet"}


def read_language(folder: Path, language: str, layout: Layout = TOPICS) -> datasets.DatasetDict:
    """Read ``<folder>/<language>/{train,dev,test}.tsv``, or what else `layout` says.

    Args:
        folder: has one folder per language.
        language: the folder's name, such as ``eng_Latn``.
        layout: of the files.

    Returns:
        The splits ``train``, ``validation`` and ``test`` with the columns ``index_id``, ``category``, ``text`` and
        ``label``.

    Raises:
        OSError: a file can not be read.
        UserError: a file is malformed; the message names the file and the line.
    """
    files = {split: folder / language / name for split, name in layout.files.items()}
    return datasets.DatasetDict({split: read_file(path, layout) for split, path in files.items()})


def read_file(path: Path, layout: Layout = TOPICS) -> datasets.Dataset:
    """Read one file of :func:`read_language`.

    Raises:
        OSError: it can not be read.
        UserError: it is malformed; the message names the file and the line.
    """
    documents = []
    for line, row in read_table(path, layout.columns):
        try:
            documents.append(_check_row(row, layout))
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from error
    return _dataset(documents, layout)


def download_language(hub_id: str, arguments: Mapping[str, Any], layout: Layout) -> datasets.DatasetDict:
    """Load one language from the Hugging Face Hub, or from an earlier download.

    Args:
        hub_id: the dataset's name on the Hub.
        arguments: further ones of ``load_dataset``.
        layout: names the columns, and the categories where the data set says them.

    Returns:
        What :func:`read_language` returns.

    Raises:
        Exception: anything that ``load_dataset`` raises.
    """
    with _cache_only(not _hub_answers(hub_id)):
        downloaded = datasets.load_dataset(hub_id, **arguments)
    number, name, text = layout.columns
    splits = {}
    for split in layout.files:
        rows = downloaded[split]
        categories, category = rows[name], rows.features[name]
        if isinstance(category, datasets.ClassLabel):
            categories = category.int2str(list(categories))
        splits[split] = _dataset(zip(map(int, rows[number]), categories, rows[text], strict=True), layout)
    return datasets.DatasetDict(splits)


@functools.cache
def _hub_answers(hub_id: str) -> bool:
    """Ask the Hub once per process. ``load_dataset`` would try for over 20 seconds, again for each language."""
    try:
        HfApi().dataset_info(hub_id, timeout=HUB_TIMEOUT)
    except Exception:
        return False
    return True


@contextmanager
def _cache_only(switch: bool) -> Iterator[None]:
    """If `switch`, let ``load_dataset`` use only earlier downloads, as the variable HF_HUB_OFFLINE does."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or switch
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _check_row(row: Mapping[str, str], layout: Layout) -> tuple[int, str, str]:
    """Return the number, category and text of a row; raise ``ValueError`` if one of them is malformed."""
    number, category, text = (row[column] for column in layout.columns)
    number_name, category_name, _ = layout.columns
    if not number.isdecimal() or len(number) > 18:  # what fits into 64 bits
        raise ValueError(f"{number_name} is {number!r}; expected a whole number")
    if category not in layout.categories:
        raise ValueError(f"unknown {category_name} {category!r}; expected one of {', '.join(layout.categories)}")
    if not text.strip():
        raise ValueError("the text is empty")
    return int(number), category, text


def _dataset(documents: Iterable[tuple[int, str, str]], layout: Layout) -> datasets.Dataset:
    """Return a dataset of (number, category, text) documents, with the column ``label`` added."""
    index_ids, categories, texts = zip(*documents, strict=True)
    labels = [layout.categories.index(category) for category in categories]
    columns = {"index_id": index_ids, "category": categories, "text": texts, "label": labels}
    # Dataset.from_dict takes ten times as long: it hashes the content for caches that are not used here.
    return Documents(pa.table(columns, schema=FEATURES.arrow_schema), fingerprint=generate_random_fingerprint())


def process_results(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Score one document: the answer is the choice with the highest log-likelihood.

    Args:
        doc: the document; only its ``label`` is used.
        results: log-likelihood and whether it is greedy, for each choice in the order of :data:`CATEGORIES`.

    Returns:
        ``acc``, 0 or 1. The pair (label, predicted label) for :func:`macro_f1` and for :func:`macro_f1_stderr`.
    """
    label, predicted = doc["label"], int(np.argmax([log_likelihood for log_likelihood, _ in results]))
    # lm-eval writes "N/A" as the standard error of a metric that it does not know, here under macro_f1_stderr.
    # A metric with that name, listed after macro_f1, replaces it.
    return {
        "acc": float(predicted == label),
        "macro_f1": (label, predicted),
        "macro_f1_stderr": (label, predicted),
    }


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """Return the unweighted mean over the classes of F1 = 2 TP / (2 TP + FP + FN).

    A class counts if it occurs as a label or as a prediction, as in scikit-learn.

    Args:
        pairs: (label, predicted label) of each document.
    """
    return float(_macro_f1(_confusion(pairs)))


def macro_f1_stderr(pairs: Sequence[tuple[int, int]]) -> float | str:
    """Return the standard error of :func:`macro_f1`: its standard deviation over bootstrap resamples of the documents.

    The seed is fixed, so the same documents give the same number. For a single document there is no standard error;
    lm-eval's mark for that is ``"N/A"``.

    Args:
        pairs: (label, predicted label) of each document.
    """
    if len(pairs) < 2:
        return "N/A"
    confusion = _confusion(pairs)
    # Drawing documents with replacement is a multinomial draw over the cells of the confusion matrix.
    draws = np.random.default_rng(0).multinomial(len(pairs), confusion.ravel() / len(pairs), size=RESAMPLES)
    return float(_macro_f1(draws.reshape(RESAMPLES, *confusion.shape)).std(ddof=1))


def _confusion(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return how many documents have each (label, predicted label): ``[C, C]``."""
    labels, predicted = np.asarray(pairs).T
    classes = int(max(labels.max(), predicted.max())) + 1
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Return the macro-F1 of each confusion matrix: ``[..., C, C]`` to ``[...]``."""
    true_positives = np.diagonal(confusion, axis1=-2, axis2=-1)
    occurrences = confusion.sum(axis=-1) + confusion.sum(axis=-2)  # as a label and as a prediction: 2 TP + FN + FP
    f1 = 2 * true_positives / np.maximum(occurrences, 1)
    return f1.sum(axis=-1) / (occurrences > 0).sum(axis=-1)


# Since 0.5 lm-eval warns, for each task, of metrics that are not registered. Their values come from `process_results`:
# the function that is registered is never called.
for _metric in ("macro_f1", "macro_f1_stderr"):
    if _metric not in metric_registry:
        register_metric(metric=_metric)(process_results)
