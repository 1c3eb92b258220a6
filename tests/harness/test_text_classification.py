"""The documents of the topic tasks, wherever they come from, and macro-F1 with its standard error."""

from __future__ import annotations

import csv
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness import text_classification

CATEGORIES = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
HEADER = "index_id\tcategory\ttext\n"

awkward = st.lists(st.sampled_from(["\t", "\n", "\r", '"', " ", "é", "中"]), max_size=8).map("".join)
texts = (
    st.tuples(awkward, st.text(st.characters(exclude_categories=["Cs", "Cc"])), awkward).map("".join).filter(str.strip)
)
documents = st.tuples(st.integers(0, 10**9), st.sampled_from(CATEGORIES), texts)
pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


def write_language(folder: Path, language: str, text: str) -> None:
    """Write a language of one document per split; its text is `text` and the name of its file."""
    (folder / language).mkdir(parents=True)
    for name in ("train", "dev", "test"):
        (folder / language / f"{name}.tsv").write_text(f"{HEADER}1\thealth\t{text} {name}\n")


def load_english(metadata: dict[str, str] | None = None) -> datasets.DatasetDict:
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
    return manager.load(["sib200_eng_Latn"])["tasks"]["sib200_eng_Latn"].dataset


@settings(deadline=None)
@given(rows=st.lists(documents, min_size=1, max_size=5))
def test_a_file_is_read_as_the_csv_writer_wrote_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, str]]
) -> None:
    path = tmp_path_factory.mktemp("topics") / "train.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index_id", "category", "text"])
        writer.writerows(rows)
    dataset = text_classification.read_file(path)
    assert [(row["index_id"], row["category"], row["text"]) for row in dataset] == rows
    assert [CATEGORIES[row["label"]] for row in dataset] == [category for _, category, _ in rows]


def test_documents_one_by_one_are_those_of_a_plain_dataset() -> None:
    dataset = text_classification.read_file(tasks_folder() / "mini_topics" / "data" / "eng_Latn" / "test.tsv")
    plain = datasets.Dataset(dataset.data.table)
    assert list(dataset) == list(plain) == [dataset[index] for index in range(len(dataset))]
    assert list(dataset.select([3, 1])) == [plain[3], plain[1]]
    assert list(dataset.select_columns("label")) == list(plain.select_columns("label"))
    assert [type(row["text"]) for row in dataset.with_format("numpy")] == [
        type(row["text"]) for row in plain.with_format("numpy")
    ]
    assert list(dataset.map(lambda row: {"label": row["label"] + 1})) == list(
        plain.map(lambda row: {"label": row["label"] + 1})
    )


