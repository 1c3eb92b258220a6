"""Mistakes in ``--model_args`` that HFLM passes over, or that would end in a traceback."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lm_eval_spt.common.errors import UserError, shown
from lm_eval_spt.inference.dtype import dtype_name

SWITCHES = (
    "add_bos_token", "autogptq", "dequantize", "enable_thinking", "fast", "gptqmodel", "load_in_4bit", "load_in_8bit",
    "logits_cache", "parallelize", "trust_remote_code", "truncation", "use_fast_tokenizer",
)  # fmt: skip
"""Arguments that are True or False. Any other text counts as True: ``trust_remote_code=no`` would trust."""


def check_model_arguments(given: Mapping[str, Any]) -> None:
    """Check the arguments that HFLM does not.

    Args:
        given: the model class's arguments by name.

    Raises:
        UserError: one has a value that it can not have.
    """
    for name in SWITCHES:
        if isinstance(value := given.get(name), str):
            raise UserError(f"{name} is {shown(value)}, expected True or False")
    length = given.get("max_length")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise UserError(f"max_length is {shown(length)}, expected a whole number from 1 on")
    if given.get("dtype") not in (None, "auto"):
        dtype_name(given["dtype"])


def refuse_flags(given: Mapping[str, Any], flags: Mapping[str, str]) -> None:
    """Refuse what a command has a flag of its own for.

    Args:
        given: what was given with ``--model-args``.
        flags: the argument's name -> the flag.

    Raises:
        UserError: one is among the model arguments.
    """
    for name in flags.keys() & given.keys():
        raise UserError(f"--model-args has {name}={given[name]}: expected it as {flags[name]}")


def unknown_argument(error: TypeError, given: Mapping[str, Any]) -> UserError | None:
    """Return the error to raise where transformers did not know one of the given arguments; None if it is another."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None or found[1] not in given:
        return None
    return UserError(
        f"there is no model argument {found[1]!r}: expected one of lm_eval's model `hf`, or of from_pretrained in "
        "transformers"
    )
