"""One injection: a job is disturbed, looked at, run again, and compared with the same job undisturbed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.faults.inject import DISKS, SIGNALS, Fault

TIME_LIMIT = 300.0  # seconds, on a busy machine
DATES = ("date", "start_time", "end_time", "total_evaluation_time_seconds")
"""What of a results file differs from run to run."""
WORKER = "a Ray worker killed"


class Broken(AssertionError):
    """A fault did harm."""


class EndUnknown(Exception):
    """The fork server did not tell how a process ended, as happens once in hundreds: nothing can be said of it."""


NOT_TOLD = 255
"""What multiprocessing says then; no command here ends with it."""


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder.

    Attributes:
        name: of the job.
        command: makes the command for a folder.
        before: puts into the folder what is there beforehand.
        read: reads a folder: what is in the files under their final names, by name. Raises where one is damaged.
        faults: kinds that can befall it.
        finished: returns the files in a folder that, once there, a further run leaves as they are.
        ranks: in how many processes it runs, as ``torchrun`` would start them.
        share: of the injections of a long run.
    """

    name: str
    command: Callable[[Path], list[str]]
    before: Callable[[Path], None]
    read: Callable[[Path], dict[str, Any]]
    faults: Sequence[str]
    finished: Callable[[Path], list[Path]] = lambda folder: []
    ranks: int = 1
    share: float = 1.0


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
                status, printed = self._run(job, folder)
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
            The kind of fault.

        Raises:
            Broken: a file under a final name is damaged, something that was finished is gone, a mistake was not told in
                one line, the job can not be run again, or its result is another one.
        """
        for _ in range(5):
            with contextlib.suppress(EndUnknown):
                return self._inject(job, rng)
        raise Broken(f"{job.name}: five times it is not known how it ended")

    def _inject(self, job: Job, rng: random.Random) -> str:
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
            statuses = [self._run(job, folder, fault, kind, delay, rng.randrange(job.ranks) if delay else 0)]
        try:
            between = self._look(job, folder, expected)
            for name, content in earlier.items():
                if name not in between:
                    raise Broken(f"{name} was there before and is gone")
                if not (_same(between[name], content) or _same(between[name], expected.state.get(name))):
                    raise Broken(f"{name} is neither what it was nor what it should become")
            for status, printed in statuses:
                _check_end(kind, status, printed)
            self._complete(job, folder, expected)
        except Broken as broken:
            raise Broken(f"{what}: {broken}\n(in {folder})") from None
        shutil.rmtree(folder)
        return kind

    def kill_again_and_again(self, job: Job, kills: int, rng: random.Random) -> int:
        """Kill a job, run it again, kill that, and so on until it ends; if that is too soon, begin with another one.

        Args:
            job: goes on where it stopped.
            kills: how many in all, each soon after a start.
            rng: decides on the moments.

        Returns:
            How many times a job was run to its end.

        Raises:
            Broken: as :meth:`inject`.
        """
        expected = self.undisturbed(job)
        done = ended = 0
        while done < kills:
            folder = self._folder(job, f"{rng.getrandbits(48):012x}")
            try:
                while done < kills:
                    # So late that there is progress as a rule, and so early that the job takes many lives.
                    if rng.random() < 0.5:
                        fault, delay = Fault("SIGKILL", step=rng.randint(1, expected.operations // 6)), None
                    else:
                        fault, delay = Fault("none"), rng.uniform(0, expected.seconds / 2)
                    status, printed = self._run(job, folder, fault, "SIGKILL", delay)
                    _check_end("SIGKILL", status, printed)
                    self._look(job, folder, expected)
                    if status == 0:
                        break
                    done += 1
                self._complete(job, folder, expected)
            except EndUnknown:
                continue  # with another one
            except Broken as broken:
                raise Broken(f"{job.name}: killed {done} times: {broken}\n(in {folder})") from None
            ended += 1
            shutil.rmtree(folder)
        return ended

    def _complete(self, job: Job, folder: Path, expected: Undisturbed) -> None:
        """Run a job that was disturbed to its end, and look at what comes of it."""
        finished = {path: path.read_bytes() for path in job.finished(folder)}
        status, printed = self._run(job, folder)
        if status:
            raise Broken(f"it can not be run again (status {status}):\n{printed[-1500:]}")
        after = self._look(job, folder, expected)
        for path, content in finished.items():
            if not path.exists() or path.read_bytes() != content:
                raise Broken(f"{path.name} was finished, and was done again")
        for name, of in expected.state.items():
            if not _same(after.get(name), of):
                raise Broken(f"{name} is not what an undisturbed run makes it")

    def _look(self, job: Job, folder: Path, expected: Undisturbed) -> dict[str, Any]:
        try:
            return job.read(folder)
        except Exception as error:
            raise Broken(f"a file under its final name is damaged: {type(error).__name__}: {error}") from error

    def _draw(self, kind: str, expected: Undisturbed, rng: random.Random) -> tuple[Fault, float | None]:
        if kind == WORKER or (kind in SIGNALS and rng.random() < 0.5):
            return Fault("none"), rng.uniform(0, expected.seconds)
        if kind == "OOM":
            # More than the few tokens that show how a model reads: it is the scorer that must meet it.
            return Fault(kind, amount=rng.choice((30, 50, 80))), None
        if kind == "clock":
            return Fault(kind, amount=rng.choice((1, 3600, 10**7, 10**9))), None
        return Fault(kind, step=rng.randint(1, expected.operations)), None

    def _folder(self, job: Job, name: str) -> Path:
        folder = self._root / f"{job.name}-{name}"
        folder.mkdir()
        job.before(folder)
        return folder

    def _start(
        self, job: Job, folder: Path, fault: Fault | None, number: int = 0, environment: dict[str, str] | None = None
    ) -> tuple[Any, Path]:
        printed = folder.with_name(f"{folder.name}.{number}.printed")
        arguments = (job.command(folder), str(folder), str(printed), fault, environment or {})
        process = self._context.Process(target=_run_job, args=arguments)
        process.start()
        return process, printed

    def _run(
        self,
        job: Job,
        folder: Path,
        fault: Fault | None = None,
        kind: str = "",
        delay: float | None = None,
        struck: int = 0,
    ) -> tuple[int, str]:
        """Run a job; of one with several ranks the one that is struck counts, and its end is the end of all."""
        ranks = [
            self._start(job, folder, fault if rank == struck else None, rank, environment)
            for rank, environment in enumerate(_ranks(job.ranks))
        ]
        process, printed = ranks[struck]
        if delay is not None:
            while process.exitcode is None and not (printed.exists() and printed.stat().st_size):
                time.sleep(0.002)  # it has not started yet
            if kind == WORKER:
                _kill_worker(process, delay)
            else:
                process.join(delay)
                with contextlib.suppress(ProcessLookupError):  # it may end just now
                    if process.exitcode is None:
                        os.kill(process.pid, SIGNALS[kind])
        if job.ranks > 1:
            process.join(TIME_LIMIT)
            for other, _ in ranks:
                if process.exitcode and other.exitcode is None:
                    other.terminate()  # as torchrun does
        return [self._end(*started) for started in ranks][struck]

    def _run_two(self, job: Job, folder: Path) -> list[tuple[int, str]]:
        return [self._end(*started) for started in [self._start(job, folder, None, number) for number in (0, 1)]]

    def _end(self, process: Any, printed: Path) -> tuple[int, str]:
        process.join(TIME_LIMIT)
        if process.exitcode is None:
            process.kill()
            raise Broken(f"still running after {TIME_LIMIT:.0f} s")
        text = printed.read_text(errors="replace") if printed.exists() else ""
        printed.unlink(missing_ok=True)
        if process.exitcode == NOT_TOLD:
            raise EndUnknown
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


def _same(found: Any, expected: Any) -> bool:
    """Tell whether two states are equal but for rounding: where memory ran out, batches are others."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(found[name], expected[name]) for name in found)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    if found == expected:
        return True
    try:
        return math.isclose(float(found), float(expected), abs_tol=1e-4)
    except (TypeError, ValueError):
        return False


