"""The task definitions: what is there, what a model is shown, and what the harness reports."""

from __future__ import annotations

import csv
import math
import runpy
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.patches import task_index
from lm_eval_spt.train.config import DocumentOptions
from lm_eval_spt.train.examples import load_tasks, read_documents
from lm_eval_spt.train.splits import training_rows

TASKS = tasks_folder()
MINI_DATA = TASKS / "mini_topics" / "data"
CATEGORIES = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
INSTRUCTION = (
    "Topic Classification: science/technology, travel, politics, sports, health, entertainment, geography."
    "\n\nThe label of [{}] is"
)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    """Both families of tasks; as mini_topics has the layout of SIB-200, it stands in for it."""
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"sib200_dir": str(MINI_DATA)})


class LengthLM(LM):
    """Answers by the length of the context, so that a test knows every answer without knowing the code."""

    @staticmethod
    def answer(context: str) -> int:
        return len(context) % 7

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [(float(request.idx == self.answer(request.args[0])), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError


def evaluate(manager: TaskManager, task: str, **arguments: Any) -> dict[str, Any]:
    return simple_evaluate(LengthLM(), tasks=[task], task_manager=manager, **arguments)


@pytest.mark.parametrize("folder", ["sib200", "mini_topics", "nusax"])
def test_the_generated_files_are_the_committed_ones(tmp_path: Path, folder: str) -> None:
    copy = tmp_path / folder
    shutil.copytree(TASKS / folder, copy, ignore=shutil.ignore_patterns("*.yaml", "data", "__pycache__"))
    generate = runpy.run_path(str(TASKS / "generate.py"))["generate"]
    committed = {str(path.relative_to(TASKS / folder)): path.read_text() for path in (TASKS / folder).rglob("*.yaml")}
    assert generate(copy) == committed


def test_every_task_and_group_is_there(manager: TaskManager) -> None:
    sizes = {name: len(task_index(manager)[name].cfg["task"]) for name in manager.all_groups}
    assert sizes == {
        **{f"sib200{family}": 205 for family in ("", "_instruct", "_xglm", "_bloom")},
        **{f"sib200{family}_31": 31 for family in ("", "_instruct", "_xglm", "_bloom")},
        **{f"sib200{family}_paper": 52 for family in ("", "_instruct", "_xglm", "_bloom")},
        **{f"mini_topics{family}": 21 for family in ("", "_instruct")},
        **{f"nusax{family}": 12 for family in ("", "_instruct")},
    }
    for group in manager.all_groups:
        members = task_index(manager)[group].cfg["task"]
        assert len(set(members)) == len(members)
        assert set(members) <= set(manager.all_subtasks)
        family = group.removesuffix("_paper").removesuffix("_31")
        assert all(name.removeprefix(f"{family}_").count("_") == 1 for name in members)
    assert len(manager.all_subtasks) == 4 * 205 + 2 * 21 + 2 * 12


def test_the_languages_of_the_paper_have_the_scripts_that_its_models_saw(manager: TaskManager) -> None:
    members = task_index(manager)["sib200_paper"].cfg["task"]
    assert {"sib200_arb_Arab", "sib200_zho_Hans", "sib200_eng_Latn", "sib200_twi_Latn"} <= set(members)
    assert not {"sib200_arb_Latn", "sib200_zho_Hant", "sib200_frr_Latn"} & set(members)


@pytest.mark.parametrize(
    ("family", "context", "continuations"),
    [
        ("sib200", "{}", [f" {category}" for category in CATEGORIES]),
        ("sib200_instruct", INSTRUCTION, [f" {category}" for category in CATEGORIES]),
        ("sib200_xglm", "{}", [" science", " travel", " politics", " sports", " health", " entertainment", " earth"]),
        ("sib200_bloom", "{}", ["science", "travel", "government", "play", "health", "fun", "earth"]),
        ("mini_topics", "{}", [f" {category}" for category in CATEGORIES]),
        ("mini_topics_instruct", "{}\nTopic:", [f" {category}" for category in CATEGORIES]),
    ],
)
def test_what_the_model_is_shown(manager: TaskManager, family: str, context: str, continuations: list[str]) -> None:
    name = f"{family}_eng_Latn"
    task = manager.load([name])["tasks"][name]
    task.build_all_requests(limit=2)
    text = "The new satellite carries an instrument that measures the concentration of gases in the upper atmosphere."
    assert [instance.args for instance in task.instances[:7]] == [
        (context.format(text), continuation) for continuation in continuations
    ]
    assert task.instances[0].doc["category"] == CATEGORIES[task.instances[0].doc["label"]] == "science/technology"
    assert (len(task.training_docs()), len(task.validation_docs()), len(task.test_docs())) == (84, 21, 84)


@pytest.mark.parametrize("family", ["sib200", "sib200_instruct", "sib200_bloom", "mini_topics_instruct"])
def test_shots_are_training_documents_with_their_answers(manager: TaskManager, family: str) -> None:
    name = f"{family}_deu_Latn"
    task = manager.load([name])["tasks"][name]
    results = evaluate(manager, name, num_fewshot=3, limit=4, log_samples=True)
    delimiter, choices = task.config.target_delimiter, task.config.doc_to_choice
    answered = {task.doc_to_text(doc) + delimiter + choices[doc["label"]] for doc in task.training_docs()}
    for sample in results["samples"][name]:
        context = sample["arguments"][0][0]
        question = task.doc_to_text(sample["doc"])
        assert context.endswith(f"\n\n{question}")
        shots = context.removesuffix(f"\n\n{question}")
        found = [shot for shot in answered if shot in shots]
        assert len(found) == 3
        assert len(shots) == sum(map(len, found)) + 2 * len("\n\n")


def test_mini_topics_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = TASKS.resolve()
    monkeypatch.chdir(tmp_path)
    manager = TaskManager(include_path=str(absolute), include_defaults=False)
    assert len(manager.load(["mini_topics"])["tasks"]) == 21


def test_mini_topics_is_balanced_and_parallel(manager: TaskManager) -> None:
    tasks = manager.load(["mini_topics"])["tasks"]
    categories: dict[str, dict[int, str]] = {}
    for task in tasks.values():
        rows = [(split, row) for split in ("train", "validation", "test") for row in task.dataset[split]]
        assert Counter((split, row["category"]) for split, row in rows) == {
            (split, category): count
            for split, count in (("train", 12), ("validation", 3), ("test", 12))
            for category in CATEGORIES
        }
        categories[task.task_name] = {row["index_id"]: row["category"] + split for split, row in rows}
        assert len(categories[task.task_name]) == len({row["text"] for _, row in rows}) == 189
    assert all(each == categories["mini_topics_eng_Latn"] for each in categories.values())


def test_metrics_of_a_task_are_those_of_scikit_learn_with_a_standard_error(manager: TaskManager) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    results = evaluate(manager, "mini_topics_fra_Latn", bootstrap_iters=100)["results"]["mini_topics_fra_Latn"]
    documents = manager.load(["mini_topics_fra_Latn"])["tasks"]["mini_topics_fra_Latn"].test_docs()
    predicted = [LengthLM.answer(text) for text in documents["text"]]
    accuracy = metrics.accuracy_score(documents["label"], predicted)
    assert results["acc,none"] == pytest.approx(accuracy)
    assert results["acc_stderr,none"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 83))
    assert results["macro_f1,none"] == pytest.approx(metrics.f1_score(documents["label"], predicted, average="macro"))
    assert 0.01 < results["macro_f1_stderr,none"] < 0.08


def test_a_group_reports_the_mean_of_its_tasks_with_a_standard_error(manager: TaskManager) -> None:
    evaluated = evaluate(manager, "mini_topics")
    results = evaluated["results"]
    tasks = [results[name] for name in evaluated["group_subtasks"]["mini_topics"]]
    assert len(tasks) == 21
    for metric in ("acc", "macro_f1"):
        values = [task[f"{metric},none"] for task in tasks]
        errors = [task[f"{metric}_stderr,none"] for task in tasks]
        group = evaluated["groups"]["mini_topics"]
        assert group[f"{metric},none"] == pytest.approx(sum(values) / 21)
        assert group[f"{metric}_stderr,none"] == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 21)
    table = make_table(evaluated)
    assert "macro_f1" in table
    assert "stderr|" not in table, "the standard error is a column, not a metric"
    assert "N/A" not in table


