"""A soft prompt and where it came from: the prompt file, and PEFT adapter folders in and out.

A prompt file is one safetensors file with one tensor, ``prompt_embeddings`` `[P, d]` in float32: exactly the vectors
that the base model receives as ``inputs_embeds``, every embedding scale already applied. The tensor's name is PEFT's.
Provenance is one JSON object under the key ``lm_eval_spt`` of the file's metadata:

=========================  ===========================================================================
``format_version``         1; a file of a newer version is refused
``hidden_size``            d
``num_virtual_tokens``     P
``placement``              ``"prefix"`` (before the text), ``"suffix"`` (after it) or ``"both"``
``num_prefix_tokens``      with ``"both"``: how many of the vectors, the first ones, stand before the text
``base_model``             name of the model that the prompt was trained for
``base_model_revision``    its revision on the Hub, or null
``embedding_fingerprint``  what :func:`embedding_fingerprint` says of that model
``tasks``                  names of the harness tasks it was trained on
``source_languages``       their languages
``shots``, ``seed``        training documents per class (null: all of them), random seed
``hyperparameters``        object: every setting of the training run
``validation``             object: scores of the epoch that was kept
``versions``               object: library name to version
``created``                time of writing, ISO 8601, UTC
=========================  ===========================================================================

The first five describe the vectors and are filled in on writing. The rest is optional, and keys not listed here are
kept as they are. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import is_below_current_folder, parse_json, read_text, write
from lm_eval_spt.prompt.metadata import PLACEMENTS, Placement, check_metadata

FORMAT_VERSION = 1

TENSOR_NAME = "prompt_embeddings"
METADATA_KEY = "lm_eval_spt"
ACCEPTED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
MAX_FILE = 2**30
"""Bytes of a prompt file: room for 16,384 vectors of size 16,384 in float32."""

MAX_HEADER = 2**24
"""Bytes of its header, and of an adapter's configuration."""