def _ranks(count: int) -> list[dict[str, str]]:
    """Return what torchrun adds to the environment of each process; nothing for a single one."""
    if count == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    shared["ACCELERATE_USE_CPU"] = "true"
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _kill_worker(process: Any, delay: float) -> None:
    """Kill one of the Ray workers of a process, so many seconds after the first is there."""
    seen: float | None = None
    while process.exitcode is None:
        time.sleep(0.02)
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True)
            workers = [child for child in children if "ray::RemoteWorker" in " ".join(child.cmdline())]
            if workers and seen is None:
                seen = time.monotonic()
            if workers and seen is not None and time.monotonic() - seen >= delay:
                workers[0].kill()
                return


def _check_end(kind: str, status: int, printed: str) -> None:
    """Raise :class:`Broken` where a process ended in another way than it should have, or nothing befell it."""
    struck = re.findall(r"struck: (\d+)", printed)
    if kind in ("OOM", "clock") and struck[-1:] == ["0"]:
        raise Broken(f"{kind} never struck:\n{printed[-1500:]}")
    if kind == "SIGINT" and status not in (0, 130, -signal.SIGINT):
        raise Broken(f"Ctrl-C ended in status {status}:\n{printed[-1500:]}")
    if kind in ("SIGKILL", "SIGTERM") and status not in (0, -SIGNALS[kind]):
        raise Broken(f"{kind} ended in status {status}:\n{printed[-1500:]}")
    if kind in DISKS:
        told = [line for line in printed.splitlines() if line.startswith("error: ")]
        if "Traceback" in printed or status not in (0, 1) or (status == 1) != (len(told) == 1):
            raise Broken(f"a disk that fails ({kind}) ended in status {status}, not in one line:\n{printed[-1500:]}")
    if kind in ("OOM", "clock", "twice", WORKER) and status:
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


