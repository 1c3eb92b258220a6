"""PEFT's adapter folders: what is written loads there, what PEFT wrote loads here."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import build_model, random_prompt
from tests.prompt.test_soft_prompt import raw_prompt


def build_t5() -> PreTrainedModel:
    """A tiny random T5, with weights large enough that answers differ."""
    config = AutoConfig.for_model(
        "t5", vocab_size=600, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3)
    return model.eval()


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
    model.save_pretrained(str(tmp_path / "adapter"))
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
    peft.get_peft_model(build_t5(), config).save_pretrained(str(tmp_path))
    for submodules in (2, None):
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_transformer_submodules": submodules}))
        with pytest.raises(UserError, match="num_transformer_submodules is 2, expected 1: .*not supported") as caught:
            SoftPrompt.from_pretrained(tmp_path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


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