REPOSITORY_ID = re.compile(r"[\w.-]+/[\w.-]+")
FINGERPRINT_ROWS = 512


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """P trained vectors in the input-embedding space of a base model, and their provenance.

    Vectors and metadata are copied and checked on construction: a soft prompt that exists is one that can be written.

    Attributes:
        vectors: `[P, d]`, stored as float32, contiguous, on the CPU.
        metadata: the JSON object that the module's docstring describes; empty for a file of another tool.
        name: stem of the file, or name of the folder or Hub repository it was read from; empty when new.

    Raises:
        UserError: vectors that are not `[P, d]` with P, d >= 1 or hold NaN or infinity; metadata that is not JSON,
            contradicts the vectors, names an unknown placement or is of a newer format version.
    """

    vectors: torch.Tensor = field(repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        # The clone matters: a trainer hands over its parameter and goes on changing it.
        vectors = self.vectors.detach().to("cpu", torch.float32).contiguous().clone()
        _check_vectors(vectors)
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "metadata", _checked_metadata(self.metadata, vectors))

    @property
    def length(self) -> int:
        """Number of virtual tokens, P."""
        return self.vectors.shape[0]

    @property
    def hidden_size(self) -> int:
        """Size of each vector, d: the width of the base model's input embeddings."""
        return self.vectors.shape[1]

    @property
    def placement(self) -> Placement:
        """``"prefix"``, ``"suffix"`` or ``"both"``; prefix, what PEFT does, where the metadata does not say."""
        return self.metadata.get("placement", "prefix")

    @property
    def base_model(self) -> str | None:
        """The base model that the metadata names, to be loaded where the user names none; None if there is none.

        Raises:
            UserError: it is a folder elsewhere: what a file names must not decide what is opened on this machine.
        """
        name = self.metadata.get("base_model")
        if name is not None and not is_below_current_folder(name):
            raise UserError(
                f"the prompt {self.name!r} names {name[:200]!r} as its base model, a folder outside of the current "
                "one, which is not opened because a file says so: if you trust it, give it with pretrained=<folder>"
            )
        return name

    @property
    def num_prefix_tokens(self) -> int:
        """How many of the vectors, the first ones, stand before the text; the others stand after it."""
        if self.placement == "both":
            return self.metadata["num_prefix_tokens"]
        return self.length if self.placement == "prefix" else 0

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all that can change a score: vectors, shape and placement, but not the provenance."""
        before = [self.num_prefix_tokens] if self.placement == "both" else []
        kind = json.dumps([self.placement, self.length, self.hidden_size, *before])
        return hashlib.sha256(kind.encode() + self.vectors.numpy().tobytes()).hexdigest()

    @property
    def loading(self) -> dict[str, Any]:
        """How the base model was loaded when the prompt was learned: what has to be so again, where it is known."""
        hyperparameters = self.metadata.get("hyperparameters") or {}
        known = {
            "revision": self.metadata.get("base_model_revision"),
            "add_bos_token": hyperparameters.get("add_bos_token"),
        }
        return {name: value for name, value in known.items() if value is not None}

    def check_fits(self, hidden_size: int, fingerprint: str, base_model: str) -> None:
        """Make sure that this prompt was trained for the model that is about to receive it.

        A prompt that records no fingerprint is only checked for its size; whether that deserves a warning is for the
        caller to say.

        Args:
            hidden_size: width of the model's input embeddings, d.
            fingerprint: :func:`embedding_fingerprint` of them.
            base_model: the model's name, for the message.

        Raises:
            UserError: another hidden size or another fingerprint.
        """
        trained_for = self.metadata.get("base_model")
        advice = f"use {trained_for!r}" if trained_for else "use the base model it was trained for"
        if self.hidden_size != hidden_size:
            raise UserError(
                f"prompt {self.name!r} has vectors of size {self.hidden_size}, but {base_model!r} takes vectors of "
                f"size {hidden_size}: {advice}, or train a prompt for this model"
            )
        recorded = self.metadata.get("embedding_fingerprint")
        if recorded is not None and recorded != fingerprint:
            raise UserError(
                f"prompt {self.name!r} was trained for {trained_for!r} (embedding fingerprint {recorded}), not for "
                f"{base_model!r} (fingerprint {fingerprint}): {advice} in the revision it was trained for, or train a "
                "prompt for this model"
            )

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], revision: str | None = None) -> SoftPrompt:
        """Read a prompt from wherever it is: a file, a folder or a repository on the Hugging Face Hub.

        Args:
            name_or_path: what :meth:`load` takes, or a repository id ``owner/name``. What exists locally, ends in
                ``.safetensors`` or starts with ``./``, ``../``, ``/`` or ``~`` is a path and never a repository id.
            revision: branch, tag or commit; for repositories only.

        Raises:
            UserError: nothing there, or nothing that is a soft prompt; the Hub could not be reached.
        """
        name = os.fspath(name_or_path)
        is_path = os.path.exists(name) or name.endswith(".safetensors") or name.startswith((".", "/", "~"))
        if is_path or not REPOSITORY_ID.fullmatch(name):
            return cls.load(name)
        return replace(cls.load(_download(name, revision)), name=name.split("/")[1])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SoftPrompt:
        """Read a prompt file, a PEFT adapter folder, or a folder that holds exactly one prompt file.

        Raises:
            UserError: nothing there, or nothing that is a soft prompt.
        """
        path = Path(os.path.expanduser(path))
        if not os.path.isdir(path):
            return cls._read(path)
        if (path / PEFT_CONFIG).is_file():
            return cls.from_peft(path)
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(
                f"prompt folder {path}: holds {len(files)} .safetensors files and no {PEFT_CONFIG}, so it is not clear "
                "which prompt is meant: name one file"
            )
        return replace(cls._read(files[0]), name=_folder_name(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a prompt file; a file that is already there is replaced whole or not at all.

        Args:
            path: the file; folders that are missing are created.

        Raises:
            UserError: the file can not be written.
        """
        write(Path(os.path.expanduser(path)), self._to_bytes())

    @classmethod
    def from_peft(cls, folder: str | os.PathLike[str]) -> SoftPrompt:
        """Read a PEFT adapter folder of type ``PROMPT_TUNING``.

        Args:
            folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``. The base model and its revision are
                taken from the configuration where the weights' metadata does not name them.

        Raises:
            UserError: no such folder, another type of adapter, pickled weights, or damaged files.
        """
        folder = Path(os.path.expanduser(folder))
        with _naming(f"PEFT folder {folder}"):
            config = _read_peft_config(folder)
        prompt = cls._read(folder / PEFT_WEIGHTS)
        with _naming(f"PEFT folder {folder}"):
            for key, found in (("num_virtual_tokens", prompt.length), ("token_dim", prompt.hidden_size)):
                if config.get(key) not in (found, None):
                    raise UserError(
                        f"{PEFT_CONFIG} says {key} {config[key]!r}, but {PEFT_WEIGHTS} has {found}: the two files "
                        "do not belong together, copy the folder again"
                    )
            recorded = {"base_model": "base_model_name_or_path", "base_model_revision": "revision"}
            metadata = {key: config[name] for key, name in recorded.items() if config.get(name) is not None}
            return cls(prompt.vectors, metadata | prompt.metadata, _folder_name(folder))

    def to_peft(self, folder: str | os.PathLike[str]) -> None:
        """Write an adapter folder that ``peft.PeftModel.from_pretrained(base_model, folder)`` loads.

        The provenance travels in the weights' metadata, which PEFT ignores and :meth:`from_peft` reads back. A
        ``README.md`` is added where there is none.

        Args:
            folder: created where missing; the adapter's files in it are replaced.

        Raises:
            UserError: a part of the prompt stands after the text, which PEFT can not express; the folder can not be
                written.
        """
        if self.placement != "prefix":
            raise UserError(
                f"prompt {self.name!r} has placement {self.placement!r}, which PEFT can not express (it puts every "
                "prompt before the text): use the prompt file itself, or train with placement 'prefix'"
            )
        folder = Path(os.path.expanduser(folder))
        base_model = self.metadata.get("base_model")
        config = {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "revision": self.metadata.get("base_model_revision"),
            "inference_mode": True,
            "num_virtual_tokens": self.length,
            "token_dim": self.hidden_size,
            "num_transformer_submodules": 1,
            # Prompt tuning uses neither, but PEFT refuses a model, such as XGLM, where it does not find them.
            "num_layers": 1,
            "num_attention_heads": 1,
            "prompt_tuning_init": "RANDOM",
        }
        # The configuration comes last: without it PEFT does not take the folder for an adapter.
        write(folder / PEFT_WEIGHTS, self._to_bytes())
        if not (folder / "README.md").exists():
            write(folder / "README.md", _model_card(base_model, self.length).encode())
        write(folder / PEFT_CONFIG, (json.dumps(config, indent=2) + "\n").encode())

    @classmethod
    def _read(cls, path: Path) -> SoftPrompt:
        with _naming(f"prompt file {path}"):
            vectors, metadata = _read_safetensors(path)
            return cls(vectors, metadata, path.stem)

    def _to_bytes(self) -> bytes:
        metadata = self.metadata | {
            "format_version": FORMAT_VERSION,
            "hidden_size": self.hidden_size,
            "num_virtual_tokens": self.length,
            "placement": self.placement,
        }
        if self.placement == "both":
            metadata["num_prefix_tokens"] = self.num_prefix_tokens
        # safetensors takes strings only here, and "format" is what PEFT and transformers look for.
        strings = {"format": "pt", METADATA_KEY: json.dumps(metadata)}
        return _with_sorted_header(safetensors.torch.save({TENSOR_NAME: self.vectors}, metadata=strings))


