"""One injection: a job is disturbed, looked at, run again, and compared with the same job undisturbed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_spt.prompt import SoftPrompt
from tests.faults.inject import DISKS, SIGNALS, Fault

TIME_LIMIT = 300.0  # seconds, on a busy machine
DATES = ("date", "start_time", "end_time", "total_evaluation_time_seconds")
"""What of a results file differs from run to run."""


class Broken(AssertionError):
    """A fault did harm."""


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder.

    Attributes:
        name: of the job.
        command: makes the command for a folder.
        before: puts into the folder what is there beforehand.
        read: reads a folder: what is in the files under their final names, by name. Raises where one is damaged.
        faults: kinds that can befall it.
        keeps: pattern of the files that, once there, a further run leaves as they are.
    """

    name: str
    command: Callable[[Path], list[str]]
    before: Callable[[Path], None]
    read: Callable[[Path], dict[str, Any]]
    faults: Sequence[str]
    keeps: str = ""


class Trials:
    """Runs jobs, disturbed and undisturbed.

    Args:
        root: folder for everything.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.jobs", "tests.faults.trial"])
        self._undisturbed: dict[str, Undisturbed] = {}

    def undisturbed(self, job: Job) -> Undisturbed:
        """Return what the job comes to; it is run once, a second time to know how long it takes when all is warm."""
        if job.name not in self._undisturbed:
            for attempt in ("first", "second"):
                folder = self._folder(job, attempt)
                started = time.monotonic()
                status, printed = self._run(job, folder, None)
                if status:
                    raise Broken(f"{job.name}: does not even work undisturbed:\n{printed}")
            operations = int(re.findall(r"file operations: (\d+)", printed)[-1])
            state = job.read(folder)
            self._undisturbed[job.name] = Undisturbed(state, operations, time.monotonic() - started)
            shutil.rmtree(folder)
        return self._undisturbed[job.name]

    def inject(self, job: Job, rng: random.Random) -> str:
        """Disturb a job, and look at what comes of it.

        Returns:
            What was done.

        Raises:
            Broken: a file under a final name is damaged, something that was finished is gone, a mistake was not told in
                one line, the job can not be run again, or its result is another one.
        """
        expected = self.undisturbed(job)
        kind = rng.choice(list(job.faults))
        folder = self._folder(job, f"{rng.getrandbits(48):012x}")
        earlier = job.read(folder)
        if kind == "twice":
            what = f"{job.name}: two at once"
            statuses = self._run_two(job, folder)
        else:
            fault, delay = self._draw(kind, expected, rng)
            what = f"{job.name}: {kind} " + (f"after {delay:.2f} s" if delay is not None else f"at step {fault.step}")
            statuses = [self._run(job, folder, fault, kind, delay)]
        try:
            between = self._look(job, folder, expected)
            for name, content in earlier.items():
                if name not in between:
                    raise Broken(f"{name} was there before and is gone")
                if between[name] not in (content, expected.state.get(name)):
                    raise Broken(f"{name} is neither what it was nor what it should become")
            for status, printed in statuses:
                _check_end(kind, status, printed)
            finished = {path: path.read_bytes() for path in _visible(folder, job.keeps)} if job.keeps else {}
            status, printed = self._run(job, folder, None)
            if status:
                raise Broken(f"it can not be run again (status {status}):\n{printed[-1500:]}")
            after = self._look(job, folder, expected)
            for path, content in finished.items():
                if not path.exists() or path.read_bytes() != content:
                    raise Broken(f"{path.name} was finished, and was done again")
            for name in expected.state:
                if after.get(name) != expected.state[name]:
                    raise Broken(f"{name} is not what an undisturbed run makes it")
        except Broken as broken:
            raise Broken(f"{what}: {broken}\n(in {folder})") from None
        shutil.rmtree(folder)
        return what

    def _look(self, job: Job, folder: Path, expected: Undisturbed) -> dict[str, Any]:
        try:
            return job.read(folder)
        except Exception as error:
            raise Broken(f"a file under its final name is damaged: {type(error).__name__}: {error}") from error

    def _draw(self, kind: str, expected: Undisturbed, rng: random.Random) -> tuple[Fault, float | None]:
        if kind in SIGNALS and rng.random() < 0.5:
            return Fault("none"), rng.uniform(0, expected.seconds)
        if kind == "OOM":
            return Fault(kind, amount=rng.choice((0, 1, 50, 200))), None
        if kind == "clock":
            return Fault(kind, amount=rng.choice((1, 3600, 10**7, 10**9))), None
        return Fault(kind, step=rng.randint(1, expected.operations)), None

    def _folder(self, job: Job, name: str) -> Path:
        folder = self._root / f"{job.name}-{name}"
        folder.mkdir()
        job.before(folder)
        return folder

    def _start(self, job: Job, folder: Path, fault: Fault | None, number: int = 0) -> tuple[Any, Path]:
        printed = folder.with_name(f"{folder.name}.{number}.printed")
        process = self._context.Process(target=_run_job, args=(job.command(folder), str(folder), str(printed), fault))
        process.start()
        return process, printed

    def _run(
        self, job: Job, folder: Path, fault: Fault | None, kind: str = "", delay: float | None = None
    ) -> tuple[int, str]:
        process, printed = self._start(job, folder, fault)
        if delay is not None:
            while process.exitcode is None and not (printed.exists() and printed.stat().st_size):
                time.sleep(0.002)  # it has not started yet
            process.join(delay)
            if process.exitcode is None:
                os.kill(process.pid, SIGNALS[kind])
        return self._end(process, printed)

    def _run_two(self, job: Job, folder: Path) -> list[tuple[int, str]]:
        return [self._end(*started) for started in [self._start(job, folder, None, number) for number in (0, 1)]]

    def _end(self, process: Any, printed: Path) -> tuple[int, str]:
        process.join(TIME_LIMIT)
        if process.exitcode is None:
            process.kill()
            raise Broken(f"still running after {TIME_LIMIT:.0f} s")
        text = printed.read_text(errors="replace") if printed.exists() else ""
        printed.unlink(missing_ok=True)
        return process.exitcode, text


@dataclass(frozen=True)
class Undisturbed:
    """What a job comes to, how many file operations it takes, and how long."""

    state: dict[str, Any]
    operations: int
    seconds: float


def _run_job(*arguments: Any) -> None:
    from tests.faults.jobs import run  # it is there already, in the server; here it would take seconds

    run(*arguments)


def _check_end(kind: str, status: int, printed: str) -> None:
    """Raise :class:`Broken` where a process ended in another way than it should have."""
    if kind == "SIGINT" and status not in (0, 130, -signal.SIGINT):
        raise Broken(f"Ctrl-C ended in status {status}:\n{printed[-1500:]}")
    if kind in ("SIGKILL", "SIGTERM") and status not in (0, -SIGNALS[kind]):
        raise Broken(f"{kind} ended in status {status}:\n{printed[-1500:]}")
    if kind in DISKS:
        told = [line for line in printed.splitlines() if line.startswith("error: ")]
        if "Traceback" in printed or status not in (0, 1) or (status == 1) != (len(told) == 1):
            raise Broken(f"a disk that fails ({kind}) ended in status {status}, not in one line:\n{printed[-1500:]}")
    if kind in ("OOM", "clock", "twice") and status:
        raise Broken(f"{kind} ended in status {status}:\n{printed[-1500:]}")


# -- the jobs --------------------------------------------------------------------------------------------------------


def _nothing(folder: Path) -> None:
    pass


def _visible(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")]


def _old_file(folder: Path) -> None:
    (folder / "file").write_bytes(b"old " * 1000)


def _read_file(folder: Path) -> dict[str, Any]:
    content = (folder / "file").read_bytes()
    if content not in (b"old " * 1000, b"new " * 100_000):
        raise ValueError("neither old nor new")
    return {"file": content}


def _train(folder: Path) -> list[str]:
    task = ["--model", "mini", "--task", "mini_topics_eng_Latn", "--shots", "1", "--validation-shots", "1"]
    run = ["--epochs", "2", "--prompt-length", "3", "--seed", "0", "1", "--device", "cpu"]
    return ["train", *task, *run, "--output", str(folder / "p.safetensors")]


def _read_prompts(folder: Path) -> dict[str, Any]:
    """Prompts by name; an interrupted run may have kept an earlier epoch, which is whole as well."""
    found: dict[str, Any] = {}
    for path in _visible(folder, "*.safetensors"):
        SoftPrompt.load(path)
        found[path.name] = path.read_bytes()
    for path in _visible(folder, "*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line)
    return found


def _evaluate(prompts: Path) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        files = [str(path) for path in sorted(prompts.glob("*.safetensors"))]
        tasks = ["--tasks", "mini_topics_eng_Latn,mini_topics_hin_Deva", "--limit", "2", "--log_samples"]
        return [
            "evaluate",
            "--prompts",
            *files,
            *tasks,
            "--output",
            str(folder),
            "--device",
            "cpu",
            "--batch_size",
            "8",
        ]

    return command


def _read_results(folder: Path) -> dict[str, Any]:
    """The newest results of every prompt, with their samples, without dates."""
    found: dict[str, Any] = {}
    for path in _visible(folder, "*/results_*.json"):
        content = json.loads(path.read_text())
        stamp = path.stem.removeprefix("results_")
        samples = {}
        for task in content["n-shot"]:
            (file,) = path.parent.glob(f"samples_{task}_{stamp}.jsonl")
            samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
            if len(samples[task]) != content["n-samples"][task]["effective"]:
                raise ValueError(f"{file} does not have all documents")
        for name in DATES:
            content.pop(name, None)
        found[path.parent.name] = json.loads(_without_rounding(json.dumps([content, samples], sort_keys=True)))
    return found


def _without_rounding(text: str) -> str:
    """Log-likelihoods with four digits: where memory ran out, batches are others, and so is the last rounding."""
    return re.sub(r"-?\d+\.\d{5,}", lambda match: f"{float(match[0]):.4f}", text)


def jobs(root: Path) -> dict[str, Job]:
    """Return the jobs by name. A job that runs in several processes (ranks, workers) is one more entry here.

    Args:
        root: folder for what they need.
    """
    prompts = root / "prompts"
    prompts.mkdir()
    for seed, placement in enumerate(("prefix", "suffix", "suffix")):
        _random_prompt(placement, seed).save(prompts / f"p{seed}.safetensors")
    disks, signals = list(DISKS), list(SIGNALS)
    return {
        job.name: job
        for job in (
            Job(
                "write", lambda folder: ["write", str(folder / "file"), "400000"], _old_file, _read_file,
                [*disks, *signals, "twice"],
            ),
            Job("train", _train, _nothing, _read_prompts, [*disks, *signals, "clock", "twice"]),
            Job(
                "evaluate", _evaluate(prompts), _nothing, _read_results, [*disks, *signals, "OOM", "clock", "twice"],
                keeps="*/results_*.json",
            ),
        )
    }  # fmt: skip


def _random_prompt(placement: str, seed: int) -> SoftPrompt:
    import torch

    vectors = 0.1 * torch.randn(3, 256, generator=torch.Generator().manual_seed(seed))
    return SoftPrompt(vectors, {"placement": placement, "base_model": "mini"})


def temporary_root() -> tempfile.TemporaryDirectory[str]:
    """A folder for trials, in memory where the system offers that."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="faults-")