def _train(*flags: str) -> Callable[[Path], list[str]]:
    task = ["--model", "mini", "--task", "mini_topics_eng_Latn", "--shots", "1", "--validation-shots", "1"]
    run = ["--epochs", "2", "--prompt-length", "3", "--device", "cpu", *flags]
    return lambda folder: ["train", *task, *run, "--output", str(folder / "p.safetensors")]


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
    tasks = ["--tasks", "mini_topics_eng_Latn,mini_topics_hin_Deva", "--limit", "2", "--log_samples"]
    options = ["--device", "cpu", "--batch_size", "8"]
    files = [str(path) for path in sorted(prompts.glob("*.safetensors"))]
    return lambda folder: ["evaluate", "--prompts", *files, *tasks, "--output", str(folder), *options]


def _read_results(folder: Path, below: str = "") -> dict[str, Any]:
    """The newest results of every prompt, with their samples, without dates and the name of the folder."""
    found: dict[str, Any] = {}
    for path in _visible(folder, below + "*/results_*.json"):
        content = json.loads(path.read_text().replace(str(folder), ""))
        stamp = path.stem.removeprefix("results_")
        samples = {}
        for task in content["n-shot"]:
            (file,) = path.parent.glob(f"samples_{task}_{stamp}.jsonl")
            samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
            if len(samples[task]) != content["n-samples"][task]["effective"]:
                raise ValueError(f"{file} does not have all documents")
        for name in DATES:
            content.pop(name, None)
        found[path.parent.name] = [content, samples]
    return found


def _sweep(root: Path, *flags: str) -> Callable[[Path], list[str]]:
    """A sweep of two seeds, each a shard, and a baseline."""
    file = root / "sweep.yaml"
    file.write_text(
        "targets: [mini_topics_eng_Latn]\n"
        "settings: {model: mini, task: mini_topics_eng_Latn, device: cpu, epochs: 1, shots: 1, validation_shots: 1,\n"
        "  prompt_length: 3}\n"
        "axes: {seed: [0, 1]}\nbaselines: {none: [mini_topics_eng_Latn]}\n"
        "evaluate: {limit: 2, log_samples: true, batch_size: '8'}\nshard_size: 2\n"
    )
    return lambda folder: ["sweep", str(file), "--output", str(folder), "--throughput", "1", *flags]


def _read_sweep(folder: Path) -> dict[str, Any]:
    found = {f"results of {name}": of for name, of in _read_results(folder, "results/").items()}
    found |= _read_prompts(folder / "prompts")
    for path in _visible(folder, "runs/*.json"):
        record = json.loads(path.read_text())
        if record["results"] and not (folder / record["results"]).is_file():
            raise ValueError(f"{path} names results that are not there")
    return found


def _finished_in_sweep(folder: Path) -> list[Path]:
    records = [json.loads(path.read_text()) for path in _visible(folder, "runs/*.json")]
    return [folder / record["results"] for record in records if record["results"] and not record["error"]]


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
    resume = ("--resume", "--checkpoint-steps", "1", "--batch-size", "2", "--epochs", "4")
    return {
        job.name: job
        for job in (
            Job(
                "write", lambda folder: ["write", str(folder / "file"), "400000"], _old_file, _read_file,
                [*disks, *signals, "twice"], share=30,
            ),
            Job(
                "train", _train("--seed", "0", "1"), _nothing, _read_prompts, [*disks, *signals, "twice"],
                share=6,
            ),
            Job("resume", _train(*resume), _nothing, _read_prompts, [*disks, *signals, "twice"], share=6),
            Job("ranks", _train(*resume), _nothing, _read_prompts, ["SIGKILL", "SIGTERM"], ranks=2, share=3),
            Job(
                "evaluate", _evaluate(prompts), _nothing, _read_results, [*disks, *signals, "OOM", "clock", "twice"],
                lambda folder: _visible(folder, "*/results_*.json"), share=6,
            ),
            Job(
                "sweep", _sweep(root), _nothing, _read_sweep, [*disks, *signals, "clock"],
                _finished_in_sweep, share=6,
            ),
            Job(
                "ray", _sweep(root, "--engine", "ray", "--workers", "2"), _nothing, _read_sweep, [WORKER],
                _finished_in_sweep, share=0.3,
            ),
        )
        if job.name != "ray" or importlib.util.find_spec("ray")
    }  # fmt: skip


def _random_prompt(placement: str, seed: int) -> SoftPrompt:
    import torch

    vectors = 0.1 * torch.randn(3, 256, generator=torch.Generator().manual_seed(seed))
    return SoftPrompt(vectors, {"placement": placement, "base_model": "mini"})


def temporary_root() -> tempfile.TemporaryDirectory[str]:
    """A folder for trials, in memory where the system offers that."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="faults-")
