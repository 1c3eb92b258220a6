"""What a run leaves, and that it is not done twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lm_eval_spt.cli.train import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import mini_model_folder
from lm_eval_spt.train import scheduler
from lm_eval_spt.train.loop import train
from tests.helpers.training import TASK, settings_for


def test_a_tuned_model_without_a_prompt_is_not_trained_again(tmp_path, monkeypatch):
    config = settings_for(tmp_path / "m.safetensors", tune="model", prompt_length=0, epochs=1, resume=True)
    assert train(config) is None
    monkeypatch.setattr(scheduler, "evaluate", None)
    assert train(config) is None


def test_an_unwritable_output_is_found_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--model", "mini", "--task", TASK, "--output", str(tmp_path / "file" / "p.safetensors")]) == 1
    assert "can not be written" in capsys.readouterr().err


def test_a_folder_of_something_else_is_found_before_training(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    flags = ["--model", "mini", "--task", TASK, "--tune", "all", "--output", str(tmp_path / "run.safetensors")]
    assert main(flags) == 1
    assert "holds no model that was tuned here" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "notes.txt"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tune", "lora", "--output", "base.safetensors"], "base is there and holds no model that was tuned here"),
        (["--tune", "all", "--model", "tuned", "--output", "tuned.safetensors"], "would replace the base model tuned"),
        (["--output", "base/model.safetensors"], "base/model.safetensors is there and is no prompt file"),
        (["--train-file", "mine.jsonl", "--output", "mine.safetensors"], "mine.jsonl is there, where the log"),
    ],
)
def test_what_no_run_has_written_is_not_replaced(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("base", "tuned"):
        shutil.copytree(mini_model_folder(), folder)
    Path("tuned/lm_eval_spt.json").write_text("{}")
    Path("mine.jsonl").write_text('{"text": "It rained.", "category": "geography"}\n')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["--model", "base", "--task", TASK, *flags]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("changes", [{"task": TASK.replace("eng", "fra")}, {"lr": 1e-4}])
def test_another_run_is_not_taken_for_this_one(tmp_path, changes):
    config = settings_for(tmp_path / "p.safetensors", epochs=0, resume=True)
    train(config)
    with pytest.raises(UserError, match="--resume: .* was trained with other settings"):
        train(replace(config, **changes))


def test_a_run_whose_adapter_is_gone_is_done_again(tmp_path):
    config = settings_for(tmp_path / "p.safetensors", tune="lora", epochs=0, resume=True)
    train(config)
    shutil.rmtree(tmp_path / "p")
    train(config)
    assert (tmp_path / "p" / "adapter_model.safetensors").is_file()
