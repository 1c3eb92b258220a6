"""What faults are injected into: commands of this package, each in a process of its own.

This module is loaded once into a server process (``multiprocessing``'s forkserver) that then forks a process for each
injection: importing torch and the harness and loading the model takes seconds, forking takes milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # no threads: a process that has some can not be forked safely
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import lm_eval.evaluator
import lm_eval.models.huggingface  # noqa: F401
import torch
import transformers
from lm_eval.tasks import TaskManager
from tqdm import tqdm

import lm_eval_spt.cli.sweep
import lm_eval_spt.cli.train
import lm_eval_spt.sweep.engines  # noqa: F401
from lm_eval_spt import cli
from lm_eval_spt.common import files
from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness import evaluate
from lm_eval_spt.inference.base_model import model_path
from lm_eval_spt.inference.transformers_internals import decoder_of
from lm_eval_spt.sweep import cost
from lm_eval_spt.train import examples, grid  # noqa: F401
from tests.faults.inject import Fault

torch.set_num_threads(1)
MODEL = transformers.AutoModelForCausalLM.from_pretrained(model_path("mini"), dtype=torch.float32).eval()
TASKS = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
TOKENIZER = transformers.AutoTokenizer.from_pretrained(model_path("mini"))


def run(command: list[str], folder: str, output: str, fault: Fault | None, environment: dict[str, str]) -> None:
    """Run a command in this process, which ends with its exit status.

    Args:
        command: arguments of ``lm-eval-spt``, or ``write``, a path and a number of bytes.
        folder: where the command writes.
        output: file for what it prints.
        fault: what befalls it; without one its file operations are counted, and the number is the output's last line.
        environment: variables that are added to the environment.
    """
    os.environ.update(environment)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    tempfile.tempdir = str(Path(folder).parent)
    os.chdir(tempfile.tempdir)  # the harness records the commit of the folder that it runs in
    tqdm.set_lock(threading.RLock())  # its own lock is one for all forks: of one that is killed it would never be free
    _use_what_is_loaded()
    fault = fault or Fault("none")
    fault.arm(Path(folder), decoder_of(MODEL))
    try:
        print("started", flush=True)
        own = {"write": _write, "write carelessly": _write_carelessly}
        status = own[command[0]](*command[1:]) if command[0] in own else cli.main(command)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command has ended: what comes now is not for it
    except KeyboardInterrupt:
        status = 130
    fault.over()
    print(f"file operations: {fault.seen}, struck: {fault.struck}", flush=True)
    os._exit(status)


def _write(path: str, size: str) -> int:
    try:
        files.write(Path(path), b"new " * (int(size) // 4))
    except files.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _write_carelessly(path: str, size: str) -> int:
    """What the trials must find fault with."""
    Path(path).write_bytes(b"new " * (int(size) // 4))
    return 0


def _use_what_is_loaded() -> None:
    """Give the model, its tokenizer and the index of tasks that are here already to whoever would load them."""

    def loaded(thing: Any) -> Callable[..., Any]:
        return lambda *_, **__: thing

    transformers.AutoModelForCausalLM.from_pretrained = loaded(MODEL)
    transformers.AutoTokenizer.from_pretrained = loaded(TOKENIZER)
    examples.task_manager = evaluate.task_manager = cost.task_manager = loaded(TASKS)
    lm_eval.evaluator.add_env_info = loaded(None)  # it starts other programs, and takes a second
