"""The model class against the harness's own HFLM, PEFT, and a plain restatement of where the prompt goes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.prompted_lm import _warn_of_token_at_the_end
from lm_eval_spt.inference.capabilities import capabilities
from lm_eval_spt.inference.transformers_internals import cache_argument
from lm_eval_spt.prompt.metadata import PLACEMENTS
from tests.helpers.models import build_model, random_prompt
from tests.helpers.requests import rolling_loglikelihoods
from tests.helpers.scoring import CLOSE, LONG, peft_lm, requests, restated, spt, values

CONTEXTS = [
    "The river",
    "A goalkeeper saved two penalties in the cup final of the year.",
    "Bread",
    "",
    "End with space ",
]
CHOICES = [" sports", " science/technology", " geography", " the old town hall of the city"]


PAIRS = requests("loglikelihood", [(context, choice) for context in CONTEXTS for choice in CHOICES])
TEXTS = requests("loglikelihood_rolling", [("The river flows to the sea.",), (LONG,), ("x",)])


@pytest.mark.parametrize("fast", [True, False])
def test_without_a_prompt_it_is_the_plain_model(tiny_model, tokenizer, fast):
    ours, theirs = spt(tiny_model, tokenizer, fast=fast), HFLM(pretrained=tiny_model, tokenizer=tokenizer, batch_size=4)
    expected = theirs.loglikelihood(PAIRS, disable_tqdm=True)
    found = ours.loglikelihood(PAIRS, disable_tqdm=True)
    assert values(found) == pytest.approx(values(expected), **CLOSE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    if fast:
        assert capabilities(tiny_model).layout == "tree"


@pytest.mark.parametrize("fast", [True, False])
def test_a_prefix_prompt_scores_as_with_peft(tiny_model, tokenizer, fast):
    prompt = random_prompt(tiny_model)
    found = spt(tiny_model, tokenizer, prompt, fast=fast).loglikelihood(PAIRS, disable_tqdm=True)
    expected = peft_lm(tiny_model, tokenizer, prompt).loglikelihood(PAIRS, disable_tqdm=True)
    assert values(found) == pytest.approx(values(expected), **CLOSE)
    unprompted = spt(tiny_model, tokenizer).loglikelihood(PAIRS, disable_tqdm=True)
    assert values(found) != pytest.approx(values(unprompted), abs=0.01)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_prompt_stands_where_it_should(tiny_model, tokenizer, placement, fast):
    prompt = random_prompt(tiny_model, placement=placement)
    pairs = [pair for pair in PAIRS if pair.args[0]]
    found = spt(tiny_model, tokenizer, prompt, fast=fast).loglikelihood(pairs, disable_tqdm=True)
    for pair, (value, greedy) in zip(pairs, found, strict=True):
        context, continuation = pair.args
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        context_ids = tokenizer.encode(stripped)
        if placement == "prefix":
            continuation_ids = tokenizer.encode(stripped + continuation)[len(context_ids) :]
        else:
            continuation_ids = tokenizer.encode(continuation, add_special_tokens=False)
        expected, expected_greedy = restated(tiny_model, context_ids, continuation_ids, prompt)
        assert value == pytest.approx(expected, **CLOSE)
        assert greedy == expected_greedy


def test_rolling_equals_peft_for_a_prefix_within_one_window(tiny_model, tokenizer):
    prompt = random_prompt(tiny_model)
    short = [TEXTS[0], TEXTS[2]]
    found = rolling_loglikelihoods(spt(tiny_model, tokenizer, prompt), short)
    expected = rolling_loglikelihoods(peft_lm(tiny_model, tokenizer, prompt), short)
    assert found == pytest.approx(expected, **CLOSE)


def test_rolling_without_a_prompt_equals_hflm_over_several_windows(tiny_model, tokenizer):
    found = rolling_loglikelihoods(spt(tiny_model, tokenizer, max_length=64), TEXTS)
    hflm = HFLM(pretrained=tiny_model, tokenizer=tokenizer, batch_size=4, max_length=64)
    expected = rolling_loglikelihoods(hflm, TEXTS)
    assert found == pytest.approx(expected, abs=1e-3, rel=1e-5)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_rolling_puts_the_prompt_beside_the_leading_token(tiny_model, tokenizer, placement):
    prompt = random_prompt(tiny_model, placement=placement)
    (found,) = rolling_loglikelihoods(spt(tiny_model, tokenizer, prompt), TEXTS[:1])
    ids = tokenizer.encode(TEXTS[0].args[-1])
    expected, _ = restated(tiny_model, [tokenizer.bos_token_id], ids, prompt)
    assert found == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("placement", [*PLACEMENTS, None])
def test_batch_size_and_order_do_not_matter(tiny_model, tokenizer, placement):
    prompt = random_prompt(tiny_model, placement=placement) if placement else None
    expected = values(spt(tiny_model, tokenizer, prompt, batch_size=1).loglikelihood(PAIRS, disable_tqdm=True))
    for size in (7, "auto"):
        lm = spt(tiny_model, tokenizer, prompt, batch_size=size)
        found = values(lm.loglikelihood(PAIRS[::-1], disable_tqdm=True))[::-1]
        assert found == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_texts_are_encoded_as_the_harness_does(tiny_models, tokenizer, add_bos_token):
    """In batches as one by one: with a BOS token, without, and where the text brings one."""
    texts = [
        ("The river", " sports"),
        ("<s>The river", " sports"),
        ("Bread ", "and butter"),
        ("河流", "体育"),
        ("", " x"),
    ]
    ours = spt(tiny_models["llama"], tokenizer, add_bos_token=add_bos_token)
    theirs = HFLM(tiny_models["llama"], tokenizer=tokenizer, add_bos_token=add_bos_token)
    expected: list[tuple[list[int], list[int]]] = []
    theirs._loglikelihood_tokens = lambda found, **_: expected.extend(pair[1:] for pair in found)
    theirs.loglikelihood(requests("loglikelihood", texts), disable_tqdm=True)
    assert ours.encode_pairs(texts, "prefix") == expected


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_tokenizer_that_appends_eos_is_warned_of(tiny_models, tokenizer, caplog, placement):
    """The harness cuts the context's tokens off the whole text's: EOS stands where an answer's first token should."""
    _warn_of_token_at_the_end.cache_clear()
    appends = copy.deepcopy(tokenizer)
    appends.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    model, texts = tiny_models["llama"], [pair.args for pair in PAIRS if pair.args[0]]
    prompt = random_prompt(model, placement=placement)
    assert spt(model, tokenizer, prompt).encode_pairs(texts, placement) and "behind every text" not in caplog.text
    for _ in range(2):
        encoded = spt(model, appends, prompt).encode_pairs(texts, placement)
    assert caplog.text.count("the tokenizer puts </s> behind every text: ") == 1
    eos = tokenizer.eos_token_id
    if placement == "prefix":
        assert "every answer loses its first token" in caplog.text
        (context, continuation), whole = encoded[0], tokenizer.encode("".join(texts[0]))
        assert context == [*whole[: len(context) - 1], eos] and continuation == [*whole[len(context) :], eos]
        found = values(spt(model, appends).loglikelihood(PAIRS, disable_tqdm=True))
        expected = values(HFLM(model, tokenizer=appends).loglikelihood(PAIRS, disable_tqdm=True))
        assert found == pytest.approx(expected, **CLOSE)
        whole_answers = HFLM(model, tokenizer=tokenizer).loglikelihood(PAIRS, disable_tqdm=True)
        assert found != pytest.approx(values(whole_answers), abs=0.01)
    else:
        assert "it stands between every text and the prompt" in caplog.text
        assert all(context[-1] == eos != continuation[-1] for context, continuation in encoded)
    caplog.clear()
    _warn_of_token_at_the_end.cache_clear()
    cured = spt(model, appends, prompt, add_bos_token=False).encode_pairs(texts, placement)
    assert not any(eos in (*context, *continuation) for context, continuation in cured)
    assert "behind every text" not in caplog.text


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("fast", [True, False])
def test_text_is_cut_on_the_left_and_the_prompt_never(tiny_models, tokenizer, placement, fast):
    model = tiny_models["llama"]
    prompt = random_prompt(model, placement=placement)
    long = "word " * 60 + "The goalkeeper saved a penalty in the final"
    lm = spt(model, tokenizer, prompt, fast=fast, max_length=24)
    (found,) = lm.loglikelihood(requests("loglikelihood", [(long, " sports")]), disable_tqdm=True)
    context, continuation = lm._encode_pair(long, " sports")
    room = 24 - prompt.length + 1 - len(continuation)
    assert found[0] == pytest.approx(restated(model, context[-room:], continuation, prompt)[0], **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_an_adapter_and_a_prompt_together(tokenizer, family):
    """A LoRA adapter on the base model is read the fast way too."""
    targets = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "opt": ["q_proj", "v_proj"]}[family]
    adapter = LoraConfig(
        task_type="CAUSAL_LM", target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2"
    )
    adapted = get_peft_model(build_model(family), adapter).eval()
    found = spt(adapted, tokenizer).loglikelihood(PAIRS, disable_tqdm=True)
    expected = HFLM(pretrained=adapted, tokenizer=tokenizer, batch_size=4).loglikelihood(PAIRS, disable_tqdm=True)
    assert values(found) == pytest.approx(values(expected), **CLOSE)
    assert values(found) != pytest.approx(values(spt(build_model(family), tokenizer).loglikelihood(PAIRS)), abs=0.01)
    prompt = random_prompt(adapted, placement="suffix")
    lm = spt(adapted, tokenizer, prompt)
    found = lm.loglikelihood(PAIRS, disable_tqdm=True)
    expected = spt(adapted, tokenizer, prompt, fast=False).loglikelihood(PAIRS, disable_tqdm=True)
    assert capabilities(lm.model).layout == "tree"
    assert values(found) == pytest.approx(values(expected), **CLOSE)


