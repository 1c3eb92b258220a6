"""A prompt whose nearest tokens are known, and the command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lm_eval_spt.inference.base_model import model_path
from lm_eval_spt.prompt.fingerprint import embedding_fingerprint
from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from tests.helpers.paths import ROOT

TOKENS = [100, 5000, 20000]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "lm_eval_spt.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.fixture(scope="module")
def mini_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_path("mini"), dtype=torch.float32)


@pytest.fixture
def prompt_file(mini_model: PreTrainedModel, tmp_path: Path) -> Path:
    """A prompt whose vectors are three tokens of the embedded model, at 1, 2 and 3 times their length."""
    embedding = mini_model.get_input_embeddings()
    vectors = embedding(torch.tensor(TOKENS)) * torch.tensor([[1.0], [2.0], [3.0]])
    metadata = {
        "base_model": "mini",
        "embedding_fingerprint": embedding_fingerprint(embedding),
        "tasks": ["first", "second"],
        "hyperparameters": {"lr": 0.5},
    }
    SoftPrompt(vectors, metadata).save(tmp_path / "eng.safetensors")
    return tmp_path / "eng.safetensors"
