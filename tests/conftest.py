"""Fixtures for all tests: tiny models and a tokenizer, made once, and data that lies beside the checkout."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_spt.inference.base_model import model_path
from tests.helpers.models import FAMILIES, build_model
from tests.helpers.paths import ROOT

# Otherwise some warnings come once in a process, and hit whichever test is the first.
torch.set_warn_always(True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = len(terminalreporter.getreports("skipped"))
    terminalreporter.write_line(
        f"Tests that were skipped, for the reasons above: {skipped}" if skipped else "No test was skipped."
    )


@pytest.fixture(autouse=True)
def no_handlers_left() -> Iterator[None]:
    """Commands that run in a test, the harness's among them, log to its standard error, which is closed afterwards."""
    loggers = [logging.getLogger(name) for name in (None, "lm_eval")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before, strict=True):
        logger.handlers = [handler for handler in logger.handlers if handler in handlers]


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
    """SIB-200: see :func:`data_folder`."""
    return data_folder("SIB200_DIR", "sib200/data/annotated", "<language>/{train,dev,test}.tsv")


@pytest.fixture(scope="session")
def nusax_folder() -> Path:
    """NusaX-Senti: see :func:`data_folder`."""
    return data_folder("NUSAX_DIR", "nusax", "<language>/{train,valid,test}.csv")


@pytest.fixture(scope="session")
def nollysenti_folder() -> Path:
    """NollySenti: see :func:`data_folder`."""
    return data_folder("NOLLYSENTI_DIR", "nollysenti", "<language>/{train,dev,test}.tsv")


def data_folder(variable: str, name: str, files: str) -> Path:
    """Return where data lies: where `variable` says, or in a folder ``shared`` in or beside the checkout or above."""
    places = [folder / "shared" / name for folder in (ROOT, *ROOT.parents)]
    if os.environ.get(variable):
        places = [Path(os.environ[variable])]
    for folder in places:
        if folder.is_dir():
            return folder
    pytest.skip(f"{variable[:-4]} is not here: set {variable} to a folder with {files}")
