"""Matrix products with frozen weights in float32, for processors that are not Intel's.

PyTorch multiplies float32 matrices by MKL, which leaves half and more of such a processor's arithmetic unused. oneDNN,
which PyTorch brings along for other things, does not: two cores of an AMD EPYC (Zen 5) reach 429 GFLOP/s instead of 187
with 512 rows, and 263 instead of 99 with the 40 rows of a training step. Where MKL is at home nothing is changed.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

# Multiplications below which oneDNN's 10 microseconds for a call do not pay.
SMALLEST = 2**21
CPUINFO = Path("/proc/cpuinfo")


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
    """Have a model's linear layers multiply by :func:`product`, where that can be faster on this processor.

    They keep their parameters and stay instances of their class. Quantised layers and other subclasses are left alone.
    """
    if not better_than_mkl():
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
        better_than_mkl()
        and x.numel() * len(weight) >= SMALLEST
        and all(
            type(given) in (Tensor, Parameter)  # quantized weights are of other types
            and given.dtype == torch.float32
            and given.device.type == "cpu"
            for given in (x, weight, bias)
            if given is not None
        )
        and not any(given is not None and given.requires_grad for given in (weight, bias))
        and not torch.is_autocast_enabled("cpu")
    )


@lru_cache(maxsize=1)
def better_than_mkl() -> bool:
    """Tell whether this is an x86 processor of another maker than Intel, and PyTorch's build has oneDNN's product."""
    if platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available():
        return False
    known = CPUINFO.is_file() and "vendor_id" in (text := CPUINFO.read_text())
    return known and "GenuineIntel" not in text and hasattr(torch.ops.mkldnn, "_linear_pointwise")
