"""PEFT's adapter folders: vectors and their record in and out.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. The weights are a prompt file
(:mod:`lm_eval_spt.prompt.file_format`): the record travels in its metadata, which PEFT ignores.

What PEFT makes of ``prompt_embeddings``, read in its ``peft_model.py``, ``tuners/p_tuning/model.py``,
``tuners/prefix_tuning/model.py`` and ``tuners/cartridge/model.py`` (0.21.2): P-tuning and prefix tuning may run their
vectors through a network while they train; they save what comes out and serve that as it is, so that a saved adapter is
a soft prompt like any other. Prefix tuning and cartridges save keys and values as
`[P, layers * 2 * kv_heads * head_dim]`, each layer's keys before its values. An encoder-decoder model has two
``num_transformer_submodules`` by default: the first half of the vectors stands before the encoder's text, the second
before the decoder's tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from lm_eval_spt.common.errors import UserError, error_context, shown
from lm_eval_spt.common.files import parse_json, read_text, write
from lm_eval_spt.common.paths import model_path
from lm_eval_spt.prompt import file_format
from lm_eval_spt.prompt.metadata import PromptKind, TaskType

logger = logging.getLogger(__name__)

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
KINDS: dict[str, PromptKind] = {
    "PROMPT_TUNING": "embeddings",
    "P_TUNING": "embeddings",
    "PREFIX_TUNING": "kv",
    "CARTRIDGE": "kv",
}
"""PEFT's types of adapters that are soft prompts."""
MAX_CONFIG = 2**24
"""Bytes of an adapter's configuration, and of a base model's."""


