"""Training by several processes is training by one with the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm_eval_spt import cli
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.paths import ROOT
from tests.helpers.training import TASK

# On CPUs `accelerate launch` starts a single process; torchrun starts several, and accelerate finds them.
LAUNCHER = ["-m", "torch.distributed.run", "--master_port", "0", "--rdzv_backend", "c10d"]


SETTINGS = [
    "--model", "mini", "--task", TASK, "--shots", "2", "--validation-shots", "1", "--epochs", "2", "--lr", "1e-3",
]  # fmt: skip
UNEVEN = ("--batch-size", "5")  # fourteen documents: a batch that can not be shared out evenly


def with_two_processes(output: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    launcher = [*LAUNCHER, "--rdzv_endpoint", "localhost:0", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "train_prompt.py", *SETTINGS, "--output", str(output), *flags]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """What two processes learn."""
    output = tmp_path_factory.mktemp("uneven") / "2.safetensors"
    return output, with_two_processes(output, *UNEVEN)


@pytest.mark.parametrize("flags", [UNEVEN, ("--placement", "prefix", "--gradient-accumulation-steps", "2")])
def test_two_processes_learn_what_one_does(tmp_path, uneven, flags):
    output, two = tmp_path / "2.safetensors", uneven[1]
    if flags == UNEVEN:
        output = uneven[0]
    else:
        two = with_two_processes(output, *flags)
    assert two.returncode == 0, two.stderr
    assert cli.main(["train", *SETTINGS, "--output", str(tmp_path / "1.safetensors"), *flags]) == 0
    prompt, expected = SoftPrompt.load(output), SoftPrompt.load(tmp_path / "1.safetensors")
    torch.testing.assert_close(prompt.vectors, expected.vectors, atol=1e-5, rtol=1e-4)
    rows, expected_rows = (
        [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()[1:]]
        for file in (output, tmp_path / "1.safetensors")
    )
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row["validation"] == pytest.approx(expected_row["validation"], rel=1e-5)
        assert row["training"].get("accuracy") == expected_row["training"].get("accuracy")
    assert two.stdout.count("tuned parameters") == 1  # one of them speaks
    assert {path.name for folder in (output.parent, tmp_path) for path in folder.iterdir()} == {
        "1.jsonl", "1.safetensors", "2.jsonl", "2.safetensors",
    }  # fmt: skip


def test_a_process_that_is_killed_ends_all_and_the_rest_is_resumed(tmp_path, uneven):
    """What two processes have learned until one is killed, two others go on with."""
    output = tmp_path / "killed.safetensors"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, threading, time\n"
        "def watch():\n"
        f"    while not os.path.exists({str(output.with_suffix('.checkpoint'))!r}):\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ.get('RANK') == '1':\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
    )
    killed = with_two_processes(output, *UNEVEN, PYTHONPATH=str(tmp_path))
    assert killed.returncode != 0 and not output.exists()
    assert with_two_processes(output, *UNEVEN, "--resume").returncode == 0
    assert torch.equal(SoftPrompt.load(output).vectors, SoftPrompt.load(uneven[0]).vectors)
