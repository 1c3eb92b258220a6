"""Matrix products by oneDNN are those in float64, gradients included, and are left alone where they do not belong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

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

    monkeypatch.setattr(onednn, "is_faster", lambda *_: True)
    monkeypatch.setattr(onednn, "decisions", lambda _: ((True,),))
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
    monkeypatch.setattr(onednn, "is_faster", lambda *_: False)
    everywhere.clear()
    expected = dict(score_suffixes(model, requests, prompts, 64))
    assert not everywhere
    for number, answers in expected.items():
        for (value, greedy), (other, other_greedy) in zip(found[number], answers, strict=True):
            assert value == pytest.approx(other, abs=1e-4)
            assert greedy == other_greedy


# -- which library is faster ------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of decisions, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (onednn.decisions, onednn.is_faster):
        function.cache_clear()
    yield tmp_path / "lm_eval_spt" / "onednn.json"
    for function in (onednn.decisions, onednn.is_faster):
        function.cache_clear()


@pytest.fixture
def machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine whose clock goes on by what a multiplication is said to take; the first of each size takes longer."""
    made = SimpleNamespace(now=0.0, calls=0, mkl=lambda rows, width: 1.0, onednn=lambda rows, width: 1.0)

    def multiply(library: str) -> Callable[..., None]:
        started: set[tuple[int, int]] = set()

        def work(x: torch.Tensor, weight: torch.Tensor, bias: None) -> None:
            size = (len(x), len(weight))
            made.now += getattr(made, library)(*size) + 100.0 * (size not in started)
            started.add(size)
            made.calls += 1

        return work

    monkeypatch.setattr(onednn, "process_time", lambda: made.now)
    monkeypatch.setattr(onednn, "linear", multiply("mkl"))
    monkeypatch.setattr(onednn, "_onednn", multiply("onednn"))
    return made


def test_the_faster_library_is_used_for_the_sizes_in_which_it_is(machine: SimpleNamespace) -> None:
    machine.mkl = lambda rows, width: 3.0 if rows > 8 and width > 512 else 1.0
    assert onednn.measure() == ((False,) * 3, (False, True, True), (False, True, True))
    expected = {(1, 2048**2): False, (40, 1024 * 4096): True, (5000, 250_000 * 1024): True, (64, 256**2): False}
    assert {size: onednn.is_faster(*size, 1) for size in expected} == expected


def test_what_is_nearly_equal_stays_with_pytorch(machine: SimpleNamespace) -> None:
    machine.mkl = lambda rows, width: 1.05
    assert not any(map(any, onednn.measure()))


def test_it_is_measured_once_for_a_machine_and_a_number_of_threads(
    machine: SimpleNamespace, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.mkl = lambda rows, width: 2.0
    first, calls = onednn.decisions(1), machine.calls
    assert all(map(all, first)) and calls > 0 and cache.is_file()
    machine.mkl = lambda rows, width: 0.5
    onednn.decisions.cache_clear()  # as in a new process
    assert onednn.decisions(1) == first and machine.calls == calls
    assert not any(map(any, onednn.decisions(2))) and machine.calls == 2 * calls
    onednn.decisions.cache_clear()
    monkeypatch.setattr(onednn, "_processor", lambda: "another")
    assert not any(map(any, onednn.decisions(1))) and machine.calls == 3 * calls
    assert len(json.loads(cache.read_text())) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"%s": 1}', '{"%s": [[true]]}', '{"%s": [[1, 1, 1]]}'])
def test_a_file_that_is_none_is_made_anew(machine: SimpleNamespace, cache: Path, content: str) -> None:
    onednn.decisions(1)
    key = next(iter(json.loads(cache.read_text())))
    good = cache.read_text()
    cache.write_text(content.replace("%s", key))
    onednn.decisions.cache_clear()
    onednn.decisions(1)
    assert cache.read_text() == good


def test_without_a_place_to_keep_it_it_is_measured_by_each_process(
    machine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    machine.mkl = lambda rows, width: 2.0
    assert all(map(all, onednn.decisions(1)))


def test_a_model_keeps_its_layers_where_onednn_is_never_faster(machine: SimpleNamespace) -> None:
    layer = nn.Linear(8, 4).requires_grad_(False)
    use_onednn(layer)
    assert type(layer) is nn.Linear


def test_the_real_thing_takes_less_than_a_second_of_this_process(cache: Path) -> None:
    started = time.process_time()
    found = onednn.decisions(torch.get_num_threads())
    assert time.process_time() - started < 2 * torch.get_num_threads()  # other work slows a processor's threads down
    assert [len(row) for row in found] == [len(onednn.WIDTHS)] * len(onednn.ROWS)


@pytest.mark.parametrize("times_as_slow", [0.5, 1.0, 6.0])
def test_a_processor_without_a_unit_for_bfloat16_is_told_by_its_speed(
    times_as_slow: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(_: object, x: torch.Tensor, weight: torch.Tensor) -> float:
        assert x.dtype == weight.dtype
        return times_as_slow if x.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(onednn, "_seconds", seconds)
    onednn.is_slower_in_bfloat16.cache_clear()
    assert onednn.is_slower_in_bfloat16() == (times_as_slow == 6.0)
    onednn.is_slower_in_bfloat16.cache_clear()
    monkeypatch.undo()
    started = time.process_time()
    onednn.is_slower_in_bfloat16()
    assert time.process_time() - started < 1
