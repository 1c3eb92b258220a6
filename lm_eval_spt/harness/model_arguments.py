"""Mistakes in ``--model_args`` that HFLM passes over, or that would end in a traceback."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lm_eval_spt.common.errors import UserError, shown
from lm_eval_spt.inference.dtype import dtype_name

SWITCHES = (
    "add_bos_token", "dequantize", "enable_thinking", "fast", "gptqmodel", "load_in_4bit", "load_in_8bit",
    "logits_cache", "parallelize", "trust_remote_code", "truncation", "use_fast_tokenizer",
)  # fmt: skip
"""Arguments that are True or False. Any other text counts as True: ``trust_remote_code=no`` would trust."""

WHOLE_NUMBERS = {"max_length": 1, "max_batch_size": 1, "prefix_token_id": 0}
"""Arguments that are whole numbers -> the least that each can be."""

DTYPES = ("dtype", "softmax_dtype", "mixed_precision_dtype")

BACKENDS = ("default", "causal", "seq2seq")

NAMES = ("pretrained", "prompt", "revision", "gguf_file", "tokenizer", "peft", "delta")
"""Arguments that are names; lm_eval takes some for numbers, such as the revision 1."""


def names_as_texts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of which those that are names, or loaded models, are no numbers."""
    for name in NAMES:
        if isinstance(given.get(name), bool):
            raise UserError(f"{name} is {given[name]}, expected a name")
    numbers = {name for name in NAMES if isinstance(given.get(name), int | float)}
    return {name: str(value) if name in numbers else value for name, value in given.items()}


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
    for name, least in WHOLE_NUMBERS.items():
        number = given.get(name)
        if number is not None and (not isinstance(number, int) or number < least):
            raise UserError(f"{name} is {shown(number)}, expected a whole number from {least} on")
    dtypes = {name: dtype_name(given[name], name) for name in DTYPES if given.get(name) not in (None, "auto")}
    if given.get("fast") and (softmax := dtypes.get("softmax_dtype")) in ("float16", "bfloat16"):
        raise UserError(f"softmax_dtype is {softmax}: expected float32, which it is, or fast=False beside it")
    if (backend := given.get("backend", "default")) not in BACKENDS:
        raise UserError(f"backend is {shown(backend)}, expected one of {', '.join(BACKENDS)}")


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
