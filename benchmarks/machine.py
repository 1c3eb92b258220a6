"""The machine that a benchmark runs on: its name, and the energy that it used where it says so."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

RAPL = Path("/sys/class/powercap")
T = TypeVar("T")


def name(device: str = "cpu") -> str:
    """Return what the processor or accelerator calls itself, and how much of it is used."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        model = fields.get("model name", model)
        kind = [fields[key] for key in ("cpu family", "model") if key in fields]
        model += f" (family {', model '.join(kind)})" if kind else ""
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}, {torch.backends.cpu.get_cpu_capability()}"


def joules() -> float | None:
    """Return an ever-growing count of the energy used, or None where the machine does not tell."""
    if torch.cuda.is_available():
        try:
            import pynvml

            pynvml.nvmlInit()
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)) / 1000
        except Exception:  # whatever the driver says, it does not tell
            return None
    packages = [path for path in RAPL.glob("intel-rapl:*/energy_uj") if path.parent.name.count(":") == 1]
    try:
        return sum(int(path.read_text()) for path in packages) / 1e6 if packages else None
    except OSError:
        return None


@dataclass(frozen=True)
class Cost:
    """What some work took.

    Attributes:
        seconds: by the clock.
        joules: of the whole machine; None where it does not tell.
    """

    seconds: float
    joules: float | None


def measure(work: Callable[[], T], device: str = "cpu") -> tuple[T, Cost]:
    """Do some work once; returns its result and what it took."""
    energy, started = joules(), time.perf_counter()
    result = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    after = joules()
    return result, Cost(seconds, after - energy if energy is not None and after is not None else None)
