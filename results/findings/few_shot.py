"""Examples in context as prefix prompts, so that they are read once and not before every text: ::

    python -m results.findings.few_shot --model models/gemma-3-270m.gguf --output sweeps/gemma-3-270m/few_shot
    lm-eval-spt evaluate --prompts 'sweeps/gemma-3-270m/few_shot/*.safetensors' --tasks sib200_instruct_31 \\
        --model-args pretrained=models/gemma-3-270m.gguf,dtype=bfloat16,add_bos_token=False --output ...

A prompt holds the embeddings of what the harness writes before a document: the BOS token, then each example with its
answer and an empty line. That is why the texts are scored without a BOS token.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch

from lm_eval_spt.common.errors import show_user_errors_in_one_line
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.examples import load_tasks


def drawn(task: Any, number: int, seed: int) -> list[Any]:
    """Return so many training documents of a task."""
    return random.Random(seed).sample(list(task.training_docs()), number)


def shots(task_name: str, number: int, seed: int) -> str:
    """Return training documents of a task as the harness writes shots: text, answer and an empty line."""
    (task,) = load_tasks([task_name])
    documents = drawn(task, number, seed)
    answers = [task.doc_to_choice(document)[task.doc_to_target(document)] for document in documents]
    texts = [task.doc_to_text(document) for document in documents]
    return "".join(f"{text} {answer}\n\n" for text, answer in zip(texts, answers, strict=True))


def prompt_of(lm: SPTLM, text: str, model: str) -> SoftPrompt:
    """Return the embeddings of a text, with a BOS token before it, as a prefix prompt."""
    ids = torch.tensor([lm.tokenizer.bos_token_id, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        vectors = lm.model.get_input_embeddings()(ids.to(lm.device)).float().cpu()
    return SoftPrompt(vectors, {"placement": "prefix", "base_model": model, "embedding_fingerprint": lm.fingerprint})


def main() -> None:
    show_user_errors_in_one_line()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="sib200_instruct_eng_Latn", help="where the examples come from")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--output", type=Path, required=True, help="folder of the prompts")
    options = parser.parse_args()
    lm = SPTLM(pretrained=options.model)
    for seed in options.seeds:
        prompt = prompt_of(lm, shots(options.task, options.shots, seed), options.model)
        prompt.save(options.output / f"few_shot-seed{seed}.safetensors")
        print(f"seed {seed}: {prompt.length} tokens")


if __name__ == "__main__":
    main()
