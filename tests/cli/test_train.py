"""``lm-eval-spt train`` and ``train_prompt.py``: flags become settings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from lm_eval_spt import cli
from lm_eval_spt.cli.train import AXES, GROUPS, configurations, main, parser
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.train.config import TrainingConfig
from tests.helpers.paths import ROOT

NEEDED = ["--model", "mini", "--task", "t", "--output", "out/my.safetensors"]


def given(*flags: str) -> dict[str, object]:
    """Return what the parser makes of the flags that a run needs, and more."""
    return vars(parser("lm-eval-spt train").parse_args([*NEEDED, *flags]))


def test_only_what_was_given_is_parsed() -> None:
    assert given() == {"model": "mini", "task": "t", "output": "out/my.safetensors"}
    flags = ["--no-checkpoint", "--resume", "--add-bos-token", "no", "--lora-rank", "2", "--dual-share", "0.5"]
    more = {"checkpoint": False, "resume": True, "add_bos_token": False, "lora_rank": 2, "dual_share": 0.5}
    assert given(*flags) == given() | more
    assert given("--resume", "--checkpoint", "false", "--seed", "1") == given() | {
        "resume": True, "checkpoint": False, "seed": [1],
    }  # fmt: skip


def test_every_setting_has_a_flag_that_says_its_default() -> None:
    actions = {action.dest: action for action in parser("p")._actions if action.nargs != 0}
    assert list(actions) == [setting.name for setting in fields(TrainingConfig)]
    assert set(AXES) <= set(actions)
    for setting in fields(TrainingConfig):
        if setting.default not in (None, ""):
            shown = str(setting.default).replace("\n", "\\n")
            assert f"(default: {shown})" in str(actions[setting.name].help), setting.name


def test_flags_come_in_groups_and_none_is_empty() -> None:
    groups = {group.title: group._group_actions for group in parser("p")._action_groups}
    assert all(groups[title] for title in GROUPS.values())
    assert {action.dest for action in groups["options"]} == {"help"} and not groups["positional arguments"]
    assert [action.dest for action in groups["required"]] == ["model", "task", "output"]


def test_flags_outweigh_the_file_which_outweighs_the_preset(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("epochs: 7\nlr: 1e-2\n")
    (config,) = configurations(given("--preset", "paper", "--config", str(tmp_path / "run.yaml"), "--lr", "0.5"))
    assert (config.prompt_length, config.epochs, config.lr) == (10, 7, 0.5)
    assert (config.seed, config.shots) == (0, 8)


def test_several_values_make_a_grid_whose_names_are_those_of_sweeps() -> None:
    configs = configurations(given("--seed", "0", "1", "--prompt-length", "5", "--placement", "prefix", "suffix"))
    assert [config.output for config in configs] == [
        "out/my-seed0-placement_prefix.safetensors", "out/my-seed0-placement_suffix.safetensors",
        "out/my-seed1-placement_prefix.safetensors", "out/my-seed1-placement_suffix.safetensors",
    ]  # fmt: skip
    assert [(config.seed, config.placement, config.prompt_length) for config in configs] == [
        (0, "prefix", 5), (0, "suffix", 5), (1, "prefix", 5), (1, "suffix", 5),
    ]  # fmt: skip
    names = [Path(config.output).name for config in configurations(given("--lr", "1e-3", "5e-3", "--seed", "-1"))]
    assert names == ["my-lr0.001.safetensors", "my-lr0.005.safetensors"]
    with pytest.raises(UserError, match="two runs would write out/my-seed1.safetensors"):
        configurations(given("--seed", "1", "1"))


def test_a_stem_that_no_sweep_would_choose_stays() -> None:
    flags = vars(
        parser("p").parse_args(["--model", "m", "--task", "t", "--output", "o/é è.safetensors", "--seed", "1", "2"])
    )
    assert [config.output for config in configurations(flags)] == ["o/é è-seed1.safetensors", "o/é è-seed2.safetensors"]


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--prompt_length", "0"], 1, "error: --prompt-length is 0: expected a whole number from 1 on"),
        (["--tune", "everything"], 2, "argument --tune: invalid choice: 'everything'"),
        (["--weight_decay", "much"], 2, "argument --weight-decay: invalid float value: 'much'"),
        (["--resume", "perhaps"], 2, "argument --resume: 'perhaps' given, expected yes or no"),
        (["--preset", "mine"], 1, "error: --preset is 'mine': expected one of paper"),
    ],
)
def test_mistakes_name_flags_in_hyphens(
    flags: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = cli.main(["train", *NEEDED, *flags])
    except SystemExit as stopped:
        found = int(stopped.code or 0)
    assert found == status and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tune", "model", "--lr", "1e-2"], "--lr is given: without a prompt only the model learns, whose learning"),
        (["--tune", "lora", "--prompt-length", "0", "--lr", "1e-3"], "--lr is given"),
        (["--tune", "model", "--init", "vocab"], "--init is given"),
        (["--tune", "all", "model", "--prompt-length", "5", "10"], "would be the same run twice"),
    ],
)
def test_flags_without_effect_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "nowhere", "--task", "none", "--output", "p.safetensors", *flags]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_each_program_says_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: lm-eval-spt train ") and "example: lm-eval-spt train" in text
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: train_prompt.py ")
    script = [sys.executable, ROOT / "train_prompt.py", "--help"]
    assert subprocess.run(script, capture_output=True, text=True).stdout.startswith("usage: train_prompt.py ")


def test_every_literal_setting_is_checked() -> None:
    for name in ("tune", "placement", "reparameterization", "loss", "mixture", "truncation_side", "context_cache",
                 "dtype", "quantization"):  # fmt: skip
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is 'x': expected one of "):
            TrainingConfig.from_settings({"model": "m", "task": "t", "output": "o.safetensors", name: "x"})
