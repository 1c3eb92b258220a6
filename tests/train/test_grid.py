"""Several runs from one command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lm_eval_spt.cli.train import configurations, main, parser
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.training import TASK


def test_a_grid_trains_each_run_as_if_alone(tmp_path):
    flags = ["--model", "mini", "--task", TASK, "--shots", "2", "--validation-shots", "1", "--epochs", "2"]
    several = [*flags, "--seed", "0", "1", "--prompt-length", "2", "4", "--output", str(tmp_path / "g.safetensors")]
    assert main(several) == 0
    names = [f"g-seed{seed}-prompt_length{length}" for seed in (0, 1) for length in (2, 4)]
    assert sorted(file.stem for file in tmp_path.glob("*.safetensors")) == sorted(names)
    assert sorted(file.stem for file in tmp_path.glob("*.jsonl")) == sorted(names)
    alone = [*flags, "--seed", "1", "--prompt-length", "4", "--output", str(tmp_path / "alone.safetensors")]
    assert main(alone) == 0
    prompt, expected = (
        SoftPrompt.load(tmp_path / f"{names[3]}.safetensors"),
        SoftPrompt.load(tmp_path / "alone.safetensors"),
    )
    assert torch.allclose(prompt.vectors, expected.vectors, atol=1e-5)
    rows, expected_rows = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()[1:]]
        for name in (names[3], "alone")
    )
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row["validation"] == pytest.approx(expected_row["validation"], rel=1e-5)
    assert prompt.metadata["seed"] == 1 and prompt.metadata["hyperparameters"] == expected.metadata["hyperparameters"]


def test_a_grid_of_equal_runs_is_refused(tmp_path, capsys):
    flags = ["--model", "mini", "--task", TASK, "--seed", "0", "0", "--output", str(tmp_path / "g.safetensors")]
    assert main(flags) == 1
    assert "two runs would write" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_grid_over_starts_is_named_after_them(tmp_path):
    flags = ["--model", "mini", "--task", "t", "--output", str(tmp_path / "g.safetensors")]
    starts = ["vocab", str(tmp_path / "some" / "prompt.safetensors"), "owner/name"]
    names = [
        Path(config.output).name
        for config in configurations(vars(parser("train").parse_args([*flags, "--init", *starts])))
    ]
    assert names == ["g-init_vocab.safetensors", "g-init_prompt.safetensors", "g-init_owner_name.safetensors"]
