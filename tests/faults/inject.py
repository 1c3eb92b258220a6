"""The faults, as a process meets them.

File operations below the job's folder are counted: opening to write, each write (in two halves), fsync, rename, remove
and making a folder. A fault strikes at one of them, so that every step of every write can be hit; signals can also come
from outside at any time (see :mod:`tests.faults.trial`).
"""

from __future__ import annotations

import builtins
import datetime
import errno
import io
import os
import pathlib
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
DISKS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS}


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        kind: a signal, an error of the disk, ``OOM`` (the model's memory), ``clock`` (it jumps), or ``none``.
        struck: how often it did.
        step: the file operation at which it strikes. A disk stays full or read-only from then on, EIO happens once.
        amount: of ``OOM`` how many tokens fit; of ``clock`` how many seconds it jumps by, again and again.
    """

    kind: str
    step: int = 0
    amount: int = 0
    seen: int = 0
    struck: int = 0
    _folder: str = field(default="", repr=False)

    def arm(self, folder: pathlib.Path, model: torch.nn.Module) -> None:
        """Let it strike in this process.

        Args:
            folder: only what happens in it counts.
            model: the decoder, whose memory may run out: the scorer calls it and not the model around it.
        """
        self._folder = str(folder) + os.sep
        if self.kind == "OOM":
            model.register_forward_pre_hook(self._run_out_of_memory, with_kwargs=True)
        if self.kind == "clock":
            _let_the_clock_jump(self)
        sys.addaudithook(self._audit)
        fsync, open_file = os.fsync, io.open

        def fsync_and_count(descriptor: int) -> None:
            self._operation("fsync")
            fsync(descriptor)

        def open_and_count(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            opened = open_file(file, mode, *args, **kwargs)
            return _Counted(opened, self) if self._concerns(file) and set(mode) & set("wax+") else opened

        os.fsync = fsync_and_count
        io.open = builtins.open = open_and_count
        if hasattr(pathlib, "_NormalAccessor"):  # through which Path opens files in Python 3.10
            pathlib._NormalAccessor.open = staticmethod(open_and_count)

    def over(self) -> None:
        """Let nothing happen any more: what comes is not the job's."""
        self._folder = "\0"

    def _concerns(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(os.fspath(path)).startswith(self._folder)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if self._concerns(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._operation("open")
        elif event in ("os.rename", "os.remove", "os.mkdir") and self._concerns(arguments[0]):
            self._operation(event)

    def _operation(self, name: str) -> None:
        """A file operation is about to happen."""
        if self._folder == "\0":
            return
        self.seen += 1
        if self.kind in SIGNALS and self.seen == self.step:
            os.kill(os.getpid(), SIGNALS[self.kind])
            if self.kind == "SIGTERM":
                time.sleep(10)  # it is on its way
        if self.kind in DISKS and self.step:
            number = DISKS[self.kind]
            # Of a full disk files can still be removed; folders that are there can be made without being written.
            spared = name == "os.remove" and self.kind == "ENOSPC"
            if not spared and (self.seen == self.step if self.kind == "EIO" else self.seen >= self.step):
                self.struck += 1
                raise OSError(number, os.strerror(number))

    def _run_out_of_memory(self, _: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = (named.get("input_ids"), named.get("inputs_embeds"), *arguments)
        ids = next(tensor for tensor in given if tensor is not None)
        if ids.shape[0] > 1 and ids.shape[0] * ids.shape[1] > self.amount:
            self.struck += 1
            raise torch.OutOfMemoryError(f"{tuple(ids.shape)} tokens are too many")


class _Counted:
    """A file whose writes are counted, and happen in two halves with a count between them."""

    def __init__(self, file: Any, fault: Fault) -> None:
        self._file, self._fault = file, fault

    def write(self, data: Any) -> int:
        self._fault._operation("write")
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._fault._operation("write")
        self._file.write(data[half:])
        return len(data)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Any:
        return iter(self._file)


def _let_the_clock_jump(fault: Fault) -> None:
    """Make the clock go forth and back by so many seconds between one look at it and the next."""
    now, by, looks = time.time, fault.amount, [0]

    def jumping() -> float:
        looks[0] += 1
        fault.struck += 1
        return now() + by * (looks[0] % 3 - 1)

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(jumping(), tz)

    time.time = jumping
    import lm_eval.loggers.evaluation_tracker as tracker

    tracker.datetime = Jumping  # type: ignore[attr-defined]
