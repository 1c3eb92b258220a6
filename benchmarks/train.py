"""Train a soft prompt: this package beside PEFT with the HF Trainer, and the paper's recipe, in one run.

    python -m benchmarks.train --shape bloom-560m --prompt-length 5 10

Every contender runs in a process of its own, one after the other, on the same 56 examples with one-token answers. Times
are those of 20 epochs, from a few measured steps; those of this package include the cache and the validation after
each epoch, on 14 examples.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
from peft import PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainingArguments

from benchmarks import limit, models
from lm_eval_spt.scoring import tokens_that_fit
from lm_eval_spt.train.contexts import ContextCache
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.objective import evaluate

BATCH, EPOCHS, TRAINING, VALIDATION = 8, 20, 56, 14
STEPS = EPOCHS * TRAINING // BATCH
PADDED = 128  # what the paper's code pads every text to, the prompt included


def examples(number: int) -> list[Example]:
    """Return real texts with the seven one-token answers; which one is right does not matter here."""
    tokenizer = models.tokenizer()
    answers = [tuple(tokenizer.encode(word)) for word in models.VERBALIZERS]
    found = []
    for index, text in enumerate(models.texts(number, split="train")):
        context = tuple(tokenizer.encode(text))[: PADDED - 32]
        found.append(Example(tuple((context, answer) for answer in answers), index % 7))
    return found


def batches(of: list[Example]) -> Iterator[list[Example]]:
    """Yield batches for ever."""
    while True:
        for start in range(0, len(of) - BATCH + 1, BATCH):
            yield of[start : start + BATCH]


def seconds_per(work: Callable[[], object], times: int) -> float:
    """Return the mean seconds of `work` after one run that does not count."""
    work()
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def ours(model: PreTrainedModel, length: int, steps: int, placement: str) -> dict[str, float]:
    """This package's trainer, as :mod:`lm_eval_spt.train.loop` runs it."""
    training, validation = examples(TRAINING), examples(TRAINING + VALIDATION)[TRAINING:]
    width = model.get_input_embeddings().weight.shape[1]
    raw = torch.nn.Parameter(torch.rand(length, width, device=model.device) - 0.5)
    optimizer = torch.optim.AdamW([raw], lr=5e-3)
    started = time.perf_counter()
    cache = None
    before = length if placement == "prefix" else 0
    if placement == "suffix":
        contexts = [example.pairs[0][0] for example in [*training, *validation]]
        cache = ContextCache(model, tokens_that_fit(model, model.device))
        cache.add(contexts)
    building = time.perf_counter() - started
    stream = batches(training)

    def step() -> None:
        outcome = evaluate(model, next(stream), raw, before, "target", cache)
        optimizer.zero_grad()
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_([raw], 1.0)
        optimizer.step()

    def validate() -> None:
        with torch.no_grad():
            for start in range(0, VALIDATION, BATCH):
                evaluate(model, validation[start : start + BATCH], raw, before, "target", cache)

    of_step = seconds_per(step, steps)
    return {"step": of_step, "total": building + STEPS * of_step + EPOCHS * seconds_per(validate, 1), "cache": building}


def peft_trainer(model: PreTrainedModel, length: int, steps: int) -> dict[str, float]:
    """PEFT prompt tuning with the HF Trainer, padding to the longest text of a batch, loss on the answer alone."""
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=length, token_dim=model.get_input_embeddings().weight.shape[1],
        num_transformer_submodules=1, num_layers=1, num_attention_heads=1,
    )  # fmt: skip
    rows = [[*example.pairs[0][0], *example.pairs[example.gold][1]] for example in examples(TRAINING)]

    def collate(batch: list[list[int]]) -> dict[str, torch.Tensor]:
        time_ = max(map(len, batch))
        ids = torch.tensor([row + [0] * (time_ - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (time_ - len(row)) for row in batch])
        labels = torch.full_like(ids, -100)
        for index, row in enumerate(batch):
            labels[index, len(row) - 1] = row[-1]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    times: list[float] = []

    class Timed(Trainer):
        def training_step(self, *args: object, **kwargs: object) -> torch.Tensor:
            started = time.perf_counter()
            loss = super().training_step(*args, **kwargs)
            times.append(time.perf_counter() - started)
            return loss

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=BATCH, max_steps=steps + 1, learning_rate=5e-3, report_to=[],
            save_strategy="no", disable_tqdm=True, remove_unused_columns=False, logging_strategy="no",
            use_cpu=model.device.type == "cpu", bf16=model.dtype == torch.bfloat16,
        )  # fmt: skip
        Timed(get_peft_model(model, config), arguments, train_dataset=rows, data_collator=collate).train()
    of_step = sum(times[1:]) / steps
    return {"step": of_step, "total": STEPS * of_step}


