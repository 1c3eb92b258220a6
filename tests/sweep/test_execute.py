"""Training and scoring the runs of a sweep: what they leave, and what happens when one fails."""

from __future__ import annotations

import json

import pytest

from lm_eval_spt.analysis.arms import read_arms
from lm_eval_spt.analysis.noise import Noise
from lm_eval_spt.cli import main
from lm_eval_spt.cli.sweep import sweep
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.samples import samples_path
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.sweep.plan import read_plan
from lm_eval_spt.train.loop import train
from tests.helpers.sweeps import TARGETS, record, score, scores, sweep_file


def test_every_run_leaves_a_prompt_and_results_under_its_name(done):
    output, runs = done[1].output, done[1].runs
    assert {path.name for path in (output / "results").iterdir()} == {run.name for run in runs}
    assert {path.stem for path in (output / "prompts").glob("*.safetensors")} == {r.name for r in runs if r.prompted}
    assert not (output / "scoring").exists()
    assert (output / "logs" / "shard000.txt").read_text().count("epoch ")
    for run in runs:
        written = record(output, run.name)
        assert (output / written["results"]).is_file() and written["error"] is None
        assert samples_path(output / written["results"]).is_file()
        if run.prompted:
            assert SoftPrompt.load(run.config.output).metadata["seed"] == run.config.seed


@pytest.mark.parametrize("name", ["suffix-seed1", "prefix-seed0", "none"])
def test_results_are_those_of_the_harness(done, name):
    output = done[1].output
    prompt = {} if name == "none" else {"prompt": str(output / "prompts" / f"{name}.safetensors")}
    expected = score(SPTLM(pretrained="mini", device="cpu", dtype="float32", batch_size="auto", **prompt))
    written = scores(output, name)
    for task in TARGETS:
        for metric in ("acc,none", "macro_f1,none"):
            assert written[task][metric] == pytest.approx(expected[task][metric])
    content = json.loads((output / record(output, name)["results"]).read_text())
    assert content["config"]["model"] == "spt" and content["config"]["model_num_parameters"] > 1e6
    assert content["config"].get("prompt_name") == (None if name == "none" else name)


def test_other_tools_read_the_results(done):
    arms, left_out = read_arms([(None, done[1].output / "results")])
    assert not left_out and sorted(len(arm.runs) for arm in arms) == [1, 2, 2]
    assert Noise(arms, [target.rpartition("mini_topics_")[2] for target in TARGETS], "macro_f1").notes == []


def test_an_ensemble_and_an_average_of_runs_are_arms_of_their_own(tmp_path):
    file = sweep_file(tmp_path, ensemble_over="seed", average_over="seed")
    plan = read_plan(file)
    sweep(str(file))
    members = [str(plan.output / "prompts" / f"seed{seed}.safetensors") for seed in (0, 1)]
    loaded = {"pretrained": "mini", "device": "cpu", "dtype": "float32", "batch_size": "auto"}
    ensemble = SPTLM.create_from_arg_obj({**loaded, "prompt": "+".join(members)})
    mean = sum(SoftPrompt.load(member).vectors for member in members) / 2
    average = SPTLM(**loaded, prompt=SoftPrompt(mean, {"placement": "suffix"}))
    for name, lm in (("ensemble", ensemble), ("average", average)):
        expected, written = score(lm), scores(plan.output, name)
        for task in TARGETS:
            assert written[task]["acc,none"] == pytest.approx(expected[task]["acc,none"])
        assert record(plan.output, name)["settings"][name] == ["seed0", "seed1"]
    arms, _ = read_arms([(None, plan.output / "results")])
    assert sorted(len(arm.runs) for arm in arms) == [1, 1, 2]
    before = {path: path.stat().st_mtime_ns for path in (plan.output / "results").rglob("*.json")}
    sweep(str(file))
    assert {path: path.stat().st_mtime_ns for path in (plan.output / "results").rglob("*.json")} == before


