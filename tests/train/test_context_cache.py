"""Where the texts' keys and values are kept."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from transformers import DynamicCache

from lm_eval_spt.inference.transformers_internals import keys_and_values
from lm_eval_spt.train import context_cache
from lm_eval_spt.train.base import base_of
from lm_eval_spt.train.context_cache import ContextCache
from lm_eval_spt.train.loop import train
from tests.helpers.training import settings_for
from tests.models.tiny import tiny_model


@pytest.mark.parametrize("medium", ["host", "disk"])
def test_every_medium_holds_the_same(tiny_model, medium):
    texts = [tuple(range(5, 5 + length)) for length in (3, 9, 1, 4)]
    default, other = ContextCache(tiny_model, 12), ContextCache(tiny_model, 100)
    assert default.add(texts) and other.add(texts, medium) and other.add(texts, medium)
    found, expected = other.read(texts[:3]), default.read(texts[:3])
    assert torch.equal(found.mask, expected.mask)
    for layers in zip(found.cache.layers, expected.cache.layers, strict=True):
        keep = expected.mask.bool()[:, None, :, None]
        torch.testing.assert_close(layers[0].keys * keep, layers[1].keys * keep)
        torch.testing.assert_close(layers[0].values * keep, layers[1].values * keep)


@pytest.mark.parametrize("kind", ["gemma4_text", "mimo_v2_flash"])
def test_layers_may_have_keys_and_values_of_different_shapes(kind):
    model = tiny_model(kind)
    texts = [(5, 6, 7, 8), (9, 10)]
    cache = ContextCache(model, 100)
    assert cache.add(texts)
    together = keys_and_values(cache.read(texts).cache)
    assert len({keys.shape for keys, _ in together}) > 1
    for row, text in enumerate(texts):
        alone = DynamicCache()
        with torch.no_grad():
            model(input_ids=torch.tensor([text]), past_key_values=alone, use_cache=True)
        for layer, expected in zip(together, keys_and_values(alone), strict=True):
            for kept, right in zip(layer, expected, strict=True):
                torch.testing.assert_close(kept[row, :, -len(text) :], right[0])


def test_a_file_of_keys_and_values_has_no_name(tiny_models, tmp_path, monkeypatch):
    """Nothing is left behind, however the process ends, and no other run can read it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert ContextCache(tiny_models["llama"], 64).add([(5, 6, 7)], "disk")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_goes_to_the_next_medium(tiny_models, monkeypatch, caplog):
    free = {"device": 0, "host": 100, "disk": 10**9}
    monkeypatch.setattr(context_cache, "_free", lambda medium, device: free[medium])
    allocated = []
    allocate = ContextCache._allocate
    monkeypatch.setattr(
        ContextCache,
        "_allocate",
        lambda self, medium, *sizes: (allocated.append(medium), allocate(self, medium, *sizes))[1],
    )
    assert ContextCache(tiny_models["llama"], 64).add([(5, 6, 7)])
    assert allocated == ["disk"] and "the disk is tried" in caplog.text
    free["disk"] = 100
    cache = ContextCache(tiny_models["llama"], 64)
    assert not cache.add([(5, 6, 7)]) and (5, 6, 7) not in cache
    assert "they are read anew in every step" in caplog.text


def test_a_full_disk_leaves_nothing_and_training_goes_on(base, tmp_path, monkeypatch, caplog):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    (tmp_path / "full").mkdir()
    monkeypatch.setattr(os, "posix_fallocate", full)
    fresh = base_of(base.lm)
    found = train(settings_for(tmp_path / "a.safetensors", context_cache="disk"), fresh)
    assert list((tmp_path / "full").iterdir()) == []
    assert "they are read anew in every step" in caplog.text
    expected = train(settings_for(tmp_path / "b.safetensors"), base)
    torch.testing.assert_close(found.vectors, expected.vectors, atol=1e-5, rtol=1e-4)
