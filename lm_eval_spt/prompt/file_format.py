"""The prompt file: vectors and their record to bytes, and back.

A prompt file is one safetensors file with one tensor in float32: ``prompt_embeddings`` `[P, d]`, exactly the vectors
that the base model receives as ``inputs_embeds``, every embedding scale already applied; or, of a deep prefix,
``key_values`` `[layers, 2, kv_heads, P, head_dim]`, each layer's keys and values before the text, positions (RoPE)
already applied. The first name is PEFT's: an adapter's weights are such a file, too. The record
(:mod:`lm_eval_spt.prompt.metadata`) is a JSON text under the key ``lm_eval_spt`` of the file's metadata. Nothing is
ever unpickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import parse_json
from lm_eval_spt.prompt.metadata import FORMAT_VERSION, PromptKind

TENSOR_NAMES: dict[PromptKind, str] = {"embeddings": "prompt_embeddings", "kv": "key_values"}
METADATA_KEY = "lm_eval_spt"
ACCEPTED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

MAX_FILE = 2**30
"""Bytes of a prompt file: room for 16,384 vectors of size 16,384 in float32."""

MAX_HEADER = 2**24
"""Bytes of its header."""


def to_bytes(vectors: Tensor, metadata: dict[str, Any]) -> bytes:
    """Return the content of a prompt file; the same prompt is always the same bytes.

    Args:
        vectors: `[P, d]` or `[layers, 2, kv_heads, P, head_dim]`, float32, contiguous, on the CPU.
        metadata: the record; the entries that describe the vectors are filled in.
    """
    record = metadata | {
        "format_version": FORMAT_VERSION,
        **sizes(vectors),
        "placement": metadata.get("placement", "prefix"),
    }
    # safetensors takes strings only here, and "format" is what PEFT and transformers look for.
    strings = {"format": "pt", METADATA_KEY: json.dumps(record)}
    return _with_sorted_header(safetensors.torch.save({TENSOR_NAMES[kind_of(vectors)]: vectors}, metadata=strings))


def read(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return the vectors of a prompt file as they are stored, and its record, empty where it holds none.

    Raises:
        UserError: this is not a prompt file. The message does not name the file: the caller does.
    """
    if not os.path.isfile(path):
        problem = "not a regular file" if os.path.exists(path) else "no such file"
        raise UserError(f"{problem}: give a .safetensors file, a PEFT adapter folder or a Hub repository (owner/name)")
    try:
        _check_size(path)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) != 1 or names[0] not in TENSOR_NAMES.values():
                listing = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
                expected = " or ".join(map(repr, TENSOR_NAMES.values()))
                raise UserError(f"expected one tensor, {expected}, found {listing or 'none'}: not a soft prompt")
            (name,) = names
            dtype = file.get_slice(name).get_dtype()
            if dtype not in ACCEPTED_DTYPES:
                expected = ", ".join(ACCEPTED_DTYPES.values())
                raise UserError(f"{name} has dtype {dtype}, expected one of {expected}: convert it first")
            vectors = file.get_tensor(name)
            if TENSOR_NAMES[kind_of(vectors)] != name:
                raise _wrong_shape(name, vectors)
            return vectors, _parse_record((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except OSError as error:
        raise UserError(f"can not be read ({error.strerror or error}): check the file and its permissions") from None
    except SafetensorError as error:
        raise UserError(_what_is_wrong(path, error)) from None


def check_vectors(vectors: Tensor) -> None:
    """Raise UserError unless `vectors` has the shape of a prompt, with no size of 0, and is finite."""
    kind = kind_of(vectors)
    if 0 in vectors.shape or vectors.ndim != (5 if kind == "kv" else 2) or (kind == "kv" and vectors.shape[1] != 2):
        raise _wrong_shape(TENSOR_NAMES[kind], vectors)
    broken = (~by_position(vectors).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"vector {broken[0]} (counted from 0) holds NaN or infinity, as do {len(broken)} of {vectors.shape[-2]} in "
            "all: the training diverged or the file is damaged, use another prompt"
        )


def kind_of(vectors: Tensor) -> PromptKind:
    """Tell from their shape what kind of prompt vectors are."""
    return "kv" if vectors.ndim == 5 else "embeddings"


def by_position(vectors: Tensor) -> Tensor:
    """Return a row for each virtual token, `[P, numbers]`: its vector, or all keys and values of a deep prefix."""
    return vectors.movedim(-2, 0).flatten(1)


def sizes(vectors: Tensor) -> dict[str, Any]:
    """Return the entries of the record that the vectors themselves give."""
    kind = kind_of(vectors)
    if kind == "kv":
        layers, _, heads, length, width = vectors.shape
        own = {"num_layers": layers, "num_kv_heads": heads, "head_dim": width}
    else:
        length, hidden_size = vectors.shape
        own = {"hidden_size": hidden_size}
    return {"prompt_kind": kind, "num_virtual_tokens": length, **own}


def _wrong_shape(name: str, vectors: Tensor) -> UserError:
    shapes = {
        "prompt_embeddings": "[virtual tokens, hidden size]",
        "key_values": "[layers, 2, key-value heads, virtual tokens, size of a head]",
    }
    return UserError(
        f"{name} has shape {list(vectors.shape)}, expected {shapes[name]} with at least one of each: this is not a "
        "soft prompt"
    )


def _with_sorted_header(data: bytes) -> bytes:
    """Return a safetensors file whose header depends on its content alone: safetensors shuffles the metadata."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _check_size(path: Path) -> None:
    """Raise UserError unless the file, and the header that it claims to have, are as small as a prompt's."""
    size = path.stat().st_size
    if size == 0:
        raise UserError("is empty (0 bytes), expected a safetensors file: write or copy it again")
    if size > MAX_FILE:
        raise UserError(f"has {size:,} bytes, a prompt has at most {MAX_FILE:,}: this is something else")
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if MAX_HEADER < header <= size:
        raise UserError(f"has a header of {header:,} bytes, at most {MAX_HEADER:,} are read: this is something else")


def _what_is_wrong(path: Path, error: SafetensorError) -> str:
    """Say how `path` fails to be a safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    if size < 9 or not start.endswith(b"{"):
        return "is not a safetensors file: give a .safetensors file or a PEFT adapter folder (pickles are never opened)"
    if 8 + header > size:
        return f"is truncated, its header alone claims {header:,} bytes and the file has {size:,}: copy it again"
    return f"is truncated or damaged ({error}): copy it again"


def _parse_record(text: str) -> dict[str, Any]:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"its metadata {METADATA_KEY!r} is not JSON ({error}): write the file again") from None
