"""The vectors that training starts from: by name, or from a trained prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lm_eval_spt.cli.train import main
from lm_eval_spt.train.examples import encode
from lm_eval_spt.train.initialization import embedding_scale, initial_vectors
from tests.helpers.training import TASK, run, settings_for


def test_initial_vectors_are_what_their_name_says(mini, documents):
    weight = mini.model.get_input_embeddings().weight.detach()
    examples = encode(documents, mini, "suffix", 12, 512, "left")

    def start(**changes) -> torch.Tensor:
        return initial_vectors(mini, settings_for(Path("x.safetensors"), prompt_length=12, **changes), examples)

    uniform = start(init="uniform")
    assert (
        uniform.shape == (12, 256) and uniform.abs().max() <= 0.5 and uniform.std() == pytest.approx(12**-0.5, abs=0.02)
    )
    used = {token for example in examples for token in example.pairs[0][0]}
    for row in start(init="vocab"):
        assert any(torch.equal(row, weight[token]) for token in used)
    text = mini.tokenizer.encode("\nTopic:")
    assert torch.equal(start(init="text", init_text="\nTopic:")[-len(text) :], weight[text])
    science = mini.tokenizer.encode(" science/technology")
    labels = start(init="labels")
    assert any(torch.allclose(row, weight[science].mean(0)) for row in labels[-7:])
    assert torch.equal(uniform, start(init="uniform")) and not torch.equal(uniform, start(init="uniform", seed=1))


def test_the_embedding_scale_is_measured(tiny_models):
    scales = {family: embedding_scale(model.get_input_embeddings()) for family, model in tiny_models.items()}
    assert scales["xglm"] == pytest.approx(32**0.5, rel=1e-4)
    assert scales["gemma3_text"] == pytest.approx(32**0.5, rel=1e-2)
    assert all(scales[family] == pytest.approx(1) for family in scales if family not in ("xglm", "gemma3_text"))


@pytest.mark.parametrize(("length", "change"), [(4, "none"), (2, "cut at its beginning"), (10, "repeated")])
def test_a_trained_prompt_is_a_start_for_any_length(tiny, tmp_path, length, change):
    """Also where the embedding scales (XGLM): a file's vectors are behind that scale, the learned ones before it."""
    model = str(tiny / "xglm")
    first, _ = run(tmp_path / "first.safetensors", model=model, init="uniform", epochs=1)
    second, _ = run(
        tmp_path / "second.safetensors", model=model, init=str(tmp_path / "first.safetensors"), epochs=0,
        prompt_length=length,
    )  # fmt: skip
    expected = torch.cat([first.vectors] * 3)[-length:]
    assert torch.allclose(second.vectors, expected, atol=1e-5)
    assert second.metadata["started_from"] == {
        "name": "first", "digest": first.digest, "num_virtual_tokens": 4, "change": change,
    }  # fmt: skip


def test_a_start_for_another_model_is_refused(tiny, tmp_path, capsys):
    run(tmp_path / "first.safetensors", model=str(tiny / "llama"), epochs=0)
    flags = ["--model", "mini", "--task", TASK, "--init", str(tmp_path / "first.safetensors")]
    assert main([*flags, "--output", str(tmp_path / "second.safetensors")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --init") and "has vectors of size 32" in error
    assert not (tmp_path / "second.safetensors").exists()
