"""PEFT's adapter folders: what is written loads there, what PEFT wrote loads here."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import build_encoder_decoder, build_model, random_prompt
from tests.helpers.requests import request
from tests.prompt.test_soft_prompt import raw_prompt


@pytest.mark.parametrize("family", ["gpt2", "llama", "xglm"])
def test_peft_loads_our_folder_and_computes_the_same(family: str, tmp_path: Path) -> None:
    """XGLM scales its embeddings: vectors are stored after the scale, and PEFT adds none."""
    model = build_model(family)
    prompt = random_prompt(model)
    prompt.to_peft(tmp_path)
    ids = torch.tensor([[11, 12, 13, 14, 15]])
    with torch.no_grad():
        embedded = torch.cat([prompt.vectors[None], model.get_input_embeddings()(ids)], dim=1)
        expected = model(inputs_embeds=embedded).logits
        actual = peft.PeftModel.from_pretrained(model, tmp_path)(input_ids=ids).logits
    torch.testing.assert_close(actual[:, -5:], expected[:, -5:], atol=1e-5, rtol=1e-5)


def test_we_read_what_peft_wrote(tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, revision="abc")
    model = peft.get_peft_model(build_model("llama"), config)
    model.peft_config["default"].base_model_name_or_path = "owner/base"
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    prompt = SoftPrompt.from_pretrained(tmp_path / "adapter")
    assert torch.equal(prompt.vectors, model.get_prompt_embedding_to_save("default"))
    assert prompt.metadata == {"base_model": "owner/base", "base_model_revision": "abc"}
    assert (prompt.name, prompt.placement) == ("adapter", "prefix")


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_p_tuning_is_a_prefix_that_peft_serves_the_same(encoder: str, tmp_path: Path) -> None:
    """While it trains P-tuning has a network behind its vectors; what it saves is the network's output."""
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16, encoder_reparameterization_type=encoder
    )
    trained = peft.get_peft_model(build_model("llama"), config)
    with torch.no_grad():
        for weight in trained.prompt_encoder.parameters():
            weight.normal_(std=0.5)
    trained.save_pretrained(str(tmp_path))
    prompt = SoftPrompt.from_pretrained(tmp_path)
    assert (prompt.placement, prompt.length) == ("prefix", 3)
    model, ids = build_model("llama"), torch.tensor([[11, 12, 13, 14, 15]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        own = model(inputs_embeds=prompt.inputs_embeds(model, ids)).logits[:, -5:]
        served = peft.PeftModel.from_pretrained(model, tmp_path)(input_ids=ids).logits[:, -5:]
    torch.testing.assert_close(own, served, atol=1e-5, rtol=1e-5)
    assert (own - plain).abs().max() > 0.1


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PromptEncoderConfig])
def test_vectors_before_the_decoders_tokens_are_refused(kind: Any, tmp_path: Path) -> None:
    """Two submodules are PEFT's default for encoder-decoder models."""
    config = kind(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    peft.get_peft_model(build_encoder_decoder("t5"), config).save_pretrained(str(tmp_path))
    for submodules in (2, None):
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_transformer_submodules": submodules}))
        with pytest.raises(UserError, match="num_transformer_submodules is 2, expected 1: .*not supported") as caught:
            SoftPrompt.from_pretrained(tmp_path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def told_by(source: str, folder: Path) -> dict[str, Any]:
    """A record that tells, in one of the ways there are, that its base model in `folder` is a T5."""
    if source == "record":
        return {"base_model": "owner/elsewhere", "task_type": "SEQ_2_SEQ_LM"}
    if source in ("folder", "elsewhere"):
        return {"base_model": str(folder)}
    cached = folder / "cache" / "models--owner--t5"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc" / "config.json").write_bytes((folder / "config.json").read_bytes())
    return {"base_model": "owner/t5"}


@pytest.mark.parametrize("source", ["record", "folder", "elsewhere", "cache"])
def test_encoder_decoder_adapters_give_the_numbers_of_the_harness_and_ours(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    """PEFT loads an adapter of the wrong task type without a word and gives other numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "t5" / "cache"))
    model = build_encoder_decoder("t5", vocab_size=len(tokenizer))
    model.config.save_pretrained(tmp_path / "t5")
    prompt = SoftPrompt(random_prompt(model).vectors, told_by(source, tmp_path / "t5"))
    if source == "elsewhere":  # a configuration is read outside of the current folder, too
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
    prompt.to_peft(tmp_path / "adapter")
    pairs = [(text, choice) for text in ("The river is long.", "A cup final") for choice in (" sports", " geography")]
    requests = [request("loglikelihood", pair, number) for number, pair in enumerate(pairs)]

    def scores(lm: HFLM) -> list[float]:
        return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]

    own = scores(SPTLM(pretrained=model, tokenizer=tokenizer, prompt=prompt, batch_size=1))
    plain = scores(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1))
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert type(adapted) is peft.PeftModelForSeq2SeqLM
    served = scores(HFLM(pretrained=adapted, tokenizer=tokenizer, backend="seq2seq", batch_size=1))
    assert own == pytest.approx(served, abs=1e-4)
    assert own != pytest.approx(plain, abs=0.01)
    assert SoftPrompt.from_peft(tmp_path / "adapter").metadata["task_type"] == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize(
    "name", ["{folder}/missing", "owner/not-here", None, "a\0b", "{folder}/broken", "{folder}/odd"]
)
def test_an_unknown_base_model_is_taken_for_a_causal_lm_with_a_warning(
    name: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "odd" / "config.json").mkdir(parents=True)
    prompt = SoftPrompt(torch.ones(1, 2), {"base_model": name and name.format(folder=tmp_path)})

    def written(task_type: Any = None) -> str:
        prompt.to_peft(tmp_path / "adapter", task_type)
        return json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"]

    assert written() == "CAUSAL_LM" and "written for a causal LM" in caplog.text
    caplog.clear()
    assert written("SEQ_2_SEQ_LM") == "SEQ_2_SEQ_LM" and not caplog.text
    assert SoftPrompt.from_peft(tmp_path / "adapter").metadata["task_type"] == "SEQ_2_SEQ_LM"
    with pytest.raises(UserError, match="task_type is 'SEQ_CLS', expected 'CAUSAL_LM' or 'SEQ_2_SEQ_LM'"):
        written("SEQ_CLS")


def test_a_known_causal_base_model_needs_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SoftPrompt(torch.ones(1, 2), {"base_model": "mini"}).to_peft(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert not caplog.text


def test_peft_round_trip_keeps_the_provenance(tmp_path: Path) -> None:
    metadata = {"base_model": "owner/base", "seed": 7, "validation": {"acc": 0.5}, "language": "čeština"}
    prompt = SoftPrompt(torch.randn(3, 4), metadata)
    prompt.to_peft(tmp_path)
    again = SoftPrompt.from_peft(tmp_path)
    assert again.digest == prompt.digest and again.metadata.items() >= metadata.items()


def test_an_adapter_folder_gets_the_adapters_files_alone(tmp_path: Path) -> None:
    """A card is written by what has results to put into it."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "README.md").write_text("mine")
    for folder in (tmp_path / "new", tmp_path / "old"):
        SoftPrompt(torch.zeros(1, 2)).to_peft(folder)
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == adapter
    assert (tmp_path / "old" / "README.md").read_text() == "mine"


def test_peft_can_not_express_a_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'suffix', which PEFT can not express"):
        SoftPrompt(torch.zeros(1, 2), {"placement": "suffix"}).to_peft(tmp_path / "new")
    both = SoftPrompt(torch.zeros(2, 2), {"placement": "both", "num_prefix_tokens": 1})
    with pytest.raises(UserError, match="'both', which PEFT can not express"):
        both.to_peft(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "adapter_config.json can not be read"),
        ("{", "not JSON"),
        ("[]", "JSON list, expected an object"),
        ('{"peft_type": "LORA"}', "type is 'LORA'"),
        ('{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 9}', "says num_virtual_tokens 9, .* has 2"),
        ('{"peft_type": "PROMPT_TUNING", "token_dim": 9}', "says token_dim 9, .* has 3"),
        ('{"peft_type": "PROMPT_TUNING", "base_model_name_or_path": 9}', "base_model 9, expected a string"),
    ],
)
def test_bad_peft_folder_is_refused(tmp_path: Path, config: str | None, message: str) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(raw_prompt())
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(UserError, match=message) as caught:
        SoftPrompt.from_peft(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_pickled_adapter_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "opened",))

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="safe_serialization"):
        SoftPrompt.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a safetensors file"):
        SoftPrompt.from_pretrained(tmp_path / "adapter_model.bin")
    assert not (tmp_path / "opened").exists()
