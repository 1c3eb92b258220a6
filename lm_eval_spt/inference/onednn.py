"""Matrix products with frozen weights in float32, by the library that is faster on this machine.

PyTorch multiplies float32 matrices by MKL, or whatever its build has for that. oneDNN, which it brings along for other
things, is twice as fast on some processors (docs/speed.md). Which one is faster is measured once on each machine, in a
part of a second, for a few sizes, and kept in the user's cache directory, so that later runs multiply in the same way.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import parse_json, read_text, write
from lm_eval_spt.common.paths import user_cache

# Multiplications below which oneDNN's 10 microseconds for a call do not pay.
SMALLEST = 2**21

ROWS, WIDTHS = (8, 64, 256), (512, 1024, 2048)
"""What is measured: so many rows times a square matrix of such a width. Other products are as the nearest of these."""

ADVANTAGE = 1.1
"""oneDNN is used where it is so many times as fast: a busy machine must not decide what is nearly equal."""

CPUINFO = Path("/proc/cpuinfo")
MAX_CACHE = 2**20
"""Bytes of the file of decisions."""

Decisions = tuple[tuple[bool, ...], ...]
"""For each of :data:`ROWS` and :data:`WIDTHS`, whether oneDNN is faster."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what :func:`torch.nn.functional.linear` returns, `x` times the transposed `weight`, plus the bias.

    Args:
        x: `[..., in]`; gradients flow back to it.
        weight: `[out, in]`, also a transposed view.
        bias: `[out]`, if any.
    """
    if not _pays(x, weight, bias):
        return linear(x, weight, bias)
    if x.requires_grad and torch.is_grad_enabled():
        found: Tensor = _Product.apply(x, weight, bias)
        return found
    return _onednn(x, weight, bias)


class OneDNNLinear(nn.Linear):
    """A linear layer that multiplies by :func:`product`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of `x` `[..., in]`."""
        return product(x, self.weight, self.bias)


class OneDNNConv1D(Conv1D):
    """GPT-2's linear layer, which holds its weights `[in, out]`, multiplying by :func:`product`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of `x` `[..., in]`."""
        return product(x, self.weight.T, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Have a model's linear layers multiply by :func:`product`, where oneDNN is faster in anything on this machine.

    They keep their parameters and stay instances of their class. Quantised layers and other subclasses are left alone.
    """
    if not any(map(any, decisions(torch.get_num_threads()))):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDNNLinear
        elif type(module) is Conv1D:
            module.__class__ = OneDNNConv1D


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return product(of_outputs[0], weight.T), None, None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _pays(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.numel() * len(weight) >= SMALLEST
        and all(
            type(given) in (Tensor, Parameter)  # quantized weights are of other types
            and given.dtype == torch.float32
            and given.device.type == "cpu"
            for given in (x, weight, bias)
            if given is not None
        )
        and not any(given is not None and given.requires_grad for given in (weight, bias))
        and not torch.is_autocast_enabled("cpu")
        and is_faster(x.numel() // weight.shape[1], weight.numel(), torch.get_num_threads())
    )


@lru_cache(maxsize=4096)
def is_faster(rows: int, weights: int, threads: int) -> bool:
    """Tell whether oneDNN is faster than PyTorch's own product.

    Args:
        rows: how many rows are multiplied.
        weights: the number of the matrix's elements.
        threads: with which PyTorch multiplies.
    """
    row = min(range(len(ROWS)), key=lambda index: abs(math.log(rows / ROWS[index])))
    width = min(range(len(WIDTHS)), key=lambda index: abs(math.log(weights / WIDTHS[index] ** 2)))
    return decisions(threads)[row][width]


@lru_cache(maxsize=8)
def decisions(threads: int) -> Decisions:
    """Return for each of :data:`ROWS` and :data:`WIDTHS` whether oneDNN is faster: as measured before, or now.

    Args:
        threads: with which PyTorch multiplies.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ((False,) * len(WIDTHS),) * len(ROWS)
    file = user_cache() / "onednn.json"
    key = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads, torch {torch.__version__}"
    known = _read(file)
    if key not in known:
        known[key] = measure()
        with contextlib.suppress(UserError):  # a cache that can not be written: the next process measures again
            write(file, json.dumps(known, indent=1).encode())
    return known[key]


def measure() -> Decisions:
    """Multiply by both libraries, in turns, and compare the least processor time: other programs do not count in it."""
    found = []
    for rows in ROWS:
        faster = []
        for width in WIDTHS:
            x, weight = torch.ones(rows, width), torch.ones(width, width)
            turns = 4 + 2**28 // (rows * weight.numel())  # the shorter, the more
            times = [(_seconds(linear, x, weight), _seconds(_onednn, x, weight)) for _ in range(min(turns, 20))]
            torchs, onednns = zip(*times, strict=True)
            faster.append(min(torchs) > ADVANTAGE * min(onednns))
        found.append(tuple(faster))
    return tuple(found)


@lru_cache(maxsize=1)
def is_slower_in_bfloat16() -> bool:
    """Tell whether this processor multiplies matrices more slowly in bfloat16 than in float32: it has no unit for it.

    Compares the least processor time of some products of 256 rows by a matrix of width 512.
    """
    x, weight = torch.ones(256, 512), torch.ones(512, 512)
    halves = x.bfloat16(), weight.bfloat16()
    times = [(_seconds(linear, *halves), _seconds(product, x, weight)) for _ in range(10)]
    half, full = map(min, zip(*times, strict=True))
    return half > ADVANTAGE * full


@torch.inference_mode()
def _seconds(multiply: Callable[..., Tensor], x: Tensor, weight: Tensor) -> float:
    started = process_time()
    multiply(x, weight, None)
    return process_time() - started


def _processor() -> str:
    """Return what the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(file: Path) -> dict[str, Decisions]:
    """Return what was measured before; what is no such file, or of other sizes, is nothing."""
    try:
        known = parse_json(read_text(file, MAX_CACHE))
        return {key: tuple(map(tuple, table)) for key, table in known.items() if _is_table(table)}
    except (OSError, ValueError, AttributeError, UserError):
        return {}


def _is_table(table: Any) -> bool:
    return (
        isinstance(table, list)
        and len(table) == len(ROWS)
        and all(isinstance(row, list) and list(map(type, row)) == [bool] * len(WIDTHS) for row in table)
    )
