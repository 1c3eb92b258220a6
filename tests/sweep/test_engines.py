"""The engines, and the flags of the command that choose and steer them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from lm_eval_spt.cli import main
from lm_eval_spt.cli.sweep import sweep
from lm_eval_spt.harness import patches
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.paths import ROOT
from tests.helpers.sweeps import TARGETS, copy_sweep, scores, sweep_file


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


def test_slurm_gets_a_script_that_runs_the_same_shards(done, tmp_path, capsys):
    file = copy_sweep(done, tmp_path)
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
