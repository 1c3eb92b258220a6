"""Matrix products in another way are those in float64, gradients included, and only where there is such a way."""

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

from lm_eval_spt.inference import products
from lm_eval_spt.inference.products import product, use_fast_products
from lm_eval_spt.inference.scoring import score_suffixes
from tests.helpers.models import as_fast, build_model, random_prompt

HALVES = (torch.bfloat16, torch.float16)

pytestmark = pytest.mark.skipif(torch.float32 not in products.OTHER_WAYS, reason="PyTorch is built without oneDNN")


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Multiply in the other way wherever there is one, on any processor; gives the shapes of the weights."""
    seen: list[tuple[int, ...]] = []
    multiply = products._other_way

    def noting(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return multiply(x, weight, bias)

    monkeypatch.setattr(products, "is_faster", lambda *_: True)
    monkeypatch.setattr(products, "decisions", lambda *_: ((True,),))
    monkeypatch.setattr(products, "SMALLEST", 1)
    monkeypatch.setattr(products, "PIECE", 100)
    monkeypatch.setattr(products, "_other_way", noting)
    return seen


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, *HALVES]),
    before=st.lists(st.integers(1, 5), max_size=2),
    inner=st.integers(1, 40),
    outer=st.integers(1, 40),
    biased=st.booleans(),
    transposed=st.booleans(),
    sliced=st.booleans(),
    learned=st.sets(st.sampled_from(["x", "weight", "bias"])),
)
def test_products_and_gradients_are_those_in_float64(
    everywhere, dtype, before, inner, outer, biased, transposed, sliced, learned
):
    generator = torch.Generator().manual_seed(inner + 50 * outer)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    given = {"x": random(*before, inner + sliced)[..., :inner]}
    given["weight"] = random(inner, outer).T if transposed else random(outer, inner)
    if biased:
        given["bias"] = random(outer)
    exact = {name: tensor.double() for name, tensor in given.items()}
    sizes = {name: tensor.abs() for name, tensor in exact.items()}  # of which sums are as large as they could be
    names = [name for name in given if name in learned]
    for tensors in (given, exact, sizes):
        for name in names:
            tensors[name].requires_grad_()
    back = random(*before, outer)
    everywhere.clear()
    found, expected, largest = product(**given), linear(*exact.values()), linear(*sizes.values())
    results = [(found, expected, largest)]
    if names:
        passes = ((found, given, back), (expected, exact, back.double()), (largest, sizes, back.double().abs()))
        gradients = [torch.autograd.grad(y, [of[name] for name in names], of_y) for y, of, of_y in passes]
        results += zip(*gradients, strict=True)
    for value, right, most in results:
        assert value.dtype == dtype and value.shape == right.shape
        rounded_once = torch.finfo(dtype).eps / 2 * right.abs() + 1e-7  # for float16's smallest numbers
        assert ((value.double() - right).abs() <= rounded_once + 50 * torch.finfo(torch.float32).eps * most).all()
    shapes = {"x": (inner, outer), "weight": (inner, back.numel() // outer)}
    assert everywhere == [(outer, inner), *(shapes[name] for name in names if name in shapes)]
    assert found.requires_grad == bool(names)


def test_what_there_is_no_other_way_for_is_left_to_torch(everywhere):
    x = torch.randn(3, 8)
    layer = nn.Linear(8, 4)
    use_fast_products(layer)
    layer.double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"):
        layer(x.bfloat16())
    assert everywhere == []
    layer(x).sum().backward()
    assert everywhere == [(4, 8), (8, 3)]
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 8))
    everywhere.clear()
    layer.bfloat16()(x.bfloat16())
    assert everywhere == [(4, 8)]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_product_in_half_precision_is_rounded_once(dtype, everywhere):
    """The sum of 4096 and 300 ones is beyond what either type can add up one by one."""
    x = torch.ones(1, 301, dtype=dtype)
    x[0, 0] = 4096
    assert product(x, torch.ones(2, 301, dtype=dtype)).tolist() == [[torch.tensor(4396.0).to(dtype).item()] * 2]


def test_layers_that_hold_their_weights_the_other_way_are_multiplied_too(everywhere):
    layer = Conv1D(4, 8).requires_grad_(False)
    layer.bias.uniform_()
    x = torch.randn(3, 8, dtype=torch.float64)
    use_fast_products(layer)
    found = layer(x.float())
    torch.testing.assert_close(found.double(), x @ layer.weight.double() + layer.bias.double(), rtol=1e-5, atol=1e-5)
    assert everywhere == [(4, 8)] and isinstance(layer, Conv1D)


def test_small_products_are_left_to_torch(everywhere, monkeypatch):
    monkeypatch.setattr(products, "SMALLEST", 3 * 8 * 4)
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
    monkeypatch.setattr(products, "is_faster", lambda *_: False)
    everywhere.clear()
    expected = dict(score_suffixes(model, requests, prompts, 64))
    assert not everywhere
    for number, answers in expected.items():
        for (value, greedy), (other, other_greedy) in zip(found[number], answers, strict=True):
            assert value == pytest.approx(other, abs=1e-4)
            assert greedy == other_greedy


# -- which way is faster ----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of decisions, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (products.decisions, products.is_faster):
        function.cache_clear()
    yield tmp_path / "lm_eval_spt" / "products.json"
    for function in (products.decisions, products.is_faster):
        function.cache_clear()


@pytest.fixture
def machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine whose clock goes on by what a multiplication is said to take; the first of each size takes longer."""
    made = SimpleNamespace(now=0.0, calls=0, torch=lambda rows, width: 1.0, other=lambda rows, width: 1.0)

    def multiply(way: str) -> Callable[..., None]:
        started: set[tuple[torch.dtype, int, int]] = set()

        def work(x: torch.Tensor, weight: torch.Tensor, bias: None) -> None:
            size = (x.dtype, len(x), len(weight))
            made.now += getattr(made, way)(*size[1:]) + 100.0 * (size not in started)
            started.add(size)
            made.calls += 1

        return work

    monkeypatch.setattr(products, "process_time", lambda: made.now)
    monkeypatch.setattr(products, "linear", multiply("torch"))
    monkeypatch.setattr(products, "_other_way", multiply("other"))
    return made


