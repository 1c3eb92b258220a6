"""Train a soft prompt: this package beside PEFT with the HF Trainer, and the paper's recipe, in one run.

    python -m benchmarks.train --shape bloom-560m --prompt-length 5 10

Every contender runs in a process of its own, one after the other, on the same 56 examples with one-token answers. Times
are those of 20 epochs, from a few measured steps; those of this package include the cache and the validation after
each epoch, on 14 examples.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainingArguments

from benchmarks import alone, limit, machine, models
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.scoring import tokens_that_fit
from lm_eval_spt.inference.virtual_tokens import place
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.loop import VALIDATION_BATCHES
from lm_eval_spt.train.objective import LossRequest, evaluate

BATCH, EPOCHS, TRAINING, VALIDATION = 8, 20, 56, 14
STEPS = EPOCHS * TRAINING // BATCH
PADDED = 128  # what the paper's code pads every text to, the prompt included


def examples(number: int) -> list[Example]:
    """Return real texts with the seven one-token answers; which one is right does not matter here."""
    tokenizer = models.tokenizer()
    answers = [tuple(tokenizer.encode(word)) for word in models.VERBALIZERS]
    result = []
    for index, text in enumerate(models.texts(number, split="train")):
        context = tuple(tokenizer.encode(text))[: PADDED - 32]
        result.append(Example(tuple((context, answer) for answer in answers), index % 7))
    return result


def batches(training: list[Example]) -> Iterator[list[Example]]:
    """Yield batches for ever."""
    while True:
        for start in range(0, len(training) - BATCH + 1, BATCH):
            yield training[start : start + BATCH]


def seconds_per(work: Callable[[], object], times: int) -> float:
    """Return the mean seconds of `work` after one run that does not count."""
    work()
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def ours(model: PreTrainedModel, length: int, steps: int, placement: str, prompts: int = 1) -> dict[str, float]:
    """This package's trainer, as it runs several prompts of one length: in shared batches."""
    training, validation = examples(TRAINING), examples(TRAINING + VALIDATION)[TRAINING:]
    width = model.get_input_embeddings().weight.shape[1]
    raws = [torch.nn.Parameter(torch.rand(length, width, device=model.device) - 0.5) for _ in range(prompts)]
    optimizers = [torch.optim.AdamW([raw], lr=5e-3) for raw in raws]
    before = length if placement == "prefix" else 0
    pairs = [pair for example in [*training, *validation] for pair in example.pairs]
    asked = [(place(context, before, length - before), list(answer)) for context, answer in pairs]
    # As every run does before it starts.
    SPTLM(model, tokenizer=models.tokenizer()).try_out(asked, raws[0].detach(), gradient=True)
    started = time.perf_counter()
    cache = None
    if placement == "suffix":
        cache = ContextCache(model, tokens_that_fit(model, model.device))
        cache.add(example.pairs[0][0] for example in [*training, *validation])
    building = time.perf_counter() - started
    stream = batches(training)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        outcomes = evaluate(model, [LossRequest(next(stream), raw, before, "target") for raw in raws], cache)
        sum(outcome.loss / outcome.weight for outcome in outcomes).backward()
        for raw, optimizer in zip(raws, optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_([raw], 1.0)
            optimizer.step()

    def validate() -> None:
        with torch.no_grad():
            size = BATCH * (VALIDATION_BATCHES if cache is not None else 1)
            for start in range(0, VALIDATION, size):
                part = validation[start : start + size]
                evaluate(model, [LossRequest(part, raw, before, "target") for raw in raws], cache)

    step_seconds = seconds_per(step, steps)
    total = building + STEPS * step_seconds + EPOCHS * seconds_per(validate, 1)
    return {"step": step_seconds, "total": total, "cache": building}


def collate(batch: list[list[int]]) -> dict[str, torch.Tensor]:
    """Return rows as a batch of transformers, padded on the right; each row's last token is its label."""
    time_ = max(map(len, batch))
    ids = torch.tensor([row + [0] * (time_ - len(row)) for row in batch])
    mask = torch.tensor([[1] * len(row) + [0] * (time_ - len(row)) for row in batch])
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(batch):
        labels[index, len(row) - 1] = row[-1]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def peft_trainer(model: PreTrainedModel, length: int, steps: int) -> dict[str, float]:
    """PEFT prompt tuning with the HF Trainer, padding to the longest text of a batch, loss on the answer alone."""
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=length, token_dim=model.get_input_embeddings().weight.shape[1],
        num_transformer_submodules=1, num_layers=1, num_attention_heads=1,
    )  # fmt: skip
    rows = [[*example.pairs[0][0], *example.pairs[example.gold][1]] for example in examples(TRAINING)]

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
    step_seconds = sum(times[1:]) / steps
    return {"step": step_seconds, "total": STEPS * step_seconds}


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

    step_seconds = seconds_per(step, steps)
    return {"step": step_seconds, "total": STEPS * step_seconds}


