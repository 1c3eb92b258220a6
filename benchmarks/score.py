"""Score multiple-choice documents: this package beside the harness with PEFT, in one run.

    python -m benchmarks.score --shape bloom-560m --documents 24

Every contender scores the same documents with the same prompts in a process of its own; they must agree before a time
counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel

from benchmarks import alone, limit, machine, models
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.many_prompts import ManyPromptsLM
from lm_eval_spt.inference.token_tree import build_tree
from lm_eval_spt.prompt.soft_prompt import SoftPrompt

CONTENDERS = ("hf + peft", "this package, prefix", "this package, suffix, batch_size=8", "this package, suffix")
AT_ONCE = 4
"""This package gets so many times the documents: it reads by the batch, which a few of them do not fill."""


def requests(texts: Sequence[str], choices: Sequence[str]) -> list[Instance]:
    """Return what the harness asks of a model: each choice after each text."""
    pairs = [(text, choice) for text in texts for choice in choices]
    return [
        Instance("loglikelihood", {}, pair, idx=index, task_name="", doc_id=index) for index, pair in enumerate(pairs)
    ]


def prompt(model: PreTrainedModel, length: int, placement: str, seed: int = 0) -> SoftPrompt:
    """Return random vectors of the size of the model's embeddings."""
    spread = model.get_input_embeddings()(torch.arange(64, device=model.device)).float().std().cpu()
    width = model.get_input_embeddings().weight.shape[1]
    vectors = torch.randn(length, width, generator=torch.Generator().manual_seed(seed)) * spread
    return SoftPrompt(vectors, {"placement": placement})


def with_peft(model: PreTrainedModel, soft_prompt: SoftPrompt) -> Any:
    """Return the model as a PeftModel with the prompt."""
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=soft_prompt.length, token_dim=soft_prompt.hidden_size,
        num_transformer_submodules=1, num_layers=1, num_attention_heads=1,
    )  # fmt: skip
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(soft_prompt.vectors)
    return wrapped.eval()


