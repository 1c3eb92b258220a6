"""Encoder-decoder models: prompts before the encoder's text, against HFLM and a plain restatement."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    EncoderNoRepeatNGramLogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.logits_process import EncoderRepetitionPenaltyLogitsProcessor

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference.encoder_decoder import loglikelihoods, reads_padded
from lm_eval_spt.inference.token_tree import ScoringRequest
from lm_eval_spt.inference.virtual_tokens import place
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import VOCABULARY, build_encoder_decoder, random_prompt
from tests.helpers.scoring import CLOSE, requests, spt, values

PAIRS = [
    (context, choice)
    for context in ("The river", "A goalkeeper saved two penalties in the cup final of the year.", "", "Space ")
    for choice in (" sports", " science/technology", " the old town hall of the city")
]


@pytest.fixture(scope="module", params=["t5", "mt5"])
def model(request) -> PreTrainedModel:
    return build_encoder_decoder(request.param)


def restated(model: PreTrainedModel, context: list[int], continuation: list[int], prompt: SoftPrompt) -> float:
    """One pair by itself: the prompt's vectors before the encoder's embeddings, the decoder fed what it should say."""
    words = model.get_input_embeddings()(torch.tensor(context))
    embeds = torch.cat([prompt.vectors, words])[None]
    with torch.no_grad():
        logits = model(inputs_embeds=embeds, decoder_input_ids=torch.tensor([[0, *continuation[:-1]]])).logits[0]
    return float(logits.log_softmax(-1)[range(len(continuation)), continuation].sum())


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


ENCODED = ["The river", "A goalkeeper saved two penalties in the cup final."]


@pytest.mark.parametrize("prompted", [True, False])
def test_penalties_see_what_they_see_without_a_prompt(model, tokenizer, prompted):
    """The encoder's text, without the prompt and without padding, and the decoder's tokens."""
    prompt = random_prompt(model) if prompted else None
    settings = {
        "repetition_penalty": 0.5, "no_repeat_ngram_size": 2,
        "encoder_repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 2,
    }  # fmt: skip
    lm = spt(model, tokenizer, prompt)
    options = {"until": ["\n\n\n"], "max_gen_toks": 6}
    found, plain = (
        lm.generate_until(requests("generate_until", [(text, {**options, **more}) for text in ENCODED]))
        for more in (settings, {})
    )
    assert found != plain
    for text, answer in zip(ENCODED, found, strict=True):
        ids = torch.tensor([tokenizer.encode(text)])
        looking = LogitsProcessorList([
            EncoderRepetitionPenaltyLogitsProcessor(3.0, ids), EncoderNoRepeatNGramLogitsProcessor(2, ids),
            RepetitionPenaltyLogitsProcessor(0.5), NoRepeatNGramLogitsProcessor(2),
        ])  # fmt: skip
        embeds, tokens = model.get_input_embeddings()(ids), [0]
        embeds = torch.cat([prompt.vectors[None], embeds], dim=1) if prompt else embeds
        with torch.no_grad():
            while len(tokens) < 7 and tokens[-1] != 2:
                said = torch.tensor([tokens])
                scores = model(inputs_embeds=embeds, decoder_input_ids=said).logits[:, -1]
                tokens.append(int(looking(said, scores).argmax()))
        assert answer == tokenizer.decode(tokens, skip_special_tokens=True).split("\n\n\n")[0]


def test_so_many_tokens_are_generated_with_a_prompt_and_without(model, tokenizer):
    """`max_gen_toks`; HFLM lets an encoder-decoder say so many more as its text is long."""
    budget = 5
    prompted, plain = spt(model, tokenizer, random_prompt(model)), spt(model, tokenizer)
    context, mask = plain.tok_batch_encode(ENCODED)
    for lm in (prompted, plain):
        tokens = lm._model_generate(context, context.shape[1] + budget, [], attention_mask=mask, min_new_tokens=budget)
        assert tokens.shape == (len(ENCODED), 1 + budget)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer)._model_generate(
        context, context.shape[1] + budget, [], attention_mask=mask, min_new_tokens=budget
    )
    assert torch.equal(tokens, theirs[:, : 1 + budget])
    assert theirs.shape[1] > 1 + budget
    asked = requests("generate_until", [(text, {"until": ["\n\n\n"], "max_gen_toks": 5}) for text in ENCODED])
    longer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).generate_until(asked, disable_tqdm=True)
    found = plain.generate_until(asked, disable_tqdm=True)
    assert all(long.startswith(short) for long, short in zip(longer, found, strict=True))


@pytest.mark.parametrize("prompted", [True, False])
def test_beams_are_those_of_transformers(model, tokenizer, prompted):
    prompt = random_prompt(model) if prompted else None
    options = {"until": ["\n\n\n"], "max_gen_toks": 4, "num_beams": 2}
    found = spt(model, tokenizer, prompt, batch_size=1).generate_until(
        requests("generate_until", [(text, options) for text in ENCODED]), disable_tqdm=True
    )
    for text, answer in zip(ENCODED, found, strict=True):
        embeds = model.get_input_embeddings()(torch.tensor([tokenizer.encode(text)]))
        embeds = torch.cat([prompt.vectors[None], embeds], dim=1) if prompt else embeds
        (tokens,) = model.generate(inputs_embeds=embeds, max_new_tokens=4, num_beams=2, do_sample=False)
        assert answer == tokenizer.decode(tokens, skip_special_tokens=True).split("\n\n\n")[0]


def test_guidance_is_refused_in_one_line(model, tokenizer):
    lm = spt(model, tokenizer, random_prompt(model))
    asked = requests("generate_until", [("The river", {"until": ["x"], "max_gen_toks": 4, "guidance_scale": 1.5})])
    with pytest.raises(UserError, match="guidance_scale: .* encoder-decoder model") as caught:
        lm.generate_until(asked, disable_tqdm=True)
    assert "\n" not in str(caught.value)


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
        mean = logits.log_softmax(-1)[: len(continuation)].mean(-1).sum()
        assert mean_logprob[len(expected) - 1].item() == pytest.approx(mean.item(), **CLOSE)
    assert found.tolist() == pytest.approx(torch.stack(expected).tolist(), **CLOSE)
    weights = torch.arange(1.0, len(pairs) + 1)
    (found * weights).sum().backward()
    (torch.stack(expected) * weights).sum().backward()
    assert (found_at.grad - expected_at.grad).norm() <= 1e-4 * expected_at.grad.norm() + 1e-5


@pytest.mark.parametrize("family, padded", [("t5", True), ("bart", True), ("prophetnet", False)])
def test_a_text_is_read_as_by_itself_whatever_stands_beside_it(family, padded, tokenizer):
    """Scores, training and generation; padding moves ProphetNet's positions, and on the left BART's."""
    model = build_encoder_decoder(family)
    assert reads_padded(model) == padded
    prompt = random_prompt(model)
    pairs = [(tokenizer.encode(context), tokenizer.encode(answer)) for context, answer in PAIRS if context]
    expected = []
    with torch.no_grad():
        for context, answer in pairs:
            embeds = torch.cat([prompt.vectors, model.get_input_embeddings()(torch.tensor(context))])[None]
            decoder_ids = torch.tensor([[0, *answer[:-1]]])
            logits = model(inputs_embeds=embeds, decoder_input_ids=decoder_ids, use_cache=False).logits[0]
            expected.append(float(logits.log_softmax(-1)[range(len(answer)), answer].sum()))
    learned = [ScoringRequest(place(context, prompt.length, 0), [answer]) for context, answer in pairs]
    each = prompt.vectors.expand(len(learned), -1, -1)
    for vectors in (prompt.vectors, each):
        assert loglikelihoods(model, learned, vectors)[0].tolist() == pytest.approx(expected, **CLOSE)
    lm = spt(model, tokenizer, prompt, batch_size=8)
    scored = lm._loglikelihood_tokens([(("", str(n)), *pair) for n, pair in enumerate(pairs)], disable_tqdm=True)
    assert values(scored) == pytest.approx(expected, **CLOSE)
    options = {"until": ["\n\n\n"], "max_gen_toks": 5}
    asked = requests("generate_until", [(text, options) for text in ENCODED])
    alone = [lm.generate_until([request], disable_tqdm=True)[0] for request in asked]
    assert lm.generate_until(asked, disable_tqdm=True) == alone


def test_a_model_that_does_not_say_how_its_answers_start_is_named():
    model = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(
            "m2m_100",
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            vocab_size=50,
        )  # fmt: skip
    )
    with pytest.raises(UserError, match="M2M100ForConditionalGeneration does not say with which token"):
        loglikelihoods(model, [ScoringRequest([5, 6], [[7]])])
