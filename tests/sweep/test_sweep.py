"""Sweeps: what a file asks for, what it takes, what is left behind, what goes wrong; and the engines."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from torch.utils.flop_counter import FlopCounterMode

from lm_eval_spt.analysis.arms import read_arms
from lm_eval_spt.cli import main
from lm_eval_spt.cli.sweep import sweep
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness import patches
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference import onednn
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.sweep import cost
from lm_eval_spt.sweep.plan import Plan, read_plan
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.loop import train
from tests.conftest import ROOT

TARGETS = ["mini_topics_eng_Latn", "mini_topics_deu_Latn"]
LIMIT = 6


def sweep_file(folder: Path, **changes) -> Path:
    """Write a small sweep file; None takes a key away."""
    content = {
        "output": str(folder / "out"),
        "targets": TARGETS,
        "settings": {
            "model": "mini", "task": "mini_topics_eng_Latn", "device": "cpu",
            "epochs": 1, "shots": 2, "validation_shots": 1, "prompt_length": 3,
        },
        "axes": {"seed": [0, 1]},
        "evaluate": {"limit": LIMIT},
    }  # fmt: skip
    content |= changes
    path = folder / "tiny.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return path


def record(output: Path, run: str) -> dict:
    return json.loads((output / "runs" / f"{run}.json").read_text())


def scores(output: Path, run: str) -> dict:
    (path,) = (output / "results" / run).glob("results_*.json")
    return json.loads(path.read_text())["results"]


def forbid_training(monkeypatch) -> None:
    monkeypatch.setattr("lm_eval_spt.sweep.execute.train_grid", None)


# -- the plan --------------------------------------------------------------------------------------------------------


def test_axes_are_crossed_and_named(tmp_path):
    file = sweep_file(
        tmp_path, axes={"prompt_length": [2, 4], "seed": [0], "lr": ["1e-3"], "init-text": ["\nTopic: a"]}
    )
    plan = read_plan(file)
    assert [run.name for run in plan.runs] == [
        "prompt_length2-seed0-lr0.001-init_text_Topic_a",
        "prompt_length4-seed0-lr0.001-init_text_Topic_a",
    ]
    config = plan.runs[1].config
    assert (config.prompt_length, config.seed, config.lr) == (4, 0, 1e-3)
    assert config.output == str(tmp_path / "out" / "prompts" / f"{plan.runs[1].name}.safetensors")
    assert plan.runs[0].targets == tuple(TARGETS)


def test_any_setting_can_be_an_axis(tmp_path):
    """Also those that come later: only the dataclass says which there are."""
    several = {
        "model": ["mini", "org/other"], "task": ["a", "b,c"], "revision": [None, "main"], "preset": ["paper", None],
        "tune": ["prompt", "lora"], "placement": ["prefix", "both"], "reparameterization": ["none", "mlp"],
        "init": ["vocab", "a.safetensors"], "loss": ["target", "choices"], "truncation_side": ["right"],
        "shots": [None, 8], "add_bos_token": [None, False, True], "context_cache": ["off", "auto"], "lr": [1e-3, 0.1],
    }  # fmt: skip
    for setting in fields(TrainingConfig):
        if setting.name not in ("output", "config", "include_path"):
            values = several.get(setting.name, [setting.default])
            plan = read_plan(sweep_file(tmp_path, axes={setting.name: values}))
            assert [getattr(run.config, setting.name) for run in plan.runs] == values


def test_yaml_values_become_what_a_setting_is(tmp_path):
    """YAML 1.1 reads 5e-3 as text, 1 as no float, off as false."""
    settings = {"model": "mini", "task": "t", "context_cache": False, "clip": 1}
    config = read_plan(sweep_file(tmp_path, settings=settings, axes={"lr": ["5e-3"], "shots": ["8"]})).runs[0].config
    assert (config.lr, config.context_cache, config.clip, config.shots) == (0.005, "off", 1.0, 8)
    assert isinstance(config.clip, float)


def test_arms_change_settings_and_axes(tmp_path):
    file = sweep_file(
        tmp_path,
        axes={"prompt_length": [2, 4], "seed": [0, 1]},
        arms={"suffix": {}, "prefix": {"placement": "prefix", "prompt_length": 3, "lr": [1e-3, 1e-2]}},
        baselines={"none": TARGETS, "instruction": "mini_topics_instruct_eng_Latn"},
    )
    plan = read_plan(file)
    assert sorted(run.name for run in plan.runs) == sorted(
        ["none", "instruction"]
        + [f"suffix-prompt_length{length}-seed{seed}" for length in (2, 4) for seed in (0, 1)]
        + [f"prefix-prompt_length3-seed{seed}-lr{lr}" for seed in (0, 1) for lr in (0.001, 0.01)]
    )
    assert {run.config.placement for run in plan.runs if run.arm == "prefix"} == {"prefix"}
    assert [run.targets for run in plan.runs if not run.prompted] == [
        tuple(TARGETS),
        ("mini_topics_instruct_eng_Latn",),
    ]


def test_a_preset_is_the_weakest_and_null_overrides_it(tmp_path):
    settings = {"model": "mini", "task": "t", "preset": "paper", "lr": 1e-2}
    full, few = (r.config for r in read_plan(sweep_file(tmp_path, settings=settings, axes={"shots": [None, 8]})).runs)
    assert (few.loss, few.lr, few.shots, full.shots, full.max_length) == ("target", 1e-2, 8, None, 128)


def test_no_name_leads_out_of_the_output_folder(tmp_path):
    arms = {"..": {}, "../x": {"placement": "prefix"}, ".a": {"lr": 1e-3}}
    names = [run.name for run in read_plan(sweep_file(tmp_path, arms=arms, baselines={"..": ["a"]})).runs]
    assert len(set(names)) == 7
    assert all(Path(name).name == name and not name.startswith(".") for name in names), names


def test_a_shard_has_one_base_model_and_is_not_too_large(tmp_path):
    file = sweep_file(
        tmp_path,
        settings={"task": "t", "device": "cpu"},
        axes={"model": ["mini", "org/other"], "seed": [0, 1, 2]},
        baselines={"none": ["t"]},
        shard_size=2,
    )
    plan = read_plan(file)
    assert [len(shard) for shard in plan.shards] == [2, 2, 2, 2]
    assert all(len({run.config.model for run in shard}) == 1 for shard in plan.shards)
    assert sum(not run.prompted for run in plan.runs) == 2
    assert {run.name for run in plan.runs} >= {"none-mini", "none-other", "mini-seed0", "other-seed2"}


MISTAKES = {
    "unknown axis": ({"axes": {"colour": [1]}}, "there is no axis 'colour'; known are model, task"),
    "unknown setting": ({"settings": {"color": 1}}, "there is no setting 'color'"),
    "unknown setting of an arm": ({"arms": {"a": {"color": 1}}}, "arm a: there is no setting 'color'"),
    "unknown key": ({"axis": {}}, "there is no key 'axis'; known are output, targets"),
    "unknown option": ({"evaluate": {"limits": 1}}, "evaluate: there is no option 'limits'"),
    "the sweep's own": ({"axes": {"output": ["a.safetensors"]}}, "there is no axis 'output'"),
    "type of an axis": ({"axes": {"prompt_length": ["five"]}}, "prompt_length is 'five', expected a whole number"),
    "fraction": ({"axes": {"prompt_length": [2.5]}}, "prompt_length is 2.5, expected a whole number"),
    "truth": ({"axes": {"seed": [True]}}, "seed is True, expected a whole number"),
    "null": ({"axes": {"seed": [None]}}, "seed is None, expected a whole number"),
    "text": ({"axes": {"placement": [3]}}, "placement is 3, expected text"),
    "optional": ({"axes": {"shots": ["x"]}}, "shots is 'x', expected a whole number or null"),
    "option's type": ({"evaluate": {"limit": "all"}}, "evaluate: limit is 'all', expected a number or null"),
    "range": ({"axes": {"lr": [-1]}}, "lr-1.0: --lr is -1.0: expected a number above 0"),
    "choice": ({"axes": {"placement": ["middle"]}}, "--placement is 'middle': expected one of prefix, suffix"),
    "missing": ({"settings": {"model": "mini"}}, "--task is missing"),
    "preset": ({"settings": {"preset": "none"}}, "preset is 'none', expected one of paper"),
    "no list": ({"axes": {"seed": 3}}, "the axis seed is 3, expected a list"),
    "a list as setting": ({"settings": {"seed": [1, 2]}}, "the setting seed has several values: move it to 'axes'"),
    "axes no mapping": ({"axes": [1]}, "axes is a list, expected a mapping"),
    "arm no mapping": ({"arms": {"a": 1}}, "the arm a is 1, expected settings"),
    "no targets": ({"targets": None}, "targets is None, expected a list of tasks"),
    "shard size": ({"shard_size": 0}, "shard_size is 0, expected a whole number from 1 on"),
    "empty axis": ({"axes": {"seed": []}}, "asks for no runs: an axis is empty"),
    "same value twice": ({"axes": {"seed": [0, 0]}}, "two runs would have the name seed0 .the same settings."),
    "same name": ({"axes": {"model": ["a/x", "b/X"]}}, "two runs would have the name X .model 'a/x' and 'b/X'."),
    "too many": ({"axes": {"seed": list(range(30)), "epochs": list(range(20))}}, "asks for 600 runs, more than 500"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_file_are_one_line(tmp_path, capsys, mistake):
    changes, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        read_plan(sweep_file(tmp_path, **changes))
    assert "\n" not in str(caught.value) and str(tmp_path / "tiny.yaml") in str(caught.value)
    assert main(["sweep", str(tmp_path / "tiny.yaml")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "spark"], "--engine is 'spark', expected one of local, ray, slurm"),
        (["--max-runs", "1"], "asks for 2 runs, more than 1"),
        (["--targets", "mini_topics_xxx"], "there is no task 'mini_topics_xxx'"),
        (["--shard", "7"], "--shard is 7, but"),
        (["--throughput", "0"], "--throughput is 0.0, expected"),
        (["--engine", "ray"], r"--engine ray needs Ray: pip install 'lm_eval_spt\[ray\]'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_in_the_flags_are_one_line(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    ours = patches.task_manager(TARGETS)  # the harness's own files take many seconds
    monkeypatch.setattr("lm_eval_spt.sweep.cost.task_manager", lambda names, include_path: ours)
    assert main(["sweep", str(sweep_file(tmp_path)), *flags]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


@pytest.mark.parametrize("content", [None, "- a\n", "a: [\n", "\x00"])
def test_a_file_that_is_none_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "broken.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["sweep", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") and error.count("\n") == 1


def test_too_little_disk_is_said_before_anything_is_done(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr("lm_eval_spt.sweep.cost.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="needs about 0.07 MB in .*, where 0.02 MB are free"):
        sweep(str(sweep_file(tmp_path)), throughput=1)
    assert not (tmp_path / "out").exists()
    sweep(str(sweep_file(tmp_path)), throughput=1, dry_run=True)


def test_the_papers_sweeps_are_what_they_say():
    for file in sorted((ROOT / "configs" / "paper").glob("*.yaml")):
        plan = read_plan(file)
        prompts = [run for run in plan.runs if run.prompted]
        assert len(prompts) == 2 * 2 * 6 * 4 and len(plan.runs) == len(prompts) + 2
        family = "xglm" if "xglm" in plan.name else "bloom"
        for run in prompts:
            assert run.config.task == f"sib200_{family}_eng_Latn" and family in run.config.model
            assert (run.config.shots, run.config.loss, run.config.placement) == (8, "target", "suffix")
            assert len(cost.single_tasks(run.targets, None)) == 52


# -- the cost --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"placement": "prefix", "loss": "target"}, {"context_cache": "off"}],
    ids=str,
)
def test_the_estimate_is_what_torch_counts(tmp_path, changes, monkeypatch):
    """PyTorch's own count of matrix products while the run trains and is scored, on a model whose head weighs most."""
    monkeypatch.setattr(onednn, "better_than_mkl", lambda: False)  # those of oneDNN it does not count
    settings = yaml.safe_load(sweep_file(tmp_path).read_text())["settings"]
    settings |= {"epochs": 2, "shots": 4, "validation_shots": 1, "prompt_length": 10, "batch_size": 4} | changes
    plan = read_plan(sweep_file(tmp_path, settings=settings, axes={}))
    (run,) = plan.runs
    estimate = cost.plan_work(plan, cost.TextSizes(limit=LIMIT), "run")[run.name]
    with FlopCounterMode(display=False) as counter:
        train(run.config)
        lm = SPTLM(prompt=run.config.output, device="cpu", batch_size="auto")
        lm._fast_verified = True  # what it checks beforehand is not the run's
        score(lm)
    assert estimate == pytest.approx(counter.get_total_flops(), rel=0.25)


