"""Settings from flags and YAML files, and the one line that each wrong setting gets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lm_eval_spt.cli.train import main
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.train.config import TrainingConfig
from tests.helpers.paths import ROOT
from tests.helpers.training import TASK

GOOD = {"--model": "mini", "--task": TASK}


BAD = {
    "unknown placement": ({"--placement": "middle"}, 2, "invalid choice: 'middle'"),
    "unknown init": ({"--init": "magic"}, 1, "--init magic: prompt file magic: no such file"),
    "unknown flag": ({"--speed": "9"}, 2, "--speed"),
    "no task": ({"--task": "mini_topics_xxx_Latn"}, 1, "there is no task 'mini_topics_xxx_Latn'; did you mean"),
    "too few documents": ({"--shots": "500"}, 1, "500 training documents per class"),
    "prompt too long": ({"--prompt-length": "512"}, 1, "leaves no room for text"),
    "model missing": ({"--model": "nobody/nothing"}, 1, "the base model 'nobody/nothing' can not be loaded"),
    "no such preset": ({"--preset": "mine"}, 1, "expected one of paper"),
    "not a number": ({"--lr": "-1"}, 1, "--lr is -1.0: expected a number above 0"),
    "wrong ending": ({"--output": "x.bin"}, 1, "ends in .safetensors"),
    "missing config": ({"--config": "missing.yaml"}, 1, "--config missing.yaml can not be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_flags_get_one_clear_line(tmp_path, capsys, case):
    flags, status, message = BAD[case]
    arguments = {**GOOD, "--output": str(tmp_path / "p.safetensors"), **flags}
    try:
        found = main([part for pair in arguments.items() for part in pair])
    except SystemExit as exit:  # argparse
        found = exit.code
    errors = capsys.readouterr().err
    assert (found, "Traceback" in errors) == (status, False)
    assert message in errors
    if status == 1:
        assert [line for line in errors.splitlines() if line.startswith("error: ")] == errors.splitlines()[-1:]
    assert not list(tmp_path.iterdir())


def test_the_script_shows_mistakes_without_a_traceback(tmp_path):
    command = [sys.executable, ROOT / "train_prompt.py", "--model", "mini", "--task", TASK, "--shots", "500"]
    done = subprocess.run([*command, "--output", tmp_path / "p.safetensors"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: 500 training documents per class were asked for")
    assert "Traceback" not in done.stderr


def test_yaml_settings_and_the_command_line_wins(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: mini\ntask: {TASK}\noutput: a.safetensors\nprompt-length: 3\nlr: 5e-3\n")
    config = TrainingConfig.from_settings({"config": str(file), "prompt_length": 7})
    assert (config.prompt_length, config.lr, config.epochs) == (7, 5e-3, TrainingConfig.epochs)
    config = TrainingConfig.from_settings({"config": str(file), "preset": "paper"})
    assert (config.prompt_length, config.init, config.loss) == (3, "uniform", "target")
    file.write_text("speed: 3\n")
    with pytest.raises(UserError, match="unknown settings: speed"):
        TrainingConfig.from_settings({"config": str(file)})


CONTRADICTIONS = {
    "--tune model --reparameterization mlp": "--reparameterization is 'mlp': expected nothing: --tune model has no",
    "--tune lora --prompt-length 0 --init x.safetensors": "no file: --tune lora --prompt-length 0 has no prompt",
    "--prompt-length 0": "--prompt-length is 0: expected a whole number from 1 on",
    "--tune all --prompt-length 0": "--prompt-length is 0: expected a whole number from 1 on",
    "--model-lr 1e-4": "--model-lr is 0.0001: expected nothing: --tune prompt leaves the model frozen",
    "--tune lora --context-cache host": "what a tuned model makes of a text changes with every step",
    "--tune all --dtype float16": "--dtype is 'float16': expected auto, float32 or bfloat16",
    "--tune model --quantization 4bit": "--quantization is '4bit': expected none: quantised weights are not tuned",
    "--lora-rank 4": "--lora-rank is 4: expected it together with --tune lora",
    "--reparameterization-lr 1e-3": "expected it together with --reparameterization",
    "--dual-share 0.5 --reparameterization mlp": "expected it with --reparameterization dual",
    "--dual-share 1.5 --reparameterization dual": "expected a share between 0 and 1",
    "--reparameterization dual --prompt-length 1": "--prompt-length is 1: expected 2 or more",
    "--num-prefix-tokens 2": "expected it together with --placement both",
    "--placement both --prompt-length 1": "--placement both needs a vector on either side",
    "--placement both --prompt-length 4 --num-prefix-tokens 4": "expected a number from 1 to 3",
    "--label-smoothing 1": "--label-smoothing is 1.0: expected a share from 0 to below 1",
    "--patience 0": "--patience is 0: expected a whole number from 1 on",
}


@pytest.mark.parametrize("flags", CONTRADICTIONS)
def test_settings_that_contradict_get_one_line(tmp_path, capsys, flags):
    output = ["--output", str(tmp_path / "p.safetensors")]
    assert main(["--model", "mini", "--task", TASK, *flags.split(), *output]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and CONTRADICTIONS[flags] in line
    assert not list(tmp_path.iterdir())
