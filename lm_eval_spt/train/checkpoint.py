"""The file of a run's state: one safetensors file, written whole or not at all, read without unpickling."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import parse_json, write

KEY = "lm_eval_spt_checkpoint"
VERSION = 1

State = dict[str, Any]
"""Tensors, numbers, strings, lists and dictionaries with string keys, nested."""


def path_of(output: Path) -> Path:
    """Return the path of a run's checkpoint, which is beside the prompt file `output`."""
    return output.with_suffix(".checkpoint")


def save(path: Path, state: State) -> None:
    """Write a state.

    Raises:
        UserError: the file can not be written; what was there before is still there.
    """
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, "", tensors)
    metadata = {KEY: json.dumps({"version": VERSION, "state": plain}), "format": "pt"}
    write(path, safetensors.torch.save(tensors, metadata))


def load(path: Path) -> State:
    """Read what :func:`save` wrote.

    Raises:
        UserError: the file is not a checkpoint of this version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = parse_json((file.metadata() or {})[KEY])
            if content["version"] != VERSION:
                raise ValueError(f"its version is {content['version']}, this program reads {VERSION}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = _with_tensors(content["state"], tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a checkpoint that can be read ({reason}): delete it to start anew") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint that can be read (no state in it): delete it to start anew")
    return state


@dataclass(frozen=True)
class Many:
    """In a form: a list of any length whose items have the form `item`."""

    item: Any


def has_form(value: Any, form: Any) -> bool:
    """Tell whether a value that was read has the form that is needed.

    Args:
        value: the value, of a state or a part of it.
        form: a tensor: a tensor of its shape and dtype. A dictionary: a dictionary with the same keys, whose values
            have these forms. A list: a list of the same length, whose items have these forms. :class:`Many`: a list of
            any length. ``float``: a finite number. ``int``: a whole number of 64 bits. ``Tensor``: any tensor. None:
            None.
    """
    if isinstance(form, Tensor):
        return isinstance(value, Tensor) and (value.shape, value.dtype) == (form.shape, form.dtype)
    if isinstance(form, dict):
        same = isinstance(value, dict) and value.keys() == form.keys()
        return same and all(has_form(value[name], entry) for name, entry in form.items())
    if isinstance(form, list):
        same = isinstance(value, list) and len(value) == len(form)
        return same and all(has_form(item, entry) for item, entry in zip(value, form, strict=True))
    if isinstance(form, Many):
        return isinstance(value, list) and all(has_form(item, form.item) for item in value)
    if form in (int, float):
        whole = type(value) is int and -(2**63) <= value < 2**63
        return whole or (form is float and type(value) is float and math.isfinite(value))
    return value is None if form is None else isinstance(value, form)


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON can hold it, its tensors moved to `tensors` under names that say where they were."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": {str(key): _without_tensors(entry, f"{name}/{key}", tensors) for key, entry in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_without_tensors(item, f"{name}/{number}", tensors) for number, item in enumerate(value)]}
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what :func:`_without_tensors` was given."""
    if not isinstance(value, dict):
        return value
    (kind, content), *more = value.items()
    if more or kind not in ("tensor", "dict", "list"):
        raise ValueError("an unknown kind of value")
    if kind == "tensor":
        return tensors[content]
    if kind == "list":
        return [_with_tensors(item, tensors) for item in content]
    return {key: _with_tensors(entry, tensors) for key, entry in content.items()}