CONTENDERS: dict[str, Callable[[PreTrainedModel, int, int], dict[str, float]]] = {
    "PEFT + Trainer (prefix)": peft_trainer,
    "the paper's recipe (suffix)": paper,
    "this package, prefix": lambda model, length, steps: ours(model, length, steps, "prefix"),
    "this package, suffix": lambda model, length, steps: ours(model, length, steps, "suffix"),
    "this package, 4 suffix prompts": lambda model, length, steps: ours(model, length, steps, "suffix", prompts=4),
}


def measure(contender: str, shape: str, length: int, steps: int, device: str, dtype: str) -> dict[str, Any]:
    """Measure a contender; seconds of a step and of the whole, the latter's arithmetic limit, and memory in GB."""
    model = models.build(shape, getattr(torch, dtype), device)
    memory = alone.Memory(device)
    energy = machine.joules()
    figures: dict[str, Any] = {**CONTENDERS[contender](model, length, steps)}
    after = machine.joules()
    figures["joules"] = after - energy if energy is not None and after is not None else None
    figures["memory"] = memory.peak()
    if "suffix" in contender and "paper" not in contender:
        prompts = 4 if "4" in contender else 1
        texts = sum(len(example.pairs[0][0]) for example in examples(TRAINING + VALIDATION))
        learned, checked = STEPS * BATCH * prompts, EPOCHS * VALIDATION * prompts
        work = (
            limit.forward_work(model, texts, 0)
            + 2 * limit.forward_work(model, learned * length, learned)  # forward, and the gradient of the input
            + limit.forward_work(model, checked * length, checked)
        )
        figures["limit"] = work / limit.matmul_rate(model)
        figures["limit of its rows"] = work / limit.matmul_rate(model, tokens=BATCH * length * prompts, cold=True)
    return figures


def compare(shape: str, length: int, steps: int, device: str, dtype: str) -> dict[str, Any]:
    """Measure all contenders, each in a process of its own."""
    given = {"shape": shape, "length": length, "steps": steps, "device": device, "dtype": dtype}
    return {name: alone.run(measure, contender=name, **given) for name in CONTENDERS}


HEADER = (
    "s per step | 20 epochs, s | against PEFT | against the paper's | of the limit | memory above the model, GB |\n"
    "|---|---:|---:|---:|---:|---:|---:|"
)


def rows(found: dict[str, Any]) -> list[str]:
    """Return Markdown rows; what trains four prompts is compared with four runs of the others."""
    totals = [found[name]["total"] for name in list(CONTENDERS)[:2]]
    lines = []
    for name, of in found.items():
        times = 4 if "4" in name else 1
        ratios = " | ".join(f"{times * total / of['total']:.1f}x" for total in totals)
        share = f"{of['limit'] / of['total']:.0%}" if "limit" in of else ""
        lines.append(f"| {name} | {of['step']:.2f} | {of['total']:.0f} | {ratios} | {share} | {of['memory']:.2f} |")
    return lines


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(models.SHAPES), default="bloom-560m")
    parser.add_argument("--prompt-length", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each contender")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    print(f"{options.shape}, {options.dtype}, {machine.name(options.device)}")
    for length in options.prompt_length:
        found = compare(options.shape, length, options.steps, options.device, options.dtype)
        print(f"\n| P = {length} | {HEADER}\n" + "\n".join(rows(found)), flush=True)


if __name__ == "__main__":
    main()
