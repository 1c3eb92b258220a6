"""What is relied on inside transformers: the names, and that running a model in two parts changes nothing."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from lm_eval_spt.inference import forward, transformers_internals
from lm_eval_spt.inference.kv_cache import KVCache
from lm_eval_spt.inference.scoring import score, score_suffixes
from lm_eval_spt.inference.token_tree import ScoringRequest, build_tree
from lm_eval_spt.inference.transformers_internals import SLOW_GELUS, cache_argument, decoder_of, keys_and_values, logits
from lm_eval_spt.inference.virtual_tokens import place
from tests.helpers.models import VOCABULARY, as_fast, build_model, random_prompt


def test_the_names_that_are_relied_on(tiny_model):
    decoder = decoder_of(tiny_model)
    parameters = inspect.signature(type(decoder).forward).parameters
    name = cache_argument(decoder)
    assert {"attention_mask", name, "use_cache", "inputs_embeds"} <= set(parameters)
    cache = DynamicCache()
    with torch.no_grad():
        found = decoder(input_ids=torch.tensor([[5, 6]]), **{name: cache}, use_cache=True)
    assert found.last_hidden_state.shape == (1, 2, 32)
    assert keys_and_values(cache)[0][0].shape[2] == 2


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_passed_under_the_decoder_s_own_name(tiny_model, monkeypatch, name):
    """Old and new names, with a decoder that accepts one of them alone."""
    decoder = decoder_of(tiny_model)
    own, forward_as_it_is = cache_argument(decoder), type(decoder).forward

    def old(self, attention_mask=None, position_ids=None, past_key_values=None, **options):
        return forward_as_it_is(
            self, attention_mask=attention_mask, position_ids=position_ids, **{own: past_key_values}, **options
        )

    def new(self, attention_mask=None, position_ids=None, cache=None, **options):
        assert "past_key_values" not in options
        return forward_as_it_is(
            self, attention_mask=attention_mask, position_ids=position_ids, **{own: cache}, **options
        )

    def hidden(cache):
        ids, mask, positions = torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.long), torch.tensor([[0, 1]])
        return transformers_internals.hidden_states(tiny_model, {"input_ids": ids}, mask, positions, cache=cache)

    with torch.no_grad():
        expected = hidden(DynamicCache())
        monkeypatch.setattr(type(decoder), "forward", {"cache": new, "past_key_values": old}[name])
        assert cache_argument(decoder) == name
        cache = DynamicCache()
        torch.testing.assert_close(hidden(cache), expected)
    assert cache.get_seq_length() == 2


def test_bloom_has_its_bias_where_it_is_replaced(tiny_models):
    decoder = decoder_of(tiny_models["bloom"])
    assert list(inspect.signature(decoder.build_alibi_tensor).parameters) == ["attention_mask", "num_heads", "dtype"]


@pytest.mark.parametrize("family", ["bloom", "gpt2"])
def test_slow_gelus_are_found_and_give_way(family):
    model = build_model(family)
    slow = [module for module in model.modules() if type(module).__name__ in SLOW_GELUS]
    assert slow
    values = torch.linspace(-6, 6, 1001)
    expected = slow[0](values)
    transformers_internals.prepare(model)
    assert isinstance(slow[0], transformers_internals.FastGELU)
    torch.testing.assert_close(slow[0](values), expected)


class _Copies(TorchDispatchMode):
    """Notes how many values each copy in one piece has."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.bmm.default, torch.ops.aten.clone.default):
            self.sizes += [given.numel() for given in args if isinstance(given, torch.Tensor)]
        return result


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_head_is_not_copied_for_the_logits_of_some_tokens(batch, dtype):
    """The batched product that PyTorch would choose for a slice copies it where it is in bfloat16."""
    model = build_model("gemma3_text").to(dtype).requires_grad_(False)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]] * batch)}
    weight = model.get_output_embeddings().weight.numel()
    with torch.no_grad():
        with _Copies() as before:
            expected = transformers_internals.last_logits(model, inputs, 2)
        for _ in range(2):
            transformers_internals.prepare(model)
        with _Copies() as after:
            found = transformers_internals.last_logits(model, inputs, 2)
    assert max(before.sizes) >= weight > max(after.sizes)
    assert len(model.get_output_embeddings()._forward_pre_hooks) == 1
    torch.testing.assert_close(found, expected)


def test_the_head_by_itself_gives_the_models_logits(tiny_model):
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        hidden = decoder_of(tiny_model)(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(logits(tiny_model, hidden), tiny_model(input_ids=ids).logits[0])


def test_caps_and_scales_of_logits_are_kept():
    """Gemma 2 caps its logits; Cohere and Granite scale theirs."""
    small = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
             "intermediate_size": 48, "vocab_size": 100}  # fmt: skip
    for family, special in [
        ("gemma2", {"final_logit_softcapping": 0.5, "head_dim": 8, "query_pre_attn_scalar": 8}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 7.0}),
    ]:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **small, **special)).eval()
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            expected = model(input_ids=ids).logits[0]
            torch.testing.assert_close(logits(model, decoder_of(model)(input_ids=ids).last_hidden_state[0]), expected)