def _with_sorted_header(data: bytes) -> bytes:
    """Return a safetensors file whose header depends on its content alone: safetensors shuffles the metadata."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def embedding_fingerprint(embedding: torch.nn.Module) -> str:
    """Identify a base model by its input embeddings, whatever dtype they are loaded in.

    Only the signs of the weights are looked at, of up to 512 rows spread evenly over the vocabulary: a sign survives
    every cast, underflow to a signed zero included, and fine-tuning flips some of them.

    Args:
        embedding: the module from ``get_input_embeddings()``, with a floating-point ``weight`` `[V, d]`.

    Returns:
        16 hexadecimal digits.
    """
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor)
    vocabulary, hidden_size = weight.shape
    count = min(vocabulary, FINGERPRINT_ROWS)
    rows = torch.arange(count, device=weight.device) * vocabulary // count
    signs = torch.signbit(weight.detach()[rows]).cpu().numpy()
    shape = json.dumps([vocabulary, hidden_size])
    return hashlib.sha256(shape.encode() + np.packbits(signs).tobytes()).hexdigest()[:16]


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Begin the message of a UserError raised inside with `where`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _check_vectors(vectors: torch.Tensor) -> None:
    """Raise UserError unless `vectors` is `[P, d]` with P, d >= 1 and finite."""
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UserError(
            f"{TENSOR_NAME} has shape {list(vectors.shape)}, expected [virtual tokens, hidden size] with at least one "
            "of each: this is not a soft prompt"
        )
    broken = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"vector {broken[0]} (counted from 0) holds NaN or infinity, as do {len(broken)} of {len(vectors)} in all: "
            "the training diverged or the file is damaged, use another prompt"
        )


def _checked_metadata(metadata: dict[str, Any], vectors: torch.Tensor) -> dict[str, Any]:
    """A copy of `metadata` as JSON gives it back, once it agrees with `vectors` `[P, d]`; UserError otherwise."""
    try:
        metadata = parse_json(json.dumps(metadata, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"metadata is not valid JSON ({error}): use strings, finite numbers, lists and objects"
        ) from None
    if not isinstance(metadata, dict):
        raise UserError(f"metadata is a JSON {type(metadata).__name__}, expected an object: write the file again")

    version = metadata.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version < 1:
        raise UserError(f"format_version is {version!r}, expected a whole number from 1 on: write the file again")
    if version > FORMAT_VERSION:
        raise UserError(f"format_version is {version}, this version reads up to {FORMAT_VERSION}: upgrade lm_eval_spt")
    if metadata.get("placement", "prefix") not in PLACEMENTS:
        expected = " or ".join(map(repr, PLACEMENTS))
        raise UserError(f"placement is {metadata['placement']!r}, expected {expected}: write the file again")
    _check_num_prefix_tokens(metadata, len(vectors))
    for key, actual in zip(("num_virtual_tokens", "hidden_size"), vectors.shape, strict=True):
        if metadata.get(key, actual) != actual:
            raise UserError(
                f"metadata says {key} {metadata[key]!r}, but the tensor has {actual}: the file was altered, get it "
                "again"
            )
    check_metadata(metadata)
    return metadata


def _check_num_prefix_tokens(metadata: dict[str, Any], length: int) -> None:
    """Raise UserError unless ``num_prefix_tokens`` agrees with the placement; only ``both`` needs it."""
    placement = metadata.get("placement", "prefix")
    before = metadata.get("num_prefix_tokens")
    if placement == "both":
        fits = type(before) is int and 0 < before < length
        expected = f"a whole number from 1 to {length - 1}" if length > 1 else "two vectors at least"
    else:
        expected = str(length if placement == "prefix" else 0)
        fits = before is None or before == int(expected)
    if not fits:
        raise UserError(
            f"num_prefix_tokens is {before!r} for {length} vectors and placement {placement!r}, expected {expected}: "
            "write the file again"
        )


def _read_safetensors(path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """Vectors and metadata of a prompt file, the metadata empty where the file holds none of ours.

    Raises:
        UserError: without the file's name, which the caller adds.
    """
    if not os.path.isfile(path):
        problem = "not a regular file" if os.path.exists(path) else "no such file"
        raise UserError(f"{problem}: give a .safetensors file, a PEFT adapter folder or a Hub repository (owner/name)")
    try:
        _check_size(path)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if names != [TENSOR_NAME]:
                listing = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
                raise UserError(f"expected one tensor, {TENSOR_NAME!r}, found {listing or 'none'}: not a soft prompt")
            dtype = file.get_slice(TENSOR_NAME).get_dtype()
            if dtype not in ACCEPTED_DTYPES:
                expected = ", ".join(ACCEPTED_DTYPES.values())
                raise UserError(f"{TENSOR_NAME} has dtype {dtype}, expected one of {expected}: convert it first")
            return file.get_tensor(TENSOR_NAME), _parse_metadata((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except OSError as error:
        raise UserError(f"can not be read ({error.strerror or error}): check the file and its permissions") from None
    except SafetensorError as error:
        raise UserError(_what_is_wrong(path, error)) from None


def _check_size(path: Path) -> None:
    """Raise UserError unless a file, and the header that it claims to have, are of a size that a prompt can have."""
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


def _parse_metadata(text: str) -> dict[str, Any]:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"its metadata {METADATA_KEY!r} is not JSON ({error}): write the file again") from None


def _read_peft_config(folder: Path) -> dict[str, Any]:
    """The adapter configuration in `folder`, once that is a prompt tuning adapter with safetensors weights.

    Raises:
        UserError: without the folder's name, which the caller adds.
    """
    try:
        config = parse_json(read_text(folder / PEFT_CONFIG, MAX_HEADER))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{PEFT_CONFIG} can not be read ({error.strerror}): give a folder that PEFT saved") from None
    except ValueError as error:
        raise UserError(f"{PEFT_CONFIG} is not JSON ({error}): copy the folder again") from None
    if not isinstance(config, dict):
        raise UserError(f"{PEFT_CONFIG} is a JSON {type(config).__name__}, expected an object: copy the folder again")
    if config.get("peft_type") != "PROMPT_TUNING":
        raise UserError(
            f"the adapter's type is {config.get('peft_type')!r}, expected 'PROMPT_TUNING': only such an adapter is a "
            "soft prompt"
        )
    if not (folder / PEFT_WEIGHTS).exists():
        raise UserError(
            f"no {PEFT_WEIGHTS} in it (adapter_model.bin is a pickle, which can run code and is never opened here): "
            "load the adapter with PEFT where you trust it and save it again with safe_serialization=True"
        )
    return config


def _model_card(base_model: str | None, length: int) -> str:
    """Text of an adapter folder's README.md, with the header that the Hub reads."""
    header = "library_name: peft\ntags:\n- soft-prompt\n"
    if base_model and REPOSITORY_ID.fullmatch(base_model):
        header += f"base_model: {base_model}\n"
    return (
        f"---\n{header}---\n\n# Soft prompt\n\n"
        f"{length} virtual tokens before the text, for the base model {base_model or '(not recorded)'}.\n"
        f"Where they come from is in the metadata of `{PEFT_WEIGHTS}`: `lm-eval-spt inspect` prints it.\n"
    )


