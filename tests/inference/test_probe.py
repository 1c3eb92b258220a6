"""What a model can do is found out: every architecture gets the numbers of its own plain pass, fast where it can."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference import probe as probe_module
from lm_eval_spt.inference.capabilities import Capabilities, capabilities
from lm_eval_spt.inference.deep_prefix import deep_prefix_size
from lm_eval_spt.inference.forward import forward_tree, loglikelihoods
from lm_eval_spt.inference.kv_cache import KVCache
from lm_eval_spt.inference.probe import forget, probe
from lm_eval_spt.inference.scoring import score, score_suffixes
from lm_eval_spt.inference.token_tree import ScoringRequest
from lm_eval_spt.inference.transformers_internals import (
    cache_argument,
    keys_and_values,
    named_lengths,
    prepare,
    rope_length,
)
from lm_eval_spt.inference.virtual_tokens import place

VOCABULARY = 512
SMALL = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48,
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 32,
}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict, Capabilities]] = {
    "local windows": (
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "window_size": 16, "vocab_size": VOCABULARY,
         "attention_types": [[["global", "local"], 1]]},
        Capabilities("padded", cache=True, split=True),
    ),
    "ALiBi by slots": (
        "mpt",
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": VOCABULARY, "max_seq_len": 128},
        Capabilities("padded", cache=True, split=True),
    ),
    "no cache": (
        "openai-gpt",
        {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": VOCABULARY, "n_positions": 128},
        Capabilities("padded", cache=False, split=True),
    ),
    "experts": ("mixtral", {**GROUPED, "num_local_experts": 4}, Capabilities("tree", cache=True, split=True)),
    "experts and sinks": (
        "gpt_oss",
        {**GROUPED, "num_local_experts": 4, "sliding_window": 16},
        Capabilities("tree", cache=True, split=True),
    ),
    "long and short RoPE": (
        "phi3",
        {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 128, "original_max_position_embeddings": 32,
         "rope_parameters": LONGROPE},
        Capabilities("tree", cache=True, split=True, longest=32),
    ),
    "dynamic RoPE": (
        "llama",
        {**GROUPED, "max_position_embeddings": 32,
         "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}},
        Capabilities("tree", cache=True, split=True, longest=32),
    ),
    "state": (
        "mamba",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "state_size": 8},
        Capabilities("padded", cache=False, split=True),
    ),
    "state that ignores padding": (
        "rwkv",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "attention_hidden_size": 32,
         "intermediate_size": 64},
        Capabilities("rows", cache=False, split=True),
    ),
    "state and windows": (
        "recurrent_gemma",
        {**SMALL, "num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16},
        Capabilities("rows", cache=False, split=True),
    ),
    "inputs for every layer": (
        "gemma3n_text",
        {**GROUPED, "num_hidden_layers": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
         "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 0,
         "laurel_rank": 4, "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4},
        Capabilities("tree", cache=True, split=True),
    ),
}  # fmt: skip


def build(family: str, settings: dict) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.2)
    prepare(model.eval().requires_grad_(False))
    return model


def some_requests() -> list[tuple[list[int], list[int]]]:
    """Contexts of 3, 17 and 60 tokens, each with three continuations of which two begin alike."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in (3, 17, 60):
        context, *answers = (
            torch.randint(4, VOCABULARY, (size,), generator=generator).tolist() for size in (length, 3, 1, 2)
        )
        found += [(context, answer) for answer in (*answers, [*answers[0][:2], answers[1][0]])]
    return found


