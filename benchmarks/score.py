"""Score multiple-choice documents: this package beside the harness with PEFT, in one run.

    python benchmarks/score.py --shape bloom-560m --documents 24

Prints a Markdown table. Both score the same documents with the same prompts and must agree before anything is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel

from benchmarks import limit, models
from lm_eval_spt.evaluate import ManyPromptsLM
from lm_eval_spt.lm import SPTLM
from lm_eval_spt.prompt import SoftPrompt


def requests(texts: Sequence[str], choices: Sequence[str]) -> list[Instance]:
    """Return what the harness asks of a model: each choice after each text."""
    pairs = [(text, choice) for text in texts for choice in choices]
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


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


def timed(work: Callable[[], list[tuple[float, bool]]], device: torch.device) -> tuple[float, list[float]]:
    """Return the seconds that `work` took, and its log-likelihoods."""
    started = time.perf_counter()
    answers = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, [value for value, _ in answers]


def score_one(model: PreTrainedModel, choices: Sequence[str], documents: int, length: int) -> list[str]:
    """Return the table's rows for one prompt, before and after the text."""
    tokenizer = models.tokenizer()
    asked = requests(models.texts(documents), choices)
    warm = requests(models.texts(2), choices)
    prefix, suffix = (prompt(model, length, placement) for placement in ("prefix", "suffix"))
    ours = {
        "spt, prefix": SPTLM(model, prefix, tokenizer=tokenizer, batch_size="auto"),
        "spt, suffix": SPTLM(model, suffix, tokenizer=tokenizer, batch_size="auto"),
    }
    theirs = HFLM(with_peft(model, prefix), tokenizer=tokenizer, batch_size=8)
    seconds, expected = {}, []
    for name, lm in [("hf + peft", theirs), *ours.items()]:
        lm.loglikelihood(warm, disable_tqdm=True)
        seconds[name], answers = timed(lambda lm=lm: lm.loglikelihood(asked, disable_tqdm=True), model.device)
        if name == "hf + peft":
            expected = answers
        elif name == "spt, prefix" and model.dtype == torch.float32:
            worst = max(abs(a - b) for a, b in zip(answers, expected, strict=True))
            assert worst < 1e-3, f"the two disagree by {worst}"
    rate = limit.matmul_rate(model)
    rows = []
    for name, taken in seconds.items():
        least = _least_work(model, ours["spt, suffix"], asked, length) / rate
        share = "" if name == "hf + peft" else f"{least / taken:.0%}"
        rows.append(f"| {name} | {documents / taken:.2f} | {seconds['hf + peft'] / taken:.1f}x | {share} |")
    return rows


def score_many(model: PreTrainedModel, choices: Sequence[str], documents: int, lengths: Sequence[int]) -> list[str]:
    """Return the table's rows for many suffix prompts; the harness's time is that of one run for each length."""
    tokenizer = models.tokenizer()
    asked = requests(models.texts(documents), choices)
    prompts = [prompt(model, length, "suffix", seed) for length in lengths for seed in range(4)]
    together = ManyPromptsLM(prompts, pretrained=model, tokenizer=tokenizer, batch_size="auto")
    together.use(prompts[0])
    together._use_fast()
    ours, _ = timed(lambda: together.loglikelihood(asked, disable_tqdm=True), model.device)
    theirs = 0.0
    for length in lengths:
        lm = HFLM(with_peft(model, prompt(model, length, "prefix")), tokenizer=tokenizer, batch_size=8)
        theirs += 4 * timed(lambda lm=lm: lm.loglikelihood(asked, disable_tqdm=True), model.device)[0]
    scored = len(prompts) * documents
    return [
        f"| hf + peft, {len(prompts)} runs | {scored / theirs:.2f} | 1.0x | |",
        f"| spt, {len(prompts)} suffix prompts together | {scored / ours:.2f} | {theirs / ours:.1f}x | |",
    ]


def _least_work(model: PreTrainedModel, lm: SPTLM, asked: Sequence[Instance], length: int) -> float:
    """Return the operations that remain when every distinct token is read once."""
    tokens = scored = 0
    seen: set[tuple[int, ...]] = set()
    for context, continuation in lm.encode_pairs([request.args for request in asked], "suffix"):
        for end in range(len(continuation)):
            path = (*context, -1, *continuation[:end])
            if path not in seen:
                seen.add(path)
                scored += 1
                tokens += 1 if end else len(context) + length
    return limit.forward_work(model, tokens, scored)


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
    model = models.build(options.shape, getattr(torch, options.dtype), options.device)
    kinds = {"category names, 2 to 7 tokens": models.CATEGORIES, "single tokens": models.VERBALIZERS}
    print(f"{options.shape}, {options.dtype}, {options.device}, {torch.get_num_threads()} threads")
    for kind, choices in kinds.items():
        print(f"\n| {kind} | documents/s | against hf + peft | of the arithmetic limit |\n|---|---:|---:|---:|")
        print("\n".join(score_one(model, choices, options.documents, options.prompt_length)), flush=True)
        if options.many:
            print("\n".join(score_many(model, choices, max(4, options.documents // 4), options.many)), flush=True)


if __name__ == "__main__":
    main()
