"""From a sweep file to runs: what a file asks for, and what is wrong with it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from lm_eval_spt.cli import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.sweep import cost
from lm_eval_spt.sweep.plan import read_plan
from lm_eval_spt.train.base import loading
from lm_eval_spt.train.config import TrainingConfig
from tests.helpers.paths import ROOT
from tests.helpers.sweeps import TARGETS, sweep_file


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


def test_runs_share_a_model_that_is_loaded_in_one_way(tmp_path):
    """Quantised or not, here or spread, with its own code or without: these are other models."""
    axes = {"quantization": ["none", "4bit"], "device_map": [None, "auto"], "trust_remote_code": [False, True]}
    plan = read_plan(sweep_file(tmp_path, axes=axes, baselines={"none": TARGETS}))
    prompted = [run for run in plan.runs if run.prompted]
    assert len({run.base for run in prompted}) == 8
    assert {tuple(sorted(loading(run.config))) for run in prompted if run.config.quantization == "4bit"} == {
        ("dtype", "load_in_4bit"),
        ("dtype", "load_in_4bit", "trust_remote_code"),
        ("device_map", "dtype", "load_in_4bit", "parallelize"),
        ("device_map", "dtype", "load_in_4bit", "parallelize", "trust_remote_code"),
    }
    assert len([run for run in plan.runs if not run.prompted]) == 8


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
        arms={"suffix": {"batch_size": [8]}, "prefix": {"placement": "prefix", "prompt_length": 3, "lr": [1e-3, 1e-2]}},
        baselines={"none": TARGETS, "instruction": "mini_topics_instruct_eng_Latn"},
    )
    plan = read_plan(file)
    assert sorted(run.name for run in plan.runs) == sorted(
        ["none", "instruction"]
        + [f"suffix-prompt_length{length}-seed{seed}-batch_size8" for length in (2, 4) for seed in (0, 1)]
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


def test_runs_are_combined_over_an_axis(tmp_path):
    file = sweep_file(
        tmp_path,
        axes={"prompt_length": [2, 4], "seed": [0, 1, 2]},
        arms={"suffix": {}, "kv": {"prompt_kind": "kv"}, "tuned": {"tune": "all"}},
        ensemble_over="seed", average_over="seed", shard_size=4,
    )  # fmt: skip
    plan = read_plan(file)
    combined = {run.name: run for run in plan.runs if run.members}
    assert sorted(combined) == sorted(
        f"{arm}-prompt_length{length}-{how}"
        for arm in ("suffix", "kv") for length in (2, 4) for how in ("ensemble", "average")
    )  # fmt: skip
    ensemble = combined["kv-prompt_length4-ensemble"]
    assert [member.name for member in ensemble.members] == [f"kv-prompt_length4-seed{seed}" for seed in (0, 1, 2)]
    assert ensemble.prompt == "+".join(member.config.output for member in ensemble.members)
    assert combined["kv-prompt_length4-average"].prompt.endswith("prompts/kv-prompt_length4-average.safetensors")
    assert {run.config.placement for run in plan.runs if run.arm == "kv"} == {"prefix"}
    for shard in plan.shards:  # members come before what is made of them, in one shard
        names = [run.name for run in shard]
        for run in shard:
            assert all(names.index(member.name) < names.index(run.name) for member in run.members)


def test_what_is_combined_over_two_axes_stays_together(tmp_path):
    axes = {"seed": [0, 1], "shots_seed": [0, 1], "prompt_length": [2, 4]}
    combined = {"ensemble_over": "seed", "average_over": "shots_seed"}
    plan = read_plan(sweep_file(tmp_path, axes=axes, shard_size=2, **combined))
    names = [[run.name for run in shard] for shard in plan.shards]
    assert [len(shard) for shard in names] == [8, 8]
    for shard in plan.shards:
        done = set()
        for run in shard:
            assert {member.name for member in run.members} <= done
            done.add(run.name)


def test_options_of_scoring_are_as_for_the_harness(tmp_path):
    assert read_plan(sweep_file(tmp_path, evaluate={"batch_size": 8})).evaluate == {"batch_size": "8"}


MISTAKES = {
    "the same run twice": (
        {"arms": {"a": {"tune": "model"}}, "axes": {"prompt_length": [2, 4]}},
        "a-prompt_length2 and a-prompt_length4 would be the same run",
    ),
    "ensemble over no axis": ({"ensemble_over": "colour"}, "ensemble_over is 'colour', expected an axis with two"),
    "average of one": ({"axes": {"seed": [0]}, "average_over": "seed"}, "average_over is 'seed', expected an axis"),
    "ensemble of tuned models": (
        {"arms": {"a": {"tune": "all"}}, "ensemble_over": "seed"},
        "of runs that leave the model frozen",
    ),
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
    "option's sense": (
        {"evaluate": {"fewshot_as_multiturn": True}},
        "evaluate: --fewshot-as-multiturn was given: expected it together with --apply-chat-template",
    ),
    "option's mapping": (
        {"evaluate": {"gen_kwargs": "greedy"}},
        "evaluate: gen_kwargs is 'greedy', expected a mapping",
    ),
    "chat in a setting": (
        {"axes": {"num_fewshot": [-1]}},
        "--num-fewshot is -1: expected a whole number from 0 on",
    ),
    "option's type": ({"evaluate": {"limit": "all"}}, "evaluate: limit is 'all', expected a number or null"),
    "range": ({"axes": {"lr": [-1]}}, "lr-1.0: --lr is -1.0: expected a number above 0"),
    "choice": ({"axes": {"placement": ["middle"]}}, "--placement is 'middle': expected one of prefix, suffix"),
    "missing": ({"settings": {"model": "mini"}}, "--task is missing"),
    "preset": ({"settings": {"preset": "none"}}, "preset is 'none': expected one of paper"),
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


@pytest.mark.parametrize("content", [None, "- a\n", "a: [\n", "\x00"])
def test_a_file_that_is_none_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "broken.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["sweep", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") and error.count("\n") == 1


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