def test_columns_may_come_in_any_order_beside_others_and_after_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("text\tsource\tindex_id\tcategory\nSome words\tme\t7\tsports\n", encoding="utf-8-sig")
    assert text_classification.read_file(path)[0] == {
        "index_id": 7,
        "category": "sports",
        "text": "Some words",
        "label": 3,
    }


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"", None, "the file is empty, expected a header with index_id, category, text"),
        (b"index_id\tlabel\ttext\n1\thealth\tA\n", 1, "no column category"),
        (HEADER.encode(), 1, "no documents"),
        (HEADER.encode() + b"1\thealth\tA\n2\tcooking\tB\n", 3, "unknown category 'cooking'"),
        (HEADER.encode() + b"1\thealth\n", 2, "number of fields"),
        (HEADER.encode() + b"1\thealth\tA\tB\n", 2, "number of fields"),
        (HEADER.encode() + b"one\thealth\tA\n", 2, "index_id is 'one'"),
        (HEADER.encode() + b"1\thealth\t\n", 2, "text is empty"),
        (HEADER.encode() + b'1\thealth\t"never closed\n', 2, "unexpected end of data"),
        (HEADER.encode() + b"1\thealth\tcaf\xe9\n", None, "UTF-8"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_file_and_the_line(
    tmp_path: Path, content: bytes, line: int | None, reason: str
) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        text_classification.read_file(path)
    message = str(raised.value)
    assert message.startswith(f"{path}, line {line}: " if line is not None else f"{path}: ")
    assert reason in message
    assert "\n" not in message


def test_the_variable_names_the_local_copy_and_the_metadata_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_language(tmp_path / "a", "eng_Latn", "from the variable,")
    write_language(tmp_path / "b", "eng_Latn", "from the metadata,")
    monkeypatch.setenv("SIB200_DIR", str(tmp_path / "a"))
    variable = load_english()
    metadata = load_english(metadata={"sib200_dir": str(tmp_path / "b")})
    assert {split: variable[split]["text"][0] for split in variable} == {
        "train": "from the variable, train",
        "validation": "from the variable, dev",
        "test": "from the variable, test",
    }
    assert metadata["test"]["text"][0] == "from the metadata, test"


@pytest.mark.parametrize("where", ["missing", "a_file", "no_such_language"])
def test_a_bad_local_copy_is_one_line_that_names_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    write_language(tmp_path / "no_such_language", "deu_Latn", "")
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("SIB200_DIR", str(tmp_path / where))
    with pytest.raises(UserError) as raised:
        load_english()
    message = str(raised.value)
    assert "\n" not in message
    for part in (str(tmp_path / where / "eng_Latn"), "SIB200_DIR", "--metadata sib200_dir=", "Davlan/sib200"):
        assert part in message


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No local copy, and a Hub that nobody has asked yet."""
    monkeypatch.delenv("SIB200_DIR", raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    text_classification._hub_answers.cache_clear()
    yield monkeypatch
    text_classification._hub_answers.cache_clear()


@pytest.mark.parametrize("feature", [datasets.Value("string"), datasets.ClassLabel(names=sorted(CATEGORIES))])
def test_a_download_has_the_same_columns_and_labels_as_a_local_copy(
    hub: pytest.MonkeyPatch, feature: datasets.Value | datasets.ClassLabel
) -> None:
    columns = {"index_id": [5, 6], "category": ["travel", "geography"], "text": ["A", "B"]}
    features = datasets.Features(
        {"index_id": datasets.Value("int64"), "category": feature, "text": datasets.Value("string")}
    )
    split = datasets.Dataset.from_dict(columns, features=features)
    asked = []

    def load_dataset(path: str, name: str) -> datasets.DatasetDict:
        asked.append((path, name, datasets.config.HF_HUB_OFFLINE))
        return datasets.DatasetDict(train=split, validation=split, test=split)

    hub.setattr(text_classification.HfApi, "dataset_info", lambda *_, **__: None)
    hub.setattr(datasets, "load_dataset", load_dataset)
    dataset = load_english()
    assert asked == [("Davlan/sib200", "eng_Latn", False)]
    assert set(dataset) == {"train", "validation", "test"}
    assert list(dataset["test"]) == [
        {"index_id": 5, "category": "travel", "text": "A", "label": 1},
        {"index_id": 6, "category": "geography", "text": "B", "label": 6},
    ]


def test_nusax_is_read_from_the_parquet_files_that_the_hub_keeps(hub: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder in the layout of the Hub's branch stands in for it; the library's own code finds the splits there."""
    labels = datasets.ClassLabel(names=["negative", "neutral", "positive"])
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("id", "text", "lang")} | {"label": labels}
    )
    for split in ("train", "validation", "test"):
        row = {"id": "411", "text": f"Kolèk {split}", "lang": "ace", "label": 2}
        for code in ("ace", "mad"):
            place = tmp_path / code / split / "0000.parquet"
            place.parent.mkdir(parents=True)
            datasets.Dataset.from_list([row | {"lang": code}], features=features).to_parquet(str(place))
    load, asked = datasets.load_dataset, []

    def load_dataset(path: str, revision: str, **arguments: str) -> datasets.DatasetDict:
        asked.append((path, revision))
        return load(str(tmp_path), cache_dir=str(tmp_path / "cache"), **arguments)

    hub.delenv("NUSAX_DIR", raising=False)
    hub.setattr(text_classification.HfApi, "dataset_info", lambda *_, **__: None)
    hub.setattr(datasets, "load_dataset", load_dataset)
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    dataset = manager.load(["nusax_ace_Latn"])["tasks"]["nusax_ace_Latn"].dataset
    assert asked == [("indonlp/NusaX-senti", "refs/convert/parquet")]
    assert {split: list(rows) for split, rows in dataset.items()} == {
        split: [{"index_id": 411, "category": "positive", "text": f"Kolèk {split}", "label": 2}]
        for split in ("train", "validation", "test")
    }


