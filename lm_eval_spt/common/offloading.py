"""Layers whose weights accelerate keeps elsewhere until they run (``parallelize=True``, ``device_map=auto``).

Between two runs such a layer holds tensors without numbers, on PyTorch's meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def loaded(layer: torch.nn.Module) -> Iterator[None]:
    """Within this context a layer's own weights can be read, on the CPU where they were offloaded.

    The layer must not be run in it: it would offload them again.
    """
    if not _is_offloaded(layer):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(layer, "cpu"):
        yield


def input_device(layer: torch.nn.Module) -> torch.device:
    """Return where a layer with a weight expects its input."""
    if not _is_offloaded(layer):
        return layer.weight.device  # type: ignore[return-value]
    import torch

    hook: Any = layer._hf_hook
    return torch.device(hook.execution_device)


def _is_offloaded(layer: torch.nn.Module) -> bool:
    if not hasattr(layer, "_hf_hook"):
        return False
    from accelerate.utils import has_offloaded_params

    return has_offloaded_params(layer)