TUNED = {
    "all": ({"tune": "all"}, {"pretrained": "prompts/all", "prompt": "prompts/all.safetensors"}),
    "model": ({"tune": "model"}, {"pretrained": "prompts/model"}),
    "lora": ({"tune": "lora"}, {"peft": "prompts/lora", "prompt": "prompts/lora.safetensors"}),
    "adapter": ({"tune": "lora", "prompt_length": 0}, {"pretrained": "mini", "peft": "prompts/adapter"}),
}


def test_what_is_tuned_along_is_scored_with_its_prompt(tmp_path):
    """Beside a frozen arm, which must not notice."""
    file = sweep_file(
        tmp_path, axes=None, targets=TARGETS[:1], arms={"frozen": {}} | {arm: TUNED[arm][0] for arm in TUNED}
    )
    assert [len(shard) for shard in read_plan(file).shards] == [1, 4]
    sweep(str(file), throughput=1)
    output = tmp_path / "out"
    for arm, (_, places) in TUNED.items():
        arguments = {key: place if place == "mini" else str(output / place) for key, place in places.items()}
        expected = score(SPTLM(**arguments, device="cpu", dtype="float32", batch_size="auto"), TARGETS[:1])
        for metric in ("acc,none", "macro_f1,none"):
            assert scores(output, arm)[TARGETS[0]][metric] == pytest.approx(expected[TARGETS[0]][metric]), arm
    again = tmp_path / "again"
    again.mkdir()
    sweep(str(sweep_file(again, axes=None, targets=TARGETS[:1])), throughput=1)
    digests = {
        SoftPrompt.load(folder).digest for folder in (output, again) for folder in folder.glob("prompts/[fr]*.s*")
    }
    assert len(digests) == 1


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, capsys):
    """Twelve documents in a class: 99 shots can not be drawn. Once it can be done it is, and nothing else."""
    file = sweep_file(tmp_path, axes={"shots": [2, 99, 3], "seed": [0]})
    assert main(["sweep", str(file), "--throughput", "1"]) == 1
    printed = capsys.readouterr()
    assert "1 of 3 runs failed" in printed.err and printed.err.count("\n") == 1
    assert "failed  shots99-seed0: 99 training documents per class were asked for" in printed.out
    assert "[2 done, 1 failed, 0 left]" in printed.out
    assert record(tmp_path / "out", "shots99-seed0")["error"].startswith("99 training documents")
    assert set(scores(tmp_path / "out", "shots3-seed0")) == set(TARGETS)
    assert main(["sweep", str(file), "--throughput", "1", "--dry-run"]) == 0
    assert "failed   shots99-seed0: 99 training" in capsys.readouterr().out


def test_a_model_that_can_not_be_loaded_fails_its_runs_alone(tmp_path, capsys):
    file = sweep_file(
        tmp_path, settings=None, axes={"model": [str(tmp_path), "mini"]},
        arms={"": {"task": "mini_topics_eng_Latn", "device": "cpu", "epochs": 0, "shots": 1}},
    )  # fmt: skip
    assert main(["sweep", str(file)]) == 1
    printed = capsys.readouterr()
    assert "no estimate of the time: the base model" in printed.out and "[1 done, 1 failed, 0 left]" in printed.out
    assert set(scores(tmp_path / "out", "mini")) == set(TARGETS)


def test_an_interrupted_run_counts_as_not_trained(tmp_path, monkeypatch):
    """Ctrl-C writes the best prompt so far: the sweep that goes on must not take it for a finished one."""
    file = sweep_file(tmp_path, axes={"seed": [0]})

    def interrupted(configs, frozen):
        train(configs[0], frozen)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lm_eval_spt.sweep.execute.train_grid", interrupted)
        sweep(str(file), throughput=1)
    assert (tmp_path / "out" / "prompts" / "seed0.safetensors").exists()
    sweep(str(file), throughput=1)
    assert record(tmp_path / "out", "seed0")["training_seconds"] > 0
