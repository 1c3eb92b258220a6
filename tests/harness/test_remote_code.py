"""Models that bring code of their own: run where that is asked for, and never otherwise."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM

from lm_eval_spt.cli import main
from lm_eval_spt.cli.sweep import sweep
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.base_model import load_embedding
from lm_eval_spt.inference.fingerprint import model_fingerprint
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.models import build_model, random_prompt
from tests.helpers.scoring import CLOSE, requests, values
from tests.helpers.sweeps import score, scores

TASK = "mini_topics_eng_Latn"
PAIRS = requests("loglikelihood", [("The river", " sports"), ("Bread and", " butter")])
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = "brought_along"
class Model(LlamaForCausalLM):
    config_class = Config
"""
IDS_ALONE = """
    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, return_dict=None):
        return super().forward(input_ids, attention_mask, past_key_values=past_key_values, use_cache=use_cache)
"""
TRUSTED = {"device": "cpu", "dtype": "float32", "trust_remote_code": True}


@pytest.fixture()
def make(tmp_path, tokenizer, monkeypatch):
    """Return a function that writes a small Llama with code of its own, and returns the folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def write(name: str, code: str) -> str:
        folder = tmp_path / name
        build_model("llama").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "brought_along", "architectures": ["Model"]}
        config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
        (folder / "config.json").write_text(json.dumps(config).replace("code.", "brought."))
        (folder / "brought.py").write_text(code)
        return str(folder)

    return write


def one_line(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    return line


def test_training_runs_code_only_when_it_is_told_to(make, tmp_path, tokenizer, capsys):
    flags = ["train", "--task", TASK, "--shots", "1", "--validation-shots", "1", "--epochs", "1", "--device", "cpu"]
    folder = make("remote", CODE)
    build_model("llama").save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    output = tmp_path / "remote.safetensors"
    assert main([*flags, "--model", folder, "--output", str(output)]) == 1
    assert "contains custom code" in one_line(capsys) and not output.exists()
    assert main([*flags, "--model", folder, "--output", str(output), "--trust_remote_code"]) == 0
    assert main([*flags, "--model", str(tmp_path / "plain"), "--output", str(tmp_path / "plain.safetensors")]) == 0
    found, expected = (SoftPrompt.load(tmp_path / f"{name}.safetensors") for name in ("remote", "plain"))
    assert torch.allclose(found.vectors, expected.vectors, atol=1e-5)
    # A prompt file must not decide that code is run.
    assert "trust_remote_code" not in json.dumps(found.metadata)
    with pytest.raises(UserError, match="contains custom code"):
        SPTLM(folder, prompt=found, device="cpu")


def test_a_model_without_inputs_embeds_scores_as_it_is_and_refuses_prompts_in_one_line(make, tmp_path, capsys):
    folder = make("ids", CODE + IDS_ALONE)
    lm = SPTLM(folder, **TRUSTED)
    expected = HFLM(folder, batch_size=1, **TRUSTED).loglikelihood(PAIRS, disable_tqdm=True)
    assert values(lm.loglikelihood(PAIRS, disable_tqdm=True)) == pytest.approx(values(expected), **CLOSE)
    prompt = random_prompt(lm.model, placement="suffix")
    SoftPrompt(prompt.vectors, prompt.metadata).save(tmp_path / "p.safetensors")
    arguments = ["--prompts", str(tmp_path / "p.safetensors"), "--tasks", TASK, "--limit", "2", "--device", "cpu"]
    arguments += ["--output", str(tmp_path / "out"), "--model_args", f"pretrained={folder},trust_remote_code=True"]
    assert main(["evaluate", *arguments]) == 1
    assert "can not be run with a soft prompt, which it has to take as inputs_embeds" in one_line(capsys)
    assert not list(tmp_path.glob("out/**/*.json"))
    flags = ["--shots", "1", "--validation-shots", "1", "--output", str(tmp_path / "x.safetensors"), "--device", "cpu"]
    assert main(["train", "--model", folder, "--task", TASK, "--trust_remote_code", *flags]) == 1
    assert "which it has to take as inputs_embeds" in one_line(capsys)
    assert not (tmp_path / "x.safetensors").exists()


def test_embeddings_are_loaded_with_the_code_where_it_is_trusted(make):
    folder = make("embeddings", CODE)
    with pytest.raises(UserError, match="contains custom code"):
        load_embedding(folder)
    embedding, _ = load_embedding(folder, trust_remote_code=True)
    assert torch.equal(embedding.weight, build_model("llama").get_input_embeddings().weight)


def test_the_code_is_part_of_a_models_identity(make):
    plain, same, other = (
        model_fingerprint(SPTLM(make(name, code), **TRUSTED).model)
        for name, code in (("a", CODE), ("b", CODE), ("c", CODE + "    flag = 1\n"))
    )
    assert plain == same != other


def test_a_sweep_loads_its_models_as_its_settings_say(make, tmp_path, tokenizer, capsys):
    content = {
        "output": str(tmp_path / "out"), "targets": [TASK], "baselines": {"none": [TASK]},
        "settings": {
            "model": make("swept", CODE), "trust_remote_code": True, "task": TASK, "device": "cpu", "shots": 1,
            "validation_shots": 1, "epochs": 1, "prompt_length": 3,
        },
        "axes": {"tune": ["prompt", "lora"]}, "evaluate": {"limit": 6},
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    sweep(str(tmp_path / "sweep.yaml"), throughput=1)
    assert "contains custom code" not in capsys.readouterr().out
    plain = SPTLM(build_model("llama"), tokenizer=tokenizer)
    assert scores(tmp_path / "out", "none")[TASK]["acc,none"] == score(plain, [TASK])[TASK]["acc,none"]
    prompted = SPTLM(plain.model, str(tmp_path / "out/prompts/tune_prompt.safetensors"), tokenizer=tokenizer)
    expected = score(prompted, [TASK])[TASK]["acc,none"]
    assert scores(tmp_path / "out", "tune_prompt")[TASK]["acc,none"] == expected
    assert scores(tmp_path / "out", "tune_lora")[TASK]
