"""Local copies of data sets in the place of the Hub's: what a task reads and what the harness asks is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager

from lm_eval_spt.cli import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.local_data import local_copy, metadata_of, names_and_values
from lm_eval_spt.harness.options import EvaluationOptions
from lm_eval_spt.train.examples import load_tasks

ROWS = {
    "ha": [("Fim mai kyau", "positive"), ("null", "negative")],
    "en": [('A "good" film', "positive"), ("A bad film", "negative")],
}
COLUMNS = "review=*_review,label=sentiment"


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    """NollySenti in small: the tasks ``films_ha`` and ``films_en``, whose data set is on the Hub, in a group."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for language in ROWS:
        config = {
            "task": f"films_{language}", "dataset_path": "Someone/Films", "dataset_name": language,
            "output_type": "multiple_choice", "validation_split": "validation", "test_split": "test",
            "doc_to_text": 'Is "{{review}}" positive?', "doc_to_target": "label",
            "doc_to_choice": ["positive", "negative"],
        }  # fmt: skip
        (folder / f"{language}.yaml").write_text(yaml.safe_dump(config))
    (folder / "films.yaml").write_text(yaml.safe_dump({"group": "films", "task": ["films_ha", "films_en"]}))
    return str(folder)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for language, rows in ROWS.items():
        place = tmp_path / "copy" / language
        place.mkdir(parents=True)
        for split in ("train", "dev", "test"):
            lines = [f"{language}_review\tsentiment", *('"' + a.replace('"', '""') + f'"\t{b}' for a, b in rows)]
            (place / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "copy"


def asked(task: Any) -> list[tuple[str, str]]:
    task.build_all_requests()
    return [request.args[:2] for request in task.instances]


@pytest.mark.parametrize("name", ["films", "Films", "Someone/Films"])
def test_a_task_reads_the_copy(tasks: str, copy: Path, name: str) -> None:
    metadata = {"data": {name: str(copy)}, "columns": COLUMNS}
    loaded = TaskManager(include_path=tasks, include_defaults=False, metadata=metadata).load(["films"])["tasks"]
    for language, rows in ROWS.items():
        task = loaded[f"films_{language}"]
        assert list(task.dataset) == ["train", "validation", "test"]
        assert [(row["review"], row["label"]) for row in task.test_docs()] == rows
        assert asked(task) == [
            (f'Is "{text}" positive?', f" {choice}") for text, _ in rows for choice in ("positive", "negative")
        ]
        labels = [task.process_results(row, [(1.0, False), (0.0, False)])["acc"] for row in task.test_docs()]
        assert labels == [1.0, 0.0]


def test_a_copy_of_the_repository_keeps_its_configurations(tasks: str, tmp_path: Path) -> None:
    """What ``git clone`` of a data set gives: a README with the configurations, and files with the task's columns."""
    folder = tmp_path / "clone"
    (folder / "data").mkdir(parents=True)
    configs = []
    for language, rows in ROWS.items():
        text = "".join(json.dumps({"review": a, "label": ["positive", "negative"].index(b)}) + "\n" for a, b in rows)
        (folder / "data" / f"{language}.jsonl").write_text(text)
        files = [{"split": split, "path": f"data/{language}.jsonl"} for split in ("validation", "test")]
        configs.append({"config_name": language, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    for task in load_tasks(["films"], tasks, f"films={folder}"):
        assert [(row["review"], row["label"]) for row in task.test_docs()] == [
            (text, ["positive", "negative"].index(label)) for text, label in ROWS[task.config.dataset_name]
        ]


def test_commands_read_the_copy(tasks: str, copy: Path, tmp_path: Path) -> None:
    """Trained on a split that only the copy has, and scored by ``evaluate``: anew once the copy has changed."""
    data = ["--data", f"films={copy}", "--columns", COLUMNS, "--include-path", tasks]
    prompt = str(tmp_path / "p.safetensors")
    flags = ["--model", "mini", "--task", "films_en", "--epochs", "0", "--prompt-length", "2", "--output", prompt]
    assert main(["train", *flags, *data, "--train-split", "train"]) == 0

    def score() -> list[dict[str, Any]]:
        flags = ["--prompts", prompt, "--tasks", "films", "--output", str(tmp_path / "out")]
        assert main(["evaluate", *flags, *data]) == 0
        return [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*/results_*.json"))]

    assert len(score()) == len(score()) == 1  # what is done is not done again
    (copy / "ha" / "test.tsv").write_text("ha_review\tsentiment\nWani fim\tpositive\n")
    newest = score()[-1]
    assert {name: counts["effective"] for name, counts in newest["n-samples"].items()} == {"films_ha": 1, "films_en": 2}
    assert newest["configs"]["films_en"]["metadata"]["data"] == {"films": str(copy)}


BAD = {
    "no such folder": ({"data": "films=nowhere"}, "--data films=nowhere: there is no such folder"),
    "no name": ({"data": "nowhere"}, "--data is 'nowhere': expected name=value"),
    "a name twice": ({"data": "films=.,films=.."}, "expected each name once"),
    "columns not named": ({"data": "films={copy}"}, "has no column review, label, which the task 'films_ha' uses"),
    "no such column": (
        {"data": "films={copy}", "columns": "review=text,label=sentiment"},
        "--columns review=text: {copy}/ha, split train has no such column; its columns are ha_review, sentiment",
    ),
    "no copy": ({"data": "films={tasks}"}, "{tasks} can not be read in the place of Someone/Films ("),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_copy_that_can_not_be_read_is_one_line(tasks: str, copy: Path, case: str) -> None:
    given, message = BAD[case]
    places = {"copy": copy, "tasks": tasks}
    with pytest.raises(UserError) as caught:
        load_tasks(["films_ha"], tasks, **{name: text.format(**places) for name, text in given.items()})
    assert message.format(**places) in str(caught.value) and "\n" not in str(caught.value)


def test_kept_requests_do_not_know_of_copies() -> None:
    with pytest.raises(UserError, match="--cache-requests was given with --data"):
        EvaluationOptions(cache_requests="true", data="films=.")


def test_a_data_set_that_can_not_be_had_is_one_line(tasks: str, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"films_ha can not be loaded .*local copy of Someone/Films with --data NAME="):
        load_tasks(["films_ha"], tasks)
    with pytest.raises(UserError, match="films_ha can not be loaded"):
        load_tasks(["films_ha"], tasks, f"movies={copy}")
    assert "--data movies: none of the tasks reads such a data set; they read Someone/Films" in caplog.text


def test_other_tasks_are_read_as_before() -> None:
    assert local_copy("Someone/Films", {}) is None and local_copy(None, {"data": "films=."}) is None
    assert local_copy("Someone/Films", metadata_of("films=.,other=..", None)) == "."
    assert names_and_values(None, "--data") == {}
