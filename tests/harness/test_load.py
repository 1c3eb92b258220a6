"""Texts of every kind and many of them: what comes out is defined, and memory stays flat."""

from __future__ import annotations

import gc
import math
import os
import re

import psutil
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from lm_eval_spt.common.errors import UserError
from tests.helpers.models import random_prompt
from tests.helpers.requests import rolling_loglikelihoods
from tests.helpers.scoring import CLOSE, requests, restated, spt, values

ODD = {
    "control characters": "\x00\x01\x1b[2J\x7f\r\n\t",
    "right to left": "\u202eمرحبا שלום\u202c",
    "combining marks": "e\u0301\u0302\u0303" * 8 + "\u0301",
    "zero width": "\u200b\u200d\ufeff\u2060",
    "emoji": "👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈",
    "private use and non-characters": "\ue000\uffff\U0010ffff",
    "one letter": "x",
    "many spaces": "a" + " " * 60 + "b",
}
LONE = {"lone": "a \ud800 b", "two in the wrong order": "\udc00\ud800", "a pair in two halves": "\ud83d\ude00"}


@pytest.fixture(params=["none", "prefix", "suffix"])
def lm(request, tiny_models, tokenizer):
    model = tiny_models["llama"]
    return spt(model, tokenizer, None if request.param == "none" else random_prompt(model, placement=request.param))


def score(lm, *pairs):
    return lm.loglikelihood(requests("loglikelihood", list(pairs)), disable_tqdm=True)


@pytest.mark.parametrize("kind", ODD)
def test_odd_texts_score_as_their_tokens(lm, kind):
    """As context and as continuation, against one plain pass over the tokens that the tokenizer makes of them."""
    text, model, tokenizer = ODD[kind], lm.model, lm.tokenizer
    for context, continuation in (("The " + text + ".", " sports"), ("The river", " " + text)):
        ((found, _),) = score(lm, (context, continuation))
        before = tokenizer.encode(context)
        if lm.prompt is not None and lm.prompt.placement == "suffix":
            after = tokenizer.encode(continuation, add_special_tokens=False)
        else:
            after = tokenizer.encode(context + continuation)[len(before) :]
        room = lm.max_length + 1 - len(after)
        prompt = lm.prompt or random_prompt(model)
        if lm.prompt is None:
            logprobs = model(torch.tensor([(before + after)[:-1]])).logits[0].log_softmax(-1).detach()
            expected = sum(float(logprobs[index - len(after)][token]) for index, token in enumerate(after))
        else:
            expected, _ = restated(model, before[-room:], after, prompt)
        assert found == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("kind", LONE)
def test_halves_of_surrogate_pairs_are_read_as_replacement_characters(lm, kind):
    """A pair in two halves is the character that it stands for."""
    text = LONE[kind]
    readable = "😀" if kind.startswith("a pair") else re.sub("[\ud800-\udfff]", "\ufffd", text)
    pairs, expected = [(text, " " + text), ("x" + text, "y")], [(readable, " " + readable), ("x" + readable, "y")]
    assert values(score(lm, *pairs)) == pytest.approx(values(score(lm, *expected)), **CLOSE)
    for kind_of_request, options in (("loglikelihood_rolling", ()), ("generate_until", ({"max_gen_toks": 3},))):
        found, same = (
            getattr(lm, kind_of_request)(requests(kind_of_request, [(given, *options)]), disable_tqdm=True)
            for given in (text, readable)
        )
        assert found == same


def test_empty_texts(lm):
    assert score(lm, ("", ""), ("x", "")) == [(0.0, True)] * 2  # nothing is certain
    assert rolling_loglikelihoods(lm, requests("loglikelihood_rolling", [("",)])) == [0]
    bos = lm.tokenizer.decode([lm.prefix_token_id])
    ((empty, _),), ((begun, _),) = score(lm, ("", " sports")), score(lm, (bos, " sports"))
    assert empty == pytest.approx(begun, **CLOSE)