def read_adapter(folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """Read an adapter of one of the types in :data:`KINDS`.

    Returns:
        The vectors, as :class:`~lm_eval_spt.prompt.soft_prompt.SoftPrompt` has them, and their record. The base model,
        its revision and whether it is an encoder-decoder model are taken from the configuration where the weights'
        metadata does not say so.

    Raises:
        UserError: another type of adapter, vectors before the decoder's tokens, pickled weights, damaged files, or
            files that do not belong together. The message does not name the folder: the caller does.
    """
    config = _read_config(folder)
    with error_context(PEFT_WEIGHTS):
        vectors, metadata = file_format.read(folder / PEFT_WEIGHTS)
        file_format.check_vectors(vectors)
    actual = {"num_virtual_tokens": len(vectors), "token_dim": vectors.shape[-1]}
    if KINDS[config["peft_type"]] == "kv":
        vectors = _unpacked(vectors, config)
        layers, _, heads, length, width = vectors.shape
        actual = {"num_virtual_tokens": length, "token_dim": heads * width, "num_layers": layers}
    for key, value in actual.items():
        if config.get(key) not in (value, None):
            raise UserError(
                f"{PEFT_CONFIG} says {key} {config[key]!r}, but {PEFT_WEIGHTS} has {value}: the two files do not "
                "belong together, copy the folder again"
            )
    recorded = {"base_model": "base_model_name_or_path", "base_model_revision": "revision"}
    record = {key: config[name] for key, name in recorded.items() if config.get(name) is not None}
    if config.get("task_type") == "SEQ_2_SEQ_LM":
        record["task_type"] = "SEQ_2_SEQ_LM"
    metadata = {key: value for key, value in metadata.items() if key not in file_format.sizes(vectors)}
    return vectors, metadata | {key: value for key, value in record.items() if metadata.get(key) is None}


def write_adapter(folder: Path, vectors: Tensor, metadata: dict[str, Any], task_type: TaskType | None = None) -> None:
    """Write an adapter that ``peft.PeftModel.from_pretrained(base_model, folder)`` loads.

    Args:
        folder: created where missing; the adapter's two files in it are replaced.
        vectors: `[P, d]`, or `[layers, 2, kv_heads, P, head_dim]` of a deep prefix, float32, contiguous, on the CPU.
            PEFT puts them before the text.
        metadata: their record.
        task_type: what PEFT wraps the base model as. None: what the record says, else what the base model's
            configuration says where it is on this machine, else, with a warning, ``CAUSAL_LM``. PEFT loads the wrong
            one without a word and gives other numbers.

    Raises:
        UserError: the folder can not be written.
    """
    if task_type is not None:
        metadata = metadata | {"task_type": task_type}
    task_type = metadata.get("task_type") or _task_type_of_base(metadata)
    if task_type is None:
        logger.warning(
            "%s: written for a causal LM; whether the base model %r is one is not recorded, and its configuration is "
            "not on this machine", folder, metadata.get("base_model"),
        )  # fmt: skip
        task_type = "CAUSAL_LM"
    config = {
        "task_type": task_type,
        "base_model_name_or_path": metadata.get("base_model"),
        "revision": metadata.get("base_model_revision"),
        "inference_mode": True,
        "num_virtual_tokens": vectors.shape[-2],
        "num_transformer_submodules": 1,
    }
    if file_format.kind_of(vectors) == "kv":
        layers, _, heads, _, width = vectors.shape
        config |= {"peft_type": "PREFIX_TUNING", "num_layers": layers, "num_attention_heads": heads}
        config |= {"token_dim": heads * width, "prefix_projection": False}
        vectors = file_format.by_position(vectors).contiguous()
    else:
        config |= {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM", "token_dim": vectors.shape[1]}
        # Prompt tuning uses neither, but PEFT refuses a model, such as XGLM, where it does not find them.
        config |= {"num_layers": 1, "num_attention_heads": 1}
    # The configuration comes last: without it PEFT does not take the folder for an adapter.
    write(folder / PEFT_WEIGHTS, file_format.to_bytes(vectors, metadata))
    write(folder / PEFT_CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def _read_config(folder: Path) -> dict[str, Any]:
    """The configuration in `folder`, once it is that of a soft prompt with safetensors weights."""
    try:
        config = parse_json(read_text(folder / PEFT_CONFIG, MAX_CONFIG))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{PEFT_CONFIG} can not be read ({error.strerror}): give a folder that PEFT saved") from None
    except ValueError as error:
        raise UserError(f"{PEFT_CONFIG} is not JSON ({error}): copy the folder again") from None
    if not isinstance(config, dict):
        raise UserError(f"{PEFT_CONFIG} is a JSON {type(config).__name__}, expected an object: copy the folder again")
    if config.get("peft_type") not in tuple(KINDS):
        raise UserError(
            f"the adapter's type is {config.get('peft_type')!r}, expected {' or '.join(map(repr, KINDS))}: only such "
            "an adapter is a soft prompt"
        )
    submodules = config.get("num_transformer_submodules")
    if submodules is None:  # PEFT's defaults
        submodules = 2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1
    if submodules != 1:
        raise UserError(
            f"the adapter's num_transformer_submodules is {shown(submodules)}, expected 1: vectors before the "
            "decoder's tokens are not supported, train with num_transformer_submodules=1"
        )
    if not (folder / PEFT_WEIGHTS).exists():
        raise UserError(
            f"no {PEFT_WEIGHTS} in it (adapter_model.bin is a pickle, which can run code and is never opened here): "
            "load the adapter with PEFT where you trust it and save it again with safe_serialization=True"
        )
    return config


def _unpacked(rows: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Return the keys and values `[layers, 2, kv_heads, P, head_dim]` that PEFT has in one row for each position."""
    layers, heads = config.get("num_layers"), config.get("num_attention_heads")
    if type(layers) is not int or type(heads) is not int or layers < 1 or heads < 1 or rows.ndim != 2:
        raise UserError(
            f"{PEFT_CONFIG} says num_layers {shown(layers)} and num_attention_heads {shown(heads)}, expected two whole "
            "numbers from 1 on: copy the folder again"
        )
    if rows.shape[1] % (2 * layers * heads):
        raise UserError(
            f"{PEFT_WEIGHTS} has rows of {rows.shape[1]} numbers, which {layers} layers with {heads} heads do not "
            "share evenly: the two files do not belong together, copy the folder again"
        )
    return rows.unflatten(1, (layers, 2, heads, -1)).movedim(0, -2)


def _task_type_of_base(metadata: dict[str, Any]) -> TaskType | None:
    """The task type of the recorded base model; None where its configuration is not on this machine.

    Wherever the record says that the model lies: a single word is read from a JSON file, nothing is loaded.
    """
    name = metadata.get("base_model")
    if not name:
        return None
    try:
        path = _config_path(name, metadata.get("base_model_revision"))
        config = parse_json(read_text(path, MAX_CONFIG)) if path else None
    except (OSError, ValueError):  # no such file, no JSON, or no name that a repository can have
        return None
    if not isinstance(config, dict):
        return None
    return "SEQ_2_SEQ_LM" if config.get("is_encoder_decoder") is True else "CAUSAL_LM"


def _config_path(base_model: str, revision: str | None) -> Path | None:
    """Where a base model's ``config.json`` lies: in its folder, or in the Hub's cache."""
    folder = Path(model_path(base_model))
    if folder.is_dir():
        return folder / "config.json"
    cached = try_to_load_from_cache(base_model, "config.json", revision=revision)
    return Path(cached) if isinstance(cached, str) else None
