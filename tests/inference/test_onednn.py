"""Matrix products by oneDNN are those in float64, gradients included, and are left alone where they do not belong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_eval_spt.inference import onednn
from lm_eval_spt.inference.onednn import product, use_onednn
from lm_eval_spt.inference.scoring import score_suffixes
from tests.helpers.models import as_fast, build_model, random_prompt

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch is built without oneDNN"
)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Let oneDNN multiply whatever it can, on any processor; gives the shapes of the weights that it gets."""
    seen: list[tuple[int, ...]] = []
    multiply = onednn._onednn

    def noting(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return multiply(x, weight, bias)

    monkeypatch.setattr(onednn, "better_than_mkl", lambda: True)
    monkeypatch.setattr(onednn, "SMALLEST", 1)
    monkeypatch.setattr(onednn, "_onednn", noting)
    return seen


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    before=st.lists(st.integers(1, 5), max_size=2),
    inner=st.integers(1, 40),
    outer=st.integers(1, 40),
    biased=st.booleans(),
    transposed=st.booleans(),
    sliced=st.booleans(),
)
def test_products_and_gradients_are_those_in_float64(everywhere, before, inner, outer, biased, transposed, sliced):
    generator = torch.Generator().manual_seed(inner + 50 * outer)
    x = torch.randn(*before, inner + sliced, generator=generator)[..., : inner or None].requires_grad_()
    weight = torch.randn(inner, outer, generator=generator).T if transposed else torch.randn(outer, inner)
    bias = torch.randn(outer, generator=generator) if biased else None
    everywhere.clear()
    found = product(x, weight, bias)
    exact = x.detach().double().requires_grad_()
    expected = linear(exact, weight.double(), bias.double() if bias is not None else None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    back = torch.randn(found.shape, generator=generator)
    (gradient,) = torch.autograd.grad(found, x, back)
    (of_exact,) = torch.autograd.grad(expected, exact, back.double())
    torch.testing.assert_close(gradient.double(), of_exact, rtol=1e-5, atol=1e-5)
    assert everywhere == [(outer, inner), (inner, outer)]


def test_what_is_not_a_frozen_float32_product_is_left_to_torch(everywhere):
    x = torch.randn(3, 8)
    frozen, learned = (nn.Linear(8, 4).requires_grad_(wanted) for wanted in (False, True))
    use_onednn(nn.ModuleList([learned, frozen]))
    learned(x).sum().backward()
    frozen.double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen.float()(x).dtype == torch.bfloat16
    assert learned.weight.grad is not None
    assert everywhere == []
    frozen(x)
    assert everywhere == [(4, 8)]


def test_layers_that_hold_their_weights_the_other_way_are_multiplied_too(everywhere):
    layer = Conv1D(4, 8).requires_grad_(False)
    layer.bias.uniform_()
    x = torch.randn(3, 8, dtype=torch.float64)
    use_onednn(layer)
    found = layer(x.float())
    torch.testing.assert_close(found.double(), x @ layer.weight.double() + layer.bias.double(), rtol=1e-5, atol=1e-5)
    assert everywhere == [(4, 8)] and isinstance(layer, Conv1D)


def test_small_products_are_left_to_torch(everywhere, monkeypatch):
    monkeypatch.setattr(onednn, "SMALLEST", 3 * 8 * 4)
    product(torch.randn(2, 8), torch.randn(4, 8))
    assert everywhere == []
    product(torch.randn(3, 8), torch.randn(4, 8))
    assert everywhere == [(4, 8)]


@pytest.mark.parametrize("family", ["bloom", "xglm", "llama", "gpt2"])
def test_models_give_the_same_answers_either_way(family, everywhere, monkeypatch):
    model: PreTrainedModel = as_fast(build_model(family).eval().requires_grad_(False), plain_head=True)
    prompts = [random_prompt(model, placement="suffix", length=length).vectors for length in (2, 5)]
    requests = [([5, 6, 7, 8], [9]), ([5, 6, 7, 8], [10, 11]), ([12, 13], [14, 9, 9])]
    found = dict(score_suffixes(model, requests, prompts, 64))
    assert everywhere
    monkeypatch.setattr(onednn, "better_than_mkl", lambda: False)
    everywhere.clear()
    expected = dict(score_suffixes(model, requests, prompts, 64))
    assert not everywhere
    for number, answers in expected.items():
        for (value, greedy), (other, other_greedy) in zip(found[number], answers, strict=True):
            assert value == pytest.approx(other, abs=1e-4)
            assert greedy == other_greedy


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", "vendor_id\t: AuthenticAMD\n", True),
        ("x86_64", "vendor_id\t: GenuineIntel\n", False),
        ("x86_64", "", False),
        ("aarch64", "vendor_id\t: AuthenticAMD\n", False),
    ],
)
def test_it_depends_on_the_processors_maker(machine, cpuinfo, expected, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(onednn, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert onednn.better_than_mkl.__wrapped__() is expected
