"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.train.base import Base, base_of
from lm_eval_spt.train.examples import Document, load_tasks, read_documents
from lm_eval_spt.train.splits import training_rows
from tests.helpers.models import build_encoder_decoder, build_model
from tests.helpers.training import TASK


@pytest.fixture(scope="session")
def mini() -> SPTLM:
    return SPTLM(pretrained="mini", device="cpu")


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    (task,) = load_tasks([TASK])
    return read_documents(task, training_rows(task))


@pytest.fixture(scope="module")
def base() -> Base:
    return base_of(SPTLM(pretrained="mini", device="cpu"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tokenizer) -> Path:
    """Folders of tiny random models: llama, xglm, mt5."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in {
        "llama": build_model("llama"), "xglm": build_model("xglm"), "mt5": build_encoder_decoder("mt5"),
    }.items():  # fmt: skip
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder
