"""Matrix products on a processor, each in the way that is faster there.

* float32: PyTorch multiplies by MKL, or whatever its build has for that. oneDNN, which it brings along for other
  things, is twice as fast on some processors.
* bfloat16 and float16: a processor without a unit for them takes many times as long as in float32, fifty times for a
  gradient. Here it multiplies in float32, a piece of the weights at a time, and rounds once, as such a unit does.

Which way is faster (docs/speed.md) is measured once on each machine, in a few seconds, for a few sizes, and kept in the
user's cache directory, so that later runs multiply in the same way.
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

SMALLEST = 2**21
"""Multiplications below which another way does not pay for its call, of 10 microseconds."""

PIECE = 2**20
"""Weights that are in float32 at a time: 4 MB, which stay in the processor's cache."""

ROWS, WIDTHS = (1, 8, 64, 256), (512, 1024, 2048)
"""What is measured: so many rows times a square matrix of such a width. Other products are as the nearest of these."""

ADVANTAGE = 1.1
"""Another way is taken where it is so many times as fast: a busy machine must not decide what is nearly equal."""

CPUINFO = Path("/proc/cpuinfo")
MAX_CACHE = 2**20
"""Bytes of the file of decisions."""

Decisions = tuple[tuple[bool, ...], ...]
"""For each of :data:`ROWS` and :data:`WIDTHS`, whether the other way is faster."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what :func:`torch.nn.functional.linear` returns, `x` times the transposed `weight`, plus the bias.

    Args:
        x: `[..., in]`.
        weight: `[out, in]`, also a transposed view.
        bias: `[out]`, if any.
    """
    if not _pays(x, weight, bias):
        return linear(x, weight, bias)
    if torch.is_grad_enabled() and any(given.requires_grad for given in (x, weight, bias) if given is not None):
        found: Tensor = _Product.apply(x, weight, bias)
        return found
    return _other_way(x, weight, bias)


class FastLinear(nn.Linear):
    """A linear layer that multiplies by :func:`product`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of `x` `[..., in]`."""
        return product(x, self.weight, self.bias)


class FastConv1D(Conv1D):
    """GPT-2's linear layer, which holds its weights `[in, out]`, multiplying by :func:`product`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of `x` `[..., in]`."""
        return product(x, self.weight.T, self.bias)


def use_fast_products(model: nn.Module) -> None:
    """Have a model's linear layers multiply by :func:`product`, where that is faster in anything on this machine.

    They keep their parameters and stay instances of their class. Quantised layers and other subclasses are left alone.
    """
    dtypes = {weight.dtype for weight in model.parameters() if weight.device.type in ("cpu", "meta")}  # meta: offloaded
    if not any(any(map(any, decisions(torch.get_num_threads(), dtype))) for dtype in dtypes & OTHER_WAYS.keys()):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
        elif type(module) is Conv1D:
            module.__class__ = FastConv1D


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _other_way(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (of_output,), (of_x, of_weight, of_bias) = of_outputs, ctx.needs_input_grad
        rows = of_output.reshape(-1, len(weight))
        return (
            product(of_output, weight.T) if of_x else None,
            product(rows.T, x.reshape(len(rows), -1).T) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _other_way(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return OTHER_WAYS[x.dtype](x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply in float32 and round once: what a processor's unit for half precision does, but for the sums' order."""
    found, x = x.new_empty(*x.shape[:-1], len(weight)), x.float()
    rows = max(1, PIECE // weight.shape[1])
    for start in range(0, len(weight), rows):
        piece = slice(start, start + rows)
        found[..., piece] = linear(x, weight[piece].float(), None if bias is None else bias[piece].float())
    return found


OTHER_WAYS: dict[torch.dtype, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    torch.bfloat16: _in_float32,
    torch.float16: _in_float32,
}
"""What there is beside PyTorch's own product."""
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    OTHER_WAYS[torch.float32] = _onednn


def _pays(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.numel() * len(weight) >= SMALLEST
        and x.dtype in OTHER_WAYS
        and all(
            type(given) in (Tensor, Parameter)  # quantized weights are of other types
            and given.dtype == x.dtype
            and given.device.type == "cpu"
            for given in (x, weight, bias)
            if given is not None
        )
        and not torch.is_autocast_enabled("cpu")
        and is_faster(x.numel() // weight.shape[1], weight.numel(), torch.get_num_threads(), x.dtype)
    )


@lru_cache(maxsize=4096)
def is_faster(rows: int, weights: int, threads: int, dtype: torch.dtype) -> bool:
    """Tell whether the other way is faster than PyTorch's own product.

    Args:
        rows: how many rows are multiplied.
        weights: the number of the matrix's elements.
        threads: with which PyTorch multiplies.
        dtype: one of :data:`OTHER_WAYS`.
    """
    row = min(range(len(ROWS)), key=lambda index: abs(math.log(rows / ROWS[index])))
    width = min(range(len(WIDTHS)), key=lambda index: abs(math.log(weights / WIDTHS[index] ** 2)))
    return decisions(threads, dtype)[row][width]


@lru_cache(maxsize=8)
def decisions(threads: int, dtype: torch.dtype) -> Decisions:
    """Return for each of :data:`ROWS` and :data:`WIDTHS` whether the other way is faster: as measured before, or now.

    Args:
        threads: with which PyTorch multiplies.
        dtype: one of :data:`OTHER_WAYS`.
    """
    file = user_cache() / "products.json"
    machine = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads, torch {torch.__version__}"
    key = f"{machine}, {str(dtype).removeprefix('torch.')}"
    known = _read(file)
    if key not in known:
        known[key] = measure(dtype)
        with contextlib.suppress(UserError):  # a cache that can not be written: the next process measures again
            write(file, json.dumps(known, indent=1).encode())
    return known[key]


def measure(dtype: torch.dtype) -> Decisions:
    """Multiply in both ways, in turns, and compare the least processor time: other programs do not count in it."""
    found = []
    for rows in ROWS:
        faster = []
        for width in WIDTHS:
            x, weight = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
            turns = 4 + 2**28 // (rows * weight.numel())  # the shorter, the more
            times = [(_seconds(linear, x, weight), _seconds(_other_way, x, weight)) for _ in range(min(turns, 20))]
            torchs, others = zip(*times, strict=True)
            faster.append(min(torchs) > ADVANTAGE * min(others))
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
