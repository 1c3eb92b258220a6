"""Base models in GGUF files, the format of llama.cpp: unpacked once, into a folder that loads like any other.

transformers reads such a file tensor by tensor and token by token in Python: a minute for Gemma 3 270M. So the model is
kept as a safetensors folder in the user's cache directory, under the file's digest and the dtype. The folder may be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import tempfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import parse_json, read_text
from lm_eval_spt.common.paths import model_path, user_cache
from lm_eval_spt.inference import transformers_internals
from lm_eval_spt.inference.dtype import dtype_name

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""Names the files of an unpacked model, with a checksum of each: what differs from it is damaged."""

MAX_MANIFEST = 2**16
"""Bytes of such a file."""

CHUNK = 2**22
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file on this machine.

    Attributes:
        path: where it is.
    """

    path: Path

    def __post_init__(self) -> None:
        transformers_internals.tell_version_of_gguf()

    @cached_property
    def sha256(self) -> str:
        """The digest of its bytes, in hex."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def unpacked(self, dtype: Any = None) -> Path:
        """Return the folder of the model with its weights unpacked; it is made if it is not there or damaged.

        Args:
            dtype: of the weights; None or ``auto``: float32, to which GGUF's blocks are unpacked.

        Raises:
            UserError: the file is torn, holds no tokenizer, or is of an architecture that transformers can not read;
                the cache can not be written.
        """
        kind = "float32" if dtype in (None, "auto") else dtype_name(dtype)
        folder = cache_folder() / f"{self.sha256}-{kind}"
        if _is_whole(folder):
            return folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):  # other processes wait for the one that unpacks
                if not _is_whole(folder):
                    logger.info("%s is unpacked into %s, once", self.path, folder)
                    self._unpack(folder, getattr(torch, kind))
        except OSError as error:
            raise UserError(
                f"{self.path} can not be unpacked into {folder.parent} ({error.strerror or error}): make room there, "
                "or set XDG_CACHE_HOME to another folder"
            ) from error
        return folder

    def _unpack(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the model and its tokenizer to `folder`, whole or not at all; a damaged one is replaced."""
        model, tokenizer = self._read(dtype)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            new = Path(temporary) / "new"
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
            _make_plain(new, model.get_input_embeddings().weight.shape[0])
            files = {
                file.relative_to(new).as_posix(): _checksum(file) for file in sorted(new.rglob("*")) if file.is_file()
            }
            (new / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
            if folder.exists():  # damaged
                folder.rename(Path(temporary) / "old")
            new.rename(folder)

    def _read(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Return the model, unpacked, and the tokenizer that the file holds."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, name = self.path.parent, self.path.name
        # A torn file can make its readers raise almost anything.
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        except Exception as error:
            raise self._unreadable("tokenizer", error) from error
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=name, dtype=dtype, output_loading_info=True, **gguf_options(dequantize=True)
            )
        except Exception as error:
            raise self._unreadable("model", error) from error
        model, loading = loaded
        if missing := sorted(loading["missing_keys"]):
            raise UserError(
                f"{self.path} lacks {len(missing)} weights of its model ({missing[0]}, ...): get it again, or another"
            )
        if getattr(model, "hf_quantizer", None) is not None:  # it refuses to save what is plain now
            model.hf_quantizer.remove_quantization_config(model)
        return model, tokenizer

    def _unreadable(self, part: str, error: Exception) -> UserError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return UserError(
            f"the {part} in {self.path} can not be read ({reason}): expected a whole GGUF file with a tokenizer, of an "
            "architecture that transformers reads; get it again, or another"
        )


def find_gguf(name: str, gguf_file: str | None = None, revision: str | None = None) -> GGUFFile | None:
    """Return the GGUF file that a base model is in; None where it is a folder or a Hub repository of another kind.

    Args:
        name: the base model. If it ends in ``.gguf``, it is the file.
        gguf_file: the file's name in the folder or the Hub repository `name`. It is fetched if need be.
        revision: of the repository.

    Raises:
        UserError: there is no such file, or the package ``gguf`` is missing.
    """
    path = model_path(name)
    if gguf_file is None:
        if not path.lower().endswith(".gguf"):
            return None
        file = Path(path)
    elif path.lower().endswith(".gguf"):
        raise UserError(f"{name} is a GGUF file itself: leave gguf_file={gguf_file} out, or give its folder as model")
    else:
        file = Path(path) / gguf_file if os.path.isdir(path) else _fetched(path, gguf_file, revision)
    if not file.is_file():
        raise UserError(f"there is no GGUF file {file}: expected a path that ends in .gguf, or a folder that has it")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{file} needs the package gguf, which is not installed: pip install 'lm_eval_spt[gguf]'")
    return GGUFFile(file)


def gguf_options(*, dequantize: bool) -> dict[str, Any]:
    """Return what makes ``from_pretrained`` unpack the weights of a GGUF file, or keep them packed where it can.

    Versions of transformers without ``GgufConfig`` always unpack.
    """
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=dequantize)}


def cache_folder() -> Path:
    """Return the folder of the unpacked models."""
    return user_cache() / "gguf"


def _fetched(repository: str, gguf_file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, gguf_file, revision=revision))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"the file {gguf_file} of the base model {repository!r} can not be had ({reason}): expected a folder that "
            "has it, or a Hub id that can be reached or is in the local cache"
        ) from error


def _make_plain(folder: Path, rows: int) -> None:
    """Keep of a saved tokenizer what the GGUF file says, without what transformers' classes add.

    By its own class it would be loaded with that class's way to split texts. Some classes also add a special token
    that the file does not have; then the model has no embedding for it.

    Args:
        folder: where the tokenizer was saved.
        rows: how many tokens the model has embeddings of.
    """
    settings, content = folder / "tokenizer_config.json", folder / "tokenizer.json"
    plain = json.loads(settings.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    tokenizer = json.loads(content.read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < rows]
    content.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    """Tell whether an unpacked model is as it was written. Reads it once: a quarter of a second for a gigabyte."""
    try:
        files = parse_json(read_text(folder / MANIFEST, MAX_MANIFEST))["files"]
        return bool(files) and all(_checksum(folder / name) == value for name, value in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _checksum(path: Path) -> list[int]:
    """Return a file's size and its CRC-32, which tells damage, though not intent, at four gigabytes a second."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]
