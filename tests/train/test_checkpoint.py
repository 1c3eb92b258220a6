"""The checkpoint's file by itself: nested values come back as they were, and anything else is refused."""

from __future__ import annotations

import json
import math

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lm_eval_spt.common.errors import UserError
from lm_eval_spt.train import checkpoint
from lm_eval_spt.train.checkpoint import Many, has_form

TENSORS = st.lists(st.integers(-9, 9), max_size=4).map(torch.tensor)
PLAIN = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN | TENSORS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def same(first: object, second: object) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


@settings(deadline=None, max_examples=50)
@given(state=st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_a_state_comes_back_as_it_was(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("checkpoint") / "p.checkpoint"
    checkpoint.save(path, state)
    assert same(state, checkpoint.load(path))


def test_another_version_is_refused(tmp_path):
    path = tmp_path / "p.checkpoint"
    content = json.dumps({"version": checkpoint.VERSION + 1, "state": {"dict": {}}})
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, {checkpoint.KEY: content})
    with pytest.raises(UserError, match=r"p\.checkpoint is not a checkpoint that can be read \(its version is 2"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("value", "form", "fits"),
    [
        (torch.zeros(2), torch.ones(2), True),
        (torch.zeros(2), torch.ones(3), False),
        (torch.zeros(2), torch.ones(2, dtype=torch.float64), False),
        ({"a": 1}, {"a": int}, True),
        ({"a": 1, "b": 2}, {"a": int}, False),
        ([1.0, 2], [float, float], True),
        ([1.0], [float, float], False),
        ([1, 2, 3], Many(int), True),
        ([1, 2.5], Many(int), False),
        (2**63, int, False),
        (True, int, False),
        (math.nan, float, False),
        (None, None, True),
        (0, None, False),
    ],
)
def test_forms(value, form, fits):
    assert has_form(value, form) == fits
