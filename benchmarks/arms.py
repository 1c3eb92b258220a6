"""What the methods cost beside each other: parameters, an epoch of training, and scoring, on a real model.

    SIB200_DIR=... python -m benchmarks.arms --model google/gemma-3-270m

Every arm is trained for a few epochs and then scores, in a process of its own. An epoch is eight documents of each
class and the validation documents; what is scored are English test documents with the seven category names.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import alone, machine, models
from benchmarks.score import requests
from lm_eval_spt import SPTLM, TrainingConfig
from lm_eval_spt.harness.many_prompts import ManyPromptsLM
from lm_eval_spt.prompt.ensemble import read_prompt
from lm_eval_spt.prompt.metadata import record_in
from lm_eval_spt.train.grid import train_grid

ARMS: dict[str, dict[str, Any]] = {
    "frozen prompt": {},
    "ensemble of four": {"seeds": 4},
    "deep prefix": {"prompt_kind": "kv"},
    "prompt and LoRA": {"tune": "lora"},
    "model alone": {"tune": "model"},
    "prompt and model": {"tune": "all"},
}


def run(arm: str, model: str, task: str, dtype: str, epochs: int, documents: int) -> dict[str, float]:
    """Train an arm and score with it.

    Returns:
        ``parameters`` that were learned, the ``epoch``'s seconds, and the ``speed`` of scoring in documents/s.
    """
    common: dict[str, Any] = {
        "model": model,
        "task": task,
        "dtype": dtype,
        "shots": 8,
        "epochs": epochs,
        "checkpoint": False,
    }
    common |= ARMS[arm]
    seeds = common.pop("seeds", 1)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, f"{seed}.safetensors") for seed in range(seeds)]
        configs = [
            TrainingConfig.from_settings(common | {"seed": seed, "output": str(output)})
            for seed, output in enumerate(outputs)
        ]
        prompts = train_grid(configs)
        lines = [json.loads(line) for line in outputs[-1].with_suffix(".jsonl").read_text().splitlines()]
        ends = {line["epoch"]: line["seconds"] for line in lines if "epoch" in line}
        tuned = configs[0].model_folder if configs[0].tune in ("all", "model") else None
        base = str(tuned or model)
        if prompts[0] is None:
            record, lm = record_in(Path(base)), SPTLM(pretrained=base, dtype=dtype)
        else:
            prompt = read_prompt("+".join(map(str, outputs)))
            record = prompts[0].metadata
            lm = ManyPromptsLM([prompt], dtype=dtype, **prompt.loading(base))
        texts = models.texts(documents)
        warm = [texts[0], max(texts, key=len)]  # the model is tried out on it before the clock starts
        lm.loglikelihood(requests(warm, models.CATEGORIES), disable_tqdm=True)
        started = time.perf_counter()
        lm.loglikelihood(requests([f"{text} " for text in texts], models.CATEGORIES), disable_tqdm=True)
        speed = documents / (time.perf_counter() - started)
    return {
        "parameters": seeds * record["tuned_parameters"],
        "epoch": (ends[epochs] - ends[0]) / epochs,
        "speed": speed,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="folder, Hub id or .gguf file")
    parser.add_argument("--task", default="sib200_eng_Latn")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--documents", type=int, default=64)
    options = vars(parser.parse_args())
    print(f"{options['model']}, {options['dtype']}, {machine.name('cpu')}\n")
    print("| arm | learned numbers | an epoch, s | | scoring, documents/s | |\n|---|---:|---:|---:|---:|---:|")
    first: dict[str, float] = {}
    for arm in ARMS:
        found = alone.run(run, arm=arm, **options)
        first = first or found
        longer, faster = found["epoch"] / first["epoch"], found["speed"] / first["speed"]
        print(
            f"| {arm} | {found['parameters']:,} | {found['epoch']:.1f} | {longer:.1f}x | {found['speed']:.1f} | "
            f"{faster:.2f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
