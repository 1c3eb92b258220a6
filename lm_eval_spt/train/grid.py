"""A grid of runs: those that leave the base model frozen share it, and train side by side."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.base import Base
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.loop import train_together


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