def paper(model: PreTrainedModel, length: int, steps: int) -> dict[str, float]:
    """The paper's recipe: text and prompt padded to 128 tokens, logits everywhere, the answer's read at the end."""
    embedding = model.get_input_embeddings()
    raw = torch.nn.Parameter(torch.rand(length, embedding.weight.shape[1], device=model.device) - 0.5)
    optimizer = torch.optim.AdamW([raw], lr=5e-3)
    stream = batches(examples(TRAINING))

    def step() -> None:
        batch = next(stream)
        texts = [example.pairs[0][0][: PADDED - length] for example in batch]
        gold = torch.tensor([example.pairs[example.gold][1][0] for example in batch], device=model.device)
        ids = torch.tensor([[0] * (PADDED - length - len(text)) + list(text) for text in texts], device=model.device)
        mask = torch.cat([(ids != 0).long(), torch.ones(len(batch), length, dtype=torch.long, device=ids.device)], 1)
        embeds = torch.cat([embedding(ids), raw.to(embedding.weight.dtype).expand(len(batch), -1, -1)], dim=1)
        loss = cross_entropy(model(inputs_embeds=embeds, attention_mask=mask).logits[:, -1].float(), gold)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([raw], 1.0)
        optimizer.step()

    of_step = seconds_per(step, steps)
    return {"step": of_step, "total": STEPS * of_step}


CONTENDERS: dict[str, Callable[[PreTrainedModel, int, int], dict[str, float]]] = {
    "PEFT + Trainer (prefix)": peft_trainer,
    "the paper's recipe (suffix)": paper,
    "this package, prefix": lambda model, length, steps: ours(model, length, steps, "prefix"),
    "this package, suffix": lambda model, length, steps: ours(model, length, steps, "suffix"),
}


def run_alone(name: str, shape: str, length: int, steps: int, device: str, dtype: str) -> dict[str, float]:
    """Measure a contender in a fresh process."""
    settings = json.dumps([name, shape, length, steps, device, dtype])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", "--alone", settings], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def alone(settings: str) -> None:
    """Measure one contender in this process and print the figures as JSON."""
    name, shape, length, steps, device, dtype = json.loads(settings)
    model = models.build(shape, getattr(torch, dtype), device)
    before = _memory(device)
    figures = CONTENDERS[name](model, length, steps)
    figures["memory"] = _memory(device) - before
    tokens = STEPS * BATCH * length
    figures["limit"] = 2 * limit.forward_work(model, tokens, STEPS * BATCH) / limit.matmul_rate(model)
    print(json.dumps(figures))


def _memory(device: str) -> float:
    """Return the peak so far, in GB."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return torch.cuda.max_memory_allocated() / 1e9


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(models.SHAPES), default="bloom-560m")
    parser.add_argument("--prompt-length", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each contender")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.alone)
        return
    print(f"{options.shape}, {options.dtype}, {options.device}, {torch.get_num_threads()} threads")
    for length in options.prompt_length:
        print(f"\n| P = {length} | s per step | {EPOCHS} epochs, s | against PEFT | against the paper's | peak, GB |")
        print("|---|---:|---:|---:|---:|---:|")
        figures = {
            name: run_alone(name, options.shape, length, options.steps, options.device, options.dtype)
            for name in CONTENDERS
        }
        totals = [figures[name]["total"] for name in CONTENDERS]
        for name, of in figures.items():
            ratios = " | ".join(f"{total / of['total']:.1f}x" for total in totals[:2])
            print(f"| {name} | {of['step']:.2f} | {of['total']:.0f} | {ratios} | {of['memory']:.2f} |", flush=True)
        cached = figures["this package, suffix"]
        print(
            f"\nthe suffix run's arithmetic limit is {cached['limit']:.0f} s: {cached['limit'] / cached['total']:.0%}"
        )


if __name__ == "__main__":
    main()
