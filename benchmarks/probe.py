"""What a run pays for trying the model out first, and what ``batch_size=8`` costs against ``auto``.

    SIB200_DIR=... python -m benchmarks.probe --model google/gemma-3-270m --dtype bfloat16

Every run scores the same documents, seven requests each, in a process of its own. The answers of both batch sizes must
agree before a time counts.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks import alone, models
from benchmarks.score import prompt, requests
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference import probe

RUNS: tuple[tuple[str | None, str | int], ...] = ((None, "auto"), ("prefix", "auto"), ("suffix", "auto"), ("suffix", 8))
"""Placement (None: no prompt) and batch size."""


def run(model: str, dtype: str, documents: int, placement: str | None, batch_size: int | str) -> dict[str, Any]:
    """Score documents with a model that was not tried out before.

    Returns:
        ``seconds``, those of them ``in_probe``, and ``answers``, the log-likelihoods.
    """
    lm = SPTLM(pretrained=model, dtype=dtype, batch_size=batch_size)
    if placement is not None:
        lm.use(prompt(lm.model, 16, placement))
    texts = [f"{text} {index}" for index, text in enumerate(models.texts(documents))]  # what is the same is read once
    in_probe, tried = 0.0, probe.probe

    def timed(*arguments: Any, **options: Any) -> Any:
        nonlocal in_probe
        started = time.perf_counter()
        known = tried(*arguments, **options)
        in_probe += time.perf_counter() - started
        return known

    probe.probe = timed
    started = time.perf_counter()
    answers = lm.loglikelihood(requests(texts, models.CATEGORIES), disable_tqdm=True)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "in_probe": in_probe, "answers": [value for value, _ in answers]}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="folder, Hub id or .gguf file")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--documents", type=int, default=1000)
    options = parser.parse_args()
    found = {each: alone.run(run, placement=each[0], batch_size=each[1], **vars(options)) for each in RUNS}
    first, second = (torch.tensor(found["suffix", size]["answers"]) for size in ("auto", 8))
    if (worst := float(((first - second) / first).abs().max())) > (1e-5 if options.dtype == "float32" else 0.05):
        raise SystemExit(f"batch sizes disagree by {worst:.2g}: no time counts")
    print("| prompt | batch size | documents/s | probe, s | share |\n|---|---|---:|---:|---:|")
    for (placement, size), of in found.items():
        speed, share = options.documents / of["seconds"], of["in_probe"] / of["seconds"]
        print(f"| {placement or 'none'} | {size} | {speed:.1f} | {of['in_probe']:.2f} | {share:.1%} |")


if __name__ == "__main__":
    main()
