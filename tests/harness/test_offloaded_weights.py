"""Models whose weights accelerate keeps in memory or on disk until a layer runs, against the same models as usual."""

from __future__ import annotations

import accelerate
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from lm_eval.models.huggingface import HFLM
from packaging.version import Version

from lm_eval_spt.cli import main
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference.fingerprint import model_fingerprint
from lm_eval_spt.prompt.fingerprint import embedding_fingerprint
from lm_eval_spt.train.initialization import embedding_scale
from tests.helpers.models import build_model, random_prompt
from tests.helpers.scoring import CLOSE, requests, spt, values

PAIRS = requests("loglikelihood", [("The river", " sports"), ("The river", " the old town"), ("Bread and", " butter")])
TEXTS = requests("generate_until", [("The river", {"until": ["\n\n"], "max_gen_toks": 4})])


@pytest.fixture(params=["memory", "disk"])
def offload(request, tmp_path):
    def apply(model):
        if request.param == "memory":
            return cpu_offload(model, torch.device("cpu"))
        return disk_offload(model, str(tmp_path / "offloaded"), torch.device("cpu"))

    return apply


@pytest.mark.parametrize("family", ["llama", "xglm", "gemma3_text", "gpt2", "bloom"])
@pytest.mark.parametrize("placement", [None, "prefix", "suffix"])
def test_offloaded_models_score_and_generate_as_those_that_are_not(family, placement, offload, tokenizer):
    model, twin = offload(build_model(family)), build_model(family)
    assert model.get_input_embeddings().weight.is_meta
    prompt = random_prompt(twin, placement=placement) if placement else None
    lm, whole = (spt(each, tokenizer, prompt) for each in (model, twin))
    assert lm.get_model_info()["base_model_fingerprint"] == embedding_fingerprint(twin.get_input_embeddings())
    expected = HFLM(pretrained=twin, tokenizer=tokenizer, batch_size=1) if prompt is None else whole
    found = lm.loglikelihood(PAIRS, disable_tqdm=True)
    assert values(found) == pytest.approx(values(expected.loglikelihood(PAIRS, disable_tqdm=True)), **CLOSE)
    assert lm.generate_until(TEXTS, disable_tqdm=True) == whole.generate_until(TEXTS, disable_tqdm=True)


@pytest.mark.parametrize("family", ["llama", "xglm"])
def test_what_reads_weights_reads_the_same(family, offload):
    model, twin = offload(build_model(family)), build_model(family)
    assert model_fingerprint(model) == model_fingerprint(twin)
    assert embedding_scale(model.get_input_embeddings()) == embedding_scale(twin.get_input_embeddings())
    prompt, ids = random_prompt(twin), torch.tensor([[5, 6, 7]])
    assert torch.equal(prompt.inputs_embeds(model, ids), prompt.inputs_embeds(twin, ids))
    assert model.get_input_embeddings().weight.is_meta  # is offloaded again


@pytest.mark.skipif(Version(accelerate.__version__) < Version("1.15"), reason="it refuses to offload a whole model")
def test_training_and_the_command_lines_arguments(tmp_path, tokenizer):
    """``device_map=auto`` offloads everything on a machine without an accelerator."""
    from lm_eval_spt.prompt.soft_prompt import SoftPrompt

    build_model("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    flags = ["--model", str(tmp_path / "base"), "--task", "mini_topics_eng_Latn", "--shots", "1", "--epochs", "1"]
    flags += ["--validation-shots", "1", "--device", "cpu"]
    learned = []
    for more in ([], ["--device-map", "auto"]):
        output = tmp_path / f"p{len(more)}.safetensors"
        assert main(["train", *flags, "--output", str(output), *more]) == 0
        learned.append(SoftPrompt.load(output).vectors)
    assert torch.allclose(*learned, atol=1e-5)

    lm = SPTLM(str(tmp_path / "base"), device="cpu", dtype="float32", parallelize=True, max_cpu_memory="200KB",
               offload_folder=str(tmp_path / "offloaded"))  # fmt: skip
    assert any(weight.is_meta for weight in lm.model.parameters())
    assert values(lm.loglikelihood(PAIRS)) == pytest.approx(
        values(spt(build_model("llama"), tokenizer).loglikelihood(PAIRS)), **CLOSE
    )
