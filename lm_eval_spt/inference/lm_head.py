"""The vocabulary head and its softmax in one pass over the head's weights, for processors.

A multilingual model's head has hundreds of thousands of rows. Piece by piece its logits stay in the processor's cache:
none are kept, and a gradient needs no second pass, because each piece adds to it what it contributes while its weights
are at hand. Sums are rescaled when a larger logit turns up (online softmax, Milakov and Gimelshein 2018,
arXiv 1805.02867).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm_eval_spt.inference.onednn import product

# Rows of the head's weights in a piece: 8 MB in float32 at d = 1024.
PIECE = 2048


def logsumexp(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's log of the summed exponentials of its logits, and which logit is largest, both `[rows]`.

    Args:
        hidden: `[rows, d]`; gradients flow back to it.
        weight: `[vocabulary, d]`, frozen.
    """
    found: tuple[Tensor, Tensor] = _LogSumExp.apply(hidden, weight)
    return found


class _LogSumExp(torch.autograd.Function):
    """The gradient of a normalizer is the mean of the head's rows under the softmax: summed up on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        largest = hidden.new_full((len(hidden),), -torch.inf)
        best = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        total = torch.zeros_like(largest)
        gradient = torch.zeros_like(hidden) if wanted else None
        for start in range(0, len(weight), PIECE):
            piece = weight[start : start + PIECE]
            logits = product(hidden, piece)
            here, which = logits.max(dim=1)
            best = torch.where(here > largest, which + start, best)
            before, largest = largest, torch.maximum(largest, here)
            shrink = (before - largest).exp_()
            weights = logits.sub_(largest[:, None]).exp_()
            total.mul_(shrink).add_(weights.sum(dim=1))
            if gradient is not None:
                gradient.mul_(shrink[:, None]).add_(product(weights, piece.T))
        ctx.mark_non_differentiable(best)
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(total[:, None]))
        return largest + total.log(), best

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return of_outputs[0][:, None] * gradient, None