def restated(model: PreTrainedModel, before, context, after, continuation) -> torch.Tensor:
    """One unpadded sequence of embeddings through a fresh copy of the model's own forward."""
    ids = torch.tensor([context + continuation[:-1]])
    embeds = model.get_input_embeddings()(ids)
    text, rest = embeds[:, : len(context)], embeds[:, len(context) :]
    inputs = {"inputs_embeds": torch.cat([before[None], text, after[None], rest], dim=1)}
    decoder = model.get_decoder()
    if hasattr(decoder, "get_per_layer_inputs"):  # virtual tokens are no tokens of the vocabulary
        own = decoder.get_per_layer_inputs(ids)
        blank = own.new_zeros(1, 1, *own.shape[2:])
        blanks = [blank.expand(-1, len(vectors), -1, -1) for vectors in (before, after)]
        inputs["per_layer_inputs"] = torch.cat(
            [blanks[0], own[:, : len(context)], blanks[1], own[:, len(context) :]], dim=1
        )
    logits = model(**inputs, use_cache=False).logits[0, -len(continuation) :]
    return logits.log_softmax(-1)[range(len(continuation)), continuation].sum()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_way_gives_the_numbers_of_the_plain_pass(name):
    """Scored without a prompt, with one before and one after the text, many together, and learned from a gradient."""
    family, settings, expected_capabilities = ARCHITECTURES[name]
    model, requests = build(family, settings), some_requests()
    width = model.get_input_embeddings().weight.shape[1]
    vectors = torch.randn(5, width, generator=torch.Generator().manual_seed(1)) * 0.3
    nothing = vectors[:0]

    for before, after in ((nothing, nothing), (vectors, nothing), (nothing, vectors)):
        placed = [(place(context, len(before), len(after)), answer) for context, answer in requests]
        prompt = torch.cat([before, after]) if len(before) + len(after) else None
        forget(model)
        known = probe(model, placed, prompt)
        assert (known.layout, known.cache, known.split, known.longest) == (
            expected_capabilities.layout, expected_capabilities.cache, expected_capabilities.split,
            expected_capabilities.longest,
        )  # fmt: skip
        answers = dict(score(model, placed, prompt, 512))
        for number, (context, answer) in enumerate(requests):
            with torch.no_grad():
                expected = float(restated(build(family, settings), before, context, after, answer))
            assert answers[number][0] == pytest.approx(expected, abs=1e-4, rel=1e-5)

    together = dict(score_suffixes(model, requests, [vectors, vectors[:2]], 512))
    for number, (context, answer) in enumerate(requests):
        for which, prompt in enumerate((vectors, vectors[:2])):
            with torch.no_grad():
                expected = float(restated(build(family, settings), nothing, context, prompt, answer))
            assert together[number][which][0] == pytest.approx(expected, abs=1e-4, rel=1e-5)

    learned, exact = (vectors.clone().requires_grad_() for _ in range(2))
    known = probe(model, [(place(context, 0, 5), answer) for context, answer in requests], vectors, gradient=True)
    rows = [ScoringRequest(place(context, 0, 5), [answer]) for context, answer in requests]
    loglikelihoods(model, forward_tree(model, rows, learned))[0].sum().backward()
    fresh = build(family, settings)
    sum(restated(build(family, settings), nothing, context, exact, answer) for context, answer in requests).backward()
    del fresh
    torch.testing.assert_close(learned.grad, exact.grad, rtol=1e-3, atol=1e-3 * float(exact.grad.abs().max()))


def test_the_lengths_that_a_configuration_names_are_read():
    family, settings, _ = ARCHITECTURES["local windows"]
    assert named_lengths(build(family, settings)) == [16]
    family, settings, _ = ARCHITECTURES["long and short RoPE"]
    model = build(family, settings)
    assert 32 in named_lengths(model) and rope_length(model) == 32


def test_longer_texts_are_tried_when_they_come():
    """A window shows only in texts that are longer than it."""
    family, settings, _ = ARCHITECTURES["local windows"]
    model, requests = build(family, settings), some_requests()
    assert probe(model, requests[:3]).layout == "tree"
    assert probe(model, requests[:3]).layout == "tree"
    assert probe(model, requests).layout == "padded"


def test_a_window_that_a_configuration_names_and_the_model_ignores_does_no_harm():
    model = build("llama", GROUPED)
    model.config.sliding_window = 16
    requests = some_requests()
    probe(model, requests)
    answers = dict(score(model, requests, None, 512))
    plain = build("llama", GROUPED)
    nothing = torch.zeros(0, 32)
    with torch.no_grad():
        for number, (context, answer) in enumerate(requests):
            expected = float(restated(plain, nothing, context, nothing, answer))
            assert answers[number][0] == pytest.approx(expected, abs=1e-4, rel=1e-5)


def test_a_model_that_has_been_tried_is_not_tried_again(monkeypatch):
    model, requests = build("llama", GROUPED), some_requests()
    known = probe(model, requests)
    monkeypatch.setattr(probe_module, "_Probe", None)
    assert probe(model, requests) == known
    forget(model)
    assert capabilities(model) == Capabilities()


def test_a_prompt_of_another_kind_is_tried_anew(monkeypatch):
    """What a model does with token ids says nothing of what it does with embeddings, or behind keys and values."""
    model, requests = build("llama", GROUPED), some_requests()
    vectors, key_values = torch.zeros(2, 32), torch.zeros(*deep_prefix_size(model)[:3], 2, 8)
    prompted = [(place(context, 2, 0), answer) for context, answer in requests]
    tries = [(requests, None), (prompted, vectors), (requests, key_values)]
    seen, find = [], probe_module._find

    def noted(*given: object) -> Capabilities:
        seen.append(given[2])
        return find(*given)

    monkeypatch.setattr(probe_module, "_find", noted)
    for _ in range(2):
        for texts, given in tries:
            probe(model, texts, given)
    assert len(seen) == 3 and seen[0] is None and seen[1] is vectors and seen[2] is key_values


