"""The arithmetic limit: work that can not be avoided, over the rate at which the machine multiplies matrices."""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel

from lm_eval_spt.inference.products import product

SECONDS = 2.0
"""How long matrices are multiplied."""


def matmul_rate(model: PreTrainedModel, tokens: int | None = None, cold: bool = False) -> float:
    """Return floating-point operations per second of this machine's matrix products in the model's own shapes.

    Every distinct weight shape of a transformer layer is multiplied with `tokens` positions, in the model's dtype and
    on its device, again and again for :data:`SECONDS`.

    Args:
        model: whose shapes.
        tokens: how many rows; default: 512, on a GPU 8,192.
        cold: use the weights of one layer after the other, as the model does, which no cache holds; else those of one.
    """
    tokens = tokens or (8192 if model.device.type == "cuda" else 512)
    weights = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and _in_layer(name)]
    if not cold:
        weights = list({weight.shape: weight for weight in weights}.values())
    inputs = {weight.shape[1]: torch.randn_like(weight[:1]).expand(tokens, -1).contiguous() for weight in weights}
    done, started = 0, None
    while started is None or time.perf_counter() - started < SECONDS:
        for weight in weights:
            product(inputs[weight.shape[1]], weight)
            done += 2 * tokens * weight.numel() if started is not None else 0
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        started = started or time.perf_counter()
    return done / (time.perf_counter() - started)


def _in_layer(name: str) -> bool:
    """Tell a layer's weight from embeddings and head, by the layer's number in its name."""
    return any(part.isdecimal() for part in name.split("."))


def body_parameters(model: PreTrainedModel) -> int:
    """Return the number of weights that every token is multiplied with: all matrices but embeddings and head."""
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and id(weight) not in outside and "position" not in name and "wpe" not in name
    )


def forward_work(model: PreTrainedModel, tokens: int, scored: int) -> float:
    """Return the operations of reading `tokens` tokens once and scoring `scored` positions; attention is left out."""
    return 2.0 * tokens * body_parameters(model) + 2.0 * scored * model.get_output_embeddings().weight.numel()