def test_one_document_per_task_has_no_standard_error(manager: TaskManager) -> None:
    evaluated = evaluate(manager, "mini_topics", limit=1)
    assert evaluated["groups"]["mini_topics"]["macro_f1_stderr,none"] == "N/A"
    assert "N/A" in make_table(evaluated)


def test_all_languages_of_sib200_load_in_under_ten_seconds(
    sib200_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"sib200_dir": str(sib200_folder)})
    # Time on a processor, so that a busy machine does not fail the test.
    started = time.process_time()
    tasks = manager.load(["sib200"])["tasks"]
    assert time.process_time() - started < 10
    assert not caplog.records, "one line per language would drown everything else"
    assert {task.task_name.removeprefix("sib200_") for task in tasks.values()} == {
        path.name for path in sib200_folder.iterdir()
    }
    english = next(task for task in tasks.values() if task.task_name == "sib200_eng_Latn")
    index_ids = {split: sorted(english.dataset[split]["index_id"]) for split in ("train", "test")}
    for task in tasks.values():
        sizes = (len(task.training_docs()), len(task.validation_docs()), len(task.test_docs()))
        assert sizes == (701, 99, 204)
        for split, expected in index_ids.items():
            assert sorted(task.dataset[split]["index_id"]) == expected


# -- NusaX -------------------------------------------------------------------------------------------------------------