def test_each_kind_of_prompt_is_read_as_it_can_be(monkeypatch):
    model, requests = build("llama", GROUPED), some_requests()
    prompted = [(place(context, 2, 0), answer) for context, answer in requests]
    decoder = model.get_decoder()
    forward = decoder.forward

    def embeddings_without_masks(**given: object) -> object:
        if given.get("inputs_embeds") is not None:
            given = {name: given[name] for name in given if name not in ("attention_mask", "position_ids")}
        return forward(**given)

    monkeypatch.setattr(decoder, "forward", embeddings_without_masks)
    for _ in range(2):
        assert probe(model, requests).layout == "tree"
        assert probe(model, prompted, torch.randn(2, 32)).layout == "rows"
        assert capabilities(model).layout == "rows"


def test_a_model_that_is_wrong_behind_keys_and_values_takes_no_deep_prefix(monkeypatch):
    model, requests = build("llama", GROUPED), some_requests()
    key_values = torch.zeros(*deep_prefix_size(model)[:3], 2, 8)
    assert probe(model, requests, key_values).layout == "tree"
    forget(model)
    forward = model.forward

    def as_the_first(**given: object) -> object:
        """New tokens are given the positions of the first."""
        if given.get(cache_argument(model)) is not None:
            given["position_ids"] = torch.arange(given["input_ids"].shape[1])[None]  # type: ignore[attr-defined]
        return forward(**given)

    monkeypatch.setattr(model, "forward", as_the_first)
    with pytest.raises(UserError, match="LlamaForCausalLM takes no deep prefix, .* behind keys and values"):
        probe(model, requests, key_values)


@pytest.mark.parametrize("name", ["dynamic RoPE", "long and short RoPE"])
def test_rope_that_changes_with_length_takes_a_deep_prefix(name):
    """In long texts the keys of their beginnings are others: that is no fault of the cache."""
    family, settings, _ = ARCHITECTURES[name]
    model = build(family, settings)
    layers, two, heads, width = deep_prefix_size(model)
    assert probe(model, some_requests(), torch.zeros(layers, two, heads, 3, width)).longest == 32


def test_a_cache_that_forgets_is_noticed(monkeypatch):
    """The probe is no formality: with keys that were read wrongly it takes no cache."""
    model, requests = build("llama", GROUPED), some_requests()
    prefill = probe_module.prefill

    def wrong(*args: object) -> KVCache:
        read = prefill(*args)  # type: ignore[arg-type]
        for keys, _ in keys_and_values(read.cache):
            keys *= 0.9
        return read

    monkeypatch.setattr(probe_module, "prefill", wrong)
    assert not probe(model, requests).cache


def test_trying_leaves_every_module_in_its_mode():
    """A wrapper that PEFT puts around a model in evaluation mode is itself in training mode."""
    model = build("llama", GROUPED)
    model.training = True
    probe(model, some_requests())
    assert model.training and not any(module.training for module in model.children())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_allowed_its_rounding_and_no_more(dtype):
    model, requests = build("llama", GROUPED).to(dtype), some_requests()
    assert probe(model, requests).layout == "tree"
    family, settings, expected = ARCHITECTURES["local windows"]
    assert probe(build(family, settings).to(dtype), requests).layout == expected.layout


def test_gradients_in_half_precision_are_allowed_their_rounding(monkeypatch):
    """Some models multiply it: it is measured before a way is given up. What is wrong is still noticed."""
    monkeypatch.setattr(probe_module, "HALF_GRADIENT", 1e-9)
    monkeypatch.setattr(probe_module, "COPY_ON_CPU", 0)
    model = build("llama", GROUPED).to(torch.bfloat16)
    vectors = torch.randn(4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    requests = [(place(context, 0, 4), answer) for context, answer in some_requests()]
    assert probe(model, requests, vectors, gradient=True).cache
    forget(model)
    prefill = probe_module.prefill

    def wrong(*args: object) -> KVCache:
        read = prefill(*args)  # type: ignore[arg-type]
        for keys, _ in keys_and_values(read.cache):
            keys *= -1
        return read

    monkeypatch.setattr(probe_module, "prefill", wrong)
    assert not probe(model, requests, vectors, gradient=True).cache


def test_numbers_that_are_none_are_named():
    model = build("llama", GROUPED)
    model.get_output_embeddings().weight.data[7] = torch.nan  # type: ignore[union-attr, operator]
    with pytest.raises(UserError, match="LlamaForCausalLM in float32 gives log-likelihoods that are not numbers"):
        probe(model, some_requests())


def test_a_model_that_takes_no_embeddings_is_named(monkeypatch):
    model = build("llama", GROUPED)
    forward = model.forward

    def without_embeds(input_ids: torch.Tensor | None = None, **options: object) -> object:
        return forward(input_ids=input_ids, **{name: options[name] for name in options if name != "inputs_embeds"})

    monkeypatch.setattr(model, "forward", without_embeds)
    requests = [(place(context, 2, 0), answer) for context, answer in some_requests()]
    with pytest.raises(UserError, match="can not be run with a soft prompt, which it has to take as inputs_embeds"):
        probe(model, requests, torch.zeros(2, 32))
