"""Requests to a model class, and what their answers are held to: PEFT and a plain restatement."""

from __future__ import annotations

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.requests import request

CLOSE = {"abs": 1e-4, "rel": 1e-5}
# Not one sentence over and over: HFLM mixes up rolling windows of the same tokens when they share a batch.
LONG = " ".join(f"On day {day} the river rose by {day * day} centimetres." for day in range(25))


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [request(kind, argument, number) for number, argument in enumerate(arguments)]


def spt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: SoftPrompt | None = None, **kwargs
) -> SPTLM:
    return SPTLM(pretrained=model, tokenizer=tokenizer, prompt=prompt, **{"batch_size": 4} | kwargs)


def peft_lm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: SoftPrompt) -> HFLM:
    """The harness with the same prompt as a PeftModel, which PEFT itself prepends."""
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=prompt.length,
        token_dim=prompt.hidden_size,
        num_transformer_submodules=1,
        num_layers=2,
        num_attention_heads=4,
    )
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        peft_model.prompt_encoder["default"].embedding.weight.copy_(prompt.vectors)
    return HFLM(pretrained=peft_model.eval(), tokenizer=tokenizer, batch_size=4)


def around(text: torch.Tensor, prompt: SoftPrompt) -> torch.Tensor:
    """The prompt before and after a text's embeddings `[1, time, d]`; what a prompt for both has before comes first."""
    vectors = prompt.vectors[None]
    if prompt.placement == "both":
        before = prompt.metadata["num_prefix_tokens"]
        return torch.cat([vectors[:, :before], text, vectors[:, before:]], dim=1)
    return torch.cat([vectors, text] if prompt.placement == "prefix" else [text, vectors], dim=1)


def restated(
    model: PreTrainedModel, context: list[int], continuation: list[int], prompt: SoftPrompt
) -> tuple[float, bool]:
    """Log-likelihood of a continuation from one unpadded sequence of embeddings, put together by hand."""
    embedding = model.get_input_embeddings()
    parts = [
        embedding(torch.tensor([ids])) if ids else torch.empty(1, 0, prompt.hidden_size)
        for ids in (context, continuation)
    ]
    with torch.no_grad():
        logits = model(inputs_embeds=torch.cat([around(parts[0], prompt), parts[1]], dim=1)).logits[0]
    logprobs = logits[-len(continuation) - 1 : -1].log_softmax(-1)
    scores = logprobs[range(len(continuation)), continuation]
    return float(scores.sum()), bool((logprobs.argmax(-1) == torch.tensor(continuation)).all())


def values(answers: list[tuple[float, bool]]) -> list[float]:
    return [value for value, _ in answers]
