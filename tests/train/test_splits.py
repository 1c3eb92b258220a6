"""Which documents are learned from: splits and slices, files, groups and tags; and what is also scored."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from pyarrow import parquet

from lm_eval_spt.cli.train import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.options import ContextOptions
from lm_eval_spt.train.config import DocumentOptions, TrainingConfig
from lm_eval_spt.train.examples import ExampleReader, load_tasks, read_documents
from lm_eval_spt.train.loop import train
from lm_eval_spt.train.splits import BY_TASK, training_rows, validation_rows
from tests.helpers.requests import request
from tests.helpers.training import TASK, run, settings_for

STORIES = {
    "eng": ["The river rose.", "The cup fell.", "The light went out.", "She ran.", "The door opened.", "He slept."],
    "swh": ["Mto ulijaa.", "Kikombe kilianguka.", "Taa ilizima.", "Alikimbia.", "Mlango ulifunguka.", "Alilala."],
}
SPLITS = {"pool": slice(0, 4), "test": slice(4, 6)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XCOPA in small: ``stories_eng`` and ``stories_swh``, with two choices of its own in each document.

    As most multilingual tasks of the harness they have no training split. Each has the tag ``stories_tag``; ``stories``
    is a group, and ``moods`` one of two tasks with classes.
    """
    folder = tmp_path_factory.mktemp("stories")
    for language, premises in STORIES.items():
        rows = [
            {"premise": text, "choice1": f"{text[:-1]} twice", "choice2": f"Rain {number}", "label": number % 2}
            for number, text in enumerate(premises)
        ]
        files = {}
        for split, part in SPLITS.items():
            files[split] = f"{folder}/{language}_{split}.jsonl"
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows[part]))
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        story = {
            "task": f"stories_{language}", "tag": "stories_tag", "output_type": "multiple_choice", "doc_to_text":
            "{{premise}} So:", "doc_to_target": "label", "doc_to_choice": "{{[choice1, choice2]}}", **where,
        }  # fmt: skip
        mood = story | {"task": f"moods_{language}", "doc_to_text": "premise", "doc_to_choice": ["calm", "loud"]}
        mood |= {"tag": "moods_tag", "training_split": "pool"}
        for config in (story, mood):
            (folder / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    for group in ("stories", "moods"):
        tasks = [f"{group}_{language}" for language in STORIES]
        (folder / f"{group}.yaml").write_text(yaml.safe_dump({"group": group, "task": tasks}))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def story(folder: Path, name: str = "stories_eng") -> Any:
    return load_tasks([name], str(folder))[0]


# -- splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["pool", "pool[:3]", "pool[-2:]", "pool[25%:75%]", "pool[1:2]+pool[3:]"])
def test_a_slice_is_that_of_the_library_datasets(folder: Path, spec: str) -> None:
    task = story(folder)
    rows = training_rows(task, DocumentOptions(train_split=spec))
    expected = datasets.load_dataset("json", data_files=task.config.dataset_kwargs["data_files"], split=spec)
    assert list(rows.documents) == list(expected)
    assert (rows.splits, rows.scored) == (("pool",), frozenset())


def test_the_task_s_own_program_runs_before_the_slice(folder: Path) -> None:
    """So that a slice counts the documents as ``--limit`` and the numbers in samples files do."""
    task = story(folder)
    task.config.process_docs = lambda rows: rows.filter(lambda row: row["label"] == 1)
    rows = training_rows(task, DocumentOptions(train_split="pool[:1]"))
    assert [row["premise"] for row in rows.documents] == ["The cup fell."]


REFUSED = {
    "no split at all": (
        BY_TASK,
        r"'stories_eng' has no training split: name another of its splits \(pool, test\) with",
    ),
    "an unknown split": (DocumentOptions(train_split="dev[:2]"), "no split 'dev', expected one of pool, test"),
    "no split": (DocumentOptions(train_split="[:2]"), "no split '', expected one of pool, test"),
    "no slice": (DocumentOptions(train_split="pool[a]"), "expected a split such as train"),
    "an empty slice": (DocumentOptions(train_split="pool[4:]"), "no documents there: choose another slice"),
    "the test split": (DocumentOptions(train_split="test"), "2 of 2 training documents are also scored.*'test'"),
    "a slice of it": (DocumentOptions(train_split="pool+test[:1]"), "1 of 5 training documents are also scored"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_split_that_can_not_be_learned_is_one_line(folder: Path, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        training_rows(story(folder), options)
    assert "\n" not in str(caught.value)


def test_validation_keeps_off_what_is_scored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = story(folder, "moods_eng")
    training = training_rows(task)
    disjoint = DocumentOptions(train_split="pool[:1]", validation_split="test[1:]")  # the harness scores all of it
    with pytest.raises(UserError, match="1 of 1 validation documents are also scored"):
        validation_rows(task, disjoint, training)
    allowed = validation_rows(task, DocumentOptions(validation_split="test", allow_test_documents=True), training)
    assert allowed is not None and allowed.scored == {0, 1}
    assert validation_rows(task, DocumentOptions(validation_split="pool[:1]"), training) is not None
    assert "1 of 1 validation documents are also learned from" in caplog.text

    task.config.validation_split = "pool"  # what the task says, where it is not named
    assert validation_rows(task, BY_TASK, training) is None
    assert "the validation split is also learned from: every tenth training document validates" in caplog.text
    task.config.validation_split, task.config.test_split = "test", None  # then the harness scores the former
    assert validation_rows(task, BY_TASK, training) is None
    assert "the validation split is the one that is scored: every tenth" in caplog.text


# -- learned in one language, scored in another ------------------------------------------------------------------------


def test_choices_of_each_document_learned_in_one_language_and_scored_in_another(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "p.safetensors"
    prompt = train(
        TrainingConfig(
            model="mini", task="stories_eng", include_path=str(folder), output=str(output), train_split="pool",
            prompt_length=4, init="vocab", epochs=6, lr=0.05, batch_size=2, device="cpu",
        )
    )  # fmt: skip
    losses = [json.loads(line)["training"] for line in output.with_suffix(".jsonl").read_text().splitlines()[2:]]
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert prompt is not None and "scored_documents" not in prompt.metadata
    assert (prompt.metadata["tasks"], prompt.metadata["training_documents"]) == (["stories_eng"], 3)  # one validates
    assert prompt.metadata["hyperparameters"]["train_split"] == "pool"
    assert prompt.metadata["label_counts"] is None  # the choices mean something else in each document

    lm = SPTLM(prompt=prompt, device="cpu")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(model=lm, tasks=["stories"], task_manager=manager, bootstrap_iters=0)
    for language, premises in STORIES.items():
        rows = [json.loads(line) for line in (folder / f"{language}_test.jsonl").read_text().splitlines()]
        right = []
        for row, premise in zip(rows, premises[SPLITS["test"]], strict=True):
            pairs = [(f"{premise} So:", f" {row[name]}") for name in ("choice1", "choice2")]
            requests = [request("loglikelihood", pair) for pair in pairs]
            values = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
            right.append(values.index(max(values)) == row["label"])
        assert results["results"][f"stories_{language}"]["acc,none"] == sum(right) / len(right)


# -- groups, tags, mixtures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["moods", "moods_tag", "moods_eng,moods_swh", "moods_e*,moods_swh"])
def test_groups_and_tags_are_their_tasks(folder: Path, tmp_path: Path, mini: SPTLM, names: str) -> None:
    config = settings_for(tmp_path / "p.safetensors", task=names, include_path=str(folder), shots=1)
    examples = ExampleReader(mini).read(config)
    assert sorted(examples.num_fewshot) == ["moods_eng", "moods_swh"]
    assert examples.sizes == [2, 2]  # a document of each class and task
    assert [example.label for example in examples.training] == ["calm", "loud"] * 2


def test_the_record_names_a_group_s_tasks(folder: Path, tmp_path: Path) -> None:
    prompt, _ = run(tmp_path / "p.safetensors", task="moods", include_path=str(folder), epochs=0, shots=None,
                    validation_shots=None)  # fmt: skip
    assert prompt is not None and prompt.metadata["tasks"] == ["moods_eng", "moods_swh"]


TWICE = {
    "moods_eng,moods_eng": "'moods_eng' is named twice, by 'moods_eng': name each task once",
    "moods,moods_swh": "'moods_swh' is named twice, by 'moods' and 'moods_swh'",
    "moods,moods_tag": "'moods_eng' is named twice, by 'moods' and 'moods_tag'",
}


@pytest.mark.parametrize("names", TWICE)
def test_a_task_that_comes_twice_is_one_line(folder: Path, names: str) -> None:
    with pytest.raises(UserError, match=TWICE[names]):
        load_tasks(names.split(","), str(folder))


# -- files -------------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the ending says, by other libraries than those that read them."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("shots", [0, 2])
def test_a_file_with_a_split_s_rows_gives_its_documents(tmp_path: Path, ending: str, shots: int) -> None:
    """Shots, too: they are drawn from the same split, and a row of the file is not among its own."""
    (task,) = load_tasks([TASK])
    file = write_rows(tmp_path / f"rows.{ending}", list(task.training_docs()))
    options = ContextOptions(num_fewshot=shots)
    found = read_documents(task, training_rows(task, DocumentOptions(train_file=str(file))), options)
    assert found == read_documents(task, training_rows(task), options)


def test_sib200_from_its_file_is_sib200(sib200_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIB200_DIR", str(sib200_folder))
    (task,) = load_tasks(["sib200_hau_Latn"])
    file = sib200_folder / "hau_Latn" / "train.tsv"
    rows = training_rows(task, DocumentOptions(train_file=str(file), columns="label=category"))
    assert len(rows.documents) == 701
    assert read_documents(task, rows) == read_documents(task, training_rows(task))


def test_the_prompt_of_a_file_is_that_of_the_split_to_the_last_bit(tmp_path: Path) -> None:
    from_split, split_log = run(tmp_path / "split.safetensors")
    data = tasks_folder() / "mini_topics" / "data" / "eng_Latn"
    files = {"train_file": str(data / "train.tsv"), "validation_file": str(data / "dev.tsv")}
    from_files, files_log = run(tmp_path / "files.safetensors", columns="label=category", **files)
    assert from_files is not None and from_split is not None
    assert from_files.digest == from_split.digest
    assert [row["validation"] for row in files_log] == [row["validation"] for row in split_log]
    recorded = from_files.metadata["hyperparameters"]
    assert recorded["train_file"].startswith("train.tsv sha256:") and recorded["columns"] == "label=category"


def test_texts_stay_as_they_are_and_columns_get_the_task_s_types(tmp_path: Path) -> None:
    (task,) = load_tasks([TASK])
    rows = [
        {"index_id": 7, "category": "1", "text": "null", "label": 2, "score": 3, "code": "007"},
        {"index_id": 8, "category": "2", "text": 'a "b"\n, c', "label": "sports", "score": -4, "code": "12"},
    ]
    file = write_rows(tmp_path / "rows.csv", rows)
    assert list(training_rows(task, DocumentOptions(train_file=str(file))).documents) == rows


BAD_FILES = {
    "not there": (None, "", "--train-file {file} can not be read: No such file"),
    "no rows": ("text,label\n", "", "no documents after the header"),
    "empty": ("", "", "the file is empty, expected a header"),
    "a column missing": (
        "review,label\nA,sports\n", "", "{file} has no column text, which the task 'mini_topics_eng_Latn' uses; it has "
        "review, label: rename with --columns text=NAME",
    ),
    "a column twice": ("text,text,label\nA,B,sports\n", "", "the header has the column 'text' twice"),
    "columns that clash": (
        "text,review,label\nA,B,sports\n", "text=review", "--columns text=review: {file} has the column 'text' as well",
    ),
    "a column that is not there": ("body,label\nA,sports\n", "text=review", "text=review: {file} has no such column"),
    "a pattern of two": (
        "a_text,b_text,label\nA,B,sports\n", "text=*_text", "{file} has 2 such columns (a_text, b_text)",
    ),
    "one column for two": ("a,b\nA,sports\n", "text=a,label=a", "expected each of the file's columns once"),
    "no renaming": ("a,b\nA,sports\n", "text", "--columns is 'text': expected name=value"),
    "an unknown label": ("text,label\nA,sports\nB,cooking\n", "", "row 2 of {file} has the label 'cooking': expected"),
    "a label too large": ("text,label\nA,7\n", "", "row 1 of {file} has the label 7: expected a choice's text, its"),
    "a row too short": ("text,label\nA,sports\nB\n", "", "line 3: the number of fields is not that of the header"),
    "a row too long": ("text,label\nA,sports\nB,sports,C\n", "", "line 3: the number of fields is not that of"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    content, columns, message = BAD_FILES[case]
    file = tmp_path / "rows.csv"
    if content is not None:
        file.write_text(content)
    model = "mini" if "label" in case else "no/such/model"  # all else is told without one
    flags = ["--model", model, "--task", TASK, "--train-file", str(file), "--output", str(tmp_path / "p.safetensors")]
    assert main([*flags, *(["--columns", columns] if columns else [])]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and message.format(file=file) in line
    assert {path.name for path in tmp_path.iterdir()} <= {"rows.csv"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"text": "A", "label": 1}\n\n{"text": "B"}\n', "row 2 of .* has no 'label': expected a value"),
        ("rows.jsonl", '{"text": "A", "label": 1}\n[1]\n', "rows.jsonl, line 2 is a list: expected an object"),
        ("rows.jsonl", '{"text": \n', "line 1 is not JSON"),
        ("rows.jsonl", "\n", "has no rows"),
        ("rows.parquet", "text", "is not a Parquet file"),
        ("rows.txt", "text", r"expected a file that ends in \.csv, \.tsv, \.jsonl, \.parquet"),
        ("rows.csv", b"text,label\ncaf\xe9,sports\n", "expected UTF-8 text"),
    ],
)
def test_bad_rows_of_other_kinds_are_one_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (task,) = load_tasks([TASK])
    with pytest.raises(UserError, match=message) as caught:
        training_rows(task, DocumentOptions(train_file=str(file)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "no_such_task"], "no_such_task"),
        (["--train-split", "dev"], "has no split 'dev', expected one of"),
        (["--validation-split", "test"], "validation documents are also scored"),
        (["--data", "films=no/such/folder"], "there is no such folder"),
        (["--include-path", "no/such/folder"], "no/such/folder: there is no such folder, expected one with"),
    ],
)
def test_a_mistake_in_the_documents_does_not_wait_for_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    given = ["--model", "no/such/model", "--task", TASK, "--output", str(tmp_path / "p.safetensors"), *flags]
    assert main(given) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and message in line


def test_rows_that_the_harness_scores_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also from another file, and under another label: what the model is shown is the same."""
    (task,) = load_tasks([TASK])
    tested = [{"text": row["text"], "label": 0} for row in list(task.test_docs())[:2]]
    own = [{"text": "A new text.", "label": 1}, {"text": "Another one.", "label": 9}]
    file = write_rows(tmp_path / "rows.jsonl", [own[0], *tested, own[1]])
    options = DocumentOptions(train_file=str(file))
    rows = training_rows(task, options)
    assert list(rows.documents) == own
    assert f"2 of 4 rows are documents that {TASK} is scored on: left out (the first is row 2 of " in caplog.text
    with pytest.raises(UserError, match="row 4 of .* has the label 9"):
        read_documents(task, rows)
    kept = training_rows(task, DocumentOptions(train_file=str(file), allow_test_documents=True))
    assert len(kept.documents) == 4 and kept.scored == {1, 2}
    write_rows(file, tested)
    with pytest.raises(UserError, match=r"2 of 2 rows of .* are also scored: .* on the whole split 'test'"):
        training_rows(task, options)


def test_the_record_says_what_is_also_scored(tmp_path: Path) -> None:
    flags = {"train_split": "test[:40]", "validation_split": "test[40:]", "allow_test_documents": True}
    prompt, _ = run(tmp_path / "p.safetensors", epochs=0, shots=None, validation_shots=None, **flags)
    assert prompt is not None
    assert prompt.metadata["scored_documents"] == {"training": 40, "validation": 44}
    after, _ = run(tmp_path / "q.safetensors", epochs=0, init=str(tmp_path / "p.safetensors"))
    assert after is not None and after.metadata["scored_documents"] == {"training": 40, "validation": 44}


def test_a_run_on_another_file_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tasks_folder() / "mini_topics" / "data" / "eng_Latn" / "train.tsv"
    file = tmp_path / "rows.tsv"
    shutil.copy(source, file)
    output = tmp_path / "p.safetensors"
    flags = ["--model", "mini", "--task", TASK, "--epochs", "0", "--prompt-length", "2", "--output", str(output)]
    flags += ["--train-file", str(file), "--columns", "label=category", "--resume"]
    assert main(flags) == 0
    moved = tmp_path / "elsewhere" / "rows.tsv"
    moved.parent.mkdir()
    shutil.copy(file, moved)
    assert main([str(moved) if flag == str(file) else flag for flag in flags]) == 0  # the same content
    file.write_text(file.read_text(encoding="utf-8").replace("The", "A"), encoding="utf-8")
    assert main(flags) == 1
    assert "was trained with other settings (train_file 'rows.tsv sha256:" in capsys.readouterr().err


def test_one_source_of_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "rows.csv", [{"text": "A", "label": 1}])
    flags = ["--model", "mini", "--task", TASK, "--output", str(tmp_path / "p.safetensors")]
    assert main([*flags, "--train-file", str(file), "--train-split", "train"]) == 1
    assert "--train-split is 'train': expected it or --train-file, not both" in capsys.readouterr().err
    assert main([*flags, "--columns", "text=body"]) == 1
    assert "--columns is 'text=body': expected it together with a file or with --data" in capsys.readouterr().err
