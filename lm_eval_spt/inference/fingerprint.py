"""The identity of a loaded model and its tokenizer: equal fingerprints mean equal answers.

Unlike a prompt's check of its base model (:mod:`lm_eval_spt.prompt.fingerprint`), which has to survive a change of
dtype, this one notices every change of a weight, of how it is stored, and of the configuration.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_spt.common.offloading import loaded
from lm_eval_spt.inference.transformers_internals import attention_of

PIECES = 64
"""In how many pieces a tensor's bits are summed, so that swapped rows show; and how many of its values are taken."""

NAMES = (
    "_name_or_path", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "transformers_version",
)  # fmt: skip
"""Entries of configurations that say where a model comes from, and nothing of what it computes."""


def model_fingerprint(model: PreTrainedModel) -> str:
    """Identify what a model computes: its weights, adapters included, its configuration and its code.

    Of every parameter and persistent buffer, quantisation states among them, the name, dtype, shape, sums over the raw
    bits and some values are taken. Buffers that are not persistent follow from the configuration. It reads all weights
    once: 0.1 to 0.4 seconds for a gigabyte on one CPU core.

    Args:
        model: any model, quantised, with adapters (PEFT) or with weights that accelerate has offloaded.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256(_canonical([type(model).__name__, _configurations(model), _remote_code(model)]))
    for name, value in _state(model):
        digest.update(name.encode())
        _add(digest, value)
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identify what a tokenizer makes of texts. Returns 16 hexadecimal digits."""
    content: dict[str, Any] = {"special": tokenizer.special_tokens_map, "vocabulary": tokenizer.get_vocab()}
    if tokenizer.is_fast:
        pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
        # Padding and truncation are set anew by every call.
        content |= {name: part for name, part in pipeline.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(_canonical(content)).hexdigest()[:16]


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, default=str).encode()


def _configurations(model: PreTrainedModel) -> list[Any]:
    """Return what says how the weights are used, in scoring and generation."""
    configurations = [model.config, getattr(model, "generation_config", None)]
    described: list[Any] = [_without_names(each.to_dict()) for each in configurations if each is not None]
    adapters = getattr(model, "peft_config", {})
    described += [[name, _without_names(adapter.to_dict())] for name, adapter in sorted(adapters.items())]
    described.append(getattr(model, "active_adapters", None) if adapters else None)
    return [*described, attention_of(model)]


def _without_names(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in NAMES}


def _remote_code(model: nn.Module) -> list[str]:
    """Return digests of the files of a model's code that came with its weights."""
    modules = {type(module).__module__ for module in model.modules()}
    remote = sorted(name for name in modules if name.startswith("transformers_modules."))
    files = [getattr(sys.modules.get(name), "__file__", None) for name in remote]
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file]


def _state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a model's state, one module's after the other: offloaded ones are large."""
    for prefix, module in model.named_modules():
        own: dict[str, Any] = {}
        with loaded(module):
            module._save_to_state_dict(own, f"{prefix}.", keep_vars=False)
            yield from own.items()


def _add(digest: Any, value: Any) -> None:
    """Add a value of a model's state to a digest."""
    if not isinstance(value, Tensor):
        digest.update(repr(value).encode())
        return
    if hasattr(value, "__tensor_flatten__"):  # a subclass, such as torchao's quantised ones
        names, settings = value.__tensor_flatten__()
        digest.update(f"{type(value).__name__} {settings}".encode())
        for name in names:
            _add(digest, getattr(value, name))
        return
    digest.update(f"{value.dtype} {list(value.shape)}".encode())
    if value.numel():
        for numbers in _samples_of_bits(value.detach()):
            digest.update(numbers.cpu().numpy().tobytes())


def _samples_of_bits(value: Tensor) -> Iterator[Tensor]:
    """Yield sums over a tensor's raw bits, read as integers, and the bits of some of its values."""
    if value.is_quantized:
        yield from _samples_of_bits(value.int_repr())
        return
    flat = value.contiguous().flatten()
    yield flat[torch.arange(PIECES, device=flat.device) * len(flat) // PIECES].view(torch.uint8)
    bits = flat.view(torch.uint8)
    whole = len(bits) // (8 * PIECES) * 8 * PIECES
    yield bits[whole:].sum()
    pieces = bits[:whole]
    if pieces.storage_offset() % 8:
        pieces = pieces.clone()
    yield pieces.view(torch.int64).view(PIECES, -1).sum(dim=1)