def test_an_unreachable_hub_is_asked_once_and_then_only_earlier_downloads_are_tried(hub: pytest.MonkeyPatch) -> None:
    calls = []

    def dataset_info(*_: object, **__: object) -> None:
        calls.append("hub")
        raise ConnectionError

    def load_dataset(*_: object, **__: object) -> None:
        calls.append("cache" if datasets.config.HF_HUB_OFFLINE else "hub with retries")
        raise ConnectionError("a long story\nof several lines")

    hub.setattr(text_classification.HfApi, "dataset_info", dataset_info)
    hub.setattr(datasets, "load_dataset", load_dataset)
    for _ in range(2):
        with pytest.raises(UserError, match=r"Davlan/sib200.*SIB200_DIR or --metadata sib200_dir=") as raised:
            load_english()
        assert "\n" not in str(raised.value)
    assert calls == ["hub", "cache", "cache"]
    assert datasets.config.HF_HUB_OFFLINE is False, "the setting of other tasks has to be left as it was"


def slow_macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """The textbook definition: precision and recall of each class, counted one document at a time."""
    scores = []
    for kind in {kind for pair in pairs for kind in pair}:
        right = sum(label == predicted == kind for label, predicted in pairs)
        precision = right / max(1, sum(predicted == kind for _, predicted in pairs))
        recall = right / max(1, sum(label == kind for label, _ in pairs))
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(scores) / len(scores)


@given(pairs)
def test_macro_f1_is_the_textbook_one(pairs: list[tuple[int, int]]) -> None:
    assert text_classification.macro_f1(pairs) == pytest.approx(slow_macro_f1(pairs))


@settings(deadline=None)
@given(pairs)
def test_macro_f1_is_the_one_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predicted = zip(*pairs, strict=True)
    assert text_classification.macro_f1(pairs) == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))


@pytest.mark.parametrize(("size", "accuracy"), [(20, 0.3), (60, 0.6), (200, 0.9)])
def test_the_standard_error_is_that_of_a_bootstrap_over_documents(size: int, accuracy: float) -> None:
    rng = random.Random(size)
    labels = [rng.randrange(7) for _ in range(size)]
    pairs = [(label, label if rng.random() < accuracy else rng.randrange(7)) for label in labels]
    resampled = [slow_macro_f1(rng.choices(pairs, k=size)) for _ in range(1500)]
    # Either estimate varies by about 2% from seed to seed.
    assert text_classification.macro_f1_stderr(pairs) == pytest.approx(statistics.stdev(resampled), rel=0.1)


@settings(deadline=None, max_examples=30)
@given(pairs)
def test_the_standard_error_does_not_depend_on_the_order_of_the_documents(pairs: list[tuple[int, int]]) -> None:
    assert text_classification.macro_f1_stderr(pairs) == text_classification.macro_f1_stderr(pairs[::-1])


def test_the_standard_error_at_the_ends() -> None:
    assert text_classification.macro_f1_stderr([(3, 3)]) == "N/A", "what the harness writes where there is none"
    assert text_classification.macro_f1_stderr([(0, 0), (1, 1), (6, 6)]) == 0


@given(st.lists(st.floats(-100, 0), min_size=7, max_size=7, unique=True), st.integers(0, 6))
def test_the_answer_is_the_choice_of_the_highest_log_likelihood(log_likelihoods: list[float], label: int) -> None:
    best = log_likelihoods.index(max(log_likelihoods))
    scores = text_classification.process_results({"label": label}, [(value, False) for value in log_likelihoods])
    assert scores == {"acc": float(best == label), "macro_f1": (label, best), "macro_f1_stderr": (label, best)}
