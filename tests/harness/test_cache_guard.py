"""The harness's answer cache answers for the model, prompt and settings that filled it, and for nothing else."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from lm_eval.api.model import CachingLM
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.base_model import model_path
from lm_eval_spt.inference.fingerprint import model_fingerprint, tokenizer_fingerprint
from tests.helpers.models import build_model, random_prompt
from tests.helpers.scoring import requests, spt, values

PAIRS = requests("loglikelihood", [("The river", " sports"), ("Bread and", " science/technology")])


@pytest.fixture()
def model():
    return build_model("llama")


def adapted(model, seed: int = 0, **settings):
    """A LoRA adapter with random weights on a copy of a model."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False, **settings)
    return get_peft_model(copy.deepcopy(model), config).eval()


def scored(lm: SPTLM, path) -> list[float]:
    """Scores through the cache, as ``--use_cache`` has them."""
    return values(CachingLM(lm, str(path)).loglikelihood(PAIRS))


def test_a_merged_adapter_gets_no_answers_of_its_base(model, tokenizer, tmp_path):
    """It has the base's embeddings, its name and its shapes."""
    cache = tmp_path / "answers.db"
    base = scored(spt(model, tokenizer), cache)
    assert scored(spt(copy.deepcopy(model), tokenizer), cache) == base
    merged = spt(adapted(model).merge_and_unload(), tokenizer)
    assert values(merged.loglikelihood(PAIRS)) != pytest.approx(base, abs=1e-2)
    with pytest.raises(UserError, match=r"another base model \(\w{16} there, \w{16} now\): give another") as caught:
        scored(merged, cache)
    assert "\n" not in str(caught.value) and "max_length" not in str(caught.value)


def change_one_bit(model):
    weight = model.model.layers[1].mlp.up_proj.weight.data
    weight.view(torch.int32)[3, 5] ^= 1


def swap_rows(model):
    weight = model.model.layers[0].self_attn.v_proj.weight.data
    weight[[1, 9]] = weight[[9, 1]]


CHANGES = {
    "one bit": change_one_bit,
    "two rows swapped": swap_rows,
    "another norm": lambda model: setattr(model.config, "rms_norm_eps", 1e-2),
    "another RoPE": lambda model: model.config.rope_parameters.update(rope_theta=77.0),
    "another window": lambda model: setattr(model.config, "sliding_window", 5),
    "another default of generation": lambda model: setattr(model.generation_config, "repetition_penalty", 1.5),
    "another dtype": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_model_shows(model, change):
    before = model_fingerprint(model)
    assert model_fingerprint(copy.deepcopy(model)) == before
    CHANGES[change](model)
    assert model_fingerprint(model) != before


def test_where_a_model_lies_and_what_it_has_read_do_not_matter(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in "ab")
    spt(first, tokenizer).loglikelihood(PAIRS)
    assert model_fingerprint(first) == model_fingerprint(second)


def test_adapters_and_how_strong_they_are(model):
    prints = [
        model_fingerprint(found)
        for found in (model, adapted(model), adapted(model, seed=1), adapted(model, lora_alpha=99))
    ]
    assert len(set(prints)) == 4
    assert model_fingerprint(adapted(model)) == prints[1]
    several = adapted(model)
    several.add_adapter("other", several.peft_config["default"])
    one = model_fingerprint(several)
    several.set_adapter("other")
    assert model_fingerprint(several) != one


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_the_scales_of_quantised_weights_count(tmp_path, tokenizer, bits):
    """A matrix that is twice as large has the same packed numbers: only the scales tell the two apart."""
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, head_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    prints = []
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for folder in ("plain", "again", "doubled"):
        if folder == "doubled":
            model.model.layers[0].mlp.up_proj.weight.data.mul_(2)
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
        lm = SPTLM(str(tmp_path / folder), device="cpu", dtype="float32", **{f"load_in_{bits}": True})
        prints.append(model_fingerprint(lm.model))
    assert prints[0] == prints[1] != prints[2]


def test_tokenizers_are_told_apart(tokenizer):
    same, other = (AutoTokenizer.from_pretrained(model_path("mini")) for _ in range(2))
    same(["a", "b c d e"], padding=True, truncation=True, max_length=3)  # leaves its mark on the tokenizer
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(tokenizer)
    other.add_tokens(["<new>"])
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_length": 20},
        {"add_bos_token": True},
        {"prefix_token_id": 7},
        {"softmax_dtype": "float64"},
        {"mixed_precision_dtype": "bfloat16"},
        {"truncation": True},
        {"think_end_token": "</think>"},
        {"chat_template_args": {"enable_thinking": True}},
        {"fast": False},
    ],
)
def test_the_message_names_the_setting_that_differs(model, tokenizer, tmp_path, setting):
    (name,) = setting
    cache = tmp_path / "answers.db"
    scored(spt(model, tokenizer), cache)
    with pytest.raises(UserError, match=rf"was written with another {name} \([^,]* there, .* now\): give") as caught:
        scored(spt(model, tokenizer, **setting), cache)
    assert "base model" not in str(caught.value)


def test_prompts_and_placements_are_told_apart(model, tokenizer, tmp_path):
    cache = tmp_path / "answers.db"
    scored(spt(model, tokenizer, random_prompt(model)), cache)
    for other in (None, random_prompt(model, seed=1), random_prompt(model, placement="suffix")):
        with pytest.raises(UserError, match=r"was written with another prompt \(\w{16} there, \w+ now\): give"):
            scored(spt(model, tokenizer, other), cache)


def test_without_a_cache_no_weight_is_read(model, tokenizer, monkeypatch):
    monkeypatch.setattr("lm_eval_spt.harness.prompted_lm.model_fingerprint", None)
    spt(model, tokenizer).loglikelihood(PAIRS)
