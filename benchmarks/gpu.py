"""Measure a GPU in at most eight minutes: `make bench-gpu`.

    python -m benchmarks.gpu                            # BLOOM-560m's shape in bfloat16, a whole SIB-200's documents
    python -m benchmarks.gpu --device cpu --tiny        # whether it runs: seconds, on any machine

Needs torch, transformers, lm-eval, peft and this checkout: weights are random, and texts are made, as long as English
ones of SIB-200. Every contender runs in a process of its own. What is measured is printed and written at once, so that
nothing is lost when the time is over. lm-eval's `hf` with PEFT gets a part of the documents; its time is multiplied.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import limit, machine, models, score, train
from benchmarks.alone import run
from lm_eval_spt.common.files import write

DOCUMENTS = 205 * 204
SHARE = 40
"""One in so many documents is given to lm-eval's class."""

LENGTH = 10
MOST_SECONDS = 480.0


def rate(shape: str, device: str, dtype: str) -> dict[str, Any]:
    """Measure the rate of matrix products in a model's own shapes, in TFLOP/s."""
    return {"TFLOP/s": limit.matmul_rate(models.build(shape, getattr(torch, dtype), device)) / 1e12}


def equality(shape: str, device: str) -> dict[str, Any]:
    """Compare log-likelihoods in float32: the largest difference from hf + peft."""
    given: dict[str, Any] = {"shape": shape, "device": device, "dtype": "float32", "choices": models.CATEGORIES}
    theirs, ours = (
        score.one_prompt(contender, documents=8, length=LENGTH, **given)["answers"]
        for contender in score.CONTENDERS[:2]
    )
    return {"largest difference": max(abs(a - b) for a, b in zip(theirs, ours, strict=True))}


def scored(contender: str, documents: int, **given: Any) -> dict[str, Any]:
    """Score so many documents with category names; seconds are those of all of SIB-200."""
    found = score.one_prompt(contender, documents=documents, choices=models.CATEGORIES, length=LENGTH, **given)
    answers = found.pop("answers")
    found["answers"] = answers[: 7 * 64]
    found["documents"] = documents
    found["of SIB-200"] = found["seconds"] * DOCUMENTS / documents
    found["memory"] = max(found["memory"], 0.0)
    if "limit" in found:
        found["of the limit"] = found.pop("limit") / found["seconds"]
    return found


def trained(contender: str, steps: int, **given: Any) -> dict[str, Any]:
    """Train 56 examples for 20 epochs, as :mod:`benchmarks.train` does."""
    found = train.measure(contender, length=LENGTH, steps=steps, **given)
    if "limit" in found:
        found["of the limit"] = found.pop("limit") / found["total"]
    return found


def sections(options: argparse.Namespace) -> dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]]:
    """Return what is measured, the most important first: name to function and arguments."""
    shape, documents, steps = ("tiny", 40, 1) if options.tiny else ("bloom-560m", DOCUMENTS, 20)
    where = {"shape": shape, "device": options.device, "dtype": options.dtype}
    peft, prefix, _, suffix = score.CONTENDERS
    one, four = "this package, suffix", "this package, 4 suffix prompts"
    given = {"contender": peft, "documents": documents // SHARE, "batch_size": 64}
    return {
        "matrix products": (rate, where),
        f"score, {suffix}": (scored, {"contender": suffix, "documents": documents, **where}),
        f"train, {one}": (trained, {"contender": one, "steps": steps, **where}),
        f"train, {four}": (trained, {"contender": four, "steps": steps, **where}),
        f"score, {peft}": (scored, given | where),
        f"score, {prefix}": (scored, {"contender": prefix, "documents": documents, **where}),
        "equality in float32": (equality, {"shape": shape, "device": options.device}),
        "train, PEFT + Trainer": (trained, {"contender": "PEFT + Trainer (prefix)", "steps": steps, **where}),
    }


def summary(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines that say how the aims are met, as far as they were measured."""

    def value(section: str, key: str) -> float | None:
        return found.get(section, {}).get(key)

    peft, prefix, _, suffix = (f"score, {name}" for name in score.CONTENDERS)
    lines = []
    if (ours := value(suffix, "of SIB-200")) is not None:
        lines.append(f"SIB-200, 205 languages, suffix prompt: {ours:.1f} s (wanted: 30)")
        if (theirs := value(peft, "of SIB-200")) is not None:
            lines.append(f"against hf + peft: {theirs / ours:.1f}x (wanted: 5x)")
    if (answers := found.get(prefix, {}).get("answers")) and (others := found.get(peft, {}).get("answers")):
        worst = max(abs(a - b) for a, b in zip(answers, others, strict=False))
        lines.append(f"log-likelihoods of the first documents: at most {worst:.3g} from hf + peft")
    if (exact := value("equality in float32", "largest difference")) is not None:
        lines.append(f"in float32: at most {exact:.2g} (wanted: below 1e-3)")
    if (single := value("train, this package, suffix", "total")) is not None:
        lines.append(f"20 epochs of 56 examples: {single:.1f} s (wanted: 5)")
        if (seeds := value("train, this package, 4 suffix prompts", "total")) is not None:
            lines.append(f"four seeds side by side: {seeds / single:.2f}x of one")
        if (theirs := value("train, PEFT + Trainer", "total")) is not None:
            lines.append(f"PEFT with the Trainer takes {theirs / single:.1f}x of one")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few documents: whether it runs")
    parser.add_argument("--output", default="build/gpu.json", help="default: build/gpu.json")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here: --device cpu --tiny tries the script out")
    os.environ.pop("SIB200_DIR", None)  # its English texts repeat, and what is the same is read once
    end = time.monotonic() + MOST_SECONDS
    found: dict[str, Any] = {"machine": {"name": machine.name(options.device), "torch": torch.__version__}}
    for name, (function, given) in sections(options).items():
        left = end - time.monotonic()
        started = time.monotonic()
        try:
            if left < 1:
                raise SystemExit("no time was left")
            found[name] = run(function, within=left, **given)
        except SystemExit as problem:
            found[name] = {"failed": str(problem)}
        found[name]["wall"] = time.monotonic() - started
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in found[name].items()}
        print(name, {key: value for key, value in shown.items() if key != "answers"}, flush=True)
        write(Path(options.output), json.dumps(found, indent=1).encode())
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
