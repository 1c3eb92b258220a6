"""Generation against a plain loop, and against the harness's own HFLM with and without PEFT.

The loop puts embeddings together by hand, has transformers' logits processors look at the text's ids, and takes the
best token: one text by itself, everything read anew at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.logits_process import EncoderRepetitionPenaltyLogitsProcessor

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.metadata import PLACEMENTS
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.generation import plain_beams
from tests.helpers.models import build_model, random_prompt
from tests.helpers.scoring import LONG, around, peft_lm, requests, spt

CONTEXTS = ["The river", "A goalkeeper saved two penalties in the cup final of the year.", "Bread"]
REPEATING = ["The river and the river and the", "One goal, one goal and one goal more in the cup final, one", "Bread"]

SETTINGS: dict[str, tuple[dict[str, Any], Callable[[Tensor], LogitsProcessorList]]] = {
    # A penalty below 1 is a reward: the tokens of the text then win, which shows who has seen them.
    "repetition": ({"repetition_penalty": 0.3}, lambda _: [RepetitionPenaltyLogitsProcessor(0.3)]),
    "n-grams": (
        {"repetition_penalty": 0.3, "no_repeat_ngram_size": 2},
        lambda _: [RepetitionPenaltyLogitsProcessor(0.3), NoRepeatNGramLogitsProcessor(2)],
    ),
    "text's tokens": (
        {"encoder_repetition_penalty": 3.0},
        lambda text: [EncoderRepetitionPenaltyLogitsProcessor(3.0, text)],
    ),
    "text's n-grams": (
        {"encoder_repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 2},
        lambda text: [
            EncoderRepetitionPenaltyLogitsProcessor(3.0, text),
            EncoderNoRepeatNGramLogitsProcessor(2, text),
        ],
    ),
    "all": (
        {"repetition_penalty": 0.5, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 2.0},
        lambda text: [
            EncoderRepetitionPenaltyLogitsProcessor(2.0, text),
            RepetitionPenaltyLogitsProcessor(0.5),
            NoRepeatNGramLogitsProcessor(2),
        ],
    ),
}


def plain_loop(
    model: PreTrainedModel,
    text: list[int],
    prompt: SoftPrompt | None,
    steps: int,
    processors: Callable[[Tensor], Any] = lambda _: [],
    guidance: float | None = None,
    ends: Sequence[int] = (2,),
) -> list[int]:
    """The tokens that a model says greedily after a text, up to one of the tokens that end it."""
    embedding = model.get_input_embeddings()
    context = embedding(torch.tensor([text]))
    context = context if prompt is None else around(context, prompt)
    looking, tokens = LogitsProcessorList(processors(torch.tensor([text]))), []
    with torch.no_grad():
        for _ in range(steps):
            new = embedding(torch.tensor([tokens], dtype=torch.long))
            scores = model(inputs_embeds=torch.cat([context, new], dim=1), use_cache=False).logits[:, -1]
            if guidance is not None:
                free = model(input_ids=torch.tensor([[text[-1], *tokens]]), use_cache=False).logits[:, -1]
                scores, free = scores.log_softmax(-1), free.log_softmax(-1)
                scores = free + guidance * (scores - free)
            token = int(looking(torch.tensor([[*text, *tokens]]), scores).argmax())
            if token in ends:
                break
            tokens.append(token)
    return tokens


def answers(lm: HFLM, texts: list[str], **settings: Any) -> list[str]:
    given = {"until": ["\n\n\n"], "max_gen_toks": 6, "do_sample": False} | settings
    return lm.generate_until(requests("generate_until", [(text, dict(given)) for text in texts]), disable_tqdm=True)


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).split("\n\n\n")[0]


# -- against the plain loop --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_generation_is_greedy_decoding_from_the_prompted_context(tiny_model, tokenizer, placement):
    prompt = random_prompt(tiny_model, placement=placement)
    options = {"until": ["\n\n\n"], "max_gen_toks": 6}
    texts = ["The river", "A goalkeeper saved two penalties in the cup final."]
    found = spt(tiny_model, tokenizer, prompt).generate_until(
        requests("generate_until", [(text, options) for text in texts]), disable_tqdm=True
    )
    embedding = tiny_model.get_input_embeddings()
    for text, answer in zip(texts, found, strict=True):
        context = embedding(torch.tensor([tokenizer.encode(text)]))
        embeds, tokens = around(context, prompt), []
        with torch.no_grad():
            for _ in range(6):
                token = int(tiny_model(inputs_embeds=embeds).logits[0, -1].argmax())
                if token == tokenizer.eos_token_id:
                    break
                tokens.append(token)
                embeds = torch.cat([embeds, embedding(torch.tensor([[token]]))], dim=1)
        assert answer == tokenizer.decode(tokens, skip_special_tokens=True).split("\n\n\n")[0]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_penalties_see_the_text_and_not_the_prompt(tiny_model, tokenizer, placement):
    prompt = random_prompt(tiny_model, placement=placement)
    settings, processors = SETTINGS["all"]
    found = answers(spt(tiny_model, tokenizer, prompt), REPEATING, **settings)
    expected = [plain_loop(tiny_model, tokenizer.encode(text), prompt, 6, processors) for text in REPEATING]
    assert found == [decoded(tokenizer, tokens) for tokens in expected]


@pytest.mark.parametrize("placement", [*PLACEMENTS, None])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_penalty_by_itself(tiny_models, tokenizer, placement, name):
    """In a batch of texts of different length, with a prompt and without: padding is no text, either."""
    model = tiny_models["llama"]
    prompt = random_prompt(model, placement=placement) if placement else None
    lm, (settings, processors) = spt(model, tokenizer, prompt), SETTINGS[name]
    found = answers(lm, REPEATING, **settings)
    expected = [plain_loop(model, tokenizer.encode(text), prompt, 6, processors) for text in REPEATING]
    assert found == [decoded(tokenizer, tokens) for tokens in expected]
    assert found != answers(lm, REPEATING)


@pytest.mark.parametrize("placement", [*PLACEMENTS, None])
def test_the_least_length_counts_the_text_and_not_the_prompt(tiny_models, tokenizer, placement):
    model = build_model("llama")
    prompt = random_prompt(model, placement=placement) if placement else None
    texts = [tokenizer.encode(text) for text in REPEATING]
    # Whatever it says first ends an answer now.
    ends = [2, *(plain_loop(model, text, prompt, 1)[0] for text in texts)]
    model.generation_config.eos_token_id = ends
    lm = spt(model, tokenizer, prompt)
    least = max(map(len, texts)) - 1
    context, mask = lm.tok_batch_encode(REPEATING)
    total = context.shape[1] + 20
    tokens = lm._model_generate(context, total, [], attention_mask=mask, min_length=least, do_sample=False)
    lengths = set()
    for text, row in zip(texts, tokens[:, context.shape[1] :].tolist(), strict=True):
        expected = plain_loop(model, text, prompt, 20, lambda _: [MinLengthLogitsProcessor(least, ends)], ends=ends)
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {*ends, tokenizer.pad_token_id}
        lengths.add(len(expected))
    assert 0 in lengths and len(lengths) > 1  # the longest is long enough as it is


@pytest.mark.parametrize("placement", [*PLACEMENTS, None])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_guidance_goes_away_from_the_text_s_last_token_without_the_prompt(tiny_models, tokenizer, placement, family):
    """That is what transformers, and so PEFT, takes for the unconditional text."""
    model = tiny_models[family]
    prompt = random_prompt(model, placement=placement) if placement else None
    lm = spt(model, tokenizer, prompt)
    found = answers(lm, CONTEXTS, guidance_scale=2.5)
    expected = [plain_loop(model, tokenizer.encode(text), prompt, 6, guidance=2.5) for text in CONTEXTS]
    assert found == [decoded(tokenizer, tokens) for tokens in expected]
    assert found != answers(lm, CONTEXTS)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_beam_search_keeps_the_likeliest_two(tiny_models, tokenizer, placement):
    model, steps = tiny_models["llama"], 4
    prompt = random_prompt(model, placement=placement)
    found = answers(spt(model, tokenizer, prompt), CONTEXTS, num_beams=2, max_gen_toks=steps, min_new_tokens=steps)
    embedding = model.get_input_embeddings()
    for text, answer in zip(CONTEXTS, found, strict=True):
        context = around(embedding(torch.tensor([tokenizer.encode(text)])), prompt)
        assert answer == decoded(tokenizer, plain_beams(model, context, steps))


# -- where it stops ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_stop_sequence_ends_the_answer_and_does_not_count_in_the_text(tiny_models, tokenizer, placement):
    model = tiny_models["llama"]
    prompt = random_prompt(model, placement=placement)
    lm = spt(model, tokenizer, prompt, batch_size=1)
    (whole,) = answers(lm, CONTEXTS[:1])
    assert answers(lm, CONTEXTS[:1], until=["The river"]) == [whole]
    pieces = [tokenizer.decode([token]) for token in plain_loop(model, tokenizer.encode(CONTEXTS[0]), prompt, 6)]
    stop = pieces[2]
    context, mask = lm.tok_batch_encode(CONTEXTS[:1])
    assert answers(lm, CONTEXTS[:1], until=[stop]) == [whole.split(stop)[0]]
    tokens = lm._model_generate(context, context.shape[1] + 6, [stop], attention_mask=mask)
    assert tokens.shape[1] - context.shape[1] <= 3  # and nothing is computed that is cut off


@pytest.mark.parametrize("placement", [*PLACEMENTS, None])
def test_so_many_tokens_are_generated_and_no_more(tiny_models, tokenizer, placement):
    model = tiny_models["llama"]
    lm = spt(model, tokenizer, random_prompt(model, placement=placement) if placement else None)
    context, mask = lm.tok_batch_encode(CONTEXTS)
    for budget in (1, 5):
        tokens = lm._model_generate(context, context.shape[1] + budget, [], attention_mask=mask, min_new_tokens=budget)
        assert tokens.shape == (len(CONTEXTS), context.shape[1] + budget)
        assert torch.equal(tokens[:, : context.shape[1]], context)


def test_text_is_cut_on_the_left_to_make_room_for_prompt_and_answer(tiny_models, tokenizer):
    model = tiny_models["llama"]
    prompt = random_prompt(model, placement="suffix")
    found = answers(spt(model, tokenizer, prompt, max_length=40), [LONG])
    kept = tokenizer.encode(LONG)[-(40 - prompt.length - 6) :]
    assert found == [decoded(tokenizer, plain_loop(model, kept, prompt, 6))]


# -- against HFLM ------------------------------------------------------------------------------------------------------


def test_generation_without_a_prompt_equals_hflm(tiny_model, tokenizer):
    asked = requests("generate_until", [(text, {"until": ["."], "max_gen_toks": 8}) for text in CONTEXTS[:3]])
    expected = HFLM(pretrained=tiny_model, tokenizer=tokenizer, batch_size=2).generate_until(asked, disable_tqdm=True)
    assert spt(tiny_model, tokenizer).generate_until(asked, disable_tqdm=True) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"until": ["\n\n"], "max_gen_toks": 10},
        {"until": ["a", "e", " "], "max_gen_toks": 4, "do_sample": False},
        {"until": "x", "max_gen_toks": 3, "temperature": 0.0},
        {"until": [], "max_gen_toks": 5, "do_sample": False},
        {"max_gen_toks": 40},
    ],
)
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_generation_of_all_kinds_of_texts_equals_hflm(tiny_models, tokenizer, family, options):
    texts = ["foo bar", "The river flows to the sea.", "<s>begun", "河流\nx\ty", LONG]
    asked = requests("generate_until", [(text, dict(options)) for text in texts])
    given = {"tokenizer": tokenizer, "batch_size": 4, "max_length": 120}
    found, expected = (
        lm.generate_until(asked, disable_tqdm=True)
        for lm in (spt(tiny_models[family], **given), HFLM(tiny_models[family], **given))
    )
    assert found == expected


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_generation_of_one_batch_equals_hflm(tiny_models, tokenizer, family):
    ours, theirs = spt(tiny_models[family], tokenizer), HFLM(tiny_models[family], tokenizer=tokenizer)
    context, mask = theirs.tok_batch_encode(["foo bar", "The river flows"])
    found, expected = (
        lm._model_generate(context, max_length=10, stop=["\n\n"], attention_mask=mask) for lm in (ours, theirs)
    )
    assert torch.equal(found, expected)


OF_PEFT = {
    "all": SETTINGS["all"][0],
    "guidance": {"guidance_scale": 1.5},
    "beams": {"num_beams": 2},
    "beams and penalties": {"num_beams": 2, **SETTINGS["all"][0]},
    "sampling": {"do_sample": True, "temperature": 0.7},
    "sampling and penalties": {"do_sample": True, "temperature": 0.7, "top_k": 5, **SETTINGS["all"][0]},
}


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT's: the model makes the same
@pytest.mark.parametrize("name", OF_PEFT)
@pytest.mark.parametrize("family", ["llama", "bloom", "gemma3_text"])
def test_a_prefix_prompt_generates_as_with_peft(tiny_models, tokenizer, family, name):
    """One text by one: of a batch HFLM takes the padding for text."""
    model = tiny_models[family]
    prompt = random_prompt(model)
    ours, theirs = spt(model, tokenizer, prompt, batch_size=1), peft_lm(model, tokenizer, prompt)
    found, expected = [], []
    for text in REPEATING:
        for lm, said in ((ours, found), (theirs, expected)):
            torch.manual_seed(5)
            said += answers(lm, [text], **OF_PEFT[name])
    assert found == expected


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_sampling_repeats_with_its_seed(tiny_models, tokenizer, placement):
    model = tiny_models["llama"]
    lm = spt(model, tokenizer, random_prompt(model, placement=placement))
    said = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        said.append(answers(lm, CONTEXTS, do_sample=True, temperature=1.0))
    assert said[0] == said[1] != said[2]


# -- what can not be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["suffix", None])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_gen_toks": 200}, "max_gen_toks leaves no room for text: .* reads at most"),
        ({"max_length": 2}, "max_length=2 leaves nothing to generate after a text of"),
        (
            {"repetition_penalty": -1.0},
            "with the settings .*repetition_penalty.*strictly positive",
        ),
        (
            {"penalty_of_repeating": 2},
            "with the settings .*penalty_of_repeating.*not used",
        ),
        (
            {"do_sample": True, "temperature": 0.0},
            "with the settings .*temperature.*positive",
        ),
    ],
)
def test_settings_that_can_not_be_are_told_in_one_line(tiny_models, tokenizer, placement, settings, message):
    model = tiny_models["llama"]
    lm = spt(model, tokenizer, random_prompt(model, placement=placement) if placement else None)
    with pytest.raises(UserError, match=message) as caught:
        answers(lm, CONTEXTS[1:2], **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("placement", ["prefix", None])
def test_logits_that_are_not_numbers_are_no_answer(tokenizer, placement):
    model = build_model("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    lm = spt(model, tokenizer, random_prompt(model, placement=placement) if placement else None)
    with pytest.raises(UserError, match="LlamaForCausalLM in float32 gives .* not numbers"):
        answers(lm, CONTEXTS)
