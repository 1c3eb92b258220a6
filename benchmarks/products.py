"""What the way of multiplying matrices does to a whole model: PyTorch's own products, and the faster ones of a machine.

    python -m benchmarks.products --dtype bfloat16

A model of Gemma 3 270M's shape reads some texts, and takes a step's gradients with its weights frozen and with its
weights learned, in the two ways by turns. Errors are of what comes out, relative to that of the same model in float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import machine, models
from lm_eval_spt.inference import products

TOKENS = 32
"""Of a text, as many as SIB-200's have."""


@contextmanager
def pytorchs_own() -> Iterator[None]:
    """Within this context no other way of multiplying is taken."""
    chosen, products.is_faster = products.is_faster, lambda *_: False  # type: ignore[assignment]
    try:
        yield
    finally:
        products.is_faster = chosen


def forward(model: PreTrainedModel, embeddings: Tensor) -> Tensor:
    """Return the last position's logits, `[texts, vocabulary]`."""
    with torch.inference_mode():
        return model(inputs_embeds=embeddings, logits_to_keep=1).logits[:, -1].float()


def gradients(model: PreTrainedModel, embeddings: Tensor) -> Tensor:
    """Return the gradients of the embeddings, and of one layer's weights if they are learned, in one piece."""
    embeddings = embeddings.clone().requires_grad_()
    model.zero_grad()
    model(inputs_embeds=embeddings, logits_to_keep=1).logits.float().logsumexp(-1).sum().backward()
    layer = [weight.grad for name, weight in model.named_parameters() if ".0." in name and weight.grad is not None]
    return torch.cat([gradient.flatten().float() for gradient in (embeddings.grad, *layer) if gradient is not None])


def seconds(
    work: Callable[[PreTrainedModel, Tensor], Tensor], model: PreTrainedModel, embeddings: Tensor
) -> tuple[float, Tensor]:
    """Return the processor time that some work took, and what came of it."""
    started = time.process_time()
    found = work(model, embeddings)
    return time.process_time() - started, found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=models.SHAPES, default="gemma-3-270m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    model = models.build(options.shape, getattr(torch, options.dtype))
    exact = deepcopy(model).float()
    products.use_fast_products(model)
    embeddings = torch.randn(options.texts, TOKENS, model.config.hidden_size).to(model.dtype)
    print(f"{machine.name()}, {options.shape}, {options.dtype}, {options.texts} texts of {TOKENS} tokens")
    print("| | PyTorch's own, s | here, s | | error, PyTorch's own | error, here |\n|---|---:|---:|---:|---:|---:|")
    works: dict[str, tuple[bool, Callable[[PreTrainedModel, Tensor], Tensor]]] = {
        "reading": (False, forward),
        "reading, and a prompt's gradients": (False, gradients),
        "reading, and all weights' gradients": (True, gradients),
    }
    for name, (learned, work) in works.items():
        for either in (model, exact):
            either.requires_grad_(learned)
            either.get_input_embeddings().requires_grad_(False)  # the head's, too, where they are the same
        own, here = [], []
        for _ in range(options.turns):
            with pytorchs_own():
                own.append(seconds(work, model, embeddings))
            here.append(seconds(work, model, embeddings))
        expected = work(exact, embeddings.float())
        (slow, theirs), (fast, ours) = (min(times, key=lambda pair: pair[0]) for times in (own, here))
        error_own, error = [float((found - expected).norm() / expected.norm()) for found in (theirs, ours)]
        print(f"| {name} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f}x | {error_own:.3f} | {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
