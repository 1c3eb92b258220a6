"""Wrong model arguments: one line each, before the model is loaded."""

from __future__ import annotations

import pytest
import torch

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.harness.model_arguments import SWITCHES
from lm_eval_spt.harness.patches import results_name
from lm_eval_spt.inference.base_model import available_device

WRONG = {
    "dtype=float99": "dtype is 'float99', expected float32",
    "dtype=torch.float32": "dtype is 'torch.float32', expected float32",
    "dtype=int8": "dtype is 'int8', expected float32",
    "dtype=nn": "dtype is 'nn', expected float32",
    "dtype=float8_e4m3fn": "dtype is 'float8_e4m3fn', expected float32",
    "max_length=-1": "max_length is -1, expected a whole number from 1 on",
    "max_length=many": "max_length is 'many', expected a whole number from 1 on",
    "max_length=1.5": r"max_length is 1\.5, expected a whole number from 1 on",
    "max_batch_size=0": "max_batch_size is 0, expected a whole number from 1 on",
    "prefix_token_id=bos": "prefix_token_id is 'bos', expected a whole number from 0 on",
    "mixed_precision_dtype=half16": "mixed_precision_dtype is 'half16', expected float32",
    "softmax_dtype=1": "softmax_dtype is '1', expected float32",
    "softmax_dtype=bfloat16": "softmax_dtype is bfloat16: expected float32, which it is, or fast=False beside it",
    "prompt=True": "prompt is True, expected a name",
    "prompt=1": "1: no such file",
    "gguf_file=1": "there is no GGUF file .*/1",
    "peft=1": "peft=1 can not be loaded",
    "backend=vllm": "backend is 'vllm', expected one of default, causal, seq2seq",
    "trust_remote_code=no": "trust_remote_code is 'no', expected True or False",
    "fast=never": "fast is 'never', expected True or False",
    "colour=blue": "there is no model argument 'colour': expected one of lm_eval's model `hf`",
    "device=tpu": "the device is 'tpu', which is not here: expected cpu",
    "device=cuda:99": "the device is 'cuda:99', which is not here: expected cpu",
    "tokenizer=nobody/nothing": "the tokenizer 'nobody/nothing' can not be loaded",
    "delta=nobody/nothing": "the delta 'nobody/nothing' can not be loaded",
    "peft=nothing": "peft=nothing can not be loaded",
}


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_argument_is_one_line(argument):
    with pytest.raises(UserError, match=WRONG[argument]) as caught:
        SPTLM.create_from_arg_string(f"pretrained=mini,{argument}")
    assert "\n" not in str(caught.value)


def test_a_name_may_look_like_a_number():
    with pytest.raises(UserError, match="the base model '1' can not be loaded"):
        SPTLM.create_from_arg_string("pretrained=1")
    with pytest.raises(UserError, match="the base model 'nobody/nothing' can not be loaded"):
        SPTLM.create_from_arg_string("pretrained=nobody/nothing,revision=1")
    with pytest.raises(UserError, match="1: no such file"):
        results_name("pretrained=mini,prompt=1")


def test_the_embedded_model_s_tokenizer_goes_by_its_name():
    assert SPTLM(pretrained="mini", tokenizer="mini", device="cpu").tokenizer.vocab_size > 0


def test_so_many_sequences_are_read_at_once():
    lm = SPTLM(pretrained="mini", device="cpu", batch_size="auto", max_batch_size=2)
    assert (lm._detect_batch_size(), lm._max_batch_tokens()) == (2, 2 * lm.whole_length)


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_is_an_argument_of_the_model(name):
    with pytest.raises(UserError, match=f"{name} is 'maybe'"):
        SPTLM(pretrained="mini", **{name: "maybe"})


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_dtype_and_its_name(dtype):
    assert SPTLM(pretrained="mini", dtype=dtype, device="cpu").model.dtype == torch.bfloat16


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a better device")
@pytest.mark.parametrize("default", [None, "cuda", "cuda:0"])
def test_without_a_gpu_defaults_are_the_processor(default):
    assert available_device(default) == "cpu"


def test_other_mistakes_stay_what_they_are(monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.__init__", broken)
    with pytest.raises(TypeError, match="a mistake of ours"):
        SPTLM(pretrained="mini")
