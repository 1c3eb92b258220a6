"""Encoder-decoder models: prompts before the encoder's text, against HFLM and a plain restatement."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.encoder_decoder import loglikelihoods
from lm_eval_spt.inference.token_tree import ScoringRequest
from lm_eval_spt.inference.virtual_tokens import place
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.conftest import VOCABULARY, random_prompt
from tests.helpers.requests import request

CLOSE = {"abs": 1e-4, "rel": 1e-5}
PAIRS = [
    (context, choice)
    for context in ("The river", "A goalkeeper saved two penalties in the cup final of the year.", "", "Space ")
    for choice in (" sports", " science/technology", " the old town hall of the city")
]


def build(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=0, n_positions=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module", params=["t5", "mt5"])
def model(request) -> PreTrainedModel:
    return build(request.param)


def restated(model: PreTrainedModel, context: list[int], continuation: list[int], prompt: SoftPrompt) -> float:
    """One pair by itself: the prompt's vectors before the encoder's embeddings, the decoder fed what it should say."""
    words = model.get_input_embeddings()(torch.tensor(context))
    embeds = torch.cat([prompt.vectors, words])[None]
    with torch.no_grad():
        logits = model(inputs_embeds=embeds, decoder_input_ids=torch.tensor([[0, *continuation[:-1]]])).logits[0]
    return float(logits.log_softmax(-1)[range(len(continuation)), continuation].sum())


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [request(kind, argument, number) for number, argument in enumerate(arguments)]


def values(answers: list[tuple[float, bool]]) -> list[float]:
    return [value for value, _ in answers]


def spt(model: PreTrainedModel, tokenizer, prompt: SoftPrompt | None = None, **options) -> SPTLM:
    return SPTLM(pretrained=model, tokenizer=tokenizer, prompt=prompt, batch_size=4, **options)


def test_without_a_prompt_it_is_the_plain_model(model, tokenizer):
    states = requests("loglikelihood", PAIRS)
    expected = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4).loglikelihood(states, disable_tqdm=True)
    assert spt(model, tokenizer).loglikelihood(states, disable_tqdm=True) == expected


@pytest.mark.parametrize("max_length", [None, 12])
def test_the_prompt_stands_before_the_text_and_is_never_cut(model, tokenizer, max_length):
    prompt = random_prompt(model)
    lm = spt(model, tokenizer, prompt, max_length=max_length)
    found = values(lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True))
    for (context, continuation), value in zip(PAIRS, found, strict=True):
        stripped = context.rstrip()
        text = tokenizer.encode(stripped)[-((max_length or 64) - prompt.length) :] if stripped else [1]
        answer = tokenizer.encode(context[len(stripped) :] + continuation, add_special_tokens=False)
        assert value == pytest.approx(restated(model, text, answer, prompt), **CLOSE)
    plain = values(spt(model, tokenizer).loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True))
    assert found != pytest.approx(plain, abs=0.01)


def test_generation_is_greedy_decoding_with_the_prompt_in_the_encoder(model, tokenizer):
    prompt = random_prompt(model)
    texts = ["The river", "A goalkeeper saved two penalties in the cup final."]
    options = {"until": ["\n\n\n"], "max_gen_toks": 5}
    found = spt(model, tokenizer, prompt).generate_until(
        requests("generate_until", [(text, options) for text in texts]), disable_tqdm=True
    )
    for text, answer in zip(texts, found, strict=True):
        words = model.get_input_embeddings()(torch.tensor(tokenizer.encode(text)))
        embeds, tokens = torch.cat([prompt.vectors, words])[None], [0]
        with torch.no_grad():
            for _ in range(5):
                logits = model(inputs_embeds=embeds, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
                tokens.append(int(logits.argmax()))
                if tokens[-1] == 2:
                    break
        assert answer == tokenizer.decode(tokens, skip_special_tokens=True).split("\n\n\n")[0]


def test_a_prompt_after_the_text_is_refused(model, tokenizer):
    for placement in ("suffix", "both"):
        with pytest.raises(UserError, match="encoder-decoder model, whose prompts stand before the text"):
            spt(model, tokenizer, random_prompt(model, placement=placement))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_plain_computation(model, data):
    model = copy.deepcopy(model).double().requires_grad_(False)  # in float32 gradients of hundreds are 1e-4 apart
    ids = st.integers(4, VOCABULARY - 1)
    prompt = random_prompt(model, length=data.draw(st.integers(1, 5)))
    contexts = data.draw(st.lists(st.lists(ids, min_size=1, max_size=9), min_size=1, max_size=3))
    requests = [
        ScoringRequest(context, data.draw(st.lists(st.lists(ids, max_size=4), min_size=1, max_size=4)))
        for context in contexts
    ]
    pairs = [(request.context, continuation) for request in requests for continuation in request.continuations]
    found_at, expected_at = (prompt.vectors.clone().requires_grad_() for _ in range(2))
    prompted = [ScoringRequest(place(q.context, prompt.length, 0), q.continuations) for q in requests]
    found, greedy, mean_logprob = loglikelihoods(model, prompted, found_at)
    expected = []
    for context, continuation in pairs:
        words = model.get_input_embeddings()(torch.tensor(context))
        start = torch.tensor([[0, *continuation[:-1]]])
        logits = model(inputs_embeds=torch.cat([expected_at.double(), words])[None], decoder_input_ids=start).logits[0]
        expected.append(logits.log_softmax(-1)[range(len(continuation)), continuation].sum())
        chosen = logits.argmax(-1)[: len(continuation)].tolist()
        assert bool(greedy[len(expected) - 1]) == (chosen == list(continuation))
        scored = logits.log_softmax(-1)[: len(continuation)]
        assert float(mean_logprob[len(expected) - 1]) == pytest.approx(float(scored.mean(-1).sum()), **CLOSE)
    assert found.tolist() == pytest.approx(torch.stack(expected).tolist(), **CLOSE)
    weights = torch.arange(1.0, len(pairs) + 1)
    (found * weights).sum().backward()
    (torch.stack(expected) * weights).sum().backward()
    assert (found_at.grad - expected_at.grad).norm() <= 1e-4 * expected_at.grad.norm() + 1e-5