SENTIMENTS = ["negative", "neutral", "positive"]


@pytest.fixture
def nusax(nusax_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("NUSAX_DIR", str(nusax_folder))
    return TaskManager(include_path=str(TASKS), include_defaults=False).load(["nusax", "nusax_instruct"])["tasks"]


def test_nusax_is_parallel_in_the_order_of_its_documents(nusax: dict[str, Any]) -> None:
    """The numbers of documents in samples files, by which documents are resampled, mean the same text everywhere."""
    columns = {
        split: {
            (tuple(task.dataset[split]["index_id"]), tuple(task.dataset[split]["label"])) for task in nusax.values()
        }
        for split in ("train", "validation", "test")
    }
    assert {split: [len(ids) for ids, _ in found] for split, found in columns.items()} == {
        "train": [500], "validation": [100], "test": [400],
    }  # fmt: skip


def test_what_a_model_is_shown_of_nusax(nusax: dict[str, Any], nusax_folder: Path) -> None:
    with (nusax_folder / "toba_batak" / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    instruction = "Sentiment Analysis: negative, neutral, positive.\n\nThe label of [{}] is"
    for name, context in (("nusax_bbc_Latn", "{}"), ("nusax_instruct_bbc_Latn", instruction)):
        task = nusax[name]
        task.build_all_requests()
        assert [request.args for request in task.instances] == [
            (context.format(row["text"]), f" {label}") for row in rows for label in SENTIMENTS
        ]
        assert [SENTIMENTS[row["label"]] for row in task.test_docs()] == [row["label"] for row in rows]


def test_nusax_says_where_its_data_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUSAX_DIR", str(tmp_path))
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    with pytest.raises(UserError, match=r"NusaX: can not read .*/madurese/train\.csv .*set NUSAX_DIR or --metadata"):
        manager.load(["nusax_mad_Latn"])


def test_nollysenti_is_learned_from_a_file_and_read_from_a_copy(nollysenti_folder: Path, tmp_path: Path) -> None:
    """The harness's own tasks, without a training split, by the data set's own files."""
    data, columns = f"nollysenti={nollysenti_folder}", "review=*_review,label=sentiment"
    loaded = load_tasks(["nollysenti_prompt_1"], None, data, columns)
    for task in loaded:
        with (nollysenti_folder / task.config.dataset_name / "test.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        texts = [row[f"{task.config.dataset_name}_review"] for row in rows]
        assert [task.doc_to_text(row) for row in task.test_docs()] == [
            f'Does this movie description "{text}" have a Positive or Negative sentiment? Labels only\\n'
            for text in texts
        ]
        assert [row["label"] for row in task.test_docs()] == [row["sentiment"] for row in rows]
    english = next(task for task in loaded if task.config.dataset_name == "en")
    options = DocumentOptions(train_file=str(nollysenti_folder / "en" / "train.tsv"), columns=columns)
    documents = read_documents(english, training_rows(english, options))
    assert {document.label for document in documents} == {"positive", "negative"}
    assert len(documents) == 1302 - 10  # ten short reviews are test documents, too
