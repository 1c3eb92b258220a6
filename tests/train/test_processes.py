"""Training by several processes is training by one with the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.conftest import ROOT
from tests.helpers.training import TASK

# On CPUs `accelerate launch` starts a single process; torchrun starts several, and accelerate finds them.
LAUNCHER = ["-m", "torch.distributed.run", "--master_port", "0", "--rdzv_backend", "c10d"]


def train_with(processes: int, output: Path, *flags: str) -> subprocess.CompletedProcess:
    launcher = (
        [*LAUNCHER, "--rdzv_endpoint", "localhost:0", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    settings = [
        "--model", "mini", "--task", TASK, "--shots", "2", "--validation-shots", "1", "--epochs", "2", "--lr", "1e-3",
    ]  # fmt: skip
    command = [sys.executable, *launcher, "train_prompt.py", *settings, "--output", str(output), *flags]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.mark.parametrize(
    "flags", [("--batch-size", "5"), ("--placement", "prefix", "--gradient-accumulation-steps", "2")]
)
def test_two_processes_learn_what_one_does(tmp_path, flags):
    """Also where a batch can not be shared out evenly: fourteen documents in batches of five."""
    one, two = (train_with(number, tmp_path / f"{number}.safetensors", *flags) for number in (1, 2))
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    prompt, expected = (SoftPrompt.load(tmp_path / f"{number}.safetensors") for number in (2, 1))
    torch.testing.assert_close(prompt.vectors, expected.vectors, atol=1e-5, rtol=1e-4)
    rows, expected_rows = (
        [json.loads(line) for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()[1:]] for number in (2, 1)
    )
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row["validation"] == pytest.approx(expected_row["validation"], rel=1e-5)
        assert row["training"].get("accuracy") == expected_row["training"].get("accuracy")
    assert two.stdout.count("tuned parameters") == 1  # one of them speaks
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1.jsonl", "1.safetensors", "2.jsonl", "2.safetensors",
    ]  # fmt: skip


def test_a_process_that_is_killed_ends_all_and_the_rest_is_resumed(tmp_path):
    """What two processes have learned until one is killed, two others go on with."""
    whole = train_with(2, tmp_path / "whole.safetensors", "--epochs", "3")
    assert whole.returncode == 0, whole.stderr
    output = tmp_path / "killed.safetensors"
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(
        "import os, signal, threading, time\n"
        "def watch():\n"
        f"    while not os.path.exists({str(output.with_suffix('.checkpoint'))!r}):\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ.get('RANK') == '1':\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
    )
    os.environ["PYTHONPATH"], before = str(tmp_path), os.environ.get("PYTHONPATH")
    try:
        killed = train_with(2, output, "--epochs", "3")
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    assert killed.returncode != 0 and not output.exists()
    assert train_with(2, output, "--epochs", "3", "--resume").returncode == 0
    found, expected = SoftPrompt.load(output), SoftPrompt.load(tmp_path / "whole.safetensors")
    assert torch.equal(found.vectors, expected.vectors)
