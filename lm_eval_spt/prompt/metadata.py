"""The record of a soft prompt: what its metadata says of the vectors and of where they come from.

The metadata is one JSON object:

=========================  ===========================================================================
``format_version``         1; a file of a newer version is refused
``prompt_kind``            ``"embeddings"``, or ``"kv"`` for a deep prefix
``num_virtual_tokens``     P
``hidden_size``            d, of embeddings
``num_layers``,            of a deep prefix
``num_kv_heads``,
``head_dim``
``placement``              ``"prefix"`` (before the text), ``"suffix"`` (after it) or ``"both"``
``num_prefix_tokens``      with ``"both"``: how many of the vectors, the first ones, stand before the text
``base_model``             name of the model that the prompt was trained for
``base_model_revision``    its revision on the Hub, or null
``gguf_file``              name of the GGUF file, where the model is one in a folder or repository
``gguf_sha256``            digest of the GGUF file, where the model is one
``task_type``              ``"SEQ_2_SEQ_LM"`` for an encoder-decoder model, else ``"CAUSAL_LM"``: PEFT's names
``embedding_fingerprint``  :func:`~lm_eval_spt.prompt.fingerprint.embedding_fingerprint` of that model
``tasks``                  names of the harness tasks it was trained on
``source_languages``       their languages
``shots``, ``seed``        training documents per class (null: all of them), random seed
``label_counts``           list: how many documents of the training split have each label, in the labels' order
``num_fewshot``            object: each of these tasks to the number of shots in its contexts
``scored_documents``       object: how many ``training`` and ``validation`` documents are also scored; absent: none
``hyperparameters``        object: every setting of the training run
``validation``             object: scores of the epoch that was kept
``versions``               object: library name to version
``created``                time of writing, ISO 8601, UTC
=========================  ===========================================================================

The first rows, to ``placement``, describe the vectors and are filled in on writing. The rest is optional. Entries that
are not listed here are kept as they are and only ever shown. Prompt files and results files both hold such a record,
and both may come from anywhere. This module imports no torch: the analysis of results reads records, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from lm_eval_spt.common.errors import UserError, shown
from lm_eval_spt.common.files import parse_json, read_text

FORMAT_VERSION = 1

MODEL_RECORD = "lm_eval_spt.json"
"""The file in the folder of a tuned model or adapter that says how it was trained, as a prompt file's metadata does."""

MAX_MODEL_RECORD = 2**20
"""Bytes of such a file."""

Placement = Literal["prefix", "suffix", "both"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

PromptKind = Literal["embeddings", "kv"]
"""Virtual tokens among the text's embeddings, or a deep prefix: keys and values of every layer before the text."""

PURPOSES = ("training", "validation")
"""What documents are for."""

TaskType = Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

# A name of a branch, a tag or a commit. What git does not allow in one would be a path elsewhere in the Hub's cache.
REVISION = re.compile(r"(?!.*\.\.)[\w.+-]+(/[\w.+-]+)*")


_TEXTS = ("base_model", "base_model_revision", "gguf_file", "gguf_sha256", "embedding_fingerprint")
_LISTS = {"tasks": (str, "strings"), "source_languages": (str, "strings"), "label_counts": (int, "whole numbers")}
_OBJECTS = ("num_fewshot", "hyperparameters", "validation", "versions")
_COUNTS = ("scored_documents",)
_NUMBERS = ("shots", "training_documents", "tuned_parameters")


def checked_metadata(metadata: dict[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a record as JSON gives it back, once it agrees with the vectors that it belongs to.

    Args:
        metadata: the record, as the module's docstring describes it.
        sizes: the entries that the vectors themselves give: see :func:`lm_eval_spt.prompt.file_format.sizes`.

    Raises:
        UserError: the record is not JSON, contradicts the vectors, names an unknown placement, is of a newer format
            version, or :func:`check_metadata` refuses it.
    """
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
    _check_num_prefix_tokens(metadata, sizes["num_virtual_tokens"])
    if sizes["prompt_kind"] == "kv" and metadata.get("placement", "prefix") != "prefix":
        raise UserError(f"placement is {metadata['placement']!r}, a deep prefix stands before the text: write it again")
    for key, actual in sizes.items():
        if metadata.get(key, actual) != actual:
            raise UserError(
                f"metadata says {key} {shown(metadata[key])}, but the tensor has {actual}: the file was altered, get "
                "it again"
            )
    check_metadata(metadata)
    return metadata


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Make sure that the entries which this package reads have the right types, or are null.

    Args:
        metadata: a parsed JSON object.

    Raises:
        UserError: names the first entry that has another type.
    """
    for key in _TEXTS:
        _expect(metadata, key, isinstance(metadata.get(key), str | None), "a string")
    for key, (kind, expected) in _LISTS.items():
        values = metadata.get(key) or []
        _expect(metadata, key, isinstance(values, list) and all(type(value) is kind for value in values), expected)
    for key in _OBJECTS:
        _expect(metadata, key, isinstance(metadata.get(key), dict | None), "an object")
    for key in _COUNTS:
        counts = metadata.get(key) or {}
        numbers = isinstance(counts, dict) and all(type(number) is int for number in counts.values())
        _expect(metadata, key, numbers, "an object of whole numbers")
    for key in _NUMBERS:
        _expect(metadata, key, isinstance(metadata.get(key), int | None), "a whole number")
    revision = metadata.get("base_model_revision")
    _expect(metadata, "base_model_revision", not revision or REVISION.fullmatch(revision) is not None, "a name in git")
    _expect(metadata, "task_type", metadata.get("task_type") in (None, *TASK_TYPES), " or ".join(TASK_TYPES))
    settings = metadata.get("hyperparameters") or {}
    _expect(settings, "add_bos_token", isinstance(settings.get("add_bos_token"), bool | None), "true or false")
    _expect(settings, "reparameterization", isinstance(settings.get("reparameterization"), str | None), "a string")


def scored_documents(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many of the documents that prompts learned from or were chosen by are also scored, ``training`` and
    ``validation``: the largest numbers of all records, as prompts may share documents. Empty where none are.
    """
    found = [record.get("scored_documents") or {} for record in records]
    counts = {purpose: max((counts.get(purpose, 0) for counts in found), default=0) for purpose in PURPOSES}
    return counts if any(counts.values()) else {}


def in_words(counts: Mapping[str, int]) -> str:
    """Return what :func:`scored_documents` found as a clause."""
    named = " and ".join(f"{count:,} of the {purpose} documents" for purpose, count in counts.items() if count)
    return f"{named} are also scored"


def record_in(folder: Path) -> dict[str, Any]:
    """Return the record in the folder of a tuned model or adapter; empty where there is none."""
    try:
        record = parse_json(read_text(folder / MODEL_RECORD, MAX_MODEL_RECORD))
    except (OSError, ValueError, UserError):
        return {}
    return record if isinstance(record, dict) else {}


def _expect(entries: Mapping[str, Any], key: str, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"metadata says {key} {repr(entries[key])[:80]}, expected {expected}: write the file again")


def _check_num_prefix_tokens(metadata: Mapping[str, Any], length: int) -> None:
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
