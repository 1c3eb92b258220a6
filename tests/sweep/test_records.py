"""The records of runs: what is done is not done again, what no longer fits is refused or done again."""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch
import yaml

from lm_eval_spt.cli import main
from lm_eval_spt.cli.sweep import sweep
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.samples import samples_path
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.sweep.execute import Worker
from lm_eval_spt.sweep.plan import read_plan
from lm_eval_spt.sweep.records import record_of, save_record
from tests.helpers.sweeps import copy_sweep, forbid_training, record, score, scores


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


def test_a_baseline_of_other_settings_is_scored_again(done, tmp_path):
    """It is not trained, so that nothing refuses them."""
    file = copy_sweep(done, tmp_path)
    content = yaml.safe_load(file.read_text())
    content["settings"]["add_bos_token"] = True
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    plan = read_plan(file)
    (baseline,) = [run for run in plan.runs if not run.prompted]
    assert not record_of(plan, baseline).done
    Worker(replace(plan, shards=((baseline,),))).run(0)
    assert record_of(plan, baseline).done
    assert record(tmp_path / "out", baseline.name)["settings"]["add_bos_token"] is True
    expected = score(SPTLM(pretrained="mini", device="cpu", add_bos_token=True))
    for task, metrics in scores(tmp_path / "out", baseline.name).items():
        assert metrics["acc,none"] == expected[task]["acc,none"]


def test_samples_that_are_asked_for_and_tasks_from_elsewhere_count(done, tmp_path):
    plan = read_plan(copy_sweep(done, tmp_path))
    assert all(record_of(plan, run).done for run in plan.runs)
    (tmp_path / "tasks").mkdir()
    for change in ({"include_path": str(tmp_path / "tasks")}, {"evaluate": {**plan.evaluate, "log_samples": True}}):
        changed = replace(plan, **change)
        records = [record_of(changed, run) for run in plan.runs]
        assert not any(known.done for known in records)
        assert [known.trained for known in records] == [run.prompted for run in plan.runs]
        run = plan.runs[0]
        as_if = replace(records[0], results=record_of(plan, run).results)  # scored so, but the answers are gone
        save_record(changed, run, as_if)
        assert record_of(changed, run).done == ("include_path" in change)
        shutil.copytree(done[1].output / "runs", tmp_path / "out" / "runs", dirs_exist_ok=True)


def test_results_without_their_compact_samples_are_made_again(done, tmp_path):
    plan = read_plan(copy_sweep(done, tmp_path))
    record = record_of(plan, plan.runs[0])
    assert record.done
    samples_path(plan.output / record.results).unlink()
    assert not record_of(plan, plan.runs[0]).done and record_of(plan, plan.runs[0]).trained == record.trained


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


def test_a_run_whose_record_is_deleted_is_done_again_with_what_the_file_says_now(done, tmp_path):
    file = copy_sweep(done, tmp_path)
    content = yaml.safe_load(file.read_text())
    content["settings"]["task"] = "mini_topics_fra_Latn"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    for path in (tmp_path / "out" / "runs").iterdir():
        path.unlink()
    sweep(str(file), throughput=1)
    prompt = SoftPrompt.load(tmp_path / "out" / "prompts" / "suffix-seed0.safetensors")
    assert prompt.metadata["tasks"] == ["mini_topics_fra_Latn"]


def test_a_prompt_that_is_gone_is_trained_again(done, tmp_path):
    file = copy_sweep(done, tmp_path)
    prompt = tmp_path / "out" / "prompts" / "suffix-seed0.safetensors"
    before = SoftPrompt.load(prompt)
    prompt.unlink()
    sweep(str(file), throughput=1)
    assert torch.allclose(SoftPrompt.load(prompt).vectors, before.vectors, atol=1e-5)