def test_an_architecture_whose_head_looks_elsewhere_is_noticed(tiny_models, monkeypatch):
    model = tiny_models["llama"]
    monkeypatch.setattr(transformers_internals, "decoder_of", lambda model: torch.nn.Identity())
    with pytest.raises(RuntimeError, match="does not take its hidden states from"):
        logits(model, torch.zeros(2, 32))


@pytest.mark.parametrize("layout", ["padded", "rows", "equal"])
def test_a_model_without_trees_reads_each_continuation_by_itself(layout):
    model = as_fast(build_model("qwen3"))
    requests = [ScoringRequest([5, 6, 7], [[8, 9], [8, 10, 11], [12]]), ScoringRequest([9], [[5, 6, 7], [5]])]
    with torch.no_grad():
        expected = _scored(model, requests)
        as_fast(model, layout=layout, cache=False)
        torch.testing.assert_close(_scored(model, requests), expected, atol=1e-4, rtol=1e-5)


def _scored(model, requests, past=None):
    return forward.loglikelihoods(model, forward.forward_tree(model, requests, past=past))[0]


@pytest.mark.parametrize("past", [False, True])
def test_long_contexts_are_read_before_their_branches(tiny_model, monkeypatch, past):
    """Where a mask of everything by everything would be too large."""
    as_fast(tiny_model)
    requests = [
        ScoringRequest(list(range(5, 45)), [[8, 9], [8, 10, 11], [12]]),
        ScoringRequest([9, 4], [[5, 6, 7], [5]]),
    ]

    def read() -> KVCache | None:
        ids = torch.tensor([[3, 30, 31], [0, 40, 41]])
        return forward.prefill(tiny_model, ids, (ids > 0).long()) if past else None

    with torch.no_grad():
        expected = _scored(tiny_model, requests, past=read())
        monkeypatch.setattr(forward, "LONG", 16)
        found = _scored(tiny_model, requests, past=read())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_tree_holds_every_continuation_once(data):
    """Walking from the root over each continuation's own nodes spells it out; no two nodes are the same path.

    Virtual tokens are nodes like others, but never scored, nor is anything where only they follow.
    """
    token = st.sampled_from([-2, -1, 1, 2, 3])
    continuations = data.draw(st.lists(st.lists(token, max_size=5), max_size=8))
    tree = build_tree(tuple(map(tuple, continuations)))
    paths = [tuple(tree.tokens[other] for other in row.nonzero().flatten().tolist()) for row in tree.ancestors]
    assert len(set(paths)) == len(paths)
    assert [len(path) for path in paths] == tree.depths.tolist()
    spelled: dict[int, list[int]] = {number: [] for number in range(len(continuations))}
    for which, scored, number in tree.targets:
        node = tree.scored[which]
        before = paths[node - 1] if node else ()
        assert [*before, scored] == continuations[number][: len(before) + 1]
        spelled[number].append(scored)
    assert list(spelled.values()) == [[token for token in one if token > 0] for one in continuations]
    assert {which for which, _, _ in tree.targets} == set(range(len(tree.scored)))
    distinct = {tuple(one[:end]) for one in continuations for end in range(1, len(one))}
    assert set(paths) == distinct
    assert max(tree.tokens, default=0) < VOCABULARY


@pytest.mark.parametrize("budget", [64, 300, 4096])
def test_many_suffix_prompts_share_the_room_behind_a_context(tiny_model, budget):
    """Prompts of other lengths over the same keys and values: one by one, in groups, as one tree."""
    as_fast(tiny_model)
    requests = [(list(range(5, 5 + length)), answer) for length in (3, 9, 4) for answer in ([7, 8, 9], [7, 10], [11])]
    prompts = [random_prompt(tiny_model, length=length, seed=length).vectors for length in (3, 1, 5)]
    together = dict(score_suffixes(tiny_model, requests, prompts, budget))
    for number, vectors in enumerate(prompts):
        placed = [(place(context, 0, len(vectors)), answer) for context, answer in requests]
        for index, (value, greedy) in score(tiny_model, placed, vectors, 64):
            assert together[index][number][0] == pytest.approx(value, abs=1e-4, rel=1e-5)
            assert together[index][number][1] == greedy


def test_the_names_that_generation_relies_on(tiny_model):
    prepared = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    assert {"inputs_embeds", "is_first_iteration"} <= set(prepared)
    assert isinstance(tiny_model._supports_logits_to_keep(), bool)
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor
    assert list(inspect.signature(guidance.get_unconditional_logits).parameters) == ["self", "input_ids"]


def test_the_ways_to_generate_leave_nothing_behind():
    model, guidance = build_model("llama"), UnbatchedClassifierFreeGuidanceLogitsProcessor
    before = guidance.get_unconditional_logits
    ways = (
        transformers_internals.generation_from_embeddings(model),
        transformers_internals.generation_from_scratch(model, lambda ids: {"input_ids": ids}),
        transformers_internals.guidance_in_plain_passes(model, 1),
    )
    for way in ways:
        with pytest.raises(ZeroDivisionError), way:
            raise ZeroDivisionError
        assert "prepare_inputs_for_generation" not in vars(model)
        assert guidance.get_unconditional_logits is before
