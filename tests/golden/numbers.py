"""What is scored for the golden numbers: models, prompts and requests that are the same on every machine.

Random numbers come from numpy's ``RandomState``, whose stream numpy keeps for ever, unlike torch's generators.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness import patches
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import FAMILIES
from tests.helpers.paths import ROOT
from tests.helpers.requests import request, rolling_loglikelihoods

VOCABULARY = 512
PROMPTS: dict[str, tuple[str, int] | None] = {"none": None, "prefix": ("prefix", 5), "suffix": ("suffix", 3)}
LANGUAGES = ("eng_Latn", "arb_Arab", "hin_Deva", "zho_Hans", "swh_Latn", "ell_Grek")
ROLLED = ("The river flows to the sea.", "体育新闻", "مرحبا بالعالم", "a\nb\tc  d", "x")


def steady_model(family: str) -> PreTrainedModel:
    """Return a tiny model of a family whose weights do not depend on the version of torch."""
    config = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, **FAMILIES[family]
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            name = name.replace("embed_out", "lm_head")  # GPT-NeoX's name for it in earlier transformers
            if weight.dim() > 1:
                spread = 0.3 if "embed" in name or "wte" in name or "wpe" in name else 0.2
                values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(weight.shape))
                weight.copy_(torch.from_numpy(spread * values))
    return model.eval()


def steady_prompt(placement: str, length: int, size: int) -> SoftPrompt:
    values = np.random.RandomState(length).standard_normal((length, size))
    return SoftPrompt(torch.from_numpy(0.3 * values), {"placement": placement}, name=f"{placement}{length}")


def steady_requests() -> list[tuple[None, list[int], list[int]]]:
    """Token ids: contexts of 1 to 40 tokens, each with continuations of 1, 1, 2 and 5."""
    random = np.random.RandomState(0)
    return [
        (None, context, random.randint(4, VOCABULARY, choice).tolist())
        for length in (1, 2, 7, 40)
        for context in [random.randint(4, VOCABULARY, length).tolist()]
        for choice in (1, 1, 2, 5)
    ]


def tiny_numbers(family: str, tokenizer: PreTrainedTokenizerBase, fast: bool = True) -> dict[str, list[float]]:
    """Return the log-likelihoods of a tiny model without and with prompts. Token ids alone count, not the tokenizer."""
    model = steady_model(family)
    found = {}
    for name, kind in PROMPTS.items():
        prompt = steady_prompt(*kind, model.config.get_text_config().hidden_size) if kind else None
        lm = SPTLM(pretrained=model, tokenizer=tokenizer, prompt=prompt, fast=fast, batch_size=4)
        answers = lm._loglikelihood_tokens(steady_requests(), disable_tqdm=True)
        found[name] = [round(value, 6) for value, _ in answers]
    return found


def mini_numbers() -> dict[str, Any]:
    """Return what the embedded model answers: choices of two documents in six languages, whole texts, and a few words.

    Without a prompt, and with each prompt that ships.
    """
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    tasks = manager.load([f"mini_topics_{language}" for language in LANGUAGES])["tasks"]
    choices = [request for task in tasks.values() for request in _requests(task)]
    rolled = [request("loglikelihood_rolling", (text,), number) for number, text in enumerate(ROLLED)]
    begun = [
        request("generate_until", (text, {"until": ["\n\n"], "max_gen_toks": 6}), number)
        for number, text in enumerate(("The river", "Ein neues Museum", "体育"))
    ]
    plain = SPTLM(pretrained="mini", device="cpu", batch_size=8)
    found: dict[str, Any] = {"fingerprint": plain.fingerprint}
    for file in (None, *sorted((ROOT / "prompts").glob("*.safetensors"))):
        prompt = SoftPrompt.load(file) if file else None
        lm = SPTLM(pretrained=plain.model, tokenizer=plain.tokenizer, prompt=prompt, batch_size=8)
        found[prompt.name if prompt else "none"] = {
            "choices": [round(value, 6) for value, _ in lm.loglikelihood(choices, disable_tqdm=True)],
            "rolling": [round(value, 6) for value in rolling_loglikelihoods(lm, rolled)],
            "generation": lm.generate_until(begun, disable_tqdm=True),
        }
    return found


def _requests(task: Any) -> list[Instance]:
    rows = list(task.test_docs())[:2]
    return [request for row in rows for request in patches.construct_requests(task, row, task.fewshot_context(row, 0))]