def test_an_architecture_that_needs_a_slower_way_gets_it(tokenizer, monkeypatch, caplog):
    """A model that ignores which tokens are padding gives wrong answers the fast way; the check must notice."""
    model = build_model("llama")
    forward = type(model.model).forward

    name = cache_argument(model.model)

    def without_mask(self, *a, past_key_values=None, **k):
        return forward(self, *a, **{name: past_key_values, **k, "attention_mask": None})

    monkeypatch.setattr(type(model.model), "forward", without_mask)
    lm = spt(model, tokenizer)
    found = values(lm.loglikelihood(PAIRS, disable_tqdm=True))
    monkeypatch.undo()
    assert capabilities(model).layout == "rows"
    assert "LlamaForCausalLM is read in a slower way" in caplog.text
    expected = values(spt(build_model("llama"), tokenizer).loglikelihood(PAIRS, disable_tqdm=True))
    assert found == pytest.approx(expected, **CLOSE)


def test_texts_that_fill_the_model_to_its_last_position(tiny_model, tokenizer):
    """Padding beside a full row must not ask for positions that the model does not have."""
    tokens = tokenizer.encode(LONG)
    asked = [(None, tokens[:124], tokens[:length]) for length in (1, 3, 5)]
    asked += [(None, tokens[5 : 5 + length], tokens[:6]) for length in (1, 60, 123)]
    prompts = [random_prompt(tiny_model, length=5, placement=placement) for placement in PLACEMENTS]
    for prompt in (None, *prompts):
        fast = spt(tiny_model, tokenizer, prompt, max_length=128)._loglikelihood_tokens(asked, disable_tqdm=True)
        plain = spt(tiny_model, tokenizer, prompt, max_length=128, fast=False)
        expected = plain._loglikelihood_tokens(asked, disable_tqdm=True)
        assert values(fast) == pytest.approx(values(expected), **CLOSE)


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_models, tokenizer, monkeypatch, caplog):
    from lm_eval_spt.inference import scoring

    lm = spt(tiny_models["llama"], tokenizer)
    expected = values(lm.loglikelihood(PAIRS, disable_tqdm=True))
    forward_tree, sizes = scoring.forward_tree, []

    def small_memory(model, requests, vectors):
        if len(requests) > 2:
            raise torch.OutOfMemoryError("no memory left")
        sizes.append(len(requests))
        return forward_tree(model, requests, vectors)

    monkeypatch.setattr(scoring, "forward_tree", small_memory)
    assert values(lm.loglikelihood(PAIRS, disable_tqdm=True)) == pytest.approx(expected, **CLOSE)
    assert sizes and "out of memory" in caplog.text