def one_prompt(
    contender: str,
    shape: str,
    documents: int,
    choices: Sequence[str],
    length: int,
    device: str,
    dtype: str,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Measure a contender with one prompt; `batch_size` is that of lm-eval's class, and of this package's by name."""
    model = models.build(shape, getattr(torch, dtype), device)
    tokenizer = models.tokenizer()
    texts = models.texts(documents)
    # The longest, too: the model is tried out on it before the clock starts. `benchmarks.probe` times that.
    longest = max(texts, key=lambda text: len(tokenizer(text)["input_ids"]))
    asked, warm = requests(texts, choices), requests([texts[0], longest], choices)
    if contender == "hf + peft":
        lm = HFLM(with_peft(model, prompt(model, length, "prefix")), tokenizer=tokenizer, batch_size=batch_size)
    else:
        placement = "prefix" if "prefix" in contender else "suffix"
        size = batch_size if "batch_size" in contender else "auto"
        lm = SPTLM(model, prompt(model, length, placement), tokenizer=tokenizer, batch_size=size)
    memory = alone.Memory(device)
    lm.loglikelihood(warm, disable_tqdm=True)
    answers, cost = machine.measure(lambda: lm.loglikelihood(asked, disable_tqdm=True), device)
    result = {"seconds": cost.seconds, "joules": cost.joules, "memory": memory.peak()}
    result["answers"] = [value for value, _ in answers]
    if isinstance(lm, SPTLM):
        least = _least_work(model, lm, asked, [length] if placement == "suffix" else [0])  # a prefix is read once
        result["limit"] = least / limit.matmul_rate(model)
    return result


def many_prompts(
    shape: str, documents: int, choices: Sequence[str], lengths: Sequence[int], seeds: int, device: str, dtype: str
) -> dict[str, Any]:
    """Measure suffix prompts that are scored together: `seeds` of each length."""
    model = models.build(shape, getattr(torch, dtype), device)
    asked = requests(models.texts(documents), choices)
    prompts = [prompt(model, length, "suffix", seed) for length in lengths for seed in range(seeds)]
    together = ManyPromptsLM(prompts, pretrained=model, tokenizer=models.tokenizer(), batch_size="auto")
    together.use(prompts[0])
    memory = alone.Memory(device)
    _, cost = machine.measure(lambda: together.loglikelihood(asked, disable_tqdm=True), device)
    work = _least_work(model, together, asked, [length for length in lengths for _ in range(seeds)])
    least = work / limit.matmul_rate(model)
    return {"seconds": cost.seconds, "joules": cost.joules, "memory": memory.peak(), "limit": least}


def _least_work(model: PreTrainedModel, lm: SPTLM, asked: Sequence[Instance], lengths: Sequence[int]) -> float:
    """Return the operations that remain when every distinct token is read once, for suffix prompts of these lengths."""
    by_context: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for context, continuation in lm.encode_pairs([request.args for request in asked], "suffix"):
        by_context.setdefault(tuple(context), []).append(tuple(continuation))
    tokens = scored = 0
    for context, continuations in by_context.items():
        branches = len(build_tree(tuple(continuations)).tokens)
        tokens += len(context) + sum(length + branches for length in lengths)
        scored += len(lengths) * (1 + branches)
    return limit.forward_work(model, tokens, scored)


def compare(shape: str, documents: int, choices: Sequence[str], length: int, device: str, dtype: str) -> dict[str, Any]:
    """Measure all contenders with one prompt.

    Raises:
        SystemExit: their log-likelihoods differ.
    """
    given = {"shape": shape, "documents": documents, "choices": choices, "length": length}
    found: dict[str, Any] = {}
    for name in CONTENDERS:
        given["documents"] = documents if name == CONTENDERS[0] else AT_ONCE * documents
        found[name] = alone.run(one_prompt, contender=name, device=device, dtype=dtype, **given)
        found[name]["documents"] = given["documents"]
    answers = [found[name].pop("answers") for name in CONTENDERS]
    worst = max(abs(ours - theirs) for ours, theirs in zip(answers[1], answers[0], strict=False))
    if dtype == "float32" and worst > 1e-3:
        raise SystemExit(f"the two disagree by {worst}: no time counts")
    return found | {"difference": worst}


def compare_many(
    shape: str, documents: int, choices: Sequence[str], lengths: Sequence[int], seeds: int, device: str, dtype: str
) -> dict[str, Any]:
    """Measure many suffix prompts; the harness's time is that of one run for each length, times the seeds."""
    common = {"shape": shape, "documents": documents, "choices": choices, "device": device, "dtype": dtype}
    runs = [alone.run(one_prompt, contender=CONTENDERS[0], length=length, **common) for length in lengths]
    ours = alone.run(many_prompts, lengths=lengths, seeds=seeds, **common | {"documents": AT_ONCE * documents})
    prompts = seeds * len(lengths)
    theirs = {"seconds": seeds * sum(run["seconds"] for run in runs), "memory": max(run["memory"] for run in runs)}
    theirs["documents"] = prompts * documents
    return {CONTENDERS[0]: theirs, "this package": ours | {"documents": AT_ONCE * prompts * documents}}


def rows(found: dict[str, Any]) -> list[str]:
    """Return Markdown rows: contender, documents/s, times as fast as the first, share of the limit, memory.

    With several prompts a document counts once for each.
    """
    lines = []
    contenders = {name: of for name, of in found.items() if isinstance(of, dict)}
    speeds = {name: of["documents"] / of["seconds"] for name, of in contenders.items()}
    first = next(iter(speeds.values()))
    for name, of in contenders.items():
        share = f"{of['limit'] / of['seconds']:.0%}" if "limit" in of else ""
        memory = "" if of["memory"] is None else f"{of['memory']:.2f}"
        lines.append(f"| {name} | {speeds[name]:.2f} | {speeds[name] / first:.1f}x | {share} | {memory} |")
    return lines


HEADER = "documents/s | against hf + peft | of the limit | memory above the model, GB |\n|---|---:|---:|---:|---:|"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(models.SHAPES), default="bloom-560m")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--prompt-length", type=int, default=10)
    parser.add_argument("--many", type=int, nargs="*", default=[], help="lengths of suffix prompts, four seeds each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    where = {"shape": options.shape, "device": options.device, "dtype": options.dtype}
    print(f"{options.shape}, {options.dtype}, {machine.name(options.device)}")
    for kind, choices in models.CHOICES.items():
        print(f"\n| {kind} | {HEADER}")
        found = compare(documents=options.documents, choices=choices, length=options.prompt_length, **where)
        print("\n".join(rows(found)), flush=True)
        if options.many:
            found = compare_many(
                documents=options.documents, choices=choices, lengths=options.many, seeds=4, **where
            )  # fmt: skip
            print("\n".join(rows(found)), flush=True)


if __name__ == "__main__":
    main()
