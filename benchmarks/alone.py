"""Measure one contender in a process of its own, so that no memory and no warm state of another one counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch


def run(function: Callable[..., dict[str, Any]], *, within: float | None = None, **arguments: Any) -> dict[str, Any]:
    """Call a function of a module in a fresh process; arguments and result are what JSON can hold.

    Args:
        function: what is called.
        within: seconds after which it is ended.
        arguments: the function's.

    Raises:
        SystemExit: it failed, or took too long.
    """
    module = function.__module__
    if module == "__main__":  # its name where it was started with `python -m`
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    call = json.dumps([module, function.__name__, arguments])
    command = [sys.executable, "-m", "benchmarks.alone", call]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=within)
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{function.__name__} took more than {within:.0f} s") from None
    if done.returncode:
        raise SystemExit(f"{function.__name__}({arguments}) failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Memory:
    """The most memory that was used since this object was made, beyond what was used then."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            self._before = psutil.Process().memory_info().rss

    def peak(self) -> float:
        """Return it in GB."""
        if self._on_gpu:
            return (torch.cuda.max_memory_allocated() - self._before) / 1e9
        status = Path("/proc/self/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return (peak * 1024 - self._before) / 1e9


if __name__ == "__main__":
    module, name, given = json.loads(sys.argv[1])
    print(json.dumps(getattr(import_module(module), name)(**given)))
