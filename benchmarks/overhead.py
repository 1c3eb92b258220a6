"""What the harness's own work costs around the model: documents of SIB-200 with a model that computes next to nothing.

    SIB200_DIR=... python -m benchmarks.overhead

Both model classes answer the same requests, seven for each document. A tiny model stands for the real one, and the
time within it is taken off: what is left is tokenising, sorting, batching, normalizing logits and putting answers in
order.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import alone, machine, models
from benchmarks.score import requests
from lm_eval_spt.harness.lm import SPTLM

CONTENDERS = ("hf", "this package")


class Stopwatch:
    """The time that passes within a model's decoder and head."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds = 0.0
        for part in (model.model, model.lm_head):
            part.register_forward_pre_hook(self._start)
            part.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started


def outside_the_model(contender: str, documents: int) -> dict[str, Any]:
    """Measure one model class on English texts with SIB-200's category names."""
    tokenizer = models.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    lm = HFLM(model, tokenizer=tokenizer, batch_size=64) if contender == "hf" else SPTLM(model, tokenizer=tokenizer)
    texts = models.texts(documents)
    if documents > len(set(texts)):  # no text twice: what is the same is scored once
        texts = [f"{text} {index}" for index, text in enumerate(texts)]
    asked = requests(texts, models.CATEGORIES)
    lm.loglikelihood(asked[:70], disable_tqdm=True)
    watch = Stopwatch(model)
    memory = alone.Memory("cpu")
    answers, cost = machine.measure(lambda: lm.loglikelihood(asked, disable_tqdm=True))
    values = [value for value, _ in answers]
    return {
        "seconds": cost.seconds - watch.seconds,
        "inside": watch.seconds,
        "memory": memory.peak(),
        "answers": values,
    }


def compare(documents: int) -> dict[str, Any]:
    """Measure both.

    Raises:
        SystemExit: their log-likelihoods differ.
    """
    found = {name: alone.run(outside_the_model, contender=name, documents=documents) for name in CONTENDERS}
    theirs, ours = (torch.tensor(found[name].pop("answers")) for name in CONTENDERS)
    worst: Tensor = (theirs - ours).abs().max()
    if worst > 1e-3:
        raise SystemExit(f"the two disagree by {float(worst)}: no time counts")
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4000, help="205 languages have 41,820")
    options = parser.parse_args()
    found = compare(options.documents)
    print("| | outside the model, s | inside, s | against hf |\n|---|---:|---:|---:|")
    for name, of in found.items():
        ratio = found["hf"]["seconds"] / of["seconds"]
        print(f"| {name} | {of['seconds']:.1f} | {of['inside']:.1f} | {ratio:.1f}x |")


if __name__ == "__main__":
    main()
