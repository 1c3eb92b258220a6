"""What is not a number is never an answer: one line names the cause, whatever is asked and however it is computed."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.model import CachingLM
from transformers import PreTrainedModel

from lm_eval_spt.cli import main
from lm_eval_spt.common.errors import UserError
from tests.helpers.models import build_encoder_decoder, build_model, random_prompt
from tests.helpers.scoring import requests, spt

PAIRS = requests("loglikelihood", [("The river", " sports"), ("Bread and", " butter")])
TEXTS = requests("loglikelihood_rolling", [("The river flows to the sea.",)])
GENERATION = {"until": ["\n\n"], "max_gen_toks": 3}
ASKED = {
    "loglikelihood": PAIRS,
    "loglikelihood_rolling": TEXTS,
    "generate_until": requests("generate_until", [("The river", GENERATION)]),
}
SAMPLED = requests("generate_until", [("The river", GENERATION | {"do_sample": True, "temperature": 1.0})])


def broken(model: PreTrainedModel, value: float = float("nan")) -> PreTrainedModel:
    """A model whose last norm makes every logit `value`, or NaN."""
    norms = [module for name, module in model.named_modules() if "norm" in name.split(".")[-1]]
    norms[-1].weight.data.fill_(value)
    return model


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("placement", [None, "prefix", "suffix"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_computes_no_numbers(tokenizer, kind, fast, placement, value):
    model = build_model("llama")
    prompt = random_prompt(model, placement=placement) if placement else None
    lm = spt(broken(model, value), tokenizer, prompt, fast=fast)
    with pytest.raises(UserError, match="LlamaForCausalLM in float32 gives .* that are not numbers: check") as caught:
        getattr(lm, kind)(ASKED[kind], disable_tqdm=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize("kind", ASKED)
def test_encoder_decoders(tokenizer, kind, prompted):
    model = build_encoder_decoder("t5")
    lm = spt(broken(model), tokenizer, random_prompt(model) if prompted else None)
    with pytest.raises(UserError, match="T5ForConditionalGeneration in float32 gives .* that are not numbers"):
        getattr(lm, kind)(ASKED[kind], disable_tqdm=True)


def test_sampling(tokenizer):
    with pytest.raises(UserError, match="gives logits that are not numbers"):
        spt(broken(build_model("llama")), tokenizer).generate_until(SAMPLED, disable_tqdm=True)


@pytest.mark.parametrize("fast", [True, False])
def test_the_answer_cache_gets_no_nan(tokenizer, tmp_path, fast):
    lm = CachingLM(spt(broken(build_model("llama")), tokenizer, fast=fast), str(tmp_path / "answers.db"))
    with pytest.raises(UserError):
        lm.loglikelihood(PAIRS)
    assert not any(isinstance(value, tuple) for value in lm.dbdict.values())


@pytest.mark.parametrize("fast", [True, False])
def test_tokens_that_a_model_rules_out_are_no_mistake(tokenizer, monkeypatch, fast):
    """Their logits are minus infinity; only an answer that has such a token is no number."""
    model = build_model("gpt2")
    model.lm_head = torch.nn.Linear(model.config.n_embd, model.config.vocab_size)
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    model.lm_head.bias.data.zero_()[7] = -torch.inf
    lm = spt(model.eval(), tokenizer, fast=fast)
    assert all(value > -1e9 for value, _ in lm.loglikelihood(PAIRS, disable_tqdm=True))
    lm.generate_until(ASKED["generate_until"], disable_tqdm=True)
    with pytest.raises(UserError, match="not numbers"):
        lm._loglikelihood_tokens([(None, [5, 6], [7])], disable_tqdm=True)


@pytest.mark.parametrize("build, family", [(build_model, "llama"), (build_encoder_decoder, "t5")])
@pytest.mark.parametrize("epochs", ["0", "1"])
def test_training_says_that_it_is_the_model(tmp_path, tokenizer, build, family, epochs, capsys):
    """Nothing has diverged before the first step."""
    broken(build(family)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    output = tmp_path / "p.safetensors"
    flags = ["train", "--model", str(tmp_path / "model"), "--task", "mini_topics_eng_Latn", "--placement", "prefix"]
    few = ["--shots", "1", "--validation-shots", "1", "--epochs", epochs, "--device", "cpu", "--output", str(output)]
    assert main([*flags, *few]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1 and "that are not numbers: check the model's weights" in error[0]
    assert not output.exists()
