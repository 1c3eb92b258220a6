"""Without a prompt SPTLM is HFLM: what the harness's own tests check of HFLM, checked with HFLM as the oracle.

Those tests (in its repository, not in the package: ``tests/models/test_huggingface.py``, ``test_bos_handling.py``,
``test_huggingface_batch_size.py``, ``..._max_length.py``, ``..._generation_length.py``) hold numbers of models on the
Hub. Here tiny models stand in for them, and HFLM itself says what is right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from lm_eval_spt.common.paths import tasks_folder
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.base_model import model_path
from tests.helpers.requests import rolling_loglikelihoods
from tests.helpers.scoring import CLOSE, LONG, requests, values

FAMILIES = ("llama", "bloom")
TEXTS = ["foo bar", "", " ", "The river flows to the sea.", "<s>begun", "河流\nx\ty", LONG]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tiny_models):
    """The same model as SPTLM without a prompt and as HFLM."""
    tokenizer = AutoTokenizer.from_pretrained(model_path("mini"))
    tokenizer.chat_template = TEMPLATE

    def make(**options: Any) -> tuple[SPTLM, HFLM]:
        given = {"tokenizer": tokenizer, "batch_size": 4, **options}
        return SPTLM(tiny_models[request.param], **given), HFLM(tiny_models[request.param], **given)

    return make


@pytest.fixture(scope="module")
def choices() -> list[Instance]:
    """The multiple-choice requests of ten documents."""
    manager = TaskManager(include_path=str(tasks_folder()), include_defaults=False)
    task = manager.load(["mini_topics_eng_Latn"])["tasks"]["mini_topics_eng_Latn"]
    task.build_all_requests(limit=10, rank=0, world_size=1)
    return task.instances


@pytest.mark.parametrize("batch_size", [1, 3, "auto", "auto:2"])
def test_log_likelihoods_and_the_choices_they_make(both, choices, batch_size):
    ours, theirs = both(batch_size=batch_size)[0], both()[1]
    found, expected = (values(lm.loglikelihood(choices, disable_tqdm=True)) for lm in (ours, theirs))
    assert found == pytest.approx(expected, **CLOSE)
    assert (np.argmax(np.reshape(found, (-1, 7)), 1) == np.argmax(np.reshape(expected, (-1, 7)), 1)).all()


def test_log_likelihoods_in_float64(choices):
    given = {"dtype": "float64", "device": "cpu", "batch_size": 4}
    ours, theirs = SPTLM(pretrained="mini", **given), HFLM(model_path("mini"), **given)
    found, expected = (values(lm.loglikelihood(choices, disable_tqdm=True)) for lm in (ours, theirs))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("max_length", [None, 24])
def test_rolling_log_likelihoods(both, max_length):
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS if text])
    for text in asked:  # one by one: HFLM mixes up windows of the same tokens when they share a batch
        found, expected = (rolling_loglikelihoods(lm, [text]) for lm in both(max_length=max_length))
        assert found == pytest.approx(expected, abs=1e-3, rel=1e-5)


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("special", [None, True, False])
def test_encoding_and_decoding(both, add_bos_token, special):
    ours, theirs = both(add_bos_token=add_bos_token)
    for text in TEXTS:
        for cut in (None, 3):
            found, expected = (
                lm.tok_encode(text, add_special_tokens=special, left_truncate_len=cut) for lm in (ours, theirs)
            )
            assert found == expected
        assert ours.tok_decode(expected) == theirs.tok_decode(expected)
    texts = [text for text in TEXTS if text]  # of an empty one HFLM makes nothing but padding
    for truncation in (False, True):
        batches = [lm.tok_batch_encode(texts, left_truncate_len=9, truncation=truncation) for lm in (ours, theirs)]
        assert all(torch.equal(found, expected) for found, expected in zip(*batches, strict=True))


@pytest.mark.parametrize("options", [{}, {"add_bos_token": True}, {"prefix_token_id": 7}, {"max_length": 24}])
def test_contexts_that_are_empty_or_end_in_space_and_texts_with_their_own_bos(both, options):
    # HFLM refuses a context of white space alone, and a continuation that merges into its context's last token.
    pairs = [(text, rest) for text in TEXTS if text != " " for rest in (" sports", "\nx", "<s> y", "  two  ")]
    asked = requests("loglikelihood", pairs)
    found, expected = (lm.loglikelihood(asked, disable_tqdm=True) for lm in both(**options))
    assert values(found) == pytest.approx(values(expected), **CLOSE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_chat_templates_and_what_is_told_of_the_model(both):
    ours, theirs = both()
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "?"},
    ]
    for prompt in (True, False):
        assert ours.apply_chat_template(history, prompt) == theirs.apply_chat_template(history, prompt)
    assert ours.chat_template() == theirs.chat_template()
    for name in (
        "tokenizer_name",
        "eot_token_id",
        "prefix_token_id",
        "max_length",
        "max_gen_toks",
        "rank",
        "world_size",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    info = theirs.get_model_info()
    assert {key: ours.get_model_info()[key] for key in info} == info
