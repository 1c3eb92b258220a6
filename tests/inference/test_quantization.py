"""Quantised base models, where bitsandbytes is installed; and what is said where it is not."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lm_eval_spt.cli.train import main
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.base import base_of
from lm_eval_spt.train.examples import Example
from lm_eval_spt.train.objective import LossRequest, evaluate
from tests.helpers.models import VOCABULARY
from tests.helpers.requests import request

TASK = "mini_topics_eng_Latn"
PAIRS = [("The river", " sports"), ("A goal in the final", " the old town hall")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A tiny random Llama whose matrices are as wide as a block of 4-bit weights."""
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, head_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("models") / "llama"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(lm: SPTLM) -> list[float]:
    requests = [request("loglikelihood", pair, number) for number, pair in enumerate(PAIRS)]
    return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_prompt_is_learned_and_scored_on_quantised_weights(folder, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    output = tmp_path / "p.safetensors"
    flags = ["--model", str(folder), "--task", TASK, "--quantization", bits, "--device", "cpu", "--lr", "0.05"]
    few = ["--shots", "2", "--validation-shots", "1", "--epochs", "3", "--init", "vocab", "--output", str(output)]
    assert main([*flags, *few]) == 0
    prompt = SoftPrompt.load(output)
    assert prompt.metadata["hyperparameters"]["quantization"] == bits
    assert prompt.metadata["validation"]["epoch"] > 0 and prompt.vectors.dtype == torch.float32

    options = {"pretrained": str(folder), "device": "cpu", "dtype": "float32", "prompt": prompt}
    quantised = SPTLM(**options, **{f"load_in_{bits}": True})
    kinds = {type(module).__name__ for module in quantised.model.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits] in kinds
    whole = SPTLM(**options)
    assert quantised.fingerprint == whole.fingerprint
    assert answers(quantised) == pytest.approx(answers(whole), abs=0.5)
    assert answers(quantised) != answers(whole)


def test_gradients_pass_through_4_bits_that_were_read_without(folder):
    """On a processor with AVX512-BF16 bitsandbytes packs weights that are read without a gradient: it has none then."""
    pytest.importorskip("bitsandbytes")
    lm = base_of(SPTLM(pretrained=str(folder), device="cpu", dtype="float32", load_in_4bit=True)).lm
    answers(lm)
    example = Example(tuple(((5, 6, 7), (answer, 8)) for answer in (9, 10)), 0)
    vectors = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    def loss(vectors: torch.Tensor) -> torch.Tensor:
        (outcome,) = evaluate(lm.model, [LossRequest([example], vectors, 0, "target")])
        return outcome.loss

    wanted = vectors.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (gradient,) = torch.autograd.grad(loss(wanted), wanted)
    with torch.no_grad():
        step = 0.02 * gradient / gradient.norm()
        rise = (loss(vectors + step) - loss(vectors - step)) / 0.04
    assert float(rise) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_without_bitsandbytes_one_line_says_what_to_install(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    flags = ["--model", str(folder), "--task", TASK, "--quantization", "4bit", "--device", "cpu"]
    assert main([*flags, "--output", str(tmp_path / "p.safetensors")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: a quantised base model needs bitsandbytes, which is not installed: pip install bitsandbytes"
    )
    assert not list(tmp_path.iterdir())
