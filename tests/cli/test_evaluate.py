"""``lm-eval-spt evaluate`` takes the harness's flags: its results against those of the harness's own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm_eval_spt.cli import main
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import random_prompt
from tests.helpers.requests import loglikelihoods

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model that has a chat template, two prompts for it, and two tasks."""
    place = tmp_path_factory.mktemp("place")
    lm = SPTLM(pretrained="mini", device="cpu")
    lm.tokenizer.chat_template = TEMPLATE
    lm.model.save_pretrained(place / "model")
    lm.tokenizer.save_pretrained(place / "model")
    for seed, placement in enumerate(("suffix", "prefix")):
        prompt = random_prompt(lm.model, length=3, placement=placement, seed=seed)
        SoftPrompt(prompt.vectors, {**prompt.metadata, "base_model": "model"}).save(place / f"{placement}.safetensors")
    rows = [{"text": f"On day {n} the river rose.", "label": n % 3} for n in range(12)]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"train": str(place / "rows.jsonl")}},
        "training_split": "train", "test_split": "train", "fewshot_split": "train", "doc_to_text": "{{text}}\nTopic:",
    }  # fmt: skip
    choices = {
        "task": "choose", "output_type": "multiple_choice", "doc_to_target": "label",
        "doc_to_choice": ["river", "goal", "vote"], "gen_prefix": "It is", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    answers = {
        "task": "answer", "output_type": "generate_until", "doc_to_target": "{{['river', 'goal', 'vote'][label]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6}, "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    (place / "tasks").mkdir()
    for task in (choices, answers):
        (place / "tasks" / f"{task['task']}.yaml").write_text(yaml.safe_dump(common | task))
    return place


RUN = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_module(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def in_a_process(place: Path, *commands: list[str | Path]) -> None:
    """Run modules one after another, each with its arguments."""
    environment = os.environ | {
        "HF_DATASETS_CACHE": str(place / "datasets"), "LM_HARNESS_CACHE_PATH": str(place / "requests"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-c", RUN, json.dumps(commands, default=str)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def results_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*/results_*.json")
    content = json.loads(path.read_text())
    for name in ("date", "start_time", "end_time", "total_evaluation_time_seconds", "pretty_env_info"):
        content.pop(name, None)
    return content


def samples_in(folder: Path) -> dict[tuple[str, int], tuple[list, list]]:
    rows = {}
    for file in folder.glob("*/samples_*.jsonl"):
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            rows[file.name.split("_2")[0], sample["doc_id"]] = sample["arguments"], sample["filtered_resps"]
    return rows


FLAGS = {
    "chat": [
        "--apply_chat_template", "--system_instruction", "Be brief.", "--num_fewshot", "2",
        "--gen_kwargs", "max_gen_toks=3,temperature=0", "--cache_requests", "--use_cache", "answers",
    ],
    "no chat": ["--num_fewshot", "1", "--system_instruction", "Be brief."],
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_the_results_are_those_of_the_harness_s_command(place, tmp_path, name):
    shared = ["--tasks", "choose,answer", "--include_path", "tasks", "--limit", "5", "--log_samples", "--device", "cpu"]
    shared += ["--batch_size", "4", *FLAGS[name]]
    args = "pretrained=model,prompt=suffix.safetensors"
    theirs = ["lm_eval_spt", "run", "--model", "spt", "--model_args", args, *shared]
    files = ["prefix.safetensors", "suffix.safetensors"]
    ours = ["lm_eval_spt.cli", "evaluate", "--prompts", *files, "--model_args", "pretrained=model", *shared]
    in_a_process(place, [*theirs, "--output_path", tmp_path / "theirs"], [*ours, "--output", tmp_path / "ours"])
    expected = results_in(tmp_path / "theirs")
    folder = next(path.parent for path in tmp_path.glob("ours/*+suffix@*/results_*.json"))
    for other in tmp_path.glob("ours/*+prefix@*/*"):
        other.unlink()
    found = results_in(tmp_path / "ours")
    found["config"].pop("evaluate_settings", None)  # what tells it that these results are done: the harness has none
    if "--use_cache" in FLAGS[name]:
        cache = found["config"].pop("use_cache")
        assert cache == f"{expected['config'].pop('use_cache')}-{folder.name[-8:]}"
        assert (place / f"{cache}_rank0.db").is_file()
        assert list((place / "requests").iterdir())
    assert found == expected
    found, expected = samples_in(tmp_path / "ours"), samples_in(tmp_path / "theirs")
    assert found.keys() == expected.keys() and len(found) == 10
    for key, (arguments, answers) in expected.items():
        assert found[key][0] == arguments
        if "choose" in key[0]:
            values = [loglikelihoods({"filtered_resps": row}) for row in (found[key][1], answers)]
            assert values[0] == pytest.approx(values[1], abs=1e-4)
        else:
            assert found[key][1] == answers


def test_results_of_other_contexts_are_not_taken_for_these(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(place / "datasets"))
    shared = ["evaluate", "--prompts", "suffix.safetensors", "--tasks", "choose", "--include-path", "tasks"]
    shared += ["--output", str(tmp_path), "--limit", "2", "--device", "cpu"]
    variants: list[list[str]] = [
        [], ["--system-instruction", "Be brief."], ["--apply-chat-template"],
        ["--apply-chat-template", "--num-fewshot", "1"],
        ["--apply-chat-template", "--num-fewshot", "1", "--fewshot-as-multiturn", "no"],
    ]  # fmt: skip
    for number, flags in enumerate(variants):
        assert main([*shared, *flags]) == 0
        assert len(list(tmp_path.glob("*/results_*.json"))) == number + 1
        assert main([*shared, *flags]) == 0
        assert len(list(tmp_path.glob("*/results_*.json"))) == number + 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--apply-chat-template"],
            "error: --apply-chat-template was given, but the model's tokenizer has no",
        ),
        (["--fewshot-as-multiturn"], "error: --fewshot-as-multiturn was given: expected it together with"),
        (["--num-fewshot", "-1"], "error: --num-fewshot is -1: expected a whole number from 0 on"),
        (["--model-args", "prompt=p"], "error: --model-args has prompt=p: expected it as --prompts"),
        (["--model-args", "batch_size=2"], "error: --model-args has batch_size=2: expected it as --batch-size"),
    ],
)
def test_mistakes_are_one_line(place, tmp_path, capsys, flags, message):
    prompt = SoftPrompt.load(place / "suffix.safetensors")
    SoftPrompt(prompt.vectors, {**prompt.metadata, "base_model": "mini"}).save(tmp_path / "p.safetensors")
    shared = ["evaluate", "--prompts", str(tmp_path / "p.safetensors"), "--tasks", "mini_topics_eng_Latn"]
    assert main([*shared, "--output", str(tmp_path / "out"), "--limit", "1", "--device", "cpu", *flags]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (tmp_path / "out").exists()


def test_an_output_that_can_not_be_written_is_told_before_the_work(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lm_eval_spt.harness.evaluate.ManyPromptsLM", None)
    (tmp_path / "file").touch()
    shared = ["evaluate", "--prompts", str(place / "suffix.safetensors"), "--tasks", "mini_topics_eng_Latn"]
    assert main([*shared, "--output", str(tmp_path / "file"), "--limit", "1"]) == 1
    assert capsys.readouterr().err == f"error: --output {tmp_path / 'file'} can not be written: Not a directory\n"