def test_a_batch_is_never_larger_than_auto_would_make_it(tiny_models, tokenizer, monkeypatch):
    """Eight times the whole length of a model is more than a processor has a use for; one or two may be less."""
    from lm_eval_spt.inference import scoring

    sizes: dict[object, list[int]] = {}
    forward_tree = scoring.forward_tree
    many = requests("loglikelihood", [(f"{word} " * 12 + "flows", " on") for word in map(str, range(100, 140))])
    fitting = 300
    monkeypatch.setattr(scoring, "tokens_that_fit", lambda model, device: fitting)
    for size in ("auto", 8, 1000, 2, "1"):
        read = sizes[size] = []

        def count(model, batch, *more, read=read, **options):
            longest = max(len(request.context) + len(request.continuations[0]) for request in batch)
            read.append(longest * len(batch))
            return forward_tree(model, batch, *more, **options)

        lm = spt(tiny_models["llama"], tokenizer, batch_size=size, max_length=100)
        lm.try_out([pair for pair in lm.encode_pairs([request.args for request in many], "prefix")], None)
        monkeypatch.setattr(scoring, "forward_tree", count)
        lm.loglikelihood(many, disable_tqdm=True)
        monkeypatch.undo()
        monkeypatch.setattr(scoring, "tokens_that_fit", lambda model, device: fitting)
    assert sizes["auto"] == sizes[8] == sizes[1000] and max(sizes["auto"]) <= fitting
    assert max(sizes["1"]) <= 100 < max(sizes[2]) <= 200 < max(sizes["auto"])


