"""Training on the harness's own tasks, with a few documents written here in place of theirs.

Each task's YAML is the harness's, included by its path: only where the documents come from is overridden.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval.api.task
import lm_eval.tasks
import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.options import ContextOptions
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.examples import load_tasks, read_documents
from lm_eval_spt.train.loop import train
from lm_eval_spt.train.splits import training_rows
from tests.helpers.requests import request

HARNESS = Path(lm_eval.tasks.__file__).parent

BOOLQ = [
    {"passage": "The heron stands in shallow water and eats fish.", "question": "do herons eat fish", "label": 1},
    {"passage": "The lake freezes every winter.", "question": "is the lake warm in winter", "label": 0},
    {"passage": "Bread is made of flour, water and salt.", "question": "is there flour in bread", "label": 1},
    {"passage": "The train leaves at nine.", "question": "does the train leave at ten", "label": 0},
]
ARC = [
    {
        "question": question,
        "choices": {"text": texts, "label": ["A", "B", "C", "D"][: len(texts)]},
        "answerKey": "ABCD"[answer],
    }
    for question, texts, answer in [
        ("What do plants need to grow?", ["light", "music", "paper"], 0),
        ("Which of these is a metal?", ["wood", "iron", "glass", "wool"], 1),
        ("What falls from clouds?", ["stones", "rain"], 1),
        ("Where do fish live?", ["in water", "in trees", "in sand"], 0),
    ]
]
WINOGRANDE = [
    {"sentence": "The cup did not fit on the shelf because the _ was too big.", "option1": "cup", "option2": "shelf",
     "answer": "1"},
    {"sentence": "Ann thanked Ben because _ had helped with the move.", "option1": "Ann", "option2": "Ben",
     "answer": "2"},
    {"sentence": "The dog chased the cat until the _ climbed a tree.", "option1": "dog", "option2": "cat",
     "answer": "2"},
]  # fmt: skip
XNLI = [
    {"premise": "Mvua inanyesha", "hypothesis": "hali ya hewa ni mvua", "label": 0},
    {"premise": "Ana vitabu viwili", "hypothesis": "hana kitabu", "label": 2},
    {"premise": "Watoto wanacheza", "hypothesis": "watoto wako shuleni", "label": 1},
]
GSM8K = [
    {"question": "Two boxes hold three pens each. How many pens?", "answer": "2 * 3 = 6\n#### 6"},
    {"question": "Five birds sit on a wall, one flies off. How many are left?", "answer": "5 - 1 = 4\n#### 4"},
]
TRIVIAQA = [
    {"question": "Which river flows through Cairo", "answer": {"aliases": ["Nile", "River Nile"], "value": "Nile"}},
    {"question": "What is the capital of Kenya", "answer": {"aliases": ["Nairobi"], "value": "Nairobi"}},
]

# The harness's YAML, the documents, the metric of its results, and what kind of task it is.
TASKS: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "boolq": ("super_glue/boolq/default.yaml", BOOLQ, "acc,none"),  # fixed choices
    "arc_easy": ("arc/arc_easy.yaml", ARC, "acc,none"),  # choices of each document's own, in varying number
    "winogrande": ("winogrande/default.yaml", WINOGRANDE, "acc,none"),  # contexts instead of choices differ
    "xnli_sw": ("xnli/xnli_sw.yaml", XNLI, "acc,none"),  # whole texts as choices, nothing before them
    "gsm8k": ("gsm8k/gsm8k.yaml", GSM8K, "exact_match,strict-match"),  # generation; no validation split
    "triviaqa": ("triviaqa/default.yaml", TRIVIAQA, "exact_match,remove_whitespace"),  # generation, several references
}


SCORED_ON_VALIDATION = {"validation_split": "validation", "allow_test_documents": True}
"""What has a task validate with the documents that it is scored on, for lack of a test split with labels."""

VALIDATED = {"boolq", "xnli_sw", "winogrande", "triviaqa"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``<task>_local`` for each of the tasks: the harness's YAML with documents from a JSON file here."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, (path, documents, _) in TASKS.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(document) + "\n" for document in documents))
        known = yaml.load((HARNESS / path).read_text().replace("!function", ""), yaml.SafeLoader)
        if "include" in known:
            known |= yaml.safe_load((HARNESS / path).with_name(known["include"]).read_text())
        splits = {known[key]: str(file) for key in known if key.endswith("_split")}
        config = {
            "include": str(HARNESS / path),
            "task": f"{name}_local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": splits},
        }
        if name == "triviaqa" and hasattr(lm_eval.api.task.ConfigurableTask, "_registry"):
            config["multiple_targets"] = True  # lm_eval 0.5.0.dev1 leaves it out, and expects the list as a text
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_it_trains_and_is_scored_as_validation_says(name, folder, tmp_path, monkeypatch):
    """Where the harness chooses, its accuracy on the validation documents is the one that the prompt records.

    Where it generates, the recorded loss is that of the reference answer's tokens under the model class.
    """
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    documents, metric = TASKS[name][1:]
    output = tmp_path / "p.safetensors"
    epochs = 8 if metric == "acc,none" else 24
    train(
        TrainingConfig(
            model="mini", task=f"{name}_local", include_path=str(folder), output=str(output),
            prompt_length=8, init="vocab", epochs=epochs, lr=0.03, num_fewshot=0, batch_size=2,
            device="cpu", warmup_ratio=0.0, **SCORED_ON_VALIDATION if name in VALIDATED else {},
        )
    )  # fmt: skip
    rows = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()[1:]]
    losses = [row["training"]["loss"] for row in rows[1:]]
    assert losses[-1] < 0.75 * losses[0]

    prompt = SoftPrompt.load(output)
    assert prompt.metadata["tasks"] == [f"{name}_local"]
    lm = SPTLM(prompt=prompt, device="cpu")
    if metric != "acc,none":
        rows = documents if name == "triviaqa" else documents[:1]  # gsm8k has no validation split
        (task,) = load_tasks([f"{name}_local"], str(folder))
        pairs = [(task.fewshot_context(row, 0), " " + answers(name, row)[0]) for row in rows]
        found = lm.loglikelihood([request("loglikelihood", pair) for pair in pairs], disable_tqdm=True)
        tokens = sum(len(lm.tok_encode(answer, add_special_tokens=False)) for _, answer in pairs)
        assert prompt.metadata["validation"]["loss"] == pytest.approx(-sum(value for value, _ in found) / tokens, 1e-4)

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(model=lm, tasks=[f"{name}_local"], task_manager=manager, num_fewshot=0, bootstrap_iters=0)
    score = results["results"][f"{name}_local"][metric]
    assert 0 <= score <= 1
    if metric == "acc,none":
        assert score == pytest.approx(prompt.metadata["validation"]["accuracy"])
        assert prompt.metadata["validation"]["documents"] == len(documents)


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_the_harness_s_own_requests(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (task,) = load_tasks([f"{name}_local"], str(folder))
    documents = read_documents(task, training_rows(task), ContextOptions(num_fewshot=0))
    assert len(documents) == len(TASKS[name][1])
    for row, document in zip(TASKS[name][1], documents, strict=True):
        context = task.fewshot_context(row, 0)
        requests = task.construct_requests(row, context, doc_id=0)
        requests = requests if isinstance(requests, list) else [requests]
        if task.OUTPUT_TYPE == "multiple_choice":
            assert list(document.pairs) == [request.args for request in requests]
        else:
            assert document.pairs == ((context, " " + answers(name, row)[0]),)
    right = [document.pairs[document.gold] for document in documents]
    expected = {
        "boolq": [" yes", " no", " yes", " no"],
        "arc_easy": [" light", " iron", " rain", " in water"],
        "winogrande": [" was too big.", " had helped with the move.", " climbed a tree."],
    }
    if name in expected:
        assert [continuation for _, continuation in right] == expected[name]
    if name == "winogrande":
        assert [context[-3:] for context, _ in right] == ["cup", "Ben", "cat"]
    assert {bool(document.label) for document in documents} == {name == "boolq"}


def answers(name: str, row: dict[str, Any]) -> list[str]:
    return [row["answer"]] if name == "gsm8k" else row["answer"]["aliases"]