def test_generation_after_nothing_is_generation_after_the_bos_token(lm):
    options = {"until": ["\n\n\n"], "max_gen_toks": 4}
    bos = lm.tokenizer.decode([lm.prefix_token_id])

    def generate(*texts):
        return lm.generate_until(requests("generate_until", [(text, options) for text in texts]), disable_tqdm=True)

    assert generate("") == generate(bos)
    assert generate("", "The river flows", "x") == generate(bos) + generate("The river flows") + generate("x")


def test_a_continuation_that_merges_into_its_context_is_scored_by_its_own_tokens(lm, tiny_models, tokenizer):
    """The harness's own class refuses it; that nothing was left to score must not count as certain."""
    assert tokenizer.encode("foox")[: len(tokenizer.encode("foo"))] != tokenizer.encode("foo")
    ((found, _),) = score(lm, ("foo", "x"))
    assert -30 < found < -1
    with pytest.raises(AssertionError):
        HFLM(tiny_models["llama"], tokenizer=tokenizer).loglikelihood(requests("loglikelihood", [("foo", "x")]))


def test_a_thousand_choices(lm):
    choices = [f" choice {number}" for number in range(1000)]
    found = values(score(lm, *[("The river", choice) for choice in choices]))
    assert len(found) == 1000 and all(map(math.isfinite, found))
    picked = [0, 7, 500, 999]
    alone = [values(score(lm, ("The river", choices[number])))[0] for number in picked]
    assert [found[number] for number in picked] == pytest.approx(alone, **CLOSE)


def test_a_document_of_a_hundred_thousand_tokens_is_cut_to_its_end(lm):
    text = "The river rose. " * 20_000
    assert len(lm.tokenizer.encode(text)) >= 100_000
    ((found, _),) = score(lm, (text, " sports"))
    ((end, _),) = score(lm, (text[-4000:], " sports"))
    assert found == pytest.approx(end, **CLOSE)


def test_an_answer_that_the_model_can_not_read_is_a_mistake_in_one_line(lm):
    with pytest.raises(UserError, match="a continuation of \\d+ tokens does not fit into .*: shorten"):
        score(lm, ("The river", " rose" * 5000))


def test_memory_that_does_not_suffice_for_one_text_is_a_mistake_in_one_line(lm, monkeypatch):

    forward = type(lm.model.model).forward

    def full(self, input_ids=None, inputs_embeds=None, **named):
        if (input_ids if inputs_embeds is None else inputs_embeds).shape[1] > 4:  # the prompt alone fits
            raise torch.OutOfMemoryError("no memory left")
        return forward(self, input_ids=input_ids, inputs_embeds=inputs_embeds, **named)

    monkeypatch.setattr(type(lm.model.model), "forward", full)
    with pytest.raises(UserError, match="do not fit into the memory of cpu: load the model in half precision"):
        score(lm, ("The river rose by day and by night", " rose"))


def test_memory_and_files_stay_flat_over_many_requests(tiny_models, tokenizer):
    """Ten rounds of 600 requests of ever new texts; the long run is benchmarks/load.py."""
    lm, process, used = spt(tiny_models["llama"], tokenizer, batch_size="auto"), psutil.Process(), []
    files = None
    for turn in range(10):
        texts = [f"On day {turn * 150 + number} the river rose by {number} metres" for number in range(150)]
        answers = score(lm, *[(text, choice) for text in texts for choice in (" a", " b", " c d", " e f g")])
        assert len(answers) == 600
        del answers, texts
        gc.collect()
        used.append(process.memory_info().rss)
        files = files or process.num_fds()
    assert process.num_fds() <= files
    assert used[-1] - used[2] < 32 * 2**20, [size // 2**20 for size in used]


def test_open_files_are_those_of_the_process(tmp_path):
    """Reading a thousand prompts leaves none open."""
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    SoftPrompt(torch.zeros(2, 3)).save(tmp_path / "p.safetensors")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else psutil.Process().num_fds()
    for _ in range(1000):
        SoftPrompt.load(tmp_path / "p.safetensors")
    assert psutil.Process().num_fds() <= before + 2
