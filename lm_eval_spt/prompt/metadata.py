"""What a prompt says of where it comes from: the types of the entries that this package reads.

A prompt file and a results file both hold them, and both may come from anywhere. Entries that are not listed here are
kept as they are and only ever shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from lm_eval_spt.common.errors import UserError

# A name of a branch, a tag or a commit. What git does not allow in one would be a path elsewhere in the Hub's cache.
REVISION = re.compile(r"(?!.*\.\.)[\w.+-]+(/[\w.+-]+)*")

Placement = Literal["prefix", "suffix", "both"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)

_TEXTS = ("base_model", "base_model_revision", "embedding_fingerprint")
_LISTS = ("tasks", "source_languages")
_OBJECTS = ("hyperparameters", "validation", "versions")
_NUMBERS = ("shots", "training_documents", "tuned_parameters")


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Make sure that the entries which are read later are what they should be, or null.

    Args:
        metadata: a parsed JSON object; :mod:`lm_eval_spt.prompt.soft_prompt` says what is in it.

    Raises:
        UserError: names the first entry that is something else.
    """
    for key in _TEXTS:
        _expect(metadata, key, isinstance(metadata.get(key), str | None), "a string")
    for key in _LISTS:
        listed = metadata.get(key) or []
        _expect(metadata, key, isinstance(listed, list) and all(isinstance(one, str) for one in listed), "strings")
    for key in _OBJECTS:
        _expect(metadata, key, isinstance(metadata.get(key), dict | None), "an object")
    for key in _NUMBERS:
        _expect(metadata, key, isinstance(metadata.get(key), int | None), "a whole number")
    revision = metadata.get("base_model_revision")
    _expect(metadata, "base_model_revision", not revision or REVISION.fullmatch(revision) is not None, "a name in git")
    settings = metadata.get("hyperparameters") or {}
    _expect(settings, "add_bos_token", isinstance(settings.get("add_bos_token"), bool | None), "true or false")
    _expect(settings, "reparameterization", isinstance(settings.get("reparameterization"), str | None), "a string")


def _expect(entries: Mapping[str, Any], key: str, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"metadata says {key} {repr(entries[key])[:80]}, expected {expected}: write the file again")
