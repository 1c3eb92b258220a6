"""Floating-point types by name."""

from __future__ import annotations

from typing import Any

import torch

from lm_eval_spt.common.errors import UserError


def dtype_name(dtype: Any, setting: str = "dtype") -> str:
    """Return the name that PyTorch gives a type: ``float16`` for ``"half"``, ``torch.float16`` and itself.

    Args:
        dtype: the type, or its name.
        setting: what has it, for the message.

    Raises:
        UserError: there is no floating-point type of this name.
    """
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    kind = getattr(torch, name, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point or kind.itemsize < 2:
        raise UserError(f"{setting} is {name!r}, expected float32, bfloat16, float16 or auto")
    return str(kind).removeprefix("torch.")
