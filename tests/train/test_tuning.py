"""What is tuned beside the prompt, by itself: parameters, state, folders. Whole runs are in test_train.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.train.config import TrainingConfig
from lm_eval_spt.train.tuning import TunableModel, check_replaceable
from tests.helpers.models import build_model, random_prompt
from tests.helpers.requests import request

PAIRS = [("The river", " sports"), ("A goal in the final", " the old town hall")]


def base(tune: str, tokenizer, family: str = "llama", dtype=torch.float32, **changes) -> TunableModel:
    lm = SPTLM(pretrained=build_model(family).to(dtype), tokenizer=tokenizer, device="cpu")
    return TunableModel(lm, TrainingConfig(model="me/base", task="t", output="x.safetensors", tune=tune, **changes))


def answers(lm: HFLM) -> list[float]:
    requests = [request("loglikelihood", pair, number) for number, pair in enumerate(PAIRS)]
    return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def nudge(model: TunableModel) -> None:
    with torch.no_grad():
        for weight in model.tuned.values():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


def test_what_is_tuned(tokenizer):
    whole = dict(build_model("llama").named_parameters())
    assert base("prompt", tokenizer).tuned == {}
    assert set(base("all", tokenizer).tuned) == set(base("model", tokenizer).tuned) == set(whole)
    adapter = base("lora", tokenizer, lora_rank=3).tuned
    assert all("lora_" in name for name in adapter)
    # Matrices [3, 32] and [out, 3] on queries (32) and values (two heads of 8) of two layers.
    assert sum(weight.numel() for weight in adapter.values()) == 2 * 3 * ((32 + 32) + (32 + 16))


def test_dropout_is_on_while_a_tuned_model_trains_and_only_then(tokenizer):
    for tune in ("prompt", "all", "lora"):
        model = base(tune, tokenizer)
        model.train()
        assert model.lm.model.training == (tune != "prompt")
        model.train(False)
        assert not model.lm.model.training


@pytest.mark.parametrize("tune", ["all", "lora"])
def test_a_state_comes_back(tokenizer, tune):
    model = base(tune, tokenizer)
    nudge(model)
    state, before = model.state(), answers(model.lm)
    nudge(model)
    assert answers(model.lm) != pytest.approx(before, abs=0.01)
    model.load(state)
    assert answers(model.lm) == before


def test_a_model_in_half_precision_is_tuned_by_master_weights(tokenizer):
    """Held to a plain loop: gradients of the bfloat16 model move float32 copies, which are rounded into the model."""
    ids = torch.tensor([tokenizer("The river rises")["input_ids"]])
    model = base("all", tokenizer, dtype=torch.bfloat16)
    plain = build_model("llama").bfloat16()
    copies = {name: weight.detach().float().requires_grad_() for name, weight in plain.named_parameters()}
    ours, theirs = (torch.optim.AdamW(weights.values(), lr=1e-5) for weights in (model.tuned, copies))
    for _ in range(3):
        for part in (ids, ids[:, :2]):  # gradients of several parts add up
            model.lm.model(part).logits.logsumexp(-1).sum().backward()
            plain(part).logits.logsumexp(-1).sum().backward()
            for name, weight in plain.named_parameters():
                gradient, weight.grad = weight.grad.float(), None
                copies[name].grad = gradient if copies[name].grad is None else copies[name].grad + gradient
        ours.step()
        theirs.step()
        model.write_back()
        with torch.no_grad():
            for name, weight in plain.named_parameters():
                weight.copy_(copies[name])
        ours.zero_grad()
        theirs.zero_grad()
    untouched, moved = dict(build_model("llama").bfloat16().named_parameters()), 0
    for name, weight in model.lm.model.named_parameters():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, plain.get_parameter(name))
        assert torch.equal(model.tuned[name], copies[name]) and weight.grad is None
        hidden = torch.equal(weight, untouched[name]) and not torch.equal(model.tuned[name], untouched[name].float())
        moved += hidden
    assert moved  # some steps are too small to be seen in the model's own weights, and are not lost


def test_a_tuned_model_is_a_folder_that_the_harness_scores(tokenizer, tmp_path: Path):
    model = base("all", tokenizer)
    nudge(model)
    model.save(tmp_path / "tuned", {"seed": 3})
    assert json.loads((tmp_path / "tuned" / "lm_eval_spt.json").read_text()) == {"seed": 3}
    assert sorted(path.suffix for path in tmp_path.rglob("model*")) == [".safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]
    loaded = HFLM(pretrained=str(tmp_path / "tuned"), device="cpu", dtype="float32")
    assert answers(loaded) == pytest.approx(answers(model.lm), abs=1e-5)
    nudge(model)
    model.save(tmp_path / "tuned", {"seed": 3})  # replaces the first
    again = SPTLM(pretrained=str(tmp_path / "tuned"), device="cpu", dtype="float32")
    assert answers(again) == pytest.approx(answers(model.lm), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "xglm", "bloom"])  # PEFT has no choice of modules for XGLM
def test_an_adapter_is_a_folder_that_peft_and_the_harness_load(tokenizer, tmp_path: Path, family: str):
    model = base("lora", tokenizer, family)
    nudge(model)
    model.save(tmp_path / "adapter", {"seed": 3})
    build_model(family).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with_peft = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert with_peft.peft_config["default"].base_model_name_or_path == "me/base"
    expected = answers(HFLM(pretrained=with_peft, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "base")))
    assert answers(model.lm) == pytest.approx(expected, abs=1e-4)
    folders = {"pretrained": str(tmp_path / "base"), "peft": str(tmp_path / "adapter"), "device": "cpu"}
    assert answers(SPTLM(**folders, dtype="float32")) == pytest.approx(expected, abs=1e-4)
    prompt = random_prompt(with_peft, placement="suffix")
    found = answers(SPTLM(**folders, dtype="float32", prompt=prompt))
    same = answers(SPTLM(pretrained=with_peft, tokenizer=tokenizer, prompt=prompt, fast=False))
    assert found == pytest.approx(same, abs=1e-4)


def test_an_adapter_leaves_rows_that_no_token_uses(tokenizer, tmp_path: Path):
    """HFLM cuts them off, which changes the softmax; the harness's numbers here are those of training."""
    big = build_model("llama")
    big.resize_token_embeddings(len(tokenizer) + 64, mean_resizing=False)
    with torch.no_grad():
        big.get_input_embeddings().weight[-64:] = 1.0
        big.get_output_embeddings().weight[-64:] = 0.3
    big.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lm = SPTLM(pretrained=big, tokenizer=tokenizer, device="cpu")
    model = TunableModel(lm, TrainingConfig(model="me/base", task="t", output="x.safetensors", tune="lora"))
    nudge(model)
    model.save(tmp_path / "adapter", {"seed": 3})
    loaded = SPTLM(pretrained=str(tmp_path / "base"), peft=str(tmp_path / "adapter"), device="cpu", dtype="float32")
    assert answers(loaded) == pytest.approx(answers(lm), abs=1e-4)
    assert loaded.model.get_input_embeddings().weight.shape[0] == len(tokenizer) + 64


def test_the_adapter_depends_on_the_seed_alone(tokenizer):
    first, again, other = (base("lora", tokenizer, seed=seed).state() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_what_can_not_be_is_one_line(tokenizer, tmp_path: Path, caplog):
    with pytest.raises(UserError, match=r"--tune lora does not work with 'me/base': .*nonsense") as caught:
        base("lora", tokenizer, lora_target_modules="nonsense")
    assert "\n" not in str(caught.value)

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(UserError, match="holds no model"):
        base("all", tokenizer).save(tmp_path / "photos", {"seed": 3})
    assert (tmp_path / "photos" / "cat.jpg").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can not be written"):
        base("lora", tokenizer).save(tmp_path / "file" / "adapter", {"seed": 3})
    check_replaceable(tmp_path / "nothing there")

    build_model("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"^peft=.*nowhere can not be loaded"):
        SPTLM(pretrained=str(tmp_path / "base"), peft=str(tmp_path / "nowhere"), device="cpu")

    prompt = random_prompt(build_model("llama"))
    prompt.metadata["adapter"] = "runs/a"
    SPTLM(pretrained=str(tmp_path / "base"), prompt=prompt, device="cpu")
    assert "trained together with the adapter runs/a" in caplog.text