def _folder_name(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name


def _download(repository: str, revision: str | None) -> Path:
    """Fetch the prompt in a Hub repository, and no other file of it, into the Hub's cache; returns the local folder.

    Without a connection a copy that is already in the cache will do.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=10)
        names = [sibling.rfilename for sibling in info.siblings or []]
        wanted = [PEFT_CONFIG, PEFT_WEIGHTS]
        if PEFT_CONFIG not in names:
            wanted = [name for name in names if re.fullmatch(r"[^/]+\.safetensors", name)]
            if len(wanted) != 1:
                raise UserError(
                    f"prompt {repository!r}: the Hub repository holds {len(wanted)} .safetensors files and no "
                    f"{PEFT_CONFIG}: name one that holds a single prompt file or a PEFT adapter"
                )
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except UserError:
        raise
    except RepositoryNotFoundError:
        raise UserError(
            f"prompt {repository!r}: no such file, and no such repository on the Hub that you may read: check the "
            "name, or log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"prompt {repository!r}: the Hub repository has no revision {revision!r}: check it") from None
    except Exception as error:  # which ones mean "no connection" differs between versions of the Hub's client
        try:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            raise UserError(
                f"prompt {repository!r}: no such file, and the Hub, which may have a repository of that name, could "
                f"not be reached ({' '.join(str(error).split())}): check the path or the connection"
            ) from None
