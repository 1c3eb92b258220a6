"""``lm-eval-spt train``, also ``train_prompt.py``: settings from flags, one run or a grid of them.

The flags are the fields of :class:`~lm_eval_spt.train.config.TrainingConfig`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lm_eval_spt.cli.command import execute
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.run_name import run_name

AXES = (
    "seed", "prompt_kind", "prompt_length", "lr", "shots", "shots_seed", "epochs", "batch_size", "placement", "init",
    "loss", "tune", "model_lr", "reparameterization", "label_smoothing", "mixture",
)  # fmt: skip
"""Settings that may have several values."""

GROUPS = {
    "model": "required",
    "revision": "model and data",
    "tune": "what is learned",
    "loss": "loss",
    "train_split": "documents",
    "num_fewshot": "contexts",
    "epochs": "optimisation",
    "activation_checkpointing": "memory, interruptions, reports",
    "seed": "seed and machine",
}
"""The first setting of each group of flags -> the group's title."""

OF_A_PROMPT = ("lr", "prompt_length", "num_frozen_tokens", "init", "placement")
"""Settings without effect where there is no prompt; those of a preset are passed over."""

TRUTH = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what ``train_prompt.py`` does; returns the exit status."""
    return execute(
        lambda: sys.modules[__name__], "train_prompt.py", sys.argv[1:] if arguments is None else list(arguments)
    )


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser; what it parses holds only what was given."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Learn a soft prompt: a few vectors in the input space of a language model, which stays frozen or "
        "is tuned along.",
        epilog=f"example: {prog} --model mini --task mini_topics_eng_Latn --output prompts/my.safetensors; "
        "several values (--seed 0 1 2 --lr 1e-3 5e-3) train a prompt for each combination",
        argument_default=argparse.SUPPRESS,
    )
    kinds = get_type_hints(TrainingConfig)
    for setting in fields(TrainingConfig):
        if setting.name in GROUPS:
            group = parser.add_argument_group(GROUPS[setting.name])
        _add_flag(group.add_argument, setting, kinds[setting.name])
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Train all prompts that the flags ask for."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    from lm_eval_spt.train.grid import train_grid

    train_grid(configurations(vars(arguments)))


def configurations(given: Mapping[str, Any]) -> list[TrainingConfig]:
    """Return the settings of every run that a command line asks for.

    With several values for one of `AXES` there is a run for each combination, and what tells a run from the others is
    added to its output's name: ``my.safetensors`` becomes ``my-seed0-prompt_length5.safetensors``.

    Args:
        given: settings by name; those of `AXES` are lists.

    Raises:
        UserError: a setting makes no sense, or two runs would have the same output.
    """
    axes = {name: values for name, values in given.items() if name in AXES}
    configs = []
    for combination in product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        config = TrainingConfig.from_settings({**given, **chosen})
        if differing := {name: _in_a_name(value) for name, value in chosen.items() if len(axes[name]) > 1}:
            output = Path(config.output)
            config.output = str(output.with_name(f"{output.stem}-{run_name('', differing)}{output.suffix}"))
        configs.append(config)
    outputs = [config.output for config in configs]
    if double := {output for output in outputs if outputs.count(output) > 1}:
        raise UserError(f"two runs would write {sorted(double)[0]}: give each value of a flag once")
    _expect_effects(given, configs)
    return configs


def _expect_effects(given: Mapping[str, Any], configs: Sequence[TrainingConfig]) -> None:
    """Raise UserError where a flag, or some of its values, would change nothing in any run."""
    if not any(config.prompt_length for config in configs):
        for name in OF_A_PROMPT:
            if name in given and given[name] != [0]:
                instead = ", whose learning rate is --model-lr" if name == "lr" else ""
                raise UserError(f"--{name.replace('_', '-')} is given: without a prompt only the model learns{instead}")
    outputs: dict[str, str] = {}
    for config in configs:
        same = outputs.setdefault(config.apart_from_output(), config.output)
        if same != config.output:
            raise UserError(f"{same} and {config.output} would be the same run twice: train what differs by itself")


def _in_a_name(value: Any) -> Any:
    """Return a value as it stands in a file name: of a prompt to start from, its own name."""
    return Path(value).stem if isinstance(value, str) and value.endswith(".safetensors") else value


def _add_flag(add_argument: Callable[..., Any], setting: Field[Any], kind: Any) -> None:
    """Add the flag of a setting, which may be left out: then its name is not in the result."""
    flag = f"--{setting.name.replace('_', '-')}"
    text = str(setting.metadata["help"]).replace("%", "%%")
    if setting.default not in (None, ""):
        default = str(setting.default).replace("\n", "\\n")
        text += f" (default: {default})"
    (kind,) = [part for part in get_args(kind) if part is not NoneType] if type(None) in get_args(kind) else [kind]
    if kind is bool:
        add_argument(flag, type=_truth, nargs="?", const=True, metavar="yes|no", help=text)
        if setting.default is True:
            off = f"--no-{setting.name.replace('_', '-')}"
            add_argument(off, dest=setting.name, action="store_false", help=f"the same as {flag} no")
        return
    options: dict[str, Any] = {"nargs": "+"} if setting.name in AXES else {}
    options |= {name: value for name, value in setting.metadata.items() if name != "help"}
    if get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    else:
        options |= {"type": kind, "metavar": {int: "N", float: "X", str: "TEXT"}[kind]}
    add_argument(flag, help=text, **options)


def _truth(text: str) -> bool:
    if text.lower() not in TRUTH:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected yes or no")
    return TRUTH[text.lower()]
