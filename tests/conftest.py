"""Fixtures for all tests: tiny models and a tokenizer, made once, and data that lies beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_spt.inference.base_model import model_path
from tests.helpers.models import FAMILIES, build_model
from tests.helpers.paths import ROOT


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path("mini"))


@pytest.fixture(scope="session")
def tiny_models() -> dict[str, PreTrainedModel]:
    return {family: build_model(family) for family in FAMILIES}


@pytest.fixture(params=list(FAMILIES))
def tiny_model(request: pytest.FixtureRequest, tiny_models: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return tiny_models[request.param]


@pytest.fixture(scope="session")
def sib200_folder() -> Path:
    folder = Path(os.environ.get("SIB200_DIR", ROOT.parent / "shared" / "sib200" / "data" / "annotated"))
    if not folder.is_dir():
        pytest.skip("SIB-200 is not here: set SIB200_DIR to a folder with <language>/{train,dev,test}.tsv")
    return folder
