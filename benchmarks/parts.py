"""Training steps read in parts of like length, beside whole batches as wide as their longest text, in one run.

    python -m benchmarks.parts model=google/gemma-3-270m task=sib200_eng_Latn dtype=bfloat16 tune=all shots=8

What is given are settings of a training run, as in a config file. Each contender trains one epoch in a process of its
own; the losses of all steps must agree before a time counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.alone import Memory, run
from lm_eval_spt.train import loop
from lm_eval_spt.train.config import TrainingConfig

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}  # of a step's loss, in nats


def one_epoch(whole: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """Train one epoch; return its seconds, the GB that it took, and the losses of its steps."""
    if whole:
        loop.PASS_TOKENS = loop.PASS_TOKENS_ON_CPU = 10**9
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
    settings = {name: yaml.safe_load(value) for name, _, value in pairs}
    whole, parts = (run(one_epoch, whole=whole, settings=settings) for whole in (True, False))
    apart = max(abs(a - b) for a, b in zip(whole["losses"], parts["losses"], strict=True))
    if apart > TOLERANCE.get(settings.get("dtype", ""), TOLERANCE["float32"]):
        raise SystemExit(f"the losses differ by {apart:.3g} nats: {whole['losses']}, {parts['losses']}")
    print("| an epoch | whole batches | in parts | |\n|---|---:|---:|---:|")
    for key, unit in (("seconds", "s"), ("memory", "GB")):
        ratio = whole[key] / parts[key]
        print(f"| {key} | {whole[key]:.1f} {unit} | {parts[key]:.1f} {unit} | {ratio:.1f} times less |")
    print(f"\n{len(parts['losses'])} steps, whose losses differ by {apart:.1g} nats at most")


if __name__ == "__main__":
    main()
