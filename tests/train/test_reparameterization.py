"""Reparameterizations against plain restatements of their maths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lm_eval_spt.prompt.soft_prompt import SoftPrompt
from lm_eval_spt.train.reparameterization import HIDDEN_SIZES, KINDS, XPE_DROPOUT, SeededDropout, reparameterize
from tests.helpers.training import accuracy, run


def initial(length: int = 6, width: int = 8) -> Tensor:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(3))


def restated(kind: str, raw: Tensor, weights: list[Tensor], encoded: int) -> Tensor:
    """The prompt in matrix products: rows of `raw` through the layers whose weights and biases these are."""
    free, x = raw[: len(raw) - encoded], raw[len(raw) - encoded :]
    if kind in ("mlp", "residual"):
        w1, b1, w2, b2, gain, shift = weights
        y = (x @ w1.T + b1).clamp(min=0) @ w2.T + b2
        centred = y - y.mean(dim=1, keepdim=True)
        y = gain * centred / (centred.pow(2).mean(dim=1, keepdim=True) + 1e-5).sqrt() + shift
    else:
        w1, b1, w2, b2, w3, b3 = weights
        y = ((x @ w1.T + b1).clamp(min=0) @ w2.T + b2).clamp(min=0) @ w3.T + b3
    return torch.cat([free, x + y if kind == "residual" else y])


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([kind for kind in KINDS if kind != "none"]),
    length=st.integers(2, 12),
    width=st.integers(2, 9),
    hidden=st.integers(1, 7),
    share=st.floats(0.01, 0.99),
)
def test_the_prompt_and_its_gradients_are_those_of_the_formulas(kind, length, width, hidden, share):
    module = reparameterize(initial(length, width), kind, hidden_size=hidden, share=share).eval()
    encoded = length if kind != "dual" else min(max(int(length * share), 1), length - 1)
    weights = [weight.detach().clone().requires_grad_() for weight in module.network.parameters()]
    raw = initial(length, width).requires_grad_()

    made, expected = module(), restated(kind, raw, weights, encoded)
    assert torch.allclose(made, expected, atol=1e-5)
    goal = initial(length, width).flip(0)
    (made - goal).pow(2).sum().backward()
    (expected - goal).pow(2).sum().backward()
    assert torch.allclose(module.raw.grad, raw.grad, rtol=1e-3, atol=1e-4)
    for weight, plain in zip(module.network.parameters(), weights, strict=True):
        assert torch.allclose(weight.grad, plain.grad, rtol=1e-3, atol=1e-4)


def test_without_one_the_raw_vectors_are_the_prompt():
    start = initial()
    module = reparameterize(start, "none")
    assert torch.equal(module(), start) and sum(weight.numel() for weight in module.parameters()) == start.numel()
    with torch.no_grad():
        module.raw += 1
    assert torch.equal(start, initial()), "the caller's vectors are its own"


def test_the_sizes_are_the_published_ones():
    """mlp on XGLM-564M's width, as the paper counts it; XPE's three linear layers of 256."""
    width = 1024
    mlp = reparameterize(initial(10, width), "mlp")
    assert HIDDEN_SIZES["mlp"] == 200
    assert sum(weight.numel() for weight in mlp.network.parameters()) == 2 * width * 200 + 200 + width + 2 * width
    xpe = reparameterize(initial(20, width), "xpe")
    expected = 2 * width * 256 + 256 + 256 * 256 + 256 + width
    assert sum(weight.numel() for weight in xpe.network.parameters()) == expected


def test_dual_encodes_thirty_percent_that_stand_last_and_one_at_least():
    start = initial(20)
    made = reparameterize(start, "dual").eval()()
    assert torch.equal(made[:14], start[:14]) and not (made[14:] == start[14:]).all(dim=1).any()
    start = initial(2)
    assert torch.equal(reparameterize(start, "dual").eval()()[:1], start[:1])
    with pytest.raises(ValueError, match="at least two vectors"):
        reparameterize(initial(1), "dual")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_the_seed_decides_and_the_global_random_state_stays(kind):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (reparameterize(initial(), kind, seed=seed) for seed in (0, 0, 1))
    made = [module().detach() for module in (first, again, other)]  # in training mode, dropout included
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_the_network_has_a_learning_rate_of_its_own():
    module = reparameterize(initial(), "mlp")
    optimizer = torch.optim.SGD(module.parameter_groups(lr=0.0, network_lr=1.0))
    before = module.raw.detach().clone(), module.network[0].weight.detach().clone()
    module().sum().backward()
    module.network[0].weight.grad += 1
    optimizer.step()
    assert torch.equal(module.raw, before[0])
    assert not torch.equal(module.network[0].weight, before[1])
    assert len(reparameterize(initial(), "none").parameter_groups(0.1, 0.2)) == 1


def test_dropout_zeroes_its_share_keeps_the_mean_and_goes_on_from_its_state():
    dropout = SeededDropout(0.25, seed=5)
    ones = torch.ones(100, 100)
    masks = [dropout.train()(ones) for _ in range(3)]
    assert torch.equal(dropout(ones), masks[2]), "a step has one mask"
    for mask in masks:
        assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
        assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(masks[0], masks[1])

    stopped = SeededDropout(0.25, seed=5).train().train().eval()
    later = SeededDropout(0.25, seed=5)
    later.load_state_dict(stopped.state_dict())
    torch.rand(11)
    assert torch.equal(later.train()(ones), masks[2])
    assert torch.equal(dropout.eval()(ones), ones)


def test_only_xpe_drops_out_and_only_while_it_trains():
    for kind in KINDS:
        module = reparameterize(initial(20, 64), kind)
        same = torch.equal(module.train()(), module.train()())
        assert same == (kind not in ("xpe", "dual"))
        assert torch.equal(module.eval()(), module())
    assert XPE_DROPOUT == 0.1


@pytest.mark.parametrize("kind", ["mlp", "residual", "xpe", "dual"])
def test_a_network_is_folded_into_plain_vectors_that_score_as_validation_said(tmp_path, kind):
    output = tmp_path / "p.safetensors"
    prompt, rows = run(output, reparameterization=kind, reparameterization_lr=2e-3, epochs=4)
    assert rows[-1]["training"]["loss"] < rows[1]["training"]["loss"]
    again = SoftPrompt.load(output)
    assert again.vectors.shape == (4, 256) and again.digest == prompt.digest
    record = again.metadata
    assert record["tuned_parameters"] > 4 * 256  # the network is counted: it was tuned
    assert record["hyperparameters"]["reparameterization"] == kind
    assert record["hyperparameters"]["reparameterization_lr"] == 2e-3
    assert accuracy(prompt=str(output)) == pytest.approx(record["validation"]["accuracy"])


def test_the_same_seed_gives_the_same_vectors_with_dropout_too(tmp_path):
    digests = [run(tmp_path / f"{n}.safetensors", reparameterization="xpe", epochs=1)[0].digest for n in range(2)]
    torch.manual_seed(99)
    other = run(tmp_path / "other.safetensors", reparameterization="xpe", epochs=1, seed=1)[0].digest
    assert digests[0] == digests[1] != other


def test_dropout_does_not_depend_on_the_parts_in_which_a_batch_is_read(tmp_path):
    # Small steps: Adam makes large ones of rounding where a gradient is next to nothing.
    settings = dict(reparameterization="xpe", epochs=1, lr=1e-4)
    whole = run(tmp_path / "a.safetensors", **settings)[1]
    parts = run(tmp_path / "b.safetensors", gradient_accumulation_steps=3, **settings)[1]
    assert parts[1]["training"]["steps"] == pytest.approx(whole[1]["training"]["steps"], rel=1e-4)