def test_the_faster_way_is_used_for_the_sizes_in_which_it_is(machine: SimpleNamespace) -> None:
    machine.torch = lambda rows, width: 3.0 if rows > 8 and width > 512 else 1.0
    assert products.measure(torch.float32) == ((False,) * 3, (False,) * 3, (False, True, True), (False, True, True))
    expected = {(1, 2048**2): False, (40, 1024 * 4096): True, (5000, 250_000 * 1024): True, (64, 256**2): False}
    assert {size: products.is_faster(*size, 1, torch.float32) for size in expected} == expected


def test_what_is_nearly_equal_stays_with_pytorch(machine: SimpleNamespace) -> None:
    machine.torch = lambda rows, width: 1.05
    assert not any(map(any, products.measure(torch.float32)))


def test_it_is_measured_once_for_a_machine_a_number_of_threads_and_a_dtype(
    machine: SimpleNamespace, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.torch = lambda rows, width: 2.0
    first, calls = products.decisions(1, torch.float32), machine.calls
    assert all(map(all, first)) and calls > 0 and cache.is_file()
    machine.torch = lambda rows, width: 0.5
    products.decisions.cache_clear()  # as in a new process
    assert products.decisions(1, torch.float32) == first and machine.calls == calls
    assert not any(map(any, products.decisions(2, torch.float32))) and machine.calls == 2 * calls
    products.decisions.cache_clear()
    monkeypatch.setattr(products, "_processor", lambda: "another")
    assert not any(map(any, products.decisions(1, torch.float32))) and machine.calls == 3 * calls
    assert not any(map(any, products.decisions(1, torch.bfloat16))) and machine.calls == 4 * calls
    assert len(json.loads(cache.read_text())) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"%s": 1}', '{"%s": [[true]]}', '{"%s": [[1, 1, 1]]}'])
def test_a_file_that_is_none_is_made_anew(machine: SimpleNamespace, cache: Path, content: str) -> None:
    products.decisions(1, torch.float32)
    key = next(iter(json.loads(cache.read_text())))
    good = cache.read_text()
    cache.write_text(content.replace("%s", key))
    products.decisions.cache_clear()
    products.decisions(1, torch.float32)
    assert cache.read_text() == good


def test_without_a_place_to_keep_it_it_is_measured_by_each_process(
    machine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    machine.torch = lambda rows, width: 2.0
    assert all(map(all, products.decisions(1, torch.float32)))


def test_a_model_keeps_its_layers_where_no_other_way_is_faster(machine: SimpleNamespace) -> None:
    layer = nn.Linear(8, 4).requires_grad_(False)
    use_fast_products(layer)
    assert type(layer) is nn.Linear
    machine.torch = lambda rows, width: 2.0
    use_fast_products(layer.bfloat16())
    assert type(layer) is products.FastLinear


def test_what_is_on_another_device_is_not_measured(machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda"))
    layer = nn.Linear(8, 4)
    monkeypatch.setattr(layer, "parameters", lambda: [weight])
    use_fast_products(layer)
    assert machine.calls == 0


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_the_real_thing_takes_a_few_seconds_of_this_process(cache: Path, dtype: torch.dtype) -> None:
    started = time.process_time()
    found = products.decisions(torch.get_num_threads(), dtype)
    assert time.process_time() - started < 5 * torch.get_num_threads()  # other work slows a processor's threads down
    assert [len(row) for row in found] == [len(products.WIDTHS)] * len(products.ROWS)


@pytest.mark.parametrize("times_as_slow", [0.5, 1.0, 6.0])
def test_a_processor_without_a_unit_for_bfloat16_is_told_by_its_speed(
    times_as_slow: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(_: object, x: torch.Tensor, weight: torch.Tensor) -> float:
        assert x.dtype == weight.dtype
        return times_as_slow if x.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(products, "_seconds", seconds)
    products.is_slower_in_bfloat16.cache_clear()
    assert products.is_slower_in_bfloat16() == (times_as_slow == 6.0)
    products.is_slower_in_bfloat16.cache_clear()
    monkeypatch.undo()
    started = time.process_time()
    products.is_slower_in_bfloat16()
    assert time.process_time() - started < 1