def test_auto_does_not_read_until_memory_runs_out(tiny_models, tokenizer, monkeypatch):
    """HFLM does, in generation and for whole texts: on a processor that takes hours."""

    def refuse(*_, **__):
        raise AssertionError("memory is tried out")

    monkeypatch.setattr("lm_eval.models.huggingface.find_executable_batch_size", refuse)
    whole = requests("loglikelihood_rolling", [("The river",), ("A goal.",)])
    written = requests("generate_until", [("The river", {"until": ["@"], "max_gen_toks": 4})])
    auto, single = (spt(tiny_models["llama"], tokenizer, batch_size=size) for size in ("auto", 1))
    expected = rolling_loglikelihoods(single, whole)
    assert rolling_loglikelihoods(auto, whole) == pytest.approx(expected, abs=1e-4)
    assert auto.generate_until(written, disable_tqdm=True) == single.generate_until(written, disable_tqdm=True)


@pytest.mark.parametrize("size", [0, -1, "0", "-8", "all", "auto:0", 1.5])
def test_a_batch_size_that_is_none_is_a_mistake_in_one_line(tiny_models, tokenizer, size):
    with pytest.raises(UserError, match="the batch size is '.*', expected auto, auto:<number> or a whole number from"):
        spt(tiny_models["llama"], tokenizer, batch_size=size)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tokens_choices_lengths_and_placements(tiny_models, tokenizer, data):
    """Fast scoring of any tokens, any number of choices of any length, is the harness's own loop's."""
    model = tiny_models[data.draw(st.sampled_from(list(tiny_models)))]
    token = st.integers(4, 20479)
    placement = data.draw(st.sampled_from(PLACEMENTS))
    prompt = random_prompt(
        model, length=data.draw(st.integers(2 if placement == "both" else 1, 9)), placement=placement
    )
    asked = []
    for _ in range(data.draw(st.integers(1, 4))):
        context = data.draw(st.lists(token, min_size=1, max_size=30))
        choices = data.draw(st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=8))
        asked += [(None, context, choice) for choice in choices]
    # HFLM mixes up requests that read the same tokens but end their contexts at different ones.
    read = {(tuple(context), tuple(choice[:-1])) for _, context, choice in asked}
    assume(len({context + choice for context, choice in read}) == len(read))
    fast = spt(model, tokenizer, prompt)._loglikelihood_tokens(asked, disable_tqdm=True)
    plain = spt(model, tokenizer, prompt, fast=False)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert values(fast) == pytest.approx(values(plain), **CLOSE)
