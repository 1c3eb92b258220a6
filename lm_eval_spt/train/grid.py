"""A grid of runs from one command line: ``--seed 0 1 2 3 --prompt-length 5 10`` are eight prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.base import Base
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.loop import train_together

AXES = (
    "seed", "prompt-length", "lr", "shots", "epochs", "batch-size", "placement", "init", "loss", "tune", "model-lr",
    "reparameterization", "label-smoothing", "mixture",
)  # fmt: skip
"""Flags that may have several values."""


def configurations(arguments: Sequence[str]) -> list[TrainingConfig]:
    """Return the settings of every run that a command line asks for.

    With several values for a flag of `AXES` there is a run for each combination, and what tells a run from the others
    is added to its output's name: ``my.safetensors`` becomes ``my-seed0-prompt_length5.safetensors``.

    Raises:
        UserError: a setting makes no sense, or two runs would have the same output.
    """
    rest: list[str] = []
    values: dict[str, list[str]] = {}
    flag = ""
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument[2:].replace("_", "-")
            if flag in AXES:
                values[flag] = []
                continue
        if flag in AXES and not argument.startswith("--"):
            values[flag].append(argument)
        else:
            rest.append(argument)

    several = [name for name in values if len(values[name]) > 1]
    found = []
    for combination in product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        config = TrainingConfig.from_command_line([*rest, *(part for pair in _flags(chosen) for part in pair)])
        if several:
            output = Path(config.output)
            label = "-".join(f"{name.replace('-', '_')}{_in_a_name(chosen[name])}" for name in several)
            config.output = str(output.with_name(f"{output.stem}-{label}{output.suffix}"))
        found.append(config)
    outputs = [config.output for config in found]
    if double := {output for output in outputs if outputs.count(output) > 1}:
        raise UserError(f"two runs would write {sorted(double)[0]}: give each value of a flag once")
    return found


def _in_a_name(value: str) -> str:
    """Return a value as it stands in a file name: of a prompt to start from, its own name."""
    return Path(value).stem if value.endswith(".safetensors") else re.sub(r"[/,\s]+", "_", value)


def _flags(chosen: dict[str, str]) -> list[tuple[str, str]]:
    return [(f"--{name}", value) for name, value in chosen.items()]


def train_grid(configs: Sequence[TrainingConfig], base: Base | None = None) -> list[SoftPrompt | None]:
    """Train all runs; runs that leave the base model frozen share it and train side by side.

    Args:
        configs: the settings; all have one base model.
        base: that model, if it is loaded.

    Raises:
        UserError: something in the settings can not be done, or a loss turned into NaN; then all others have ended.
    """
    frozen = [number for number, config in enumerate(configs) if config.tune == "prompt"]
    groups = [frozen] if frozen else []
    groups += [[number] for number, config in enumerate(configs) if config.tune != "prompt"]
    prompts: dict[int, SoftPrompt | None] = {}
    errors = []
    for group in groups:
        if len(configs) > 1:
            print(f"{len(group)} of {len(configs)} runs: {configs[group[0]].output} ...", flush=True)
        try:
            prompts |= zip(group, train_together([configs[number] for number in group], base), strict=True)
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return [prompts[number] for number in range(len(configs))]
