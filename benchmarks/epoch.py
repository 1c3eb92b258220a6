"""An epoch of training, beside the same epoch done in plainer ways, in one run.

    python -m benchmarks.epoch model=google/gemma-3-270m task=sib200_eng_Latn dtype=bfloat16 tune=all shots=8

What is given are settings of a training run, as in a config file. Each contender trains one epoch in a process of its
own; the losses of all steps must agree before a time counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.alone import Memory, run
from lm_eval_spt.common.files import parse_yaml
from lm_eval_spt.train import loop, tuning
from lm_eval_spt.train.config import TrainingConfig

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}  # of a step's loss, in nats


def _whole_batches() -> None:
    """Read a step's texts in one batch, as wide as the longest, not in parts of like length."""
    loop.PASS_TOKENS = loop.PASS_TOKENS_ON_CPU = 10**9


def _plain_steps() -> None:
    """Take PyTorch's default AdamW, one operation after the other, and add up gradients in new memory."""
    torch.optim.AdamW = functools.partial(_not_fused, torch.optim.AdamW)  # type: ignore[assignment,misc]
    tuning._master_weight = _plain_master_weight


def _not_fused(adamw: Callable[..., torch.optim.Optimizer], groups: Any, **options: Any) -> torch.optim.Optimizer:
    return adamw(groups, **options | {"fused": False})


def _plain_master_weight(weight: nn.Parameter) -> nn.Parameter:
    if weight.dtype == torch.float32:
        return weight
    master = nn.Parameter(weight.detach().float())

    def hand_over(weight: Tensor) -> None:
        if weight.grad is not None:
            gradient = weight.grad.float()
            master.grad = gradient if master.grad is None else master.grad + gradient
            weight.grad = None

    weight.register_post_accumulate_grad_hook(hand_over)
    return master


PLAINER = {"as it is": None, "whole batches": _whole_batches, "plain steps": _plain_steps}
"""A contender -> what makes this package's training plainer."""


def one_epoch(contender: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch; return its seconds, the GB that it took, and the losses of its steps."""
    if (make_plainer := PLAINER[contender]) is not None:
        make_plainer()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "p.safetensors"
        config = TrainingConfig(**settings | {"epochs": 1, "checkpoint": False, "output": str(output)})
        memory = Memory("cpu")
        loop.train(config)
        rows = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    before, after = rows[-2:]
    seconds = after["seconds"] - before["seconds"]
    return {"seconds": seconds, "memory": memory.peak(), "losses": after["training"]["steps"]}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="NAME=VALUE")
    pairs = (setting.partition("=") for setting in parser.parse_args().settings)
    settings = {name: parse_yaml(value) for name, _, value in pairs}
    tolerance = TOLERANCE.get(settings.get("dtype", ""), TOLERANCE["float32"])
    ours = run(one_epoch, contender="as it is", settings=settings)
    print(
        f"| an epoch of {len(ours['losses'])} steps | seconds | | GB | | losses apart |\n|---|---:|---:|---:|---:|---:|"
    )
    for contender in PLAINER:
        theirs = ours if contender == "as it is" else run(one_epoch, contender=contender, settings=settings)
        apart = max(abs(a - b) for a, b in zip(theirs["losses"], ours["losses"], strict=True))
        if apart > tolerance:
            raise SystemExit(f"the losses differ by {apart:.3g} nats: {theirs['losses']}, {ours['losses']}")
        cells = [f"{theirs[key]:.1f} | {theirs[key] / ours[key]:.1f}x" for key in ("seconds", "memory")]
        print(f"| {contender} | {' | '.join(cells)} | {apart:.1g} |", flush=True)


if __name__ == "__main__":
    main()
