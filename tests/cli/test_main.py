"""The command line ``lm-eval-spt`` as its users meet it: its help, its mistakes, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import torch

import lm_eval_spt
from lm_eval_spt import cli
from lm_eval_spt.prompt.compose import Mode
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.cli.conftest import run
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "gone.safetensors"], "no such file"),
        (["inspect", "owner/name"], "could not be reached"),
        (["inspect", "{prompt}", "--base-model", "no/such-model"], "base model 'no/such-model' can not be loaded"),
        (["inspect", "{prompt}", "--base-model", "{folder}"], "can not be loaded"),
        (["inspect", "{small}", "--base-model", "mini"], "vectors of size 2, but 'mini' takes vectors of size 256"),
        (["inspect", "{foreign}", "--base-model", "mini"], "was trained for 'some/other'"),
        (["convert", "{suffix}", "{folder}/new"], "PEFT can not express"),
        (["convert", "{prompt}", "{folder}/new.safetensors"], "a prompt file becomes a PEFT folder"),
        (["convert", "{folder}", "{folder}/new"], "a PEFT folder becomes a .safetensors file"),
        (["convert", "{folder}/gone.safetensors", "{folder}/new"], "no such file"),
        (["convert", "{folder}", "{folder}/new.safetensors"], "no adapter_config.json"),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, prompt_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    names = {"prompt": str(prompt_file), "folder": str(folder)}
    for name, prompt in {
        "small": SoftPrompt(torch.ones(1, 2)),
        "suffix": SoftPrompt(torch.ones(1, 2), {"placement": "suffix"}),
        "foreign": SoftPrompt(torch.ones(1, 256), {"base_model": "some/other", "embedding_fingerprint": "0" * 16}),
    }.items():
        names[name] = str(tmp_path / f"{name}.safetensors")
        prompt.save(names[name])
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([argument.format(**names) for argument in arguments]) == 1
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_mistake_in_a_process_of_its_own_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(b"")
    result = run("inspect", tmp_path / "p.safetensors")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and "is empty" in result.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["unknown"], ["inspect"], ["inspect", "x", "--neighbours", "0"], ["convert", "x"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and "usage: lm-eval-spt" in capsys.readouterr().err


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"lm_eval_spt {lm_eval_spt.__version__}\n"


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, prompt_file: Path) -> None:
    def interrupt(_: object) -> SoftPrompt:
        raise KeyboardInterrupt

    monkeypatch.setattr(SoftPrompt, "from_pretrained", interrupt)
    assert cli.main(["inspect", str(prompt_file)]) == 130


def test_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    SoftPrompt(torch.ones(5000, 2)).save(tmp_path / "long.safetensors")
    command = f"{sys.executable} -m lm_eval_spt.cli inspect {tmp_path / 'long.safetensors'} | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.stdout.split() == ["name", "long"] and result.stderr == ""


def test_terminal_without_utf8_still_gets_its_report(tmp_path: Path) -> None:
    SoftPrompt(torch.ones(1, 2), {"language": "čeština"}).save(tmp_path / "p.safetensors")
    command = [sys.executable, "-m", "lm_eval_spt.cli", "inspect", str(tmp_path / "p.safetensors")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert result.returncode == 0 and r"\u010de\u0161tina" in result.stdout


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)], ids=lambda command: " ".join(command))
def test_help_has_an_example_and_loads_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys; from lm_eval_spt.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print({'torch', 'transformers', 'lm_eval', 'numpy'} & sys.modules.keys(), file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", script, *command, "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0 and result.stderr == "set()\n"
    assert "example: lm-eval-spt" in result.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_flags_are_in_hyphens_and_the_command_says_its_own_name(name: str) -> None:
    parser = import_module(f"lm_eval_spt.cli.{name}").parser(f"lm-eval-spt {name}")
    flags = [flag for action in parser._actions for flag in action.option_strings]
    assert not [flag for flag in flags if "_" in flag]
    assert parser.format_usage().startswith(f"usage: lm-eval-spt {name} ")


def test_underscores_are_taken_for_hyphens_in_flags_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    received: dict[str, object] = {}
    monkeypatch.setattr(
        "lm_eval_spt.harness.evaluate.evaluate_prompts", lambda *names, **options: received.update(options, names=names)
    )
    flags = ["--model_args", "a_b=c_d", "--batch_size=4", "--log_samples", "--num-fewshot", "2"]
    assert cli.main(["evaluate", "--prompts", "p_q", "--tasks", "t_u,v", "--output", "o_p", *flags]) == 0
    assert received["names"] == (["p_q"], ["t_u", "v"])
    shown = {name: received[name] for name in ("model_args", "batch_size", "log_samples", "num_fewshot", "output")}
    assert shown == {
        "model_args": "a_b=c_d", "batch_size": "4", "log_samples": True, "num_fewshot": 2, "output": "o_p",
    }  # fmt: skip
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--num_fewshot", "many"])
    assert "argument --num-fewshot: invalid int value" in capsys.readouterr().err


def test_choices_are_those_that_the_code_knows() -> None:
    """Parsers list them by hand, so that their help needs no torch."""
    parser = import_module("lm_eval_spt.cli.compose").parser("compose")
    (mode,) = (action for action in parser._actions if action.dest == "mode")
    assert tuple(mode.choices or ()) == get_args(Mode)
