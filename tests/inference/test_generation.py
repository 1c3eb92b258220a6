"""Models that do not go on from embeddings as others do: all of them against a plain loop over embeddings."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, StoppingCriteriaList

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference.generation import generate
from lm_eval_spt.inference.virtual_tokens import place
from tests.helpers.generation import plain_beams

VOCABULARY, HIDDEN, STEPS = 512, 32, 5

_size = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": HIDDEN, "intermediate_size": 48}
_grouped = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
_per_layer = {
    **_size, **_grouped, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
}  # fmt: skip
_long = {"rope_theta": 10000.0, "original_max_position_embeddings": 32}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "a mixture of experts": ("mixtral", {**_size, **_grouped, "num_local_experts": 4}),
    "a recurrent one": ("mamba", {"hidden_size": HIDDEN, "num_hidden_layers": 2, "state_size": 8}),
    "one that reads padding": (
        "recurrent_gemma",
        {**_size, "num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16},
    ),
    "one whose state mixes up a batch": (
        "rwkv",
        {"hidden_size": HIDDEN, "num_hidden_layers": 2, "attention_hidden_size": HIDDEN, "intermediate_size": 64},
    ),
    "one without embeddings in generate": ("openai-gpt", {"n_embd": HIDDEN, "n_head": 4, "n_layer": 2}),
    "RoPE chosen by the longest text": (
        "phi3",
        {
            **_size, "num_key_value_heads": 2, "max_position_embeddings": 128, "original_max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, **_long},
        },
    ),
    "RoPE that grows": (
        "llama",
        {
            **_size, **_grouped, "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
    "inputs for every layer": (
        "gemma3n_text",
        {**_per_layer, "laurel_rank": 4, "intermediate_size": [48] * 2, "activation_sparsity_pattern": [0.0] * 2},
    ),
    "inputs for every layer of embeddings": ("gemma4_text", _per_layer),
}  # fmt: skip
SLOWER = {
    "one that reads padding", "one whose state mixes up a batch", "one without embeddings in generate",
    "RoPE chosen by the longest text", "RoPE that grows",
}  # fmt: skip


def build(kind: str) -> PreTrainedModel:
    family, sizes = MODELS[kind]
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **ids, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    return model.eval().requires_grad_(False)


def texts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def plain_pass(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    for module in model.modules():  # dynamic RoPE keeps the frequencies of the longest text that it has met
        if getattr(module, "rope_type", None) == "dynamic":
            module.max_seq_len_cached = module.original_max_seq_len
            module.register_buffer("inv_freq", module.original_inv_freq, persistent=False)
    return model(**inputs, use_cache=False).logits[0, -1]


def plain_loop(
    model: PreTrainedModel,
    text: list[int],
    vectors: Tensor | None,
    before: bool,
    reward: float = 1.0,
    guidance: float = 1.0,
) -> list[int]:
    """Greedy decoding of one text by itself, the tokens that were there already rewarded."""
    embedding, tokens = model.get_input_embeddings(), []
    per_layer = getattr(model.get_decoder(), "get_per_layer_inputs", None) if vectors is not None else None
    cut = 0 if before else len(text)
    count = 0 if vectors is None else len(vectors)
    for _ in range(STEPS):
        ids = torch.tensor([[*text, *tokens]])
        words = embedding(ids)
        inputs = {"inputs_embeds": words} if vectors is not None else {"input_ids": ids}
        if vectors is not None:
            inputs["inputs_embeds"] = torch.cat([words[:, :cut], vectors[None], words[:, cut:]], dim=1)
        if per_layer is not None:
            takes_embeds = model.config.model_type == "gemma4_text"
            own = per_layer(ids, words) if takes_embeds else per_layer(ids)
            blanks = own.new_zeros(1, count, *own.shape[2:])  # virtual tokens are no tokens of the vocabulary
            inputs["per_layer_inputs"] = torch.cat([own[:, :cut], blanks, own[:, cut:]], dim=1)
        scores = plain_pass(model, **inputs)
        if guidance != 1.0:
            free = plain_pass(model, input_ids=torch.tensor([[text[-1], *tokens]])).log_softmax(-1)
            scores = free + guidance * (scores.log_softmax(-1) - free)
        seen = ids[0].unique()
        scores[seen] = torch.where(scores[seen] < 0, scores[seen] * reward, scores[seen] / reward)
        scores[2] = -torch.inf
        tokens.append(int(scores.argmax()))
    return tokens


def said(model: PreTrainedModel, contexts: list[list[int]], vectors: Tensor | None, **settings: Any) -> list[list[int]]:
    model.generation_config.eos_token_id = 2
    given = {"do_sample": False, "min_new_tokens": STEPS, **settings}
    answers = generate(
        model, contexts, vectors, max_new_tokens=STEPS, pad_token_id=0,
        stopping=lambda *_: StoppingCriteriaList(), **given,
    )  # fmt: skip
    return [answer.tolist() for answer in answers]


@pytest.mark.parametrize("placement", ["prefix", "suffix", None])
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_generates_as_in_plain_passes(kind, placement, caplog):
    model = build(kind)
    vectors = None if placement is None else torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(2)) * 0.3
    written = texts(3, 17, 17, 40)
    before = placement == "prefix"
    contexts = [place(text, 4, 0) if before else place(text, 0, 4) if placement else text for text in written]
    with caplog.at_level(logging.INFO, "lm_eval_spt"):
        found = said(model, contexts, vectors)
    assert found == [plain_loop(model, text, vectors, before) for text in written]
    slower = kind in SLOWER and (placement is not None or kind != "one without embeddings in generate")
    assert ("generates in a slower way" in caplog.text) == slower
    rewarded = said(model, contexts, vectors, repetition_penalty=0.5)
    assert rewarded == [plain_loop(model, text, vectors, before, 0.5) for text in written]
    guided = said(model, contexts, vectors, guidance_scale=2.5)
    assert guided == [plain_loop(model, text, vectors, before, guidance=2.5) for text in written]
    assert found != rewarded != guided != found


@pytest.mark.parametrize("length", [24, 27, 40])
def test_an_answer_that_gets_longer_than_its_rope(length):
    """In the cache are keys of the RoPE before: 24 tokens and a prompt of 4 become 33, and from 33 on it is another."""
    for kind in ("RoPE chosen by the longest text", "RoPE that grows"):
        model, written = build(kind), texts(3, 17)
        vectors = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(2)) * 0.3
        for group in (written, texts(length, 5)):  # the model is tried on the first ones alone
            found = said(model, [place(text, 0, 4) for text in group], vectors)
            assert found == [plain_loop(model, text, vectors, False) for text in group]


@pytest.mark.parametrize("kind", ["a recurrent one", "one without embeddings in generate", "RoPE that grows"])
def test_beams_go_on_from_their_own_context(kind):
    model, written = build(kind), texts(9, 9, 4)
    vectors = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(2)) * 0.3
    found = said(model, [place(text, 0, 4) for text in written], vectors, num_beams=2)
    embedding = model.get_input_embeddings()
    for text, answer in zip(written, found, strict=True):
        context = torch.cat([embedding(torch.tensor([text])), vectors[None]], dim=1)
        assert answer == plain_beams(model, context, STEPS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_reason_for_a_slower_way(dtype, caplog):
    for kind in ("a mixture of experts", "a recurrent one", "inputs for every layer"):
        model = build(kind).to(dtype)
        with caplog.at_level(logging.INFO, "lm_eval_spt"):
            said(model, [place(text, 4, 0) for text in texts(3, 40)], torch.randn(4, HIDDEN) * 0.3)
        assert "slower" not in caplog.text
    with caplog.at_level(logging.INFO, "lm_eval_spt"):
        said(build("one that reads padding").to(dtype), texts(3, 40), None)
    assert "RecurrentGemmaForCausalLM generates in a slower way than 'padded'" in caplog.text


def test_a_model_that_takes_no_embeddings_is_told_in_one_line(monkeypatch):
    model = build("a mixture of experts")
    forward = type(model).forward

    def without_embeddings(self, input_ids=None, attention_mask=None, **kwargs):
        if kwargs.get("inputs_embeds") is not None:
            raise TypeError("forward() got an unexpected keyword argument 'inputs_embeds'")
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(type(model), "forward", without_embeddings)
    with pytest.raises(UserError, match="MixtralForCausalLM can not generate .*'inputs_embeds'$"):
        said(model, [place(text, 4, 0) for text in texts(3, 9)], torch.randn(4, HIDDEN))
