"""What a base model is computed in where nothing is asked for: as it is stored, if that is right and not slow."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.harness import prompted_lm
from lm_eval_spt.harness.lm import SPTLM
from lm_eval_spt.inference import products
from lm_eval_spt.inference.base_model import usual_dtype
from lm_eval_spt.train.base import load_model
from lm_eval_spt.train.config import TrainingConfig
from tests.helpers.models import build_model


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A processor that can be told whether it is slow in bfloat16."""
    settings = {"slow": False}
    for module in (products, prompted_lm):
        monkeypatch.setattr(module, "is_slower_in_bfloat16", lambda: settings["slow"])
    return settings


@pytest.mark.parametrize(
    ("stored", "expected", "without_a_unit", "on_a_gpu"),
    [
        ("bfloat16", "bfloat16", "float32", "bfloat16"),
        ("float32", "float32", "float32", "float32"),
        ("float16", "float32", "float32", "float32"),
        (None, "float32", "float32", "float32"),
    ],
)
def test_as_it_is_stored(
    tmp_path: Path, processor: dict[str, bool], stored: str | None, expected: str, without_a_unit: str, on_a_gpu: str
) -> None:
    build_model("llama").config.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    settings.pop("dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(settings | ({"dtype": stored} if stored else {})))
    assert usual_dtype(str(tmp_path), device="cpu") == expected
    processor["slow"] = True
    assert usual_dtype(str(tmp_path), device="cpu") == without_a_unit
    assert usual_dtype(str(tmp_path), device="cuda:1") == on_a_gpu


def test_others() -> None:
    assert usual_dtype("mini") == "float32"
    assert usual_dtype("model.gguf") == "float32"
    with pytest.raises(UserError, match="can not be loaded"):
        usual_dtype("no/such/model")


def test_training_and_scoring_compute_in_the_same(tmp_path: Path, tokenizer, processor: dict[str, bool]) -> None:
    build_model("llama").bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = TrainingConfig(
        model=str(tmp_path), task="mini_topics_eng_Latn", device="cpu", output=str(tmp_path / "p.safetensors")
    )
    assert load_model(config).model.dtype == SPTLM(pretrained=str(tmp_path), device="cpu").model.dtype
    assert load_model(config).model.dtype == torch.bfloat16
    processor["slow"] = True
    assert load_model(config).model.dtype == torch.float32


def test_slow_bfloat16_is_said_once(processor: dict[str, bool], caplog: pytest.LogCaptureFixture) -> None:
    processor["slow"] = True
    prompted_lm._warn_of_slow_bfloat16.cache_clear()
    with caplog.at_level(logging.WARNING, prompted_lm.__name__):
        SPTLM(pretrained="mini", device="cpu")
        assert not caplog.records
        for _ in range(2):
            SPTLM(pretrained="mini", device="cpu", dtype="bfloat16")
    prompted_lm._warn_of_slow_bfloat16.cache_clear()
    assert ["give dtype=float32" in record.message for record in caplog.records] == [True]
