"""The records of runs: what is done is not done again, what no longer fits is refused or done again."""

from __future__ import annotations

import torch
import yaml

from lm_eval_spt.cli import main
from lm_eval_spt.cli.sweep import sweep
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.sweeps import copy_sweep, forbid_training, record, scores


def test_what_is_there_is_not_done_again(done, tmp_path, monkeypatch, capsys):
    file = copy_sweep(done, tmp_path)
    forbid_training(monkeypatch)
    monkeypatch.setattr("lm_eval_spt.sweep.execute.evaluate_prompts", None)
    sweep(str(file), throughput=1)
    assert "5 runs, 0 to do" in capsys.readouterr().out
    sweep(str(file), throughput=1, dry_run=True)
    assert capsys.readouterr().out.count("done  ") == 5


def test_other_targets_are_scored_without_training_again(done, tmp_path, monkeypatch):
    file = copy_sweep(done, tmp_path)
    forbid_training(monkeypatch)
    before = record(tmp_path / "out", "suffix-seed0")
    sweep(str(file), throughput=1, targets="mini_topics_fra_Latn")
    assert set(scores(tmp_path / "out", "suffix-seed0")) == {"mini_topics_fra_Latn"}
    assert record(tmp_path / "out", "suffix-seed0")["training_seconds"] == before["training_seconds"]


def test_other_settings_are_refused(done, tmp_path, capsys):
    file = copy_sweep(done, tmp_path)
    content = yaml.safe_load(file.read_text())
    content["settings"]["lr"] = 1e-2
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["sweep", str(file)]) == 1
    error = capsys.readouterr().err
    assert "with other settings (lr 0.005 there, 0.01 now)" in error and error.count("\n") == 1


def test_a_record_that_is_broken_is_one_line(done, tmp_path, capsys):
    file = copy_sweep(done, tmp_path)
    for content in ("{", "[]", '{"settings": 3}'):
        (tmp_path / "out" / "runs" / "suffix-seed0.json").write_text(content)
        assert main(["sweep", str(file)]) == 1
        error = capsys.readouterr().err
        assert "is no record of a run" in error and error.count("\n") == 1


def test_a_prompt_that_is_gone_is_trained_again(done, tmp_path):
    file = copy_sweep(done, tmp_path)
    prompt = tmp_path / "out" / "prompts" / "suffix-seed0.safetensors"
    before = SoftPrompt.load(prompt)
    prompt.unlink()
    sweep(str(file), throughput=1)
    assert torch.allclose(SoftPrompt.load(prompt).vectors, before.vectors, atol=1e-5)
