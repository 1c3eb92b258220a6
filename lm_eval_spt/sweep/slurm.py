"""The engine for a Slurm cluster: a script for an array job, in which each task does one shard like `local`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lm_eval_spt.common.files import write
from lm_eval_spt.sweep.plan import Plan

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array={array}
#SBATCH --gres=gpu:1
#SBATCH --ntasks=1
#SBATCH --output={logs}/slurm%a.txt
# Flags of sbatch win over these lines: sbatch --partition=gpu --time=4:00:00 {script}
set -euo pipefail
cd {folder}
exec {command} --shard "$SLURM_ARRAY_TASK_ID"
"""


def write_script(plan: Plan, shards: Sequence[int], sweep_file: Path, flags: Sequence[str]) -> Path:
    """Write ``<output>/sweep.sbatch`` beside a copy of the sweep file, and return its path.

    Args:
        plan: the sweep.
        shards: the numbers of the shards that are not done.
        sweep_file: the file that the plan was read from. The job reads the copy, so that the file can change meanwhile.
        flags: the command-line flags that change the plan.
    """
    copy = plan.output / f"{plan.name}.yaml"
    if copy.absolute() != sweep_file.absolute():
        write(copy, sweep_file.read_bytes())
    command = [sys.executable, "-m", "lm_eval_spt.cli", "sweep", str(copy), *flags]
    logs = plan.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)  # Slurm does not create it
    path = plan.output / "sweep.sbatch"
    script = SCRIPT.format(
        name=shlex.quote(plan.name),
        array=",".join(map(str, shards)),
        logs=logs.absolute(),
        script=shlex.quote(str(path)),
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(command),
    )
    write(path, script.encode())
    return path
