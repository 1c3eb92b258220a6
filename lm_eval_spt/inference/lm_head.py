"""The vocabulary head and its softmax in one pass over the head's weights, for processors.

A multilingual model's head has hundreds of thousands of rows. Piece by piece its logits stay in the processor's cache:
none are kept, and a gradient needs no second pass, because each piece adds to it what it contributes while its weights
are at hand. Pieces are put together as in the online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867). Sums are
in float32 at least, whatever the logits are in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm_eval_spt.inference.products import product

# Rows of the head's weights in a piece: 8 MB in bfloat16 at d = 1024. With fewer, a step of a few rows waits for calls.
PIECE = 4096
# Hidden states at once: the logits of more of them and a piece would not stay in the processor's cache.
ROWS = 512


def scored_logits(hidden: Tensor, weight: Tensor, nodes: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what log-probabilities of tokens are made of, and which token is likeliest.

    In half precision the logits that are summed up are rounded to a few digits. Errors cancel in a sum, but not where
    one logit decides it. So the likeliest token's and the scored token's are computed again, in float32.

    Args:
        hidden: `[rows, d]`; gradients flow back to it.
        weight: `[vocabulary, d]`, frozen.
        nodes, tokens: `[targets]`: at which row which token is scored.

    Returns:
        The scored tokens' logits and their rows' normalizers, both `[targets]`, and the likeliest tokens `[rows]`.
    """
    normalizers, best = logsumexp(hidden, weight)
    exact = normalizers.dtype

    def computed(rows: Tensor, chosen: Tensor) -> Tensor:
        return (rows.to(exact) * weight[chosen].to(exact)).sum(dim=-1)

    def corrected(normalizers: Tensor, logits: Tensor) -> Tensor:
        rounded = logits.to(hidden.dtype).to(exact)
        return normalizers + torch.log1p((logits - normalizers).exp() - (rounded - normalizers).exp())

    scored = computed(hidden[nodes], tokens)
    if hidden.dtype == exact:
        return scored, normalizers[nodes], best
    of_nodes = corrected(normalizers, computed(hidden, best))[nodes]
    return scored, torch.where(best[nodes] == tokens, of_nodes, corrected(of_nodes, scored)), best


def logsumexp(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's log of the summed exponentials of its logits, and which logit is largest, both `[rows]`.

    Args:
        hidden: `[rows, d]`; gradients flow back to it.
        weight: `[vocabulary, d]`, frozen.
    """
    normalizers, best = zip(*(_LogSumExp.apply(rows, weight) for rows in hidden.split(ROWS)), strict=True)
    return torch.cat(normalizers), torch.cat(best)


class _LogSumExp(torch.autograd.Function):
    """The gradient of a normalizer is the mean of the head's rows under the softmax: summed up on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        normalizer = hidden.new_full((len(hidden),), -torch.inf, dtype=exact)
        largest = normalizer.clone()
        best = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        gradient = torch.zeros_like(hidden, dtype=exact) if ctx.needs_input_grad[0] else None
        for start in range(0, len(weight), PIECE):
            piece = weight[start : start + PIECE]
            logits = product(hidden, piece).to(exact)
            here = logits.amax(dim=1)
            better = (here > largest).nonzero().squeeze(1)  # fewer with each piece: finding an index is slow
            best[better] = logits[better].max(dim=1).indices + start
            largest = torch.maximum(largest, here)
            shares = logits.softmax(dim=1)  # several times as fast as `exp` on some processors
            of_piece = here - shares.amax(dim=1).log_()
            before, normalizer = normalizer, torch.logaddexp(normalizer, of_piece)
            if gradient is not None:
                shares.mul_((of_piece - normalizer).exp_()[:, None])
                gradient.mul_((before - normalizer).exp_()[:, None]).add_(product(shares.to(piece.dtype), piece.T))
        ctx.mark_non_differentiable(best)
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.dtype = hidden.dtype
        return normalizer, best

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return (of_outputs[0][:, None] * gradient).to(ctx.dtype), None
