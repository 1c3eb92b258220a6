"""A run's state in one safetensors file: written whole or not at all, read without unpickling anything."""

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
    """Return where the checkpoint of the run that writes `output` is."""
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
    """In a form: a list of any length, of things that have the form `of`."""

    of: Any


def has_form(value: Any, form: Any) -> bool:
    """Tell whether what was read is of the kind that is needed.

    Args:
        value: of a state.
        form: a tensor, for one of its shape and type; a dictionary, for one with these keys; a list, for one of that
            length; :class:`Many`; ``float`` for a finite number, ``int`` for a whole one of 64 bits, ``Tensor`` for
            any; None.
    """
    if isinstance(form, Tensor):
        return isinstance(value, Tensor) and (value.shape, value.dtype) == (form.shape, form.dtype)
    if isinstance(form, dict):
        same = isinstance(value, dict) and value.keys() == form.keys()
        return same and all(has_form(value[name], of) for name, of in form.items())
    if isinstance(form, list):
        same = isinstance(value, list) and len(value) == len(form)
        return same and all(has_form(one, of) for one, of in zip(value, form, strict=True))
    if isinstance(form, Many):
        return isinstance(value, list) and all(has_form(one, form.of) for one in value)
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
        return {"dict": {str(key): _without_tensors(of, f"{name}/{key}", tensors) for key, of in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_without_tensors(of, f"{name}/{number}", tensors) for number, of in enumerate(value)]}
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), *more = value.items()
    if more or kind not in ("tensor", "dict", "list"):
        raise ValueError("an unknown kind of value")
    if kind == "tensor":
        return tensors[content]
    if kind == "list":
        return [_with_tensors(of, tensors) for of in content]
    return {key: _with_tensors(of, tensors) for key, of in content.items()}
