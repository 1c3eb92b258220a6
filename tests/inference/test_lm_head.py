"""The vocabulary's normalizer piece by piece is torch's own, and so is its gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

from lm_eval_spt.inference import lm_head
from lm_eval_spt.inference.forward import ScoredStates, loglikelihoods, loglikelihoods_with_mean
from lm_eval_spt.inference.probe import _is_plain_product
from lm_eval_spt.inference.transformers_internals import head_weight, logits
from tests.helpers.models import as_fast, build_model


@given(
    rows=st.integers(0, 9), size=st.integers(1, 50), piece=st.integers(1, 60), scale=st.sampled_from([1e-3, 1.0, 1e3])
)
def test_normalizers_and_gradients_are_those_of_the_whole(rows: int, size: int, piece: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(rows + 10 * size)
    hidden = torch.randn(rows, 5, generator=generator, dtype=torch.float64).mul_(scale).requires_grad_()
    weight = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    of_rows = torch.randn(rows, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_head, "PIECE", piece)
        patch.setattr(lm_head, "ROWS", 4)
        found, best = lm_head.logsumexp(hidden, weight)
    (gradient,) = torch.autograd.grad(found @ of_rows, hidden)
    whole = hidden @ weight.T
    expected = whole.logsumexp(dim=1)
    (of_whole,) = torch.autograd.grad(expected @ of_rows, hidden)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, of_whole, rtol=1e-9, atol=1e-9)
    assert torch.equal(whole[torch.arange(rows), best], whole.amax(dim=1) if rows else whole.new_zeros(0))


def test_of_equal_logits_the_first_is_the_largest_as_for_argmax() -> None:
    hidden, weight = torch.ones(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]).repeat(3000, 1)
    assert lm_head.logsumexp(hidden, weight)[1].tolist() == [1]


@torch.no_grad()
def test_plain_heads_are_found(tiny_model: PreTrainedModel) -> None:
    assert _is_plain_product(tiny_model)


def test_what_is_more_than_a_product_is_left_to_the_model() -> None:
    """A cap on the logits, a bias, a scale, a head that learns: each would be missed."""
    capped = build_model("gpt2").requires_grad_(False)

    def with_cap(forward: Callable[..., Any], *args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output

    capped.forward = partial(with_cap, capped.forward)  # type: ignore[method-assign]
    assert not _is_plain_product(capped)

    zero_row = build_model("gpt2").requires_grad_(False)
    zero_row.get_output_embeddings().weight.data[:8] = 0  # type: ignore[union-attr, operator]
    zero_row.forward = partial(with_cap, zero_row.forward)  # type: ignore[method-assign]
    assert not _is_plain_product(zero_row)

    biased = build_model("gpt2").requires_grad_(False)
    head = biased.get_output_embeddings()
    biased.set_output_embeddings(nn.Linear(head.in_features, head.out_features).requires_grad_(False))  # type: ignore[arg-type]
    assert not _is_plain_product(biased)

    assert head_weight(build_model("gpt2").requires_grad_(True)) is None


@pytest.mark.parametrize("family", ["bloom", "gemma3_text"])
def test_both_ways_through_the_head_agree(family: str) -> None:
    model = as_fast(build_model(family).requires_grad_(False), plain_head=True)
    vocabulary_size, width = model.get_output_embeddings().weight.shape  # type: ignore[union-attr]
    hidden = torch.randn(6, width, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 3, 0], [0, 4, 1], [5, vocabulary_size - 1, 1], [2, 9, 2]])
    states = ScoredStates(hidden, targets, 4)
    sums, greedy = loglikelihoods(model, states)
    plain, of_plain, _ = loglikelihoods_with_mean(model, states, mean=True)  # needs the logits
    logprobs = logits(model, hidden).log_softmax(dim=-1)
    by_hand = torch.stack([logprobs[0, 3], logprobs[0, 4] + logprobs[5, -1], logprobs[2, 9], torch.tensor(0.0)])
    torch.testing.assert_close(sums, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums, by_hand, rtol=1e-5, atol=1e-5)
    assert torch.equal(greedy, of_plain)


@pytest.mark.parametrize("likely", [False, True])
@pytest.mark.parametrize(("scale", "share"), [(0.2, 0.2), (0.5, 0.7), (1.0, 0.7), (3.0, 0.7)])
def test_bfloat16_is_closer_to_float32_than_rounded_logits_are(scale: float, share: float, likely: bool) -> None:
    """Values and gradients of the same weights: against float32, and against the plain way with its rounded logits.

    Also where one logit decides, which is the scored one or another.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 48, generator=generator).mul_(scale).bfloat16()
    weight = torch.randn(9000, 48, generator=generator).bfloat16()
    tokens = torch.randint(9000, (64,), generator=generator)
    if likely:
        tokens = (hidden.float() @ weight.float().T).argmax(dim=1)
    exact_hidden = hidden.double().requires_grad_()
    exact_logits = exact_hidden @ weight.double().T
    exact = exact_logits.log_softmax(dim=1)[torch.arange(64), tokens]
    (of_exact,) = torch.autograd.grad(exact.sum(), exact_hidden)

    model = as_fast(build_model("gpt2").bfloat16(), plain_head=True)
    head = nn.Linear(48, 9000, bias=False)
    head.weight = nn.Parameter(weight, requires_grad=False)
    model.set_output_embeddings(head)
    states = ScoredStates(
        hidden.requires_grad_(), torch.stack([torch.arange(64), tokens, torch.arange(64)], dim=1), continuations=64
    )
    found, greedy = loglikelihoods(model, states)
    (of_found,) = torch.autograd.grad(found.sum(), hidden)
    rounded = logits(model, hidden).float().log_softmax(dim=1)[torch.arange(64), tokens]
    (of_rounded,) = torch.autograd.grad(rounded.sum(), hidden)

    assert found.dtype == torch.float32
    error, plain_error = ((values - exact).abs().mean() for values in (found, rounded))
    assert error < share * plain_error
    assert (of_found - of_exact).norm() < 1.1 * (of_rounded - of_exact).norm()
    assert torch.equal(greedy, logits(model, hidden).argmax(dim=1) == tokens)
