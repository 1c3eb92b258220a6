"""Flex attention compiles its kernels for masks of its own: it is given no others, and the numbers are the same."""

from __future__ import annotations

import shutil

import pytest
from transformers import AutoModelForCausalLM

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.inference.capabilities import capabilities
from tests.helpers.models import build_model, random_prompt
from tests.helpers.scoring import CLOSE, requests, restated, spt, values

PAIRS = [("The river", " sports"), ("The river", " the old town"), ("Bread and so on and", " butter")]


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles flex attention with a C++ compiler")
def test_scores_are_those_of_plain_attention(tokenizer, tmp_path):
    plain = build_model("llama")
    plain.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="flex_attention").eval()
    prompt = random_prompt(plain, placement="suffix")
    lm = spt(model, tokenizer, prompt)
    try:
        found = values(lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True))
    except UserError as error:
        assert "not numbers: load the model with attn_implementation=sdpa" in str(error)
        pytest.skip("PyTorch's kernels for flex attention give NaN on this processor")
    encoded = lm.encode_pairs(PAIRS, "suffix")
    assert found == pytest.approx([restated(plain, *pair, prompt)[0] for pair in encoded], **CLOSE)
    assert capabilities(model).layout == "rows" and not capabilities(model).cache
