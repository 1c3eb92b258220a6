"""``lm-eval-spt convert``: there and back, and what it overwrites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lm_eval_spt import cli
from lm_eval_spt.hub.model_card import model_card
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.cli.conftest import run


def test_convert_there_and_back(prompt_file: Path, tmp_path: Path) -> None:
    there = run("convert", prompt_file, tmp_path / "peft")
    assert there.returncode == 0 and "3 virtual tokens" in there.stdout, there.stderr
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["num_virtual_tokens"] == 3
    card = (tmp_path / "peft" / "README.md").read_text(encoding="utf-8")
    assert card == model_card(SoftPrompt.load(prompt_file), str(tmp_path / "peft"))
    assert cli.main(["convert", str(tmp_path / "peft"), str(tmp_path / "back.safetensors")]) == 0
    before, after = SoftPrompt.load(prompt_file), SoftPrompt.load(tmp_path / "back.safetensors")
    assert after.digest == before.digest and after.metadata == before.metadata


def test_convert_overwrites_only_by_force(
    prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SoftPrompt(torch.zeros(1, 2)).to_peft(tmp_path / "peft")
    before = (tmp_path / "peft" / "adapter_model.safetensors").read_bytes()
    arguments = ["convert", str(prompt_file), str(tmp_path / "peft")]
    assert cli.main(arguments) == 1
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "peft" / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "peft" / "README.md").write_text("mine")
    assert cli.main([*arguments, "--force"]) == 0
    assert (tmp_path / "peft" / "README.md").read_text() == "mine"
    assert SoftPrompt.load(tmp_path / "peft").digest == SoftPrompt.load(prompt_file).digest


def test_the_kind_of_base_model_can_be_named(tmp_path: Path) -> None:
    """A prompt that does not say for which kind it was learned, of a base model that is not looked at."""
    SoftPrompt(torch.zeros(2, 4), {"base_model": "/elsewhere/t5"}).save(tmp_path / "p.safetensors")
    command = ["convert", str(tmp_path / "p.safetensors"), str(tmp_path / "peft"), "--task-type", "SEQ_2_SEQ_LM"]
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    assert (
        cli.main(["convert", str(tmp_path / "peft"), str(tmp_path / "q.safetensors"), "--task-type", "CAUSAL_LM"]) == 1
    )