def score(lm: SPTLM, tasks=TARGETS) -> dict:
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    return simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, limit=LIMIT, bootstrap_iters=0)["results"]


def test_sharing_saves_what_is_read_more_than_once(tmp_path):
    """Three suffix prompts of one shard read the texts once, a prefix prompt gains nothing."""
    sizes = cost.TextSizes()
    plan = read_plan(sweep_file(tmp_path, axes={"prompt_length": [1, 2, 4]}))
    totals = [sum(cost.plan_work(plan, sizes, way).values()) for way in ("shard", "run", "none")]
    assert totals[0] < totals[1] < totals[2]
    config = plan.runs[0].config
    model = cost.model_size("mini")
    texts = [sizes.test(config, TARGETS), *sizes.training(config)]
    once = 2 * model.body * sum(text.documents * text.tokens for text in texts)
    assert totals[1] - totals[0] == pytest.approx(2 * once)
    plan = read_plan(sweep_file(tmp_path, axes={"prompt_length": [1, 2]}, arms={"a": {"placement": "prefix"}}))
    assert len({sum(cost.plan_work(plan, sizes, way).values()) for way in ("shard", "run", "none")}) == 1


def test_sizes_are_those_of_the_model_and_its_texts(mini_model, tokenizer):
    size = cost.model_size("mini")
    assert size.total == sum(weight.numel() for weight in mini_model.parameters())
    assert size.hidden == mini_model.config.hidden_size
    assert cost.model_size("bigscience/bloom-560m").total == 559_214_592  # as its model card says
    assert cost.model_size("facebook/xglm-564M").total == pytest.approx(564e6, rel=0.01)
    config = TrainingConfig(model="mini", task="mini_topics_eng_Latn", output="x.safetensors", shots=3)
    sizes = cost.TextSizes()
    assert [texts.documents for texts in sizes.training(config)] == [21, 21]
    test = sizes.test(config, ["mini_topics"])
    assert (test.documents, test.choices) == (84 * 21, 7)
    rows = (tasks_folder() / "mini_topics/data/eng_Latn/test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    lengths = [len(tokenizer(row.split("\t")[2].strip('"'))["input_ids"]) for row in rows[: cost.SAMPLED_DOCUMENTS]]
    assert sizes.test(config, TARGETS[:1]).tokens == pytest.approx(sum(lengths) / len(lengths), rel=0.05)


def test_what_is_not_here_is_assumed_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SIB200_DIR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("lm_eval_spt.sweep.cost._tokenizer", _only_mini)
    monkeypatch.setattr("lm_eval_spt.sweep.cost._look", _nothing_there)
    settings = {"model": "bigscience/bloom-560m", "task": "sib200_eng_Latn"}
    sweep(str(sweep_file(tmp_path, settings=settings, targets=["sib200_paper"])), dry_run=True, throughput=10)
    printed = capsys.readouterr().out
    assert "the embedded model's tokens stand for those of bigscience/bloom-560m" in printed
    assert "sib200_paper: texts of 103 tokens" in printed
    assert "2 runs, 2 to do, in 1 shards" in printed


def _only_mini(model: str, revision: str | None):
    if model != "mini":
        raise UserError("no such model here")
    return None


def _nothing_there(*arguments: object) -> cost.Texts:
    raise UserError("no network")


# -- running ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini_model():
    return SPTLM(pretrained="mini", device="cpu").model


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Plan]:
    """The file and the plan of a sweep that has run: two arms, two seeds, a baseline."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    file = sweep_file(
        tmp_path_factory.mktemp("sweep"),
        arms={"suffix": {}, "prefix": {"placement": "prefix"}},
        baselines={"none": TARGETS},
        shard_size=3,
    )
    sweep(str(file), throughput=0.1)
    torch.set_num_threads(threads)
    return file, read_plan(file)


def copy_of(done: tuple[Path, Plan], folder: Path) -> Path:
    """A copy of the sweep that has run, to change."""
    shutil.copytree(done[1].output, folder / "out")
    content = yaml.safe_load(done[0].read_text()) | {"output": str(folder / "out")}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_every_run_leaves_a_prompt_and_results_under_its_name(done):
    output, runs = done[1].output, done[1].runs
    assert {path.name for path in (output / "results").iterdir()} == {run.name for run in runs}
    assert {path.stem for path in (output / "prompts").glob("*.safetensors")} == {r.name for r in runs if r.prompted}
    assert not (output / "scoring").exists()
    assert (output / "logs" / "shard000.txt").read_text().count("epoch ")
    for run in runs:
        found = record(output, run.name)
        assert (output / found["results"]).is_file() and found["error"] is None
        if run.prompted:
            assert SoftPrompt.load(run.config.output).metadata["seed"] == run.config.seed


@pytest.mark.parametrize("name", ["suffix-seed1", "prefix-seed0", "none"])
def test_results_are_those_of_the_harness(done, name):
    output = done[1].output
    prompt = {} if name == "none" else {"prompt": str(output / "prompts" / f"{name}.safetensors")}
    expected = score(SPTLM(pretrained="mini", device="cpu", dtype="float32", batch_size="auto", **prompt))
    found = scores(output, name)
    for task in TARGETS:
        for metric in ("acc,none", "macro_f1,none"):
            assert found[task][metric] == pytest.approx(expected[task][metric])
    content = json.loads((output / record(output, name)["results"]).read_text())
    assert content["config"]["model"] == "spt" and content["config"]["model_num_parameters"] > 1e6
    assert content["config"].get("prompt_name") == (None if name == "none" else name)


def test_other_tools_read_the_results(done):
    arms, left_out = read_arms([(None, done[1].output / "results")])
    assert not left_out and sorted(len(arm.runs) for arm in arms) == [1, 2, 2]


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


def test_what_is_there_is_not_done_again(done, tmp_path, monkeypatch, capsys):
    file = copy_of(done, tmp_path)
    forbid_training(monkeypatch)
    monkeypatch.setattr("lm_eval_spt.sweep.execute.evaluate_prompts", None)
    sweep(str(file), throughput=1)
    assert "5 runs, 0 to do" in capsys.readouterr().out
    sweep(str(file), throughput=1, dry_run=True)
    assert capsys.readouterr().out.count("done  ") == 5


def test_other_targets_are_scored_without_training_again(done, tmp_path, monkeypatch):
    file = copy_of(done, tmp_path)
    forbid_training(monkeypatch)
    before = record(tmp_path / "out", "suffix-seed0")
    sweep(str(file), throughput=1, targets="mini_topics_fra_Latn")
    assert set(scores(tmp_path / "out", "suffix-seed0")) == {"mini_topics_fra_Latn"}
    assert record(tmp_path / "out", "suffix-seed0")["training_seconds"] == before["training_seconds"]


def test_other_settings_are_refused(done, tmp_path, capsys):
    file = copy_of(done, tmp_path)
    content = yaml.safe_load(file.read_text())
    content["settings"]["lr"] = 1e-2
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["sweep", str(file)]) == 1
    error = capsys.readouterr().err
    assert "with other settings (lr 0.005 there, 0.01 now)" in error and error.count("\n") == 1


def test_a_record_that_is_broken_is_one_line(done, tmp_path, capsys):
    file = copy_of(done, tmp_path)
    for content in ("{", "[]", '{"settings": 3}'):
        (tmp_path / "out" / "runs" / "suffix-seed0.json").write_text(content)
        assert main(["sweep", str(file)]) == 1
        error = capsys.readouterr().err
        assert "is no record of a run" in error and error.count("\n") == 1


def test_a_prompt_that_is_gone_is_trained_again(done, tmp_path):
    file = copy_of(done, tmp_path)
    prompt = tmp_path / "out" / "prompts" / "suffix-seed0.safetensors"
    before = SoftPrompt.load(prompt)
    prompt.unlink()
    sweep(str(file), throughput=1)
    assert torch.allclose(SoftPrompt.load(prompt).vectors, before.vectors, atol=1e-5)


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


# -- engines ---------------------------------------------------------------------------------------------------------


def test_slurm_gets_a_script_that_runs_the_same_shards(done, tmp_path, capsys):
    file = copy_of(done, tmp_path)
    for name in ("suffix-seed1", "prefix-seed0"):
        (tmp_path / "out" / "runs" / f"{name}.json").unlink()
    sweep(str(file), engine="slurm", throughput=1)
    script = tmp_path / "out" / "sweep.sbatch"
    assert f"sbatch {script}" in capsys.readouterr().out
    lines = script.read_text().splitlines()
    left = [n for n, shard in enumerate(done[1].shards) if any(r.name == "suffix-seed1" for r in shard)]
    assert lines[0] == "#!/bin/bash" and f"#SBATCH --array={','.join(map(str, [*left, 1]))}" in lines
    file.unlink()  # the job has a copy
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(left[0]), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["bash", script], env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "done    suffix-seed1" in ran.stdout
    assert scores(tmp_path / "out", "suffix-seed1") == scores(done[1].output, "suffix-seed1")
    assert not (tmp_path / "out" / "runs" / "prefix-seed0.json").exists()  # it is of another shard


@pytest.mark.slow
def test_ray_gives_the_same_and_survives_a_lost_worker(done, tmp_path, monkeypatch, capsys):
    """Two workers, of which one is killed while it works."""
    pytest.importorskip("ray")
    content = yaml.safe_load(done[0].read_text()) | {"output": str(tmp_path / "out")}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(tmp_path / "out", killed), daemon=True)
    killer.start()
    sweep(str(file), engine="ray", workers=2, throughput=1)
    killer.join(timeout=10)
    printed = capsys.readouterr()
    assert killed and "its worker was lost, 1 of 3 times" in printed.err
    assert "[5 done, 0 failed, 0 left]" in printed.out
    for run in done[1].runs:
        assert scores(tmp_path / "out", run.name) == scores(done[1].output, run.name)
        if run.prompted:
            ours = SoftPrompt.load(tmp_path / "out" / "prompts" / f"{run.name}.safetensors")
            assert ours.digest == SoftPrompt.load(run.config.output).digest


def kill_a_worker(output: Path, killed: list[int]) -> None:
    """Kill a worker of this process's cluster as soon as one has trained something."""
    while not list(output.glob("prompts/*.safetensors")):
        time.sleep(0.05)
    for child in psutil.Process().children(recursive=True):
        if child.name().startswith("ray::RemoteWorker") or "ray::RemoteWorker.run" in " ".join(child.cmdline()):
            killed.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)
            return
