"""From documents to the token ids that are scored, and few shots."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from lm_eval_spt.cli.train import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness import patches
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.train.examples import Document, ExampleReader, choose, encode, load_tasks, read_documents
from lm_eval_spt.train.splits import training_rows
from tests.helpers.models import random_prompt
from tests.helpers.training import TASK, settings_for

LONG = " ".join(f"day {day} of rain," for day in range(30)) + " and sun."


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_examples_are_the_tokens_that_are_scored(mini, documents, placement, monkeypatch):
    """What training reads is what the model class hands to its scorer for the harness's requests."""
    task = load_tasks([TASK])[0]
    prompt = random_prompt(mini.model, length=3, placement=placement)
    scorer = SPTLM(pretrained=mini.model, tokenizer=mini.tokenizer, prompt=prompt)
    row = task.training_docs()[0]
    scored = []
    monkeypatch.setattr(scorer, "_loglikelihood_tokens", lambda requests, **_: scored.extend(requests))
    scorer.loglikelihood(patches.construct_requests(task, row, task.fewshot_context(row, 0)), disable_tqdm=True)
    (example,) = encode(documents[:1], mini, placement, 3, mini.max_length, "left")
    assert [(list(c), list(a)) for c, a in example.pairs] == [(c, a) for _, c, a in scored]
    assert example.gold == task.doc_to_target(row)


def test_few_shots_are_balanced_seeded_and_from_the_documents(documents):
    chosen = choose(documents, 5, 0, "training")
    assert set(Counter(document.label for document in chosen).values()) == {5}
    assert len({document.label for document in chosen}) == 7
    assert set(chosen) <= set(documents) and len(set(chosen)) == 35
    assert chosen == choose(documents, 5, 0, "training")
    assert chosen != choose(documents, 5, 1, "training")
    assert choose(documents, None, 0, "training") == documents


def test_a_class_with_too_few_documents_is_named(documents):
    with pytest.raises(UserError, match=r"13 training documents per class.*'entertainment' has 12"):
        choose(documents, 13, 0, "training")


def test_texts_are_cut_to_make_room_for_the_prompt(mini):
    document = Document(((LONG, " sports"), (LONG, " geography")), 0)
    whole = encode([document], mini, "suffix", 4, 512, "left")[0].pairs[0][0]
    left = encode([document], mini, "suffix", 4, 20, "left")[0].pairs[0][0]
    right = encode([document], mini, "suffix", 4, 20, "right")[0].pairs[0][0]
    # The answer's one token is predicted, not read: 16 tokens of text and 4 of the prompt are 20.
    assert left == whole[-16:] and right == whole[:16]


def test_a_task_without_training_documents(tmp_path, capsys):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(
        "task: only_test\nclass: !function lm_eval_spt.harness.text_classification.MiniTopicsTask\n"
        "dataset_name: eng_Latn\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: text\ndoc_to_target: label\ndoc_to_choice: [a, b, c, d, e, f, g]\n"
    )
    flags = ["--model", "mini", "--task", "only_test", "--include-path", str(tmp_path / "tasks")]
    assert main([*flags, "--output", str(tmp_path / "p.safetensors")]) == 1
    assert "error: the task 'only_test' has no training split" in capsys.readouterr().err


def labelled(folder: Path, labels: list, **changes) -> Path:
    """Write a task of a document for each label, without a validation split; returns its folder."""
    rows = [{"text": f"Text {number} about it.", "label": label} for number, label in enumerate(labels)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = f"{folder}/rows.jsonl"
    task = {
        "task": "labelled", "dataset_path": "json", "dataset_kwargs": {"data_files": {"train": file, "test": file}},
        "training_split": "train", "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "text",
        "doc_to_target": "label", "doc_to_choice": ["river", "goal", "vote"],
    }  # fmt: skip
    (folder / "labelled.yaml").write_text(yaml.safe_dump(task | changes))
    return folder


@pytest.mark.parametrize("kind", ["multiple_choice", "generate_until"])
def test_documents_without_a_label_are_left_out(tmp_path, monkeypatch, caplog, kind):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (task,) = load_tasks(["labelled"], str(labelled(tmp_path, [0, -1, 2, -1, 1], output_type=kind)))
    documents = read_documents(task, training_rows(task))
    assert [document.pairs[document.gold][1] for document in documents] == [" river", " vote", " goal"]
    assert [document.pairs[0][0][:6] for document in documents] == ["Text 0", "Text 2", "Text 4"]
    assert "labelled: 2 of 5 training documents have no label (-1): left out" in caplog.text


@pytest.mark.parametrize("settings", [{"tune": "model"}, {"tune": "lora", "prompt_length": 0}])
def test_without_a_prompt_examples_are_what_a_plain_model_scores(mini, tmp_path, settings, monkeypatch):
    """An answer without a space before it may merge with the text, which a suffix prompt would keep apart."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    wording = {"doc_to_text": "They v", "doc_to_choice": ["oted", "isited", "ery"], "target_delimiter": ""}
    folder = str(labelled(tmp_path, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], **wording))
    config = settings_for(tmp_path / "p.safetensors", task="labelled", include_path=folder, shots=None, **settings)
    read = ExampleReader(mini).read(config).training[0]
    plain = SPTLM(pretrained=mini.model, tokenizer=mini.tokenizer)
    scored = plain.encode_pairs([("They v", answer) for answer in wording["doc_to_choice"]], "prefix")
    apart = plain.encode_pairs([("They v", answer) for answer in wording["doc_to_choice"]], "suffix")
    found = [(list(context), list(answer)) for context, answer in read.pairs]
    assert found == [(list(context), list(answer)) for context, answer in scored]
    assert scored != apart


BAD_LABELS = {
    "too large": (
        [0, 1, 3],
        "error: training document 2 of labelled has the label 3: expected a choice's text",
    ),
    "negative": ([0, -2, 1], "error: training document 1 of labelled has the label -2: "),
    "none": ([None, 1, 2], "error: training document 0 of labelled has the label None: "),
    "a document alone": ([1], "error: the task 'labelled' has one training document and no validation documents: "),
    "no label at all": ([-1, -1], "error: the task 'labelled' has no training documents with a label: "),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_can_not_be_learned_are_one_line(tmp_path, monkeypatch, capsys, case):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    labels, message = BAD_LABELS[case]
    flags = ["--model", "mini", "--task", "labelled", "--include-path", str(labelled(tmp_path, labels))]
    assert main([*flags, "--output", str(tmp_path / "p.safetensors")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (tmp_path / "p.safetensors").exists()
